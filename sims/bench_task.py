"""What the benchmarks of whole rounds work on: MLP 784-128-10, generated data, full batches."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from fedef.config import Config
from fedef.experiment import Experiment
from fedef.problems.torch_problem import TorchProblem

NUM_CLIENTS, ROWS = 100, 60
CONFIG = Config.from_flat(
    {"method": "norm-ef21", "k-fraction": 0.01, "num-clients": NUM_CLIENTS, "eval-every": 0}
)


def mlp() -> nn.Module:
    """The network, d = 101,770."""
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


@lru_cache(maxsize=1)
def client_data() -> list[tuple[Tensor, Tensor]]:
    """(inputs, classes) of each client, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(ROWS, 784, generator=generator),
            torch.randint(10, (ROWS,), generator=generator),
        )
        for _ in range(NUM_CLIENTS)
    ]


def build(_: Config) -> Experiment:
    """The experiment of `CONFIG`, whatever an engine was told."""
    problem = TorchProblem(
        "generated-mlp",
        module=mlp,
        loss=nn.functional.cross_entropy,
        clients=client_data(),
        seed=0,
    )
    return Experiment.of(CONFIG, problem)
