"""Clients that share rows: any number of them, nothing held for those that are not asked."""

import numpy as np
import pytest

from fedef.config import Config
from fedef.experiment import Experiment
from fedef.shared_rows import SharedRows, sizes_of
from sims.engine import InlineEngine

LABELS = np.repeat([7, 0, 3], [10, 500, 90])


def shared(**changes) -> SharedRows:
    given = {"num_clients": 50, "rows": 12, "dirichlet_alpha": 1.0, "seed": 0, **changes}
    return SharedRows(LABELS, **given)


def test_a_clients_rows_depend_on_the_seed_and_the_client_alone():
    rows, more = shared(), shared(num_clients=10**9)
    np.testing.assert_array_equal(rows[31], more[31])
    np.testing.assert_array_equal(rows[31], rows[31])
    assert any((rows[i] != shared(seed=1)[i]).any() for i in range(3))
    assert (rows[3] != rows[4]).any()
    assert len(more) == 10**9
    assert more[10**9 - 1].shape == (12,)
    with pytest.raises(IndexError):
        rows[50]
    assert sizes_of(rows) == (12,) * 50 == sizes_of(rows[:])


def test_every_row_of_a_class_is_as_likely_and_classes_are_dealt_by_the_dirichlet_law():
    """1,000 clients with 100 rows: E share of a class = 1/3, Var = 2/(9 (3 alpha + 1)) + sampling.

    For shares p ~ Dir(alpha), 3 classes: Var p = (1/3)(2/3)/(3 alpha + 1), and a share of m rows
    drawn by p has Var + E[p (1 - p)]/m.
    """
    for alpha in (0.2, 2.0):
        rows = shared(num_clients=1000, rows=100, dirichlet_alpha=alpha)[:]
        held = np.array([[(LABELS[part] == c).mean() for c in (7, 0, 3)] for part in rows])
        variance = (2 / 9) / (3 * alpha + 1)
        expected = variance + (2 / 9 - variance) / 100
        np.testing.assert_allclose(held.mean(axis=0), 1 / 3, atol=4 * np.sqrt(expected / 1000))
        np.testing.assert_allclose(held.var(axis=0), expected, rtol=0.25)
        counts = np.bincount(np.concatenate(rows), minlength=600)
        rare = counts[:10] / counts[:10].sum()
        np.testing.assert_allclose(rare, 0.1, atol=0.01)


@pytest.mark.parametrize(
    "settings", [{"problem": "digits-softmax"}, {"problem": "logistic", "data": "breast_cancer"}]
)
def test_more_clients_than_rows(settings):
    config = Config.from_flat(
        {
            "num-clients": 3000,
            "participation": 0.002,
            "partitioner": "shared",
            "client-examples": 5,
            "method": "norm-ef21",
            "eval-every": 0,
            **settings,
        }
    )
    engine = InlineEngine(Experiment.build(config))
    assert engine.experiment.problem.num_examples == (5,) * 3000
    first = engine.round()
    for _ in range(9):
        last = engine.round()
    assert len(engine.clients) <= 60
    assert last.train_loss < first.train_loss
    again = InlineEngine(Experiment.build(config))
    for _ in range(10):
        again.round()
    assert again.server.x.tobytes() == engine.server.x.tobytes()


def test_gradients_are_those_of_the_drawn_rows():
    flat = {"problem": "digits-softmax", "num-clients": 4, "partitioner": "shared"}
    problem = Experiment.build(Config.from_flat({**flat, "batched": True})).problem
    x = problem.initial_point()
    rows = np.array([1, 4, 4])
    together = problem.local_many([3, 0], x, rows=[rows, None])
    for client, chosen, result in ((3, rows, together[0]), (0, None, together[1])):
        alone = problem.local(client, x, rows=chosen, buffers=np.empty(0, dtype=np.float32))
        np.testing.assert_allclose(result.gradient, alone.gradient, atol=1e-6)
    weights = np.full(4, 0.25)
    each = [problem.local(c, x, buffers=np.empty(0, dtype=np.float32)) for c in range(4)]
    whole = problem.evaluate(x, weights=weights, buffers=np.empty(0, dtype=np.float32))
    assert whole.loss == pytest.approx(np.mean([result.loss for result in each]), rel=1e-6)
    assert problem.labels(2).shape == (20,)
