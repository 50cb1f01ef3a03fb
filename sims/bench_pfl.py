"""A contender on pfl, Apple's simulator (``pip install pfl==0.6.0``): its plain FedAvg."""

from __future__ import annotations

from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from sims.bench_rounds import Turn
from sims.bench_task import NUM_CLIENTS, client_data, mlp

LEARNING_RATE = 0.1


class _Model(nn.Module):
    """The network with the two functions that pfl asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.network = mlp()

    def loss(self, inputs: Tensor, targets: Tensor, eval: bool = False) -> Tensor:  # noqa: A002 - pfl's name
        self.train(not eval)
        return nn.functional.cross_entropy(self.network(inputs), targets)

    @torch.no_grad()
    def metrics(self, inputs: Tensor, targets: Tensor, eval: bool = True) -> dict[str, Any]:  # noqa: A002 - pfl's name
        loss = self.loss(inputs, targets, eval=eval).item() * len(targets)
        return {"loss": Weighted(loss, len(targets))}


def fedavg(turn: Turn) -> None:
    """One full-batch gradient step of every user in a round, no evaluation."""

    class Turns(TrainingProcessCallback):  # type: ignore[misc]  # pfl is not typed here
        def on_train_begin(self, *, model: Any) -> Metrics:
            turn.wait()
            return Metrics()

        def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Metrics]:
            turn.done()
            turn.wait()
            return False, Metrics()

    model = _Model()
    data = client_data()
    users = FederatedDataset(
        lambda user: Dataset(data[user]), get_user_sampler("minimize_reuse", list(range(len(data))))
    )
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=10**9,
            evaluation_frequency=10**9,
            train_cohort_size=NUM_CLIENTS,
            val_cohort_size=None,
        ),
        SimulatedBackend(training_data=users, val_data=users),
        PyTorchModel(
            model,
            local_optimizer_create=torch.optim.SGD,
            central_optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        ),
        NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=LEARNING_RATE, local_batch_size=None
        ),
        NNEvalHyperParams(local_batch_size=None),
        [Turns()],
        send_metrics_to_platform=False,
    )
