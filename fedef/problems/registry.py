"""From a configuration to its problem: one row per name."""

from __future__ import annotations

from collections.abc import Callable

from fedef.config import Config
from fedef.errors import ConfigError
from fedef.problems import dro, logistic, phase_retrieval, polynomial
from fedef.problems.base import Problem


def build_problem(config: Config) -> Problem:
    """The problem that `config` describes; the same bits for the same configuration.

    Raises
    ------
    ConfigError
        If a file is missing or unusable, or the data cannot be dealt to num-clients clients.
    """
    builder = _BUILDERS[config.problem]
    if config.device != "cpu" and builder not in (_digits, _images, _characters):
        raise ConfigError(
            f"device: problem={config.problem} is NumPy's and runs on the CPU, got "
            f"{config.device!r}; set device=cpu"
        )
    return builder(config)


def _digits(config: Config) -> Problem:
    # Imported here: torch takes a second, and the analytic problems do without it.
    from fedef.problems import digits

    return digits.build(config)


def _images(config: Config) -> Problem:
    from fedef.problems import images

    return images.build(config)


def _characters(config: Config) -> Problem:
    from fedef.problems import characters

    return characters.build(config)


_BUILDERS: dict[str, Callable[[Config], Problem]] = {
    "polynomial": polynomial.build,
    "logistic": logistic.build,
    "phase-retrieval": phase_retrieval.build,
    "dro": dro.build,
    "digits-softmax": _digits,
    "digits-mlp": _digits,
    "image-softmax": _images,
    "image-mlp": _images,
    "image-cnn": _images,
    "resnet20": _images,
    "resnet20-gn": _images,
    "resnet18": _images,
    "char-gru": _characters,
    "char-lstm": _characters,
}
