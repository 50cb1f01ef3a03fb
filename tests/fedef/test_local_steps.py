"""Local steps against a hand-written FedAvg, and the relations between the methods."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from fedef.config import Config
from fedef.errors import ConfigError
from fedef.experiment import Experiment
from fedef.local_steps import LocalSteps
from fedef.participation import participants
from fedef.problems.base import LocalResult
from fedef.schedules import constant
from sims.engine import InlineEngine

LOGISTIC = {
    "problem": "logistic",
    "data": "synthetic",
    "num-clients": 3,
    "partitioner": "contiguous",
    "schedule": "constant",
    "step-size": 0.5,
}
NOTHING = np.empty(0)


def engine(**settings) -> InlineEngine:
    flat = {key.replace("_", "-"): value for key, value in settings.items()}
    return InlineEngine(Experiment.build(Config.from_flat({**LOGISTIC, **flat})))


def after(rounds: int, **settings) -> np.ndarray:
    run = engine(**settings)
    for _ in range(rounds):
        run.round()
    return run.server.x


def fedavg(run: InlineEngine, *, rounds: int, steps: int, eta, server_rate: float = 1.0):
    """FedAvg (arXiv:1602.05629, Alg. 1), the clients' turns counted in steps."""
    experiment, x = run.experiment, run.server.x.copy()
    problem, config = experiment.problem, experiment.config
    sizes = np.array(problem.num_examples, dtype=float)
    for t in range(rounds):
        chosen = participants(config.seed, t + 1, len(sizes), config.participation)
        models = []
        for k in chosen:
            w = x.copy()
            for step in range(steps):
                rows = experiment.method.sampler.rows(
                    "minibatch", k, t + 1, available=problem.num_examples[k], step=step
                )
                w -= eta(t) * problem.local(k, w, rows=rows, buffers=NOTHING).gradient
            models.append(w)
        mean = np.average(models, axis=0, weights=sizes[list(chosen)])
        x = x + server_rate * (mean - x)
    return x


@pytest.mark.parametrize("participation", [1.0, 0.5])
@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("schedule", ["constant", "inv-sqrt"])
def test_fedavg_is_the_weighted_mean_of_the_clients_models(schedule, batch, participation):
    """One learning rate: the clients' is the server's, and the server averages. 7, 7, 6 rows."""
    settings = {
        "method": "fedavg",
        "local_steps": 4,
        "local_batch_size": batch,
        "schedule": schedule,
        "participation": participation,
        "num_clients": 3 if participation == 1.0 else 6,
    }

    def eta(t: int) -> float:
        return 0.5 if schedule == "constant" else 0.5 / np.sqrt(t + 1)

    expected = fedavg(engine(**settings), rounds=12, steps=4, eta=eta)
    np.testing.assert_allclose(after(12, **settings), expected, rtol=1e-11)


@pytest.mark.parametrize("server_rate", [1.0, 0.7])
def test_with_a_rate_of_the_clients_own_the_step_size_is_the_servers(server_rate):
    settings = {"method": "fedavg", "local_steps": 3, "local_step_size": 0.2}
    expected = fedavg(
        engine(**settings), rounds=12, steps=3, eta=lambda t: 0.2, server_rate=server_rate
    )
    run = after(12, step_size=server_rate, **settings)
    np.testing.assert_allclose(run, expected, rtol=1e-11)


def test_fedavg_and_weight_decay_against_torch_itself():
    """Models trained by torch.optim.SGD in float32, averaged by examples."""
    run = engine(
        problem="digits-softmax",
        num_clients=4,
        partitioner="dirichlet",
        method="fedavg",
        local_steps=3,
        weight_decay=0.01,
    )
    problem = run.experiment.problem
    x, weights = run.server.x.copy(), np.array(problem.num_examples, dtype=float)
    for _ in range(3):
        models = []
        for inputs, targets in problem._clients:
            model = torch.nn.Linear(64, 10)
            with torch.no_grad():
                torch.nn.utils.vector_to_parameters(torch.tensor(x), model.parameters())
            optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.01)
            for _ in range(3):
                optimizer.zero_grad()
                cross_entropy(model(inputs), targets).backward()
                optimizer.step()
            models.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy())
        x = np.average(np.array(models), axis=0, weights=weights).astype(np.float32)
        run.round()
        np.testing.assert_allclose(run.server.x, x, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["ef21", "norm-ef21-sgdm", "nsgdm", "fedavg", "spider"])
def test_one_local_step_is_the_plain_gradient_bit_for_bit(method):
    """fedavg with one step and one rate is SGD; the local step size is of no matter to others."""
    own = {} if method == "fedavg" else {"local_step_size": 3.0}
    plain = "sgd" if method == "fedavg" else method
    common = {"local_batch_size": 2}
    one = after(10, method=method, local_steps=1, **own, **common)
    assert one.tobytes() == after(10, method=plain, **common).tobytes()


def test_more_local_steps_begin_with_the_same_rows():
    """The first batch of a round does not depend on the number of steps; the others differ."""
    sampler = engine(local_batch_size=3).experiment.method.sampler
    first = sampler.rows("minibatch", 1, 5, available=100)
    steps = [sampler.rows("minibatch", 1, 5, available=100, step=step) for step in range(4)]
    assert steps[0].tolist() == first.tolist()
    assert len({tuple(rows) for rows in steps}) == 4


