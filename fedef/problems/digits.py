"""scikit-learn's digits: softmax regression and a small network."""

from __future__ import annotations

import torch
from torch import nn

from fedef.config import Config
from fedef.datasets import digits
from fedef.partitions import partition_for
from fedef.problems.files import read_initial_point, refuse_instance
from fedef.problems.torch_examples import examples_of
from fedef.problems.torch_problem import TorchProblem

MODULES = {
    "digits-softmax": lambda: nn.Linear(64, 10),
    "digits-mlp": lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
}
"""digits-softmax: d = 650. digits-mlp: one hidden layer of 64, d = 4810."""


def build(config: Config) -> TorchProblem:
    """Mean cross-entropy on the client's digits; one fifth of the set is the test.

    Raises
    ------
    ConfigError
        If an instance file is given, or the digits cannot be dealt to num-clients clients.
    """
    refuse_instance(config)
    data = digits(config.seed)
    parts = partition_for(config, data.train_labels)
    return TorchProblem(
        config.problem,
        module=MODULES[config.problem],
        loss=nn.functional.cross_entropy,
        clients=examples_of(data.train_images, data.train_labels, parts),
        test=(torch.from_numpy(data.test_images), torch.from_numpy(data.test_labels)),
        seed=config.seed,
        batched=config.batched,
        x0=None if config.initial_point is None else read_initial_point(config.initial_point),
        device=config.device,
    )
