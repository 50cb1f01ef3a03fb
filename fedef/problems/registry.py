"""From a configuration to its problem: one row per name."""

from __future__ import annotations

from importlib import import_module

from fedef.config import Config
from fedef.errors import ConfigError
from fedef.problems.base import Problem
from fedef.threads import limit_what_was_loaded

_WITH_TORCH = {
    "digits-softmax": "digits",
    "digits-mlp": "digits",
    "image-softmax": "images",
    "image-mlp": "images",
    "image-cnn": "images",
    "resnet20": "images",
    "resnet20-gn": "images",
    "resnet18": "images",
    "char-gru": "characters",
    "char-lstm": "characters",
}
_MODULES = {
    "polynomial": "polynomial",
    "logistic": "logistic",
    "phase-retrieval": "phase_retrieval",
    "dro": "dro",
    **_WITH_TORCH,
}
"""Module of each problem, imported when it is asked for: a device starts a process for each
message, and torch or SciPy take most of a second."""


def build_problem(config: Config) -> Problem:
    """The problem that `config` describes; the same bits for the same configuration.

    Raises
    ------
    ConfigError
        If a file is missing or unusable, or the data cannot be dealt to num-clients clients.
    """
    if config.device != "cpu" and config.problem not in _WITH_TORCH:
        raise ConfigError(
            f"device: problem={config.problem} is NumPy's and runs on the CPU, got "
            f"{config.device!r}; set device=cpu"
        )
    module = import_module(f"fedef.problems.{_MODULES[config.problem]}")
    limit_what_was_loaded()
    problem: Problem = module.build(config)
    limit_what_was_loaded()  # again: readers of data import their libraries, too
    return problem
