"""Named streams: the same name, the same draws; and nobody else's generator is touched."""

import random
from hashlib import blake2b
from itertools import product

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedef.randomness import generator_from, stream, stream_seed


def test_the_streams_are_pinned():
    """A change of these numbers changes every published run: it needs a new major version."""
    assert stream_seed(0, "minibatch", 3, 17) == 7122724832632113546
    assert stream_seed(0, "participation", 5) == 1845450214324127000
    assert stream_seed(2**63 - 1, "x") == 17713525540978670172
    assert stream(0, "minibatch", 3, 17).integers(1000, size=6).tolist() == [
        *(647, 472, 76, 764, 531, 410)
    ]
    assert [draw.hex() for draw in stream(0, "initial-point").random(2)] == [
        "0x1.b31116702b4d0p-4",
        "0x1.97562904960bdp-1",
    ]
    normals = stream(0, "initial-point").standard_normal(2)
    np.testing.assert_allclose(normals, [0.803053924053354, -0.7821700029579364], rtol=1e-15)
    assert stream(0, "partition").permutation(8).tolist() == [6, 1, 0, 7, 2, 3, 4, 5]


@given(st.integers(0, 2**63 - 1), st.lists(st.integers(0, 10**9), max_size=3))
def test_a_seed_is_the_hash_of_the_spelled_name(seed, indices):
    spelled = "/".join([str(seed), "some-name", *map(str, indices)])
    expected = int.from_bytes(blake2b(spelled.encode(), digest_size=8).digest(), "little")
    assert stream_seed(seed, "some-name", *indices) == expected < 2**64
    numpy_integers = [np.int64(index) for index in indices]
    assert stream_seed(np.int64(seed), "some-name", *numpy_integers) == expected


def test_different_names_have_different_streams():
    names = [
        (seed, name, *indices)
        for seed, name in product((0, 1, 11), ("minibatch", "compressor", "participation"))
        for indices in ((), (0,), (1,), (11,), (1, 1), (0, 1), (1, 0), (11, 1), (1, 11))
    ]
    assert len({stream_seed(*name) for name in names}) == len(names)
    assert len({tuple(stream(*name).random(3)) for name in names}) == len(names)


def test_draws_do_not_depend_on_what_was_drawn_before():
    expected = stream(5, "b", 2).random(4)
    first, second = stream(5, "a", 1), stream(5, "b", 2)
    first.random(100)
    np.testing.assert_array_equal(second.random(4), expected)
    np.testing.assert_array_equal(generator_from(stream_seed(5, "b", 2)).random(4), expected)


def test_no_global_generator_is_touched_or_read():
    np.random.seed(3)  # noqa: NPY002 - the global generator is what must stay out
    random.seed(3)
    before = np.random.get_state()[1].copy(), np.random.get_state()[2], random.getstate()  # noqa: NPY002
    torch_before = torch.random.get_rng_state()
    first = stream(0, "minibatch", 1).random(5)
    after = np.random.get_state()  # noqa: NPY002
    np.testing.assert_array_equal(after[1], before[0])
    assert after[2] == before[1]
    assert random.getstate() == before[2]
    assert torch.equal(torch.random.get_rng_state(), torch_before)
    np.random.seed(4)  # noqa: NPY002
    np.testing.assert_array_equal(stream(0, "minibatch", 1).random(5), first)
