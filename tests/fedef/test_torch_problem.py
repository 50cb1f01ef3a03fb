"""Torch modules as problems: exact gradients, buffers as values, no hidden state."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from fedef.config import Config
from fedef.errors import ConfigError
from fedef.problems.registry import build_problem
from fedef.problems.torch_problem import TorchProblem
from fedef.vectors import norm

NOTHING = np.empty(0, dtype=np.float32)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def regression(module, *, clients=3, rows=6, features=4, outputs=1, **options):
    data = [
        (draw(rows, features, seed=i), draw(rows, outputs, seed=100 + i)) for i in range(clients)
    ]
    return TorchProblem(
        "regression",
        module=module,
        loss=nn.functional.mse_loss,
        clients=data,
        **{"seed": 0, **options},
    )


def normalized():
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


class Unusual(nn.Module):
    """scale * x.w + 2 x.v with v the same parameter as w; one parameter empty, one unused."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.w = nn.Parameter(draw(4, seed=7))
        self.unused = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.v = self.w

    def forward(self, inputs):
        return (self.scale * (inputs @ self.w) + self.frozen * (inputs @ self.v)).unsqueeze(1)


def mlp():
    return build_problem(
        Config.from_flat({"problem": "digits-mlp", "dirichlet-alpha": 1.0, "num-clients": 6})
    )


def local(problem, x, client=0, **options):
    return problem.local(client, x, **{"buffers": problem.initial_buffers(), **options})


def test_softmax_gradient_is_the_closed_form():
    """Grad W = (p - onehot)^T X/m, grad b = mean(p - onehot)."""
    inputs, targets = draw(30, 5), torch.arange(30) % 3
    problem = TorchProblem(
        "softmax",
        module=lambda: nn.Linear(5, 3),
        loss=nn.functional.cross_entropy,
        clients=[(inputs, targets)],
        seed=0,
    )
    x = problem.initial_point()
    weight, bias = x[:15].astype(float).reshape(3, 5), x[15:].astype(float)
    logits = inputs.numpy().astype(float) @ weight.T + bias
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    residual = (p - np.eye(3)[targets.numpy()]) / 30
    expected = np.concatenate([(residual.T @ inputs.numpy()).ravel(), residual.sum(axis=0)])
    np.testing.assert_allclose(local(problem, x).gradient, expected, atol=1e-7)


def test_network_gradient_equals_central_differences():
    """Along random directions, in float32: rounding 1e-7/step and curvature step^2."""
    problem = regression(lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)))
    x = problem.initial_point()
    gradient = local(problem, x).gradient.astype(float)
    for seed in range(5):
        u = draw(problem.dimension, seed=seed).numpy()
        u /= norm(u)
        step = np.float32(1e-2)
        slope = (local(problem, x + step * u).loss - local(problem, x - step * u).loss) / 2e-2
        assert slope == pytest.approx(gradient @ u, abs=2e-3 * norm(gradient))


def test_0_d_empty_unused_frozen_and_tied_parameters():
    """Gradient of mean((s X w + 2 X w - y)^2) in s and w; nothing for the others."""
    problem = regression(Unusual)
    x = problem.initial_point()
    assert problem.dimension == 1 + 0 + 4 + 2
    scale, w = float(x[0]), x[1:5].astype(float)
    inputs, targets = draw(6, 4).numpy().astype(float), draw(6, 1, seed=100).numpy()[:, 0]
    residual = 2 * ((scale + 2) * inputs @ w - targets) / 6
    expected = [residual @ (inputs @ w), *((scale + 2) * inputs.T @ residual), 0, 0]
    np.testing.assert_allclose(local(problem, x).gradient, expected, rtol=1e-5, atol=1e-6)


def test_evaluation_is_the_weighted_mean_over_clients():
    problem = mlp()
    x, weights = problem.initial_point(), np.arange(1, 7) / 21
    results = [local(problem, x, client) for client in range(6)]
    evaluation = problem.evaluate(x, weights=weights, buffers=NOTHING)
    gradient = sum(w * r.gradient.astype(float) for w, r in zip(weights, results, strict=True))
    assert evaluation.loss == pytest.approx(weights @ [r.loss for r in results], rel=1e-12)
    assert evaluation.gradient_norm == pytest.approx(norm(gradient), rel=1e-12)


def test_test_accuracy_counts_the_largest_output():
    inputs = torch.eye(3)
    problem = TorchProblem(
        "identity",
        module=lambda: nn.Linear(3, 3, bias=False),
        loss=nn.functional.cross_entropy,
        clients=[(inputs, torch.arange(3))],
        test=(inputs[[0, 1, 2, 0]], torch.tensor([0, 1, 2, 1])),
        seed=0,
    )
    x = np.eye(3, dtype=np.float32).ravel()
    assert problem.evaluate(x, weights=np.ones(1), buffers=NOTHING).test_accuracy == 0.75


