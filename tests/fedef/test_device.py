"""Networks on another device: the same problem in other sums, or a plain refusal."""

import numpy as np
import pytest
import torch
from torch import nn

from fedef.config import Config
from fedef.errors import ConfigError
from fedef.problems.registry import build_problem
from fedef.problems.torch_problem import TorchProblem

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")


def normalized() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def problem(device: str = "cpu") -> TorchProblem:
    draw = torch.Generator().manual_seed(0)
    clients = [(torch.randn(9, 4, generator=draw), torch.arange(9) % 3) for _ in range(2)]
    return TorchProblem(
        "small",
        module=normalized,
        loss=nn.functional.cross_entropy,
        clients=clients,
        test=clients[0],
        seed=0,
        rows_at_once=4,
        device=device,
    )


def numbers_of(small: TorchProblem) -> list[np.ndarray]:
    """All that a problem says: passes on all and on some rows, an evaluation, the labels."""
    x, buffers = small.initial_point(), small.initial_buffers()
    whole = small.local(0, x, buffers=buffers)
    some = small.local(1, x + 0.1, rows=np.array([4, 1, 7]), buffers=whole.buffers)
    quality = small.evaluate(x, weights=np.array([0.25, 0.75]), buffers=some.buffers)
    facts = [whole.loss, some.loss, quality.loss, quality.gradient_norm, quality.test_accuracy]
    arrays = [x, buffers, whole.gradient, whole.buffers, some.gradient, some.buffers]
    return [*arrays, np.array(facts), small.labels(1)]


def test_a_move_to_where_it_is_changes_no_bit():
    """What a move takes along and what it installs anew, checked without a card."""
    moved = problem()
    moved._move(torch.device("cpu"))
    for there, here in zip(numbers_of(moved), numbers_of(problem()), strict=True):
        assert (there.dtype, there.tobytes()) == (here.dtype, here.tobytes())


@needs_cuda
def test_on_a_card_the_numbers_agree_to_rounding_and_repeat():
    first, again, here = (numbers_of(problem(device)) for device in ("cuda", "cuda", "cpu"))
    for one, other, expected in zip(first, again, here, strict=True):
        assert one.tobytes() == other.tobytes()
        np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a CUDA device")
@pytest.mark.parametrize("name", ["digits-mlp", "digits-softmax"])
def test_a_card_that_is_not_there_is_refused(name):
    with pytest.raises(ConfigError, match=r"device: got 'cuda', but torch .* set device=cpu"):
        build_problem(Config.from_flat({"problem": name, "device": "cuda"}))


def test_problems_in_numpy_run_on_the_cpu():
    with pytest.raises(ConfigError, match="device: problem=logistic is NumPy's.*set device=cpu"):
        build_problem(Config.from_flat({"problem": "logistic", "device": "cuda"}))
    with pytest.raises(ConfigError, match="device: input should be 'cpu' or 'cuda', got 'tpu'"):
        Config.from_flat({"device": "tpu"})
