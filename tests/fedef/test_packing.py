"""States of many clients as a few arrays, and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedef.errors import ConfigError
from fedef.packing import packed, unpacked

DTYPES = {"g": np.float32, "g.indices": np.uint32, "memory.v": np.float64, "facts": np.uint8}
fields = st.dictionaries(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 9), max_size=4))


@given(st.dictionaries(st.integers(0, 10**6), fields, max_size=6), st.randoms())
def test_what_is_packed_comes_back_and_the_order_does_not_matter(drawn, random):
    states = {
        client: {name: np.array(values, dtype=DTYPES[name]) for name, values in state.items()}
        for client, state in drawn.items()
    }
    arrays = packed(states)
    assert len(arrays) <= 1 + 3 * len(DTYPES)
    shuffled = list(states)
    random.shuffle(shuffled)
    again = packed({client: states[client] for client in shuffled})
    assert {n: a.tobytes() for n, a in arrays.items()} == {n: a.tobytes() for n, a in again.items()}
    back = unpacked(arrays)
    assert sorted(back) == sorted(states)
    for client, state in states.items():
        assert {n: (a.dtype, a.tobytes()) for n, a in back[client].items()} == {
            n: (a.dtype, a.tobytes()) for n, a in state.items()
        }
        assert all(array.base is None for array in back[client].values())


def test_a_field_of_two_types_is_not_rounded_to_one():
    with pytest.raises(TypeError, match="Cannot cast"):
        packed({0: {"g": np.ones(1, dtype=np.float32)}, 1: {"g": np.ones(1)}})


@pytest.mark.parametrize("name", ["clients", "g/sizes", "g/clients"])
def test_what_is_not_packed_is_refused(name):
    arrays = packed({0: {"g": np.ones(2)}, 1: {"g": np.ones(3)}})
    for wrong in (None, arrays[name][:1]):
        damaged = {**arrays, name: wrong} if wrong is not None else dict(arrays)
        if wrong is None:
            del damaged[name]
        with pytest.raises(ConfigError, match="start the run again"):
            unpacked(damaged)
