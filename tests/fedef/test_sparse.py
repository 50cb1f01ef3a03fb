"""A client's g_i held sparse has the bits of a dense one, and less memory."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedef.config import Config
from fedef.experiment import Experiment
from fedef.sparse import SparseVector, empty_sparse, entry_bytes, is_smaller, smallest_form
from fedef.state import ClientState
from fedef.updates import Update
from sims.engine import InlineEngine

D = 12
FLOAT32 = np.dtype(np.float32)


@st.composite
def updates(draw):
    """Sparse and dense updates of D entries, zeros and negative zeros among them."""
    elements = st.sampled_from([0.0, -0.0, 1.5, -2.25])
    if draw(st.integers(0, 7)) == 0:
        return Update(D, draw(arrays(np.float32, D, elements=elements)))
    indices = np.array(sorted(draw(st.sets(st.integers(0, D - 1), max_size=5))), dtype=np.int64)
    return Update(D, draw(arrays(np.float32, indices.size, elements=elements)), indices)


@given(st.lists(updates(), max_size=6))
def test_commits_into_a_sparse_vector_have_the_bits_of_commits_into_a_dense_one(made):
    held, dense = empty_sparse(D, FLOAT32), np.zeros(D, dtype=np.float32)
    for update in made:
        update.overwrite(dense)
        if isinstance(held, SparseVector):
            held = held.overwritten(update)
        else:
            update.overwrite(held)
    vector = held.dense() if isinstance(held, SparseVector) else held
    assert vector.tobytes() == dense.tobytes()
    if isinstance(held, SparseVector):
        assert (np.diff(held.indices.astype(int)) > 0).all()
        assert held.indices.nbytes + held.values.nbytes < dense.nbytes
    # What is stored depends on the vector alone.
    one, other = smallest_form(held), smallest_form(dense)
    assert type(one) is type(other)
    for name in ("indices", "values") if isinstance(one, SparseVector) else ():
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()


def test_a_commit_leaves_the_older_sparse_vector_alone():
    update = Update(D, np.ones(2, dtype=np.float32), np.array([3, 7]))
    first = empty_sparse(D, FLOAT32).overwritten(update)
    first.overwritten(replace(update, values=-update.values))
    np.testing.assert_array_equal(first.dense(), update.dense())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_turns_dense_when_that_is_no_larger(dtype):
    dtype = np.dtype(dtype)
    held, entries = empty_sparse(D, dtype), 0
    while isinstance(held, SparseVector):
        entries += 1
        held = held.overwritten(Update(D, np.ones(1, dtype=dtype), np.array([entries - 1])))
    assert (entries - 1) * entry_bytes(dtype) < D * dtype.itemsize <= entries * entry_bytes(dtype)
    assert not is_smaller(entries, D, dtype)


def engine(*, sparse: bool, **settings) -> InlineEngine:
    flat = {
        "problem": "digits-softmax",
        "num-clients": 20,
        "partitioner": "iid",
        "participation": 0.2,
        "k-fraction": 0.3,
        "num-rounds": 4,
        **{key.replace("_", "-"): value for key, value in settings.items()},
    }
    made = InlineEngine(Experiment.build(Config.from_flat(flat)))
    assert made.experiment.stays_sparse
    if not sparse:
        made.clients = {
            client: made.experiment.client(client) for client in range(made.experiment.num_clients)
        }
        for session in made.clients.values():
            session.state = replace(session.state, held=session.state.g)
    return made


@pytest.mark.parametrize("compressor", ["top-k", "rand-k"])
@pytest.mark.parametrize("method", ["norm-ef21", "norm-ef21-sgdm"])
def test_a_run_has_the_same_bits_sparse_and_dense(method, compressor):
    """Far beyond the configured rounds, so that clients fill up and turn dense on the way."""
    runs = [engine(sparse=it, method=method, compressor=compressor) for it in (True, False)]
    forms = set()
    for _ in range(30):
        reports = [run.round() for run in runs]
        assert reports[0] == reports[1]
        forms |= {type(session.state.held) for session in runs[0].clients.values()}
    assert forms == {SparseVector, np.ndarray}
    assert runs[0].server.x.tobytes() == runs[1].server.x.tobytes()
    for client, session in runs[0].clients.items():
        one, other = session.state.to_arrays(), runs[1].clients[client].state.to_arrays()
        assert {n: a.tobytes() for n, a in one.items()} == {
            n: a.tobytes() for n, a in other.items()
        }
        back = ClientState.from_arrays(one)
        assert back.g.tobytes() == session.state.g.tobytes()
        assert back.dimension == 650


def test_clients_that_are_never_asked_hold_nothing_and_one_round_costs_its_entries():
    run = engine(sparse=True)
    run.round([3, 5])
    run.round([3])
    assert sorted(run.clients) == [3, 5]
    held = run.clients[3].state.held
    assert held.values.size == 195  # k of one committed round, not d
    assert run.clients[5].state.held.values.size == 0  # pending only


@pytest.mark.parametrize(
    ("settings", "sparse"),
    [
        ({"num-rounds": 4, "participation": 0.2, "k-fraction": 0.1}, True),
        ({"num-rounds": 4, "participation": 1.0, "k-fraction": 0.1}, True),
        ({"num-rounds": 5, "participation": 1.0, "k-fraction": 0.1}, False),
        ({"num-rounds": 4, "participation": 0.2, "k-fraction": 0.1, "init": "full"}, False),
    ],
)
def test_what_would_fill_up_is_dense_from_the_start(settings, sparse):
    flat = {"problem": "digits-softmax", "method": "norm-ef21", **settings}
    experiment = Experiment.build(Config.from_flat(flat))
    assert experiment.stays_sparse is sparse
    assert isinstance(experiment.client(0).state.held, SparseVector) is sparse
