"""The run that tests of the Ray engine share."""

SETTINGS = {
    "problem": "logistic",
    "data": "synthetic",
    "num-clients": 5,
    "partitioner": "iid",
    "method": "norm-ef21-sgdm",
    "local-batch-size": 4,
    "participation": 0.6,
    "k": 2,
    "num-rounds": 10,
}