def test_gradient_descent_learns_the_digits():
    problem = mlp()
    x, weights = problem.initial_point(), np.full(6, 1 / 6)
    for _ in range(60):
        gradients = [local(problem, x, client).gradient for client in range(6)]
        x = x - np.float32(0.5) * np.mean(gradients, axis=0, dtype=np.float32)
    assert problem.evaluate(x, weights=weights, buffers=NOTHING).test_accuracy > 0.8


def test_batch_norm_buffers_are_values():
    """Running mean and variance after a pass: 0.9 old + 0.1 batch; the input is not changed."""
    problem = regression(normalized)
    x, buffers = problem.initial_point(), problem.initial_buffers()
    np.testing.assert_array_equal(buffers, [0, 0, 0, 1, 1, 1])
    weight, bias = x[:12].reshape(3, 4), x[12:15]
    hidden = draw(6, 4).numpy() @ weight.T + bias
    once = local(problem, x).buffers
    np.testing.assert_allclose(once[:3], 0.1 * hidden.mean(axis=0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(once[3:], 0.9 + 0.1 * hidden.var(axis=0, ddof=1), rtol=1e-5)
    twice = local(problem, x, buffers=once).buffers
    np.testing.assert_allclose(twice[:3], 0.19 * hidden.mean(axis=0), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(buffers, problem.initial_buffers())


def test_evaluation_uses_the_given_buffers_and_changes_none():
    problem = regression(normalized)
    x, weights = problem.initial_point(), np.full(3, 1 / 3)
    buffers = local(problem, x).buffers
    kept = buffers.copy()
    first = problem.evaluate(x, weights=weights, buffers=buffers)
    other = problem.evaluate(x, weights=weights, buffers=problem.initial_buffers())
    assert first == problem.evaluate(x, weights=weights, buffers=buffers)
    assert first.loss != other.loss
    np.testing.assert_array_equal(buffers, kept)


def test_integer_buffers_do_not_leak_from_call_to_call():
    """Without momentum batch norm divides by num_batches_tracked: each call must start anew."""
    problem = regression(lambda: nn.Sequential(nn.Linear(4, 1), nn.BatchNorm1d(1, momentum=None)))
    x = problem.initial_point()
    first = local(problem, x)
    local(problem, x, client=1)
    assert first.buffers.tobytes() == local(problem, x).buffers.tobytes()


class Averaging(nn.Module):
    """Replaces its buffer instead of writing into it; `also` is the same tensor elsewhere."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.register_buffer("average", torch.zeros(()))
        self.linear.register_buffer("also", self.average)

    def forward(self, inputs):
        outputs = self.linear(inputs)
        shifted = outputs + self.linear.also
        self.average = 0.5 * self.average + 0.5 * outputs.mean()
        return shifted


def test_replaced_and_shared_buffers():
    problem = regression(Averaging)
    x, shift = problem.initial_point(), np.array([3.0], dtype=np.float32)
    assert problem.initial_buffers().shape == (1,)
    first = local(problem, x, buffers=shift)
    mean = float((draw(6, 4).numpy() @ x[:4] + x[4]).mean())
    assert first.buffers[0] == pytest.approx(1.5 + 0.5 * mean, rel=1e-5)
    assert local(problem, x).loss != first.loss
    assert local(problem, x, buffers=shift).loss == first.loss


@pytest.mark.parametrize("module", [normalized, Unusual, Averaging])
def test_the_same_call_gives_the_same_bits(module):
    """On another instance, after other calls, after a pickle, with more threads."""
    problem = regression(module)
    x = problem.initial_point()
    first = local(problem, x)
    bits = (first.loss, first.gradient.tobytes(), first.buffers.tobytes())

    def bits_of(other):
        result = local(other, x.copy())
        return (result.loss, result.gradient.tobytes(), result.buffers.tobytes())

    local(problem, x + 1, client=2)
    problem.evaluate(x - 1, weights=np.full(3, 1 / 3), buffers=problem.initial_buffers())
    assert bits_of(problem) == bits
    assert bits_of(regression(module)) == bits
    assert bits_of(pickle.loads(pickle.dumps(problem))) == bits
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert bits_of(problem) == bits
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_results_are_fresh_memory_of_the_right_type():
    problem = regression(normalized)
    x = problem.initial_point()
    a, b = local(problem, x), local(problem, x)
    assert a.gradient.dtype == a.buffers.dtype == problem.dtype == np.float32
    assert a.gradient.shape == (problem.dimension,)
    assert not np.shares_memory(a.gradient, b.gradient)
    assert not np.shares_memory(a.buffers, b.buffers)
    assert not np.shares_memory(problem.initial_point(), problem.initial_point())
    assert not np.shares_memory(problem.initial_buffers(), problem.initial_buffers())


def test_every_change_of_the_point_is_seen():
    """A read-only point is loaded once, but only while nobody can have changed it."""
    problem = regression(lambda: nn.Linear(4, 1))
    x = problem.initial_point()
    here, there = local(problem, x).loss, local(problem, x + 1).loss
    x.flags.writeable = False
    assert local(problem, x).loss == here
    assert local(problem, x + 1).loss == there
    assert local(problem, x).loss == here
    x.flags.writeable = True
    x += 1
    assert local(problem, x).loss == there
    view = x.view()
    view.flags.writeable = False
    assert local(problem, view).loss == there
    x[:] = problem.initial_point()
    assert local(problem, view).loss == here


def test_named_arrays_are_a_state_dict_without_integers():
    problem = regression(normalized)
    x, buffers = problem.initial_point(), local(problem, problem.initial_point()).buffers
    named = problem.named_arrays(x, buffers)
    module = normalized()
    shapes = {key: value.shape for key, value in module.state_dict().items()}
    assert shapes.pop("1.num_batches_tracked") == ()
    assert {key: value.shape for key, value in named.items()} == shapes
    module.load_state_dict({key: torch.tensor(value) for key, value in named.items()}, strict=False)
    inputs, targets = draw(6, 4), draw(6, 1, seed=100)
    loss = nn.functional.mse_loss(module.eval()(inputs), targets).item()
    weights = np.array([1.0, 0.0, 0.0])
    assert problem.evaluate(x, weights=weights, buffers=buffers).loss == loss


def test_minibatch_rows_select_examples():
    problem = mlp()
    x = problem.initial_point()
    count = problem.num_examples[2]
    everything = local(problem, x, 2, rows=np.arange(count))
    assert everything.gradient.tobytes() == local(problem, x, 2).gradient.tobytes()
    singles = [local(problem, x, 2, rows=np.array([row])) for row in range(count)]
    mean = np.mean([s.gradient.astype(float) for s in singles], axis=0)
    np.testing.assert_allclose(mean, everything.gradient, atol=1e-6)


def test_a_client_without_examples_has_f_i_of_zero():
    none = (torch.empty(0, 4), torch.empty(0, 1))
    problem = TorchProblem(
        "gaps",
        module=normalized,
        loss=nn.functional.mse_loss,
        clients=[none, (draw(5, 4), draw(5, 1))],
        seed=0,
    )
    x, buffers = problem.initial_point(), problem.initial_buffers()
    result = problem.local(0, x, buffers=buffers)
    assert result.loss == 0.0
    assert not result.gradient.any()
    np.testing.assert_array_equal(result.buffers, buffers)
    half = problem.evaluate(x, weights=np.full(2, 0.5), buffers=buffers)
    assert half.loss == 0.5 * problem.evaluate(x, weights=np.arange(2.0), buffers=buffers).loss


def test_the_initial_point_comes_from_the_seed_and_no_global_generator():
    before = torch.get_rng_state()
    points = [regression(normalized, seed=seed).initial_point() for seed in (0, 0, 1)]
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(points[0], points[1])
    assert not np.array_equal(points[0], points[2])


class FunctionalDropout(nn.Linear):
    """Draws without any layer that says so."""

    def forward(self, inputs):
        return nn.functional.dropout(super().forward(inputs), 0.5, self.training)


@pytest.mark.parametrize(
    "module",
    [
        lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.1), nn.Linear(3, 1)),
        lambda: FunctionalDropout(4, 1),
    ],
)
def test_modules_that_draw_random_numbers_are_refused(module):
    with pytest.raises(ConfigError, match="draws random numbers while it trains"):
        regression(module)


def test_a_dropout_layer_that_is_off_is_accepted():
    regression(lambda: nn.Sequential(nn.Linear(4, 1), nn.Dropout(0.0)))


def test_unusable_arguments_are_refused():
    with pytest.raises(ConfigError, match="no trainable parameter"):
        regression(nn.ReLU)
    with pytest.raises(ConfigError, match="no client has examples"):
        regression(normalized, rows=0)
    with pytest.raises(ConfigError, match="client 0 has 3 inputs and 2 targets"):
        TorchProblem(
            "bad",
            module=lambda: nn.Linear(4, 1),
            loss=nn.functional.mse_loss,
            clients=[(draw(3, 4), draw(2, 1))],
            seed=0,
        )
    with pytest.raises(ConfigError, match=r"x0 must have shape \(5,\) .* got \(4,\)"):
        regression(lambda: nn.Linear(4, 1), x0=np.zeros(4))
    problem = regression(normalized)
    with pytest.raises(ConfigError, match=r"must have shape \(25,\), got \(1,\)"):
        local(problem, np.zeros(1, dtype=np.float32))
    with pytest.raises(ConfigError, match=r"buffers must have shape \(6,\), got \(0,\)"):
        local(problem, problem.initial_point(), buffers=NOTHING)


def test_batch_norm_on_a_client_with_one_row_is_refused_at_once():
    data = [(draw(6, 4), draw(6, 1)), (draw(1, 4), draw(1, 1))]
    with pytest.raises(ConfigError, match="client 1 has a single row.*raise min-partition-size"):
        TorchProblem("alone", module=normalized, loss=nn.functional.mse_loss, clients=data, seed=0)