def test_the_pseudo_gradient_is_the_way_walked_over_the_step_size():
    """On f(x) = x^2/2 from 1: y_E = (1 - eta)^E, buffers count the passes, the loss is at x."""

    def gradient(x, rows, buffers):
        return LocalResult(float(x @ x) / 2, x.copy(), buffers + 1)

    for as_change, scale in ((False, 1 / 0.25), (True, 1.0)):
        local = LocalSteps(5, constant(0.25), as_change=as_change)
        result = local.pseudo_gradient(gradient, np.ones(1), lambda step: None, np.zeros(1), 0)
        assert result.gradient == pytest.approx((1 - 0.75**5) * scale, rel=1e-14)
        assert (result.loss, result.buffers.tolist()) == (0.5, [5.0])


def test_ef21_with_all_entries_and_the_local_rate_is_fedavg():
    """Server step = local step: the mean of the models, through error feedback (float64)."""
    common = {"local_steps": 4, "step_size": 0.3, "local_batch_size": 2}
    feedback = after(8, method="ef21", compressor="identity", local_step_size=0.3, **common)
    np.testing.assert_allclose(feedback, after(8, method="fedavg", **common), rtol=1e-9)


@pytest.mark.parametrize("participation", [1.0, 0.5])
def test_local_steps_combine_with_top_k_feedback_momentum_and_unit_steps(participation):
    """Conservation holds, the same bits come twice, and the loss falls."""
    settings = {
        "problem": "digits-softmax",
        "num_clients": 4,
        "method": "norm-ef21-sgdm",
        "momentum_eta": 0.5,
        "compressor": "top-k",
        "k": 65,
        "local_steps": 3,
        "local_step_size": 0.1,
        "local_batch_size": 16,
        "step_size": 0.2,
        "participation": participation,
    }
    run, again = engine(**settings), engine(**settings)
    losses = []
    for _ in range(30):
        losses.append(run.round().train_loss)
        again.round()
    assert run.server.x.tobytes() == again.server.x.tobytes()
    assert losses[-1] < 0.7 * losses[0]
    mean = np.zeros(650)
    for client, session in run.clients.items():
        record = run.server.state.records[client]
        mean += run.experiment.weights[client] * session.state.settled(
            record.version, record.digest
        ).g.astype(np.float64)
    np.testing.assert_allclose(run.server.g, mean / sum(run.experiment.weights), atol=1e-6)


def test_gradient_evaluations_count_every_local_step():
    def count(**settings) -> int:
        return engine(**settings).round().gradient_evaluations

    assert count(method="fedavg", local_steps=5) == 5 * 20
    assert count(method="fedavg", local_steps=5, local_batch_size=2) == 5 * 2 * 3
    ours = count(method="norm-ef21", local_batch_size=6)
    assert ours == count(method="fedavg", local_steps=3, local_batch_size=2) == 18


def test_weight_decay_is_a_regularizer_of_the_gradient_alone():
    """lambda x more than without, the loss as without; also in the independent gradient."""
    ridge, plain = (
        engine(method="ef21", compressor="identity", weight_decay=decay) for decay in (0.3, 0.0)
    )
    x = plain.server.x
    with_decay, without = ridge.round(), plain.round()
    np.testing.assert_allclose(ridge.server.g, plain.server.g + 0.3 * x, rtol=1e-13)
    assert with_decay.train_loss == without.train_loss
    independent = {"method": "ian-sgd", "num_clients": 1, "weight_decay": 0.3}
    report = engine(**independent).round()
    gradient = plain.experiment.problem
    whole = np.average(
        [gradient.local(i, x, buffers=NOTHING).gradient for i in range(3)],
        axis=0,
        weights=gradient.num_examples,
    )
    assert report.independent_norm == pytest.approx(np.linalg.norm(whole + 0.3 * x), rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "norm-ef21", "local_steps": 2}, "local-step-size: needed"),
        (
            {"method": "fedavg", "local_steps": 2, "schedule": "auto"},
            "local-step-size: needed.*auto",
        ),
        ({"method": "spider", "local_steps": 2, "local_step_size": 0.1}, "local-steps: .*spider"),
        ({"method": "norm-ef21", "local_steps": 0}, "local-steps: .*greater"),
        ({"method": "fedavg", "local_step_size": -1.0}, "local-step-size: "),
        ({"weight_decay": -0.1}, "weight-decay: "),
        (
            {"method": "ef21", "schedule": "theory", "weight_decay": 0.1},
            "schedule=theory: .*weight-decay=0.1",
        ),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        engine(**settings)


def test_a_walk_that_diverges_is_refused_and_not_applied():
    """Non-finite pseudo-gradients never enter a state."""
    run = engine(
        problem="phase-retrieval",
        method="fedavg",
        local_steps=9,
        local_step_size=1e9,
        num_clients=2,
    )
    before = run.server.x.copy()
    report = run.round()
    assert report.refusals == {"non-finite": 2}
    assert run.server.x.tobytes() == before.tobytes()
