"""Measured heterogeneity against closed forms."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from fedef.config import Config
from fedef.experiment import Experiment
from fedef.heterogeneity import LabelTable, gradient_dissimilarity, label_table
from fedef.problems.analytic import Analytic
from fedef.problems.base import LocalResult
from fedef.problems.registry import build_problem
from fedef.problems.torch_problem import TorchProblem
from fedef.recorder import Recorder
from fedef.run_folder import RunFolder
from sims.engine import InlineEngine
from sims.inline_run import run_inline

NONE = np.empty(0)


@dataclass(frozen=True)
class Lines(Analytic):
    """f_i(x) = slopes_i . x: the gradients are the slopes."""

    slopes: np.ndarray
    name = "lines"
    smoothness = None

    @property
    def x0(self):
        return np.zeros(self.slopes.shape[1])

    @property
    def num_examples(self):
        return (1,) * len(self.slopes)

    def local(self, client, x, *, rows=None, buffers):
        return LocalResult(0.0, self.slopes[client].copy(), buffers.copy())


def zeta2(slopes, weights):
    problem = Lines(np.array(slopes, dtype=np.float64))
    return gradient_dissimilarity(problem, problem.initial_point(), weights=weights, buffers=NONE)


def test_two_clients_by_hand():
    # mean (1, 0) + 3/4 ((-3) - 1, 4) = (-2, 3); w_1 w_2 ||g_1 - g_2||^2 = 3/16 (16 + 16) = 6.
    assert zeta2([[1, 0], [-3, 4]], [1, 3]) == pytest.approx(6, rel=1e-15)


def test_equal_clients_give_exactly_zero():
    # 0.1 and 1/3 are no binary fractions: a formula of squares would leave rounding here.
    assert zeta2([[0.1, -7.3, 1e9]] * 7, [1 / 3, 2, 0.1, 5, 1, 1, 1e-9]) == 0


def test_many_clients_against_the_definition():
    draw = np.random.default_rng(5)
    slopes, weights = draw.normal(size=(40, 9)) + 1e6, draw.uniform(size=40)
    share = weights / weights.sum()
    expected = share @ np.sum((slopes - share @ slopes) ** 2, axis=1)
    assert zeta2(slopes, weights.tolist()) == pytest.approx(expected, rel=1e-9)


def test_a_client_of_weight_zero_does_not_count():
    assert zeta2([[1.0], [9.0], [3.0]], [1, 0, 1]) == pytest.approx(1)


def test_a_gradient_that_is_not_finite_is_seen():
    assert not np.isfinite(zeta2([[1.0], [np.inf]], [1, 1]))


@pytest.mark.parametrize(
    ("counts", "distance"),
    [
        ([[5, 5], [50, 50]], 0),  # one distribution, two sizes
        ([[10, 0], [0, 10]], 0.5),  # (1, 0) and (0, 1) to (1/2, 1/2)
        ([[30, 0], [0, 10]], 0.375),  # 3/4 * 1/4 + 1/4 * 3/4
        ([[10, 0], [0, 0], [0, 10]], 0.5),  # nobody's classes are not compared
    ],
)
def test_label_distance_by_hand(counts, distance):
    table = LabelTable(np.arange(2), np.array(counts))
    assert table.distance(table.counts.sum(axis=1).tolist()) == pytest.approx(distance)


def test_each_client_has_its_own_distance():
    table = LabelTable(np.arange(2), np.array([[30, 0], [0, 0], [0, 10]]))
    assert table.distances() == pytest.approx([0.25, np.nan, 0.75], nan_ok=True)


def test_label_distance_takes_the_given_weights():
    table = LabelTable(np.arange(2), np.array([[30, 0], [0, 10]]))
    assert table.distance([1, 1]) == pytest.approx((0.25 + 0.75) / 2)


def test_the_table_counts_every_example_once():
    config = Config.from_flat({"problem": "digits-softmax", "num-clients": 7})
    problem = build_problem(config)
    table = label_table(problem)
    assert tuple(table.counts.sum(axis=1)) == problem.num_examples
    assert table.classes.tolist() == list(range(10))
    assert table.counts.sum(axis=0).min() > 50


@pytest.mark.parametrize(
    ("settings", "classes"),
    [
        ({"problem": "polynomial", "num-clients": 1}, None),
        ({"problem": "logistic", "data": "synthetic", "num-clients": 4}, [-1, 1]),
        ({"problem": "phase-retrieval", "num-clients": 3}, None),
    ],
)
def test_it_is_defined_for_every_kind_of_problem(settings, classes):
    experiment = Experiment.build(Config.from_flat(settings))
    problem = experiment.problem
    spread = gradient_dissimilarity(
        problem, problem.initial_point(), weights=experiment.weights, buffers=NONE
    )
    assert (spread == 0) == (len(problem.num_examples) == 1)
    table = label_table(problem)
    assert (table and table.classes.tolist()) == classes


def batch_norm_problem(**options):
    draw = torch.Generator().manual_seed(0)
    clients = [
        (torch.randn(size, 3, generator=draw), torch.randint(2, (size,), generator=draw))
        for size in (8, 20)
    ]
    return TorchProblem(
        "mine",
        module=lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
        loss=nn.functional.cross_entropy,
        clients=clients,
        seed=0,
        **options,
    )


def test_batch_norm_is_measured_as_it_is_evaluated():
    """w_1 g_1 + w_2 g_2 is the gradient whose norm `evaluate` reports, in evaluation mode."""
    problem = batch_norm_problem(largest_batch=10, rows_at_once=6)
    x, buffers = problem.initial_point(), problem.initial_buffers()
    g = [problem.evaluate_client(i, x, buffers=buffers).gradient.astype(float) for i in range(2)]
    weights = np.array([0.25, 0.75])
    reported = problem.evaluate(x, weights=weights, buffers=buffers).gradient_norm
    assert np.linalg.norm(weights @ np.array(g)) == pytest.approx(reported, rel=1e-6)
    spread = gradient_dissimilarity(problem, x, weights=weights.tolist(), buffers=buffers)
    assert spread == pytest.approx(3 / 16 * np.sum((g[0] - g[1]) ** 2), rel=1e-9)


def test_targets_that_are_numbers_are_no_classes():
    problem = TorchProblem(
        "regression",
        module=lambda: nn.Linear(1, 1),
        loss=nn.functional.mse_loss,
        clients=[(torch.ones(3, 1), torch.ones(3, 1))],
        seed=0,
    )
    assert label_table(problem) is None


# --- in a run's folder -----------------------------------------------------------------------

RUN = Config.from_flat({"problem": "digits-softmax", "num-clients": 4, "num-rounds": 5})


def lines_of(folder):
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def test_a_run_reports_it_and_keeps_its_bits(tmp_path):
    off = run_inline(RUN, tmp_path / "off")
    on = run_inline(replace_key(RUN, heterogeneity_every=2), tmp_path / "on")
    assert on["model-sha256"] == off["model-sha256"]
    assert [line["zeta2"] for line in lines_of(tmp_path / "off")] == [None] * 5
    measured = [line["zeta2"] for line in lines_of(tmp_path / "on")]
    assert [value is not None for value in measured] == [False, True, False, True, False]
    assert (off["zeta2-start"], off["zeta2-end"]) == (None, None)
    assert on["zeta2-start"] > 0
    assert on["zeta2-end"] > 0
    assert on["label-distance"] == off["label-distance"] > 0.3
    experiment = Experiment.build(RUN)
    sizes = experiment.problem.num_examples
    assert on["client-examples-largest"] == max(sizes)
    at_start = gradient_dissimilarity(
        experiment.problem,
        experiment.problem.initial_point(),
        weights=experiment.weights,
        buffers=np.empty(0, dtype=np.float32),
    )
    assert on["zeta2-start"] == pytest.approx(at_start, rel=1e-12)


def test_what_flowers_server_does_not_see_stays_empty(tmp_path):
    config = replace_key(RUN, heterogeneity_every=1)
    engine = InlineEngine(Experiment.build(config))
    folder = RunFolder.create(tmp_path / "run", config, engine="flower")
    recorder = Recorder(engine.experiment, folder, engine="flower")
    assert recorder.round_ended(engine.round(), engine.server)["zeta2"] is None
    summary = recorder.finish(engine.server, status="completed")
    assert (summary["zeta2-start"], summary["zeta2-end"]) == (None, None)
    assert summary["label-distance"] > 0.3


def test_dealing_at_random_is_nearer_than_by_class(tmp_path):
    def summary(name, **keys):
        config = replace_key(RUN, num_rounds=1, heterogeneity_every=1, **keys)
        return run_inline(config, tmp_path / name)

    by_class, at_random = summary("skewed", dirichlet_alpha=0.05), summary("iid", partitioner="iid")
    assert at_random["label-distance"] < 0.1 < by_class["label-distance"]
    assert at_random["zeta2-start"] < 0.1 * by_class["zeta2-start"]


def replace_key(config, **changes):
    return config.model_copy(update=changes)
