"""Directions: the unit vector is one long at every scale and points along g."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedef.directions import DIRECTIONS, plain, unit

DTYPES = (np.float32, np.float64)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


def test_the_names():
    assert set(DIRECTIONS) == {"plain", "unit"}
    assert DIRECTIONS["plain"] is plain
    assert DIRECTIONS["unit"] is unit


@each_dtype
def test_plain_is_the_identity(dtype):
    g = np.array([3.0, -0.0, 1e-30], dtype=dtype)
    assert plain(g) is g


def test_unit_of_a_3_4_5_triangle():
    np.testing.assert_array_equal(unit(np.array([3.0, -4.0])), [0.6, -0.8])


@each_dtype
@given(data=st.data())
def test_unit_is_one_long_and_parallel(dtype, data):
    info = np.finfo(dtype)
    size = st.floats(float(info.tiny), float(info.max) / 8, width=8 * np.dtype(dtype).itemsize)
    elements = st.one_of(st.just(0.0), size, size.map(lambda x: -x))
    g = data.draw(arrays(dtype, st.integers(1, 20), elements=elements))
    u = unit(g)
    assert u.dtype == dtype
    if not g.any():
        np.testing.assert_array_equal(u, g)
        return
    scaled = g.astype(np.float64) / float(np.abs(g).max())
    expected = scaled / np.linalg.norm(scaled)
    np.testing.assert_allclose(u, expected, rtol=8 * float(info.eps), atol=float(info.tiny))


@each_dtype
@pytest.mark.parametrize("zero", [np.zeros(3), np.zeros(0), np.full(2, -0.0)])
def test_unit_of_zero_is_zero(dtype, zero):
    g = zero.astype(dtype)
    np.testing.assert_array_equal(unit(g), zero)


@pytest.mark.filterwarnings("error")
def test_unit_where_the_norm_does_not_fit_the_dtype():
    g = np.full(4, 3e38, dtype=np.float32)
    np.testing.assert_array_equal(unit(g), np.full(4, 0.5, dtype=np.float32))
    g = np.full(4, 1e-45, dtype=np.float32)
    np.testing.assert_array_equal(unit(g), np.full(4, 0.5, dtype=np.float32))
    g = np.full(3, 1e-45, dtype=np.float32)
    np.testing.assert_allclose(unit(g), np.full(3, 3**-0.5), rtol=1e-7)


@given(arrays(np.float64, 5, elements=st.floats(-100, 100)), st.integers(-300, 300))
def test_unit_forgets_powers_of_two(g, exponent):
    g = np.where(np.abs(g) < 1e-3, 0.0, g)
    np.testing.assert_array_equal(unit(np.ldexp(g, exponent)), unit(g))
