"""Networks for images: the papers' sizes, shapes, buffers and no hidden randomness."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from fedef.problems.torch_problem import TorchProblem
from fedef.torch_models import cnn, group_norm, mlp, resnet18, resnet20, softmax

GREY, COLOUR = (1, 28, 28), (3, 32, 32)
RESNET20_GN = partial(resnet20, norm=group_norm)


def problem_of(make, shape, rows=4):
    """A problem with random images of two clients."""
    draws = torch.Generator().manual_seed(0)
    clients = [(torch.rand(rows, *shape, generator=draws), torch.arange(rows)) for _ in range(2)]
    return TorchProblem(
        "images",
        module=lambda: make(shape),
        loss=nn.functional.cross_entropy,
        clients=clients,
        test=clients[0],
        seed=0,
    )


# d by hand. Softmax 784*10+10; MLP 784*128+128+128*10+10; CNN 25*C*16+16 + 25*16*32+32 +
# 32*(H/4)(W/4)*10+10. ResNet-20 with 9*C*16 in its stem: (9*16*16*6) + (9*16*32 + 9*32*32*5) +
# (9*32*64 + 9*64*64*5) + 2*(16*7 + 32*6 + 64*6) + 650. ResNet-18's is that of spec/ef21.md 3E.
@pytest.mark.parametrize(
    ("make", "shape", "dimension", "arrays", "buffers"),
    [
        (softmax, GREY, 7850, 2, 0),
        (softmax, COLOUR, 30730, 2, 0),
        (mlp, GREY, 101770, 4, 0),
        (partial(mlp, hidden=5), GREY, 784 * 5 + 5 + 60, 4, 0),
        (cnn, GREY, 28938, 6, 0),
        (cnn, COLOUR, 34538, 6, 0),
        (resnet20, COLOUR, 269722, 59, 1376),
        (resnet20, GREY, 269722 - 9 * 2 * 16, 59, 1376),
        (RESNET20_GN, COLOUR, 269722, 59, 0),
        (resnet18, COLOUR, 11173962, 62, 9600),
    ],
)
def test_sizes_are_the_papers(make, shape, dimension, arrays, buffers):
    problem = problem_of(make, shape)
    x, b = problem.initial_point(), problem.initial_buffers()
    assert (problem.dimension, b.size) == (dimension, buffers)
    named = problem.named_arrays(x, b)
    running = [name for name in named if "running" in name]
    assert len(named) - len(running) == arrays
    assert (len(running) == len(b) and not b.size) or buffers


@pytest.mark.parametrize("make", [softmax, mlp, cnn, resnet20, RESNET20_GN])
@pytest.mark.parametrize("shape", [GREY, COLOUR])
@pytest.mark.parametrize("classes", [10, 3])
def test_outputs_are_one_score_per_class(make, shape, classes):
    module = make(shape, classes).eval()
    images = torch.rand(2, *shape)
    scores = module(images)
    assert scores.shape == (2, classes)
    assert torch.isfinite(scores).all()
    assert not torch.allclose(scores[0], scores[1])
    torch.testing.assert_close(module(images[:1]), scores[:1], atol=1e-5, rtol=1e-5)


def test_resnet18_halves_the_picture_three_times():
    module = resnet18(COLOUR).eval()
    shapes = []
    for stage in range(1, 5):
        module.get_submodule(f"layer{stage}").register_forward_hook(
            lambda _, __, output: shapes.append(tuple(output.shape[1:]))
        )
    assert module(torch.rand(1, *COLOUR)).shape == (1, 10)
    assert shapes == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


def test_shortcut_a_keeps_every_second_pixel_and_pads_channels_with_zeros():
    """With convolutions that give nothing, batch norm at rest gives 0: a block is relu(x)."""
    block = resnet20(COLOUR).eval().get_submodule("layer2.0")
    for name in ("conv1", "conv2"):
        nn.init.zeros_(block.get_submodule(name).weight)
    inside = torch.rand(1, 16, 8, 8)
    outside = block(inside)
    assert outside.shape == (1, 32, 4, 4)
    torch.testing.assert_close(outside[:, 8:24], inside[:, :, ::2, ::2])
    assert not outside[:, :8].any()
    assert not outside[:, 24:].any()


def test_a_residual_network_is_kaiming_normal_at_the_start():
    """Deviation sqrt(2/fan_in): 3x3 from 64 channels has fan-in 576, the last layer 64."""
    module = resnet20(COLOUR)
    weight = module.get_submodule("layer3.1.conv1").weight
    assert weight.std().item() == pytest.approx(np.sqrt(2 / 576), rel=0.02)
    assert module.get_submodule("fc").weight.std().item() == pytest.approx(np.sqrt(2 / 64), rel=0.1)


def test_batch_norm_couples_a_batch_and_group_norm_does_not():
    """In training mode: the gradient of two rows is the mean of theirs with group norm alone."""
    for make, separate in ((resnet20, False), (RESNET20_GN, True)):
        problem = problem_of(make, COLOUR)
        x, buffers = problem.initial_point(), problem.initial_buffers()

        def gradient(*rows, p=problem, x=x, b=buffers):
            return p.local(0, x, rows=np.array(rows), buffers=b).gradient.astype(float)

        mean = (gradient(0) + gradient(1)) / 2
        assert np.allclose(gradient(0, 1), mean, rtol=1e-3, atol=1e-4) == separate


def test_names_are_torchvisions():
    names = set(resnet18(COLOUR).state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "fc.bias"} <= names
    assert {"layer2.0.downsample.0.weight", "layer2.0.downsample.1.running_var"} <= names
