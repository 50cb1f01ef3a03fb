"""Directions: the unit vector is one long at every scale and points along g."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedef.directions import DIRECTIONS, Direction, plain, unit
from fedef.errors import ConfigError

DTYPES = (np.float32, np.float64)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


def test_the_names():
    assert set(DIRECTIONS) == {"plain", "unit", "power", "clip", "independent", "remembered"}
    g = np.array([3.0, 4.0])
    assert Direction("plain").of(g) is g
    np.testing.assert_array_equal(Direction("unit").of(g), unit(g))


@pytest.mark.parametrize("beta", [1 / 3, 2 / 3, 1.0])
def test_the_family_in_closed_form(beta):
    """g / max(N + delta, tau)^beta with ||g|| = 5."""
    g = np.array([3.0, 4.0])
    power = Direction("power", beta=beta).of(g)
    np.testing.assert_allclose(power, g / 5**beta, rtol=1e-14)
    for tau in (1.0, 5.5, 60.0):
        clip = Direction("clip", beta=beta, delta=0.5, tau=tau).of(g)
        np.testing.assert_allclose(clip, g / max(5.5, tau) ** beta, rtol=1e-14)
        independent = Direction("independent", beta=beta, delta=0.5, tau=tau, amplification=2.0)
        np.testing.assert_allclose(independent.of(g, 7.0), g / max(14.5, tau) ** beta, rtol=1e-14)


def test_an_independent_direction_needs_its_norm():
    with pytest.raises(ConfigError, match="needs the norm"):
        Direction("independent").of(np.ones(2))


def test_a_divisor_of_zero_leaves_x_where_it_is():
    np.testing.assert_array_equal(Direction("power").of(np.zeros(3)), np.zeros(3))
    np.testing.assert_array_equal(Direction("independent").of(np.ones(3), 0.0), np.zeros(3))


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
