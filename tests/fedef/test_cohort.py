"""Gradients of a round's clients together: equal to one by one up to rounding, off by default."""

import numpy as np
import pytest
import torch
from torch import nn

from fedef import cohort
from fedef.config import Config
from fedef.errors import ConfigError
from fedef.experiment import Experiment
from fedef.problems.registry import build_problem
from fedef.problems.torch_problem import TorchProblem
from sims.engine import InlineEngine

BOUND = {"float32": 1e-5, "float64": 1e-13}
"""Largest difference of an entry over the largest entry of the client's gradient.

Sums over 64 inputs and up to 150 rows in another order: some 200 roundings of 2^-24 or 2^-53 make
1.2e-5 and 2.2e-14 if all go one way; float64 adds the logistic functions' own last bits."""

PROBLEMS = {
    "digits-softmax": {"problem": "digits-softmax"},
    "digits-mlp": {"problem": "digits-mlp"},
    "logistic": {"problem": "logistic", "data": "breast_cancer"},
}


def config(**settings) -> Config:
    flat = {
        "num-clients": 40,
        "dirichlet-alpha": 0.5,
        "min-partition-size": 0,
        "num-rounds": 5,
        **{key.replace("_", "-"): value for key, value in settings.items()},
    }
    return Config.from_flat(flat)


def relative(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max() / max(np.abs(one).max(), 1e-30))


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients_together_are_those_one_by_one_up_to_rounding(name):
    """Unequal sizes, empty clients, some with drawn rows; in an order of their own."""
    problem = build_problem(config(dirichlet_alpha=0.03, **PROBLEMS[name]))
    sizes = problem.num_examples
    assert 0 in sizes
    assert len(set(sizes)) > 5
    x = problem.initial_point()
    clients = np.random.default_rng(0).permutation(40)[:30].tolist()
    rows = [np.arange(sizes[c] // 2) if c % 3 == 0 else None for c in clients]
    together = problem.local_many(clients, x, rows=rows)
    for client, chosen, result in zip(clients, rows, together, strict=True):
        alone = problem.local(client, x, rows=chosen, buffers=problem.initial_buffers())
        assert result.gradient.dtype == alone.gradient.dtype
        assert relative(alone.gradient, result.gradient) <= BOUND[result.gradient.dtype.name]
        assert result.loss == pytest.approx(alone.loss, rel=BOUND[result.gradient.dtype.name])
        assert result.buffers.size == 0
    # Each may be overwritten and kept without the others.
    assert all(result.gradient.base is None for result in together)
    assert len({id(result.gradient) for result in together}) == len(together)


@pytest.mark.parametrize("settings", [{}, {"batched": True}], ids=["default", "batched"])
def test_it_is_off_unless_asked_for(settings, monkeypatch):
    experiment = Experiment.build(config(problem="digits-softmax", **settings))
    calls = []
    whole = type(experiment.problem).local_many
    monkeypatch.setattr(
        type(experiment.problem),
        "local_many",
        lambda self, clients, x, *, rows: (
            calls.append(len(clients)) or whole(self, clients, x, rows=rows)
        ),
    )
    InlineEngine(experiment).round()
    assert calls == ([40] if settings else [])


@pytest.mark.parametrize(
    "method",
    [
        {"method": "norm-ef21"},
        {"method": "norm-ef21-sgdm", "local_batch_size": 4},
        {"method": "ef21", "local_steps": 3, "local_step_size": 0.1, "local_batch_size": 2},
        {"method": "ef21", "weight_decay": 0.1},
        {"method": "spider", "local_batch_size": 2, "spider_period": 2},
    ],
    ids=lambda method: "-".join(map(str, method.values())),
)
def test_a_run_together_is_the_run_one_by_one_up_to_rounding(method):
    """Without compression, whose choices may flip: float64, five rounds."""
    runs = [
        InlineEngine(
            Experiment.build(
                config(problem="logistic", compressor="identity", batched=batched, **method)
            )
        )
        for batched in (False, True)
    ]
    for _ in range(5):
        one, other = (run.round() for run in runs)
        assert other.train_loss == pytest.approx(one.train_loss, rel=1e-11)
        assert other.gradient_evaluations == one.gradient_evaluations
    assert relative(runs[0].server.x, runs[1].server.x) < 1e-11


def test_large_cohorts_are_computed_in_parts(monkeypatch):
    experiment = Experiment.build(config(problem="logistic", batched=True))
    whole, parts = InlineEngine(experiment), InlineEngine(experiment)
    whole.round()
    monkeypatch.setattr(cohort, "ENTRIES_AT_ONCE", 7 * experiment.problem.dimension)
    parts.round()
    assert relative(whole.server.x, parts.server.x) < 1e-12


def data(num_clients: int = 3, rows: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [
        (torch.randn(rows, 3, generator=draw), torch.randint(2, (rows,), generator=draw))
        for _ in range(num_clients)
    ]


def torch_problem(module, **settings) -> TorchProblem:
    loss = nn.functional.cross_entropy
    return TorchProblem("mine", module=module, loss=loss, clients=data(), seed=0, **settings)


def test_passes_keep_to_the_rows_that_fit():
    class Rows(nn.Linear):
        seen: list[int] = []  # noqa: RUF012 - the test's record

        def forward(self, inputs):
            self.seen.append(inputs.shape[0])
            return super().forward(inputs)

    problem = torch_problem(lambda: Rows(3, 2), rows_at_once=8)
    Rows.seen.clear()
    problem.local_many(range(3), problem.initial_point(), rows=[None] * 3)
    assert len(Rows.seen) == 2  # two clients with four rows in one pass, and one


def test_batch_norm_stays_one_by_one_bit_for_bit():
    flat = {"method": "norm-ef21", "num-clients": 3, "k": 2}
    problem = torch_problem(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    runs = [
        InlineEngine(Experiment.of(Config.from_flat({**flat, "batched": batched}), problem))
        for batched in (False, True)
    ]
    for _ in range(3):
        for run in runs:
            run.round()
    assert runs[0].server.x.tobytes() == runs[1].server.x.tobytes()


def test_a_module_that_torch_cannot_vectorize_says_what_to_do():
    class Branches(nn.Linear):
        def forward(self, inputs):
            output = super().forward(inputs)
            return output if output.sum().item() > 0 else -output

    problem = torch_problem(lambda: Branches(3, 2))
    with pytest.raises(ConfigError, match=r"mine: .*one pass.*set batched=false"):
        problem.local_many([0, 1], problem.initial_point(), rows=[None, None])


def test_an_evaluation_together_is_that_one_by_one_up_to_rounding():
    one, other = (build_problem(config(problem="digits-mlp", batched=b)) for b in (False, True))
    x = one.initial_point()
    weights = np.array(one.num_examples) / sum(one.num_examples)
    alone, together = (p.evaluate(x, weights=weights, buffers=np.empty(0)) for p in (one, other))
    assert together.loss == pytest.approx(alone.loss, rel=1e-6)
    assert together.gradient_norm == pytest.approx(alone.gradient_norm, rel=1e-5)
    assert together.test_accuracy == alone.test_accuracy
