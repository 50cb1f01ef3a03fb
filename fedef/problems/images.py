"""Images or vectors with classes, and networks for them: softmax, perceptron, CNN, residual."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fedef import torch_models
from fedef.class_data import ClassData
from fedef.config import Config
from fedef.errors import ConfigError
from fedef.hf_data import Columns
from fedef.image_data import HUGGING_FACE, IMAGE_SETS, image_data
from fedef.partitions import partition_for
from fedef.problems.files import read_initial_point, refuse_instance
from fedef.problems.torch_examples import examples_of
from fedef.problems.torch_problem import TorchProblem
from fedef.randomness import stream
from fedef.shared_rows import sizes_of
from fedef.vectors import IntVector

LARGEST_BATCH = 1000
"""Rows of a training pass with batch norm: 1.8 GB for ResNet-20, about 5.5 GB for ResNet-18."""

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Network:
    """A network and what it costs."""

    make: Callable[[torch_models.Shape, int], nn.Module]
    """Of an example's shape and the number of classes."""
    rows_at_once: int
    """Rows of a pass that can be split; part of the bits, since it orders a sum."""
    batch_norm: bool = False
    """Whether a training pass cannot be split."""


_residual = partial(Network, rows_at_once=250)

NETWORKS = {
    "image-softmax": Network(torch_models.softmax, 1000),
    "image-mlp": Network(torch_models.mlp, 1000),
    "image-cnn": Network(torch_models.cnn, 1000),
    "resnet20": _residual(torch_models.resnet20, batch_norm=True),
    "resnet20-gn": _residual(partial(torch_models.resnet20, norm=torch_models.group_norm)),
    "resnet18": _residual(torch_models.resnet18, batch_norm=True),
}
"""By the problem's name. A pass of `rows_at_once` rows takes less than 1.5 GB."""


def build(config: Config) -> TorchProblem:
    """Mean cross-entropy on the client's images, pixels in [0, 1]; accuracy on the set's test part.

    No augmentation. Bytes stay bytes in memory and become numbers as they enter the network; other
    numbers enter it as they are. softmax and mlp take vectors as well.

    Raises
    ------
    ConfigError
        If the data do not fit the problem, are missing or unusable or cannot be dealt to
        num-clients clients, or a client would take too many rows at once through batch norm.
    """
    _check_keys(config)
    data = image_data(
        config.data,
        data_dir=config.data_dir,
        seed=config.seed,
        train_examples=config.train_examples,
        test_examples=config.test_examples,
        columns=Columns(
            feature=config.feature_column,
            label=config.label_column,
            client=config.client_column,
            train=config.train_split,
            test=config.test_split or "",
            subset=config.data_subset,
        ),
    )
    if config.normalize and (data.shape[0] != 3 or data.train_images.dtype != np.uint8):
        raise ConfigError(
            f"normalize: ImageNet's mean and deviation are those of colour bytes, data="
            f"{config.data} is {'grey' if data.shape[0] == 1 else 'something else'}; set "
            "normalize=false"
        )
    parts = partition_for(config, data.train_labels, data.owners)
    sizes = sizes_of(parts)
    network = NETWORKS[config.problem]
    if network.batch_norm:
        _check_batches(config, max(sizes))
    return TorchProblem(
        config.problem,
        module=partial(_module, config, data),
        loss=nn.functional.cross_entropy,
        clients=examples_of(data.train_images, data.train_labels, parts),
        test=(torch.tensor(data.test_images), torch.tensor(data.test_labels))
        if len(data.test_labels)
        else None,
        seed=config.seed,
        batched=config.batched,
        x0=None if config.initial_point is None else read_initial_point(config.initial_point),
        device=config.device,
        rows_at_once=network.rows_at_once,
        largest_batch=LARGEST_BATCH,
        evaluated=evaluation_rows(sizes, config.eval_examples, seed=config.seed),
    )


def evaluation_rows(sizes: Sequence[int], total: int, *, seed: int) -> list[IntVector] | None:
    """Rows of each client that stand for all: the same share of each, at least one, drawn once.

    Parameters
    ----------
    sizes
        Rows of each client.
    total
        Rows of all clients together, up to rounding up; 0 or no fewer than there are: None.
    seed
        The run's seed.
    """
    available = sum(sizes)
    if total == 0 or total >= available:
        return None
    return [
        stream(seed, "evaluation", client).permutation(size)[: -(-total * size // available)]
        for client, size in enumerate(sizes)
    ]


def _module(config: Config, data: ClassData) -> nn.Module:
    """The network, which takes bytes where the data are; its parameters keep their own names."""
    module = NETWORKS[config.problem].make(data.shape, data.num_classes)
    if data.train_images.dtype == np.uint8:
        module.register_forward_pre_hook(_normalized if config.normalize else _scaled)
    return module


def _scaled(module: nn.Module, arguments: tuple[Tensor, ...]) -> Tensor:
    return arguments[0].float().div_(255)


def _normalized(module: nn.Module, arguments: tuple[Tensor, ...]) -> Tensor:
    mean, deviation = (
        torch.tensor(numbers, device=arguments[0].device).view(3, 1, 1)
        for numbers in (_IMAGENET_MEAN, _IMAGENET_DEVIATION)
    )
    return _scaled(module, arguments).sub_(mean).div_(deviation)


def _check_keys(config: Config) -> None:
    refuse_instance(config)
    own = config.data.startswith(HUGGING_FACE) or config.data.endswith(".npz")
    if config.data not in IMAGE_SETS and not own:
        raise ConfigError(
            f"data: problem={config.problem} needs images, got {config.data!r}; set data= to one "
            f"of {', '.join(IMAGE_SETS)}, to an npz file or to {HUGGING_FACE}NAME"
        )


def _check_batches(config: Config, largest: int) -> None:
    """Say it before the first round; `TorchProblem.local` refuses any other batch too large."""
    batch = min(config.local_batch_size or largest, largest)
    if batch > LARGEST_BATCH and config.replay is None:
        raise ConfigError(
            f"local-batch-size: batch norm takes a batch in one pass, of at most {LARGEST_BATCH} "
            f"rows for want of memory; the largest client has {largest} rows and local-batch-size "
            f"is {config.local_batch_size}; set local-batch-size=128, use more clients or fewer "
            "train-examples, or problem=resnet20-gn"
        )
