"""Updates: dense and sparse forms add the same numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedef.updates import Update, add_weighted

INDICES = np.array([1, 4])
SPARSE = Update(5, np.array([2.0, -3.0], dtype=np.float32), INDICES)
DENSE = Update(5, np.array([0.0, 2.0, 0.0, 0.0, -3.0], dtype=np.float32))
each_form = pytest.mark.parametrize("update", [SPARSE, DENSE], ids=["sparse", "dense"])


@each_form
def test_the_dense_vector(update):
    np.testing.assert_array_equal(update.dense(), DENSE.values)
    assert update.dense().dtype == np.float32
    update.dense()[:] = 7.0
    np.testing.assert_array_equal(update.dense(), DENSE.values)


@each_form
def test_overwriting_with_the_entries_after_is_addition_and_can_be_repeated(update):
    base = np.arange(5, dtype=np.float32)
    after = update.entries_after(base)
    np.testing.assert_array_equal(base, np.arange(5))
    assert after.values.dtype == np.float32
    for _ in range(2):
        after.overwrite(base)
        np.testing.assert_array_equal(base, np.arange(5) + DENSE.values)


@each_form
def test_a_weighted_sum_is_formed_in_float64(update):
    accumulator = np.ones(5)
    add_weighted(accumulator, [(0.1, update)])
    np.testing.assert_array_equal(accumulator, 1 + 0.1 * DENSE.values.astype(np.float64))
    narrow = 1 + np.float32(0.1) * DENSE.values
    assert (accumulator[INDICES] != narrow[INDICES]).all()


@st.composite
def terms(draw):
    made = []
    for weight in draw(st.lists(st.floats(-4, 4, width=32), max_size=6)):
        if draw(st.booleans()):
            values = draw(arrays(np.float32, 7, elements=st.floats(-100, 100, width=16)))
            made.append((weight, Update(7, values)))
        else:
            indices = np.array(sorted(draw(st.sets(st.integers(0, 6)))), dtype=np.int64)
            elements = st.floats(-100, 100, width=16)
            values = draw(arrays(np.float32, indices.size, elements=elements))
            made.append((weight, Update(7, values, indices)))
    return made


@given(terms())
def test_a_weighted_sum_is_the_sum_of_the_dense_vectors(made):
    # Weights of 24 bits and values of 11 make every product and sum here exact enough.
    accumulator = np.full(7, 0.5)
    add_weighted(accumulator, made)
    expected = 0.5 + sum(weight * u.dense().astype(np.float64) for weight, u in made)
    np.testing.assert_allclose(accumulator, expected, rtol=0, atol=1e-11)


@given(terms(), st.integers(1, 20))
def test_the_bits_are_those_of_one_sum_in_the_order_of_the_terms(made, entries_at_once):
    """As NumPy's bincount adds, however few entries are taken at once; dense ones come last."""
    sparse = [(weight, update) for weight, update in made if update.indices is not None]
    if not sparse:
        return
    values = np.concatenate([w * update.values.astype(np.float64) for w, update in sparse])
    places = np.concatenate([update.indices for _, update in sparse])
    accumulator = np.full(7, 1 / 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedef.updates._ENTRIES_AT_ONCE", entries_at_once)
        add_weighted(accumulator, sparse)
    expected = 1 / 3 + np.bincount(places, weights=values, minlength=7)
    assert accumulator.tobytes() == expected.tobytes()
