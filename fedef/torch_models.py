"""Image classifiers: softmax regression, a small perceptron, a small CNN and residual networks.

The residual networks are those of He et al. 2016 (arXiv:1512.03385) for 32x32 images; their parts
are named as in torchvision, so that ``state_dict`` files fit. None of them draws random numbers
after it is made.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import pad, relu

from fedef.errors import ConfigError

Shape = tuple[int, ...]
"""(channels, height, width) of images, (d,) of vectors."""
Norm = Callable[[int], nn.Module]
"""A normalization layer for a number of channels."""
Shortcut = Literal["pad", "projection"]
"""What joins blocks of different shapes: options A and B of the paper."""

GROUPS = 8
"""Groups of the group-norm variant: 2, 4 and 8 channels each in ResNet-20's three stages."""


def group_norm(channels: int) -> nn.Module:
    """GroupNorm (arXiv:1803.08494) in `GROUPS` groups: no buffers, no coupling within a batch."""
    return nn.GroupNorm(GROUPS, channels)


def softmax(shape: Shape, classes: int = 10) -> nn.Module:
    """Linear scores of pixels or of a vector; d = 7850 for 28x28 grey images and ten classes."""
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), classes))


def mlp(shape: Shape, classes: int = 10, *, hidden: int = 128) -> nn.Module:
    """One hidden layer; d = 101,770 for 28x28 grey images, ten classes and `hidden` = 128."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(prod(shape), hidden), nn.ReLU(), nn.Linear(hidden, classes)
    )


def cnn(shape: Shape, classes: int = 10) -> nn.Module:
    """Two 5x5 convolutions to 16 and 32 channels, each with a 2x2 maximum; no normalization.

    d = 28,938 for 28x28 grey images and 34,538 for 32x32 colour images, ten classes.
    """
    channels, height, width = images_only(shape)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), classes),
    )


def resnet20(shape: Shape, classes: int = 10, *, norm: Norm = nn.BatchNorm2d) -> nn.Module:
    """ResNet-20: 3 stages of 3 blocks with 16, 32, 64 channels, shortcut option A.

    Colour images, ten classes: d = 269,722 in 59 arrays; 1,376 floating-point buffers with batch
    norm, none with `group_norm`.
    """
    channels, _, _ = images_only(shape)
    return _ResNet(channels, classes, widths=(16, 32, 64), blocks=3, norm=norm, shortcut="pad")


def resnet18(shape: Shape, classes: int = 10, *, norm: Norm = nn.BatchNorm2d) -> nn.Module:
    """ResNet-18 for small images: 3x3 stem, no max-pooling, shortcut option B.

    Colour images, ten classes: d = 11,173,962 in 62 arrays; 9,600 floating-point buffers with
    batch norm.
    """
    channels, _, _ = images_only(shape)
    widths = (64, 128, 256, 512)
    return _ResNet(channels, classes, widths=widths, blocks=2, norm=norm, shortcut="projection")


class _ResNet(nn.Module):
    """Stem, stages of residual blocks, mean over the picture, linear scores."""

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        widths: tuple[int, ...],
        blocks: int,
        norm: Norm,
        shortcut: Shortcut,
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, widths[0])
        self.bn1 = norm(widths[0])
        self.stages = len(widths)
        inside = widths[0]
        for stage, width in enumerate(widths):
            block = partial(_Block, norm=norm, shortcut=shortcut)
            first = block(inside, width, stride=1 if stage == 0 else 2)
            rest = [block(width, width, stride=1) for _ in range(blocks - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(first, *rest))
            inside = width
        self.fc = nn.Linear(inside, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)  # arXiv:1502.01852, as the paper

    def forward(self, images: Tensor) -> Tensor:
        hidden = relu(self.bn1(self.conv1(images)))
        for stage in range(self.stages):
            hidden = self.get_submodule(f"layer{stage + 1}")(hidden)
        scores: Tensor = self.fc(hidden.mean(dim=(2, 3)))
        return scores


class _Block(nn.Module):
    """relu(F(x) + x), F two 3x3 convolutions; x is brought to the shape of F(x)."""

    def __init__(
        self, inside: int, outside: int, *, stride: int, norm: Norm, shortcut: Shortcut
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inside, outside, stride)
        self.bn1 = norm(outside)
        self.conv2 = _conv3x3(outside, outside)
        self.bn2 = norm(outside)
        self.downsample: nn.Module = nn.Identity()
        if inside != outside and shortcut == "pad":
            self.downsample = _Pad(outside - inside, stride)
        elif inside != outside:
            self.downsample = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride=stride, bias=False), norm(outside)
            )

    def forward(self, images: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(relu(self.bn1(self.conv1(images)))))
        return relu(residual + self.downsample(images))


class _Pad(nn.Module):
    """Every `stride`-th pixel, and `extra` channels of zeros, half before and half after."""

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.before, self.after = extra // 2, extra - extra // 2
        self.stride = stride

    def forward(self, images: Tensor) -> Tensor:
        thinned = images[:, :, :: self.stride, :: self.stride]
        return pad(thinned, (0, 0, 0, 0, self.before, self.after))


def _conv3x3(inside: int, outside: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)


def images_only(shape: Shape) -> tuple[int, int, int]:
    """(channels, height, width) of images with at least 4 pixels a side.

    Raises
    ------
    ConfigError
        If the shape is another.
    """
    if len(shape) != 3 or min(shape[1:]) < 4:
        raise ConfigError(
            f"data: convolutions need images of at least 4x4 pixels, got shape {shape}; use "
            "problem=image-softmax or image-mlp"
        )
    return shape[0], shape[1], shape[2]
