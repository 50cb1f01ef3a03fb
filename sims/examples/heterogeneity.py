"""FedAvg and ||EF21-SGDM|| over heterogeneous clients.

``python -m sims.examples.heterogeneity``. Both take as many gradients; the step of each is tuned on
seeds of their own.
"""

from __future__ import annotations

import pandas as pd

from sims import sweep
from sims.statistics import paired_differences, summarize


def main(
    *,
    seeds: int = 5,
    rounds: int = 100,
    out: str = "runs/heterogeneity",
    workers: int | None = None,
) -> pd.DataFrame:
    """Print test accuracies over alpha, and their paired differences; return the differences."""
    results = sweep(
        {
            "seeds": seeds,
            "tune": {"step-size": [0.1, 0.3, 1.0, 3.0]},
            "tune-seeds": 1,
            "tune-per": ["method"],
            "base": {"problem": "digits-mlp", "local-batch-size": 32, "eval-every": 0},
            "axes": {
                "dirichlet-alpha": [0.05, 0.5, 100.0],
                "method": {
                    "||EF21-SGDM||": {"method": "norm-ef21-sgdm", "num-rounds": 5 * rounds},
                    "FedAvg": {"method": "fedavg", "local-steps": 5, "num-rounds": rounds},
                },
            },
        },
        out=out,
        workers=workers,
    )
    means = summarize(results, ["dirichlet-alpha", "method"], "test-accuracy")
    differences = paired_differences(results, "method", within=["dirichlet-alpha"])
    print("Test accuracy, mean and 95 % t interval", means.to_string(), sep="\n")
    print("Paired differences, Holm-corrected", differences.to_string(), sep="\n")
    return differences


if __name__ == "__main__":
    main()
