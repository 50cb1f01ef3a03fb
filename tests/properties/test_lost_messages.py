"""A lost, repeated, late or reordered reply is exactly a client that was not asked, bit for bit."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedef.client_session import ClientSession, Nothing, Work
from fedef.config import Config
from fedef.experiment import Experiment
from fedef.messages import Reply, Task
from fedef.participation import participants
from sims.engine import InlineEngine

ROUNDS = 12
BASE = {
    "problem": "logistic",
    "data": "synthetic",
    "num-clients": 6,
    "partitioner": "iid",
    "schedule": "constant",
    "step-size": 0.3,
    "num-rounds": ROUNDS,
}
CASES = [
    {"method": "ef21", "compressor": "top-k", "k": 2},
    {"method": "norm-ef21", "compressor": "rand-k", "k": 3, "value-format": "bfloat16"},
    {"method": "ef21-sgdm", "compressor": "top-k", "k": 1, "local-batch-size": 2},
    {"method": "norm-ef21-sgdm", "compressor": "top-k", "k": 2, "participation": 0.5},
    {"method": "norm-ef21-sgdm", "compressor": "top-k", "k": 2, "init": "full"},
    {"problem": "digits-softmax", "method": "norm-ef21-sgdm", "local-batch-size": 8},
    {"method": "ian-sgd", "local-batch-size": 2, "independent-batch-size": 1},
    {"method": "spider", "local-batch-size": 1, "spider-period": 4},
    {"method": "norm-ef21", "k": 2, "direction": "independent", "beta": 0.5},
    {"method": "ef21", "k": 2, "schedule": "auto"},
]
KINDS = ("lost", "twice", "late", "late twice")


class FaultyNetwork:
    """Loses, repeats, delays and shuffles replies as told."""

    def __init__(self, faults: dict[tuple[int, int], str], shuffle_seed: int) -> None:
        self._faults = faults
        self._shuffle = np.random.default_rng(shuffle_seed)
        self._late: list[Reply] = []

    def __call__(self, replies: list[Reply]) -> Sequence[Reply]:
        delivered, self._late = self._late, []
        for reply in replies:
            fault = self._faults.get((reply.client, reply.round))
            if fault is None or fault == "twice":
                delivered.append(reply)
            if fault == "twice":
                delivered.append(reply)
            if fault in ("late", "late twice"):
                self._late += [reply] * (2 if fault == "late twice" else 1)
        return [delivered[i] for i in self._shuffle.permutation(len(delivered))]


def build(case: dict[str, object]) -> Experiment:
    return Experiment.build(Config.from_flat({**BASE, **case}))


def asked(experiment: Experiment, round: int) -> tuple[int, ...]:
    config = experiment.config
    return participants(config.seed, round, experiment.num_clients, config.participation)


def settled_states(engine: InlineEngine) -> dict[int, tuple[bytes, ...]]:
    """The bits of every client's state once it has heard from the server."""
    states = {}
    for client, session in engine.clients.items():
        record = engine.server.state.records.get(client)
        acked = (record.version, record.digest) if record else (0, bytes(8))
        state = session.state.settled(*acked)
        v = b"".join(state.memory[name].tobytes() for name in sorted(state.memory))
        states[client] = (state.g.tobytes(), v, bytes([state.version]), state.digest)
    return {client: state for client, state in states.items() if state[2] != b"\0"}


def run_with_faults(case, faults, shuffle_seed) -> InlineEngine:
    engine = InlineEngine(build(case))
    network = FaultyNetwork(faults, shuffle_seed)
    for _ in range(ROUNDS):
        engine.round(network=network)
    return engine


def run_without_the_unheard(case, faults) -> InlineEngine:
    experiment = build(case)
    engine = InlineEngine(experiment)
    for round in range(1, ROUNDS + 1):
        unheard = {client for (client, r), kind in faults.items() if r == round and kind != "twice"}
        engine.round([client for client in asked(experiment, round) if client not in unheard])
    return engine


def assert_same_bits(one: InlineEngine, other: InlineEngine) -> None:
    assert one.server.x.tobytes() == other.server.x.tobytes()
    assert one.server.state.total.tobytes() == other.server.state.total.tobytes()
    assert one.server.state.records == other.server.state.records
    assert settled_states(one) == settled_states(other)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
@settings(max_examples=15)
@given(
    faults=st.dictionaries(
        st.tuples(st.integers(0, 5), st.integers(1, ROUNDS)), st.sampled_from(KINDS), max_size=30
    ),
    shuffle_seed=st.integers(0, 2**32 - 1),
)
def test_any_faults_are_clients_that_were_not_asked(case, faults, shuffle_seed):
    assert_same_bits(
        run_with_faults(case, faults, shuffle_seed), run_without_the_unheard(case, faults)
    )


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("case", CASES[:4], ids=lambda case: case["method"])
def test_loss_at_a_rate(case, rate):
    rng = np.random.default_rng(int(rate * 100))
    faults = {
        (client, round): KINDS[rng.integers(len(KINDS))]
        for client in range(6)
        for round in range(1, ROUNDS + 1)
        if rng.random() < rate
    } or {(3, 5): "lost"}
    assert_same_bits(run_with_faults(case, faults, 0), run_without_the_unheard(case, faults))


class ImpatientClient(ClientSession):
    """Test only: commits what it sends at once, and tells the server what it wants to hear."""

    def work(self, task: Task) -> Work | Nothing:
        self.asked = task
        return super().work(replace(task, acked=self.state.version, digest=self.state.digest))

    def answer(self, work: Work | Nothing) -> Reply:
        reply = super().answer(work)
        pending = self.state.pending
        assert pending is not None
        self.state = self.state.settled(pending.round, pending.digest)
        return replace(reply, version=self.asked.acked, digest=self.asked.digest)


def floor(client_class: type[ClientSession], *, loss_rate: float) -> float:
    """Squared gradient norm of EF21 after 1500 rounds with lost replies."""
    experiment = build(
        {
            "method": "ef21",
            "compressor": "top-k",
            "k": 3,
            "num-clients": 20,
            "step-size": 0.4,
            "num-rounds": 1500,
        }
    )
    engine = InlineEngine(experiment)
    engine.clients = {
        client: client_class(
            client,
            run_id=experiment.run_id,
            seed=0,
            problem=experiment.problem,
            method=experiment.method,
        )
        for client in range(20)
    }
    rng = np.random.default_rng(1)
    for _ in range(1500):
        engine.round(network=lambda replies: [r for r in replies if rng.random() >= loss_rate])
    weights = np.full(20, 1 / 20)
    at = experiment.problem.evaluate(engine.server.x, weights=weights, buffers=np.empty(0))
    return at.gradient_norm**2


@pytest.mark.slow
def test_without_acknowledgement_the_floor_rises():
    """Spec section 5: 1 % of the replies lost after commit lift the floor from 1e-20 for ever."""
    assert floor(ClientSession, loss_rate=0.0) < 1e-18
    assert floor(ClientSession, loss_rate=0.01) < 1e-18
    assert floor(ImpatientClient, loss_rate=0.0) < 1e-18
    assert floor(ImpatientClient, loss_rate=0.01) > 1e-8
