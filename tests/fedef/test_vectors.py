"""Layouts are bijections, and norms are right at every scale."""

from fractions import Fraction
from math import fsum, isnan, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fedef.errors import ConfigError
from fedef.vectors import Layout, is_finite, norm

ARRAYS = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scale": np.array(7.0, dtype=np.float32),
    "nothing": np.empty((3, 0), dtype=np.float32),
    "bias": np.array([8.0, 9.0], dtype=np.float32),
}
named_arrays = st.dictionaries(
    st.text(min_size=1, max_size=5),
    arrays(
        st.sampled_from([np.float32, np.float64]),
        array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        elements=st.floats(-1, 1, width=16),
    ),
    max_size=5,
)


def test_the_flat_vector_keeps_the_order_of_the_arrays():
    layout = Layout.of(ARRAYS)
    assert layout.names == ("weight", "scale", "nothing", "bias")
    assert layout.shapes == ((2, 3), (), (3, 0), (2,))
    assert layout.sizes == (6, 1, 0, 2)
    assert layout.dimension == 9
    flat = layout.flatten(ARRAYS)
    assert flat.dtype == np.float32
    np.testing.assert_array_equal(flat, [0, 1, 2, 3, 4, 5, 7, 8, 9])
    shuffled = {name: ARRAYS[name] for name in sorted(ARRAYS)}
    np.testing.assert_array_equal(layout.flatten(shuffled), flat)


def test_memory_order_does_not_matter():
    fortran = {**ARRAYS, "weight": np.asfortranarray(ARRAYS["weight"])}
    layout = Layout.of(ARRAYS)
    np.testing.assert_array_equal(layout.flatten(fortran), layout.flatten(ARRAYS))


@given(named_arrays)
def test_round_trip(named):
    layout = Layout.of(named)
    flat = layout.flatten(named)
    assert flat.shape == (layout.dimension,)
    back = layout.unflatten(flat)
    assert list(back) == list(named)
    for name, array in named.items():
        assert back[name].shape == array.shape
        np.testing.assert_array_equal(back[name], array)
        assert back[name].size == 0 or np.shares_memory(back[name], flat)
    np.testing.assert_array_equal(layout.flatten(back), flat)


def test_dtypes():
    layout = Layout.of(ARRAYS)
    assert layout.flatten(ARRAYS, np.float64).dtype == np.float64
    assert layout.flatten(ARRAYS, np.dtype(np.float64)).dtype == np.float64
    mixed = {**ARRAYS, "bias": ARRAYS["bias"].astype(np.float64)}
    assert layout.flatten(mixed).dtype == np.float64
    assert Layout.of({}).flatten({}).dtype == np.float32
    assert Layout.of({}).flatten({}).shape == (0,)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, np.complex64])
def test_arrays_that_are_not_floating_point_are_refused(dtype):
    with pytest.raises(ConfigError, match=r"layout: array 'steps' has dtype .*; only floating"):
        Layout.of({**ARRAYS, "steps": np.zeros(2, dtype=dtype)})


def test_other_names_and_shapes_are_refused():
    layout = Layout.of(ARRAYS)
    missing = {name: array for name, array in ARRAYS.items() if name != "bias"}
    with pytest.raises(ConfigError, match=r"expected arrays \['weight', .*'bias'\], got \['w"):
        layout.flatten(missing)
    with pytest.raises(ConfigError, match="expected arrays"):
        layout.flatten({**ARRAYS, "more": np.zeros(1, dtype=np.float32)})
    with pytest.raises(ConfigError, match=r"'weight' must have shape \(2, 3\), got \(3, 2\)"):
        layout.flatten({**ARRAYS, "weight": ARRAYS["weight"].T})
    for wrong in (np.zeros(8), np.zeros(10), np.zeros((9, 1))):
        with pytest.raises(ConfigError, match=r"vector must have shape \(9,\), got"):
            layout.unflatten(wrong)


# --- norm ----------------------------------------------------------------------------------------


def reference_norm(vector):
    """sqrt(sum v^2) with exact squares and an exact sum, scaled by a power of two."""
    exact = sum((Fraction(float(x)) ** 2 for x in vector), Fraction(0))
    if exact == 0:
        return 0.0
    half = (exact.numerator.bit_length() - exact.denominator.bit_length()) // 2
    root = sqrt(exact / Fraction(4) ** half)
    try:
        return float(Fraction(root) * Fraction(2) ** half)
    except OverflowError:
        return np.inf


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data())
def test_norm_against_exact_arithmetic(dtype, data):
    width = 8 * np.dtype(dtype).itemsize
    elements = st.floats(width=width, allow_nan=False, allow_infinity=False)
    vector = data.draw(arrays(dtype, st.integers(0, 20), elements=elements))
    expected = reference_norm(vector)
    assert norm(vector) == pytest.approx(expected, rel=1e-14, abs=5e-324)


@pytest.mark.parametrize(
    "exponent", [-1070, -600, -540, -530, -465, -464, -100, 0, 100, 511, 513, 1000]
)
def test_norm_is_homogeneous_in_powers_of_two(exponent):
    vector = np.random.default_rng(1).integers(-50, 50, size=1000).astype(np.float64)
    vector[0] = 50
    expected = sqrt(fsum(vector * vector))
    with np.errstate(all="raise", under="ignore"):
        assert norm(np.ldexp(vector, exponent)) == pytest.approx(
            float(np.ldexp(expected, exponent)), rel=1e-14, abs=5e-324
        )


def test_norm_of_a_long_vector_does_not_lose_small_entries():
    vector = np.full(2**20, 1e-4, dtype=np.float32)
    vector[0] = 1.0
    expected = sqrt(fsum(float(x) ** 2 for x in vector))
    assert norm(vector) == pytest.approx(expected, rel=1e-13)


@pytest.mark.filterwarnings("error")
def test_norm_of_special_values():
    assert norm(np.zeros(3)) == 0.0
    assert norm(np.zeros(0)) == 0.0
    assert norm(np.array([-0.0])) == 0.0
    assert norm(np.array([5e-324])) == 5e-324
    assert norm(np.array([3e200, 4e200])) == pytest.approx(5e200)
    assert norm(np.array([3e-200, 4e-200])) == pytest.approx(5e-200)
    assert norm(np.array([3e38, 3e38], dtype=np.float32)) == pytest.approx(sqrt(2) * 3e38)
    assert norm(np.array([1.0, np.inf, -np.inf])) == np.inf
    assert norm(np.full(4, np.finfo(np.float64).max)) == np.inf
    assert isnan(norm(np.array([1.0, np.nan])))
    assert isnan(norm(np.array([np.inf, np.nan])))


def test_is_finite():
    assert is_finite(np.array([0.0, -1e308, 5e-324]))
    assert is_finite(np.zeros(0))
    for bad in (np.nan, np.inf, -np.inf):
        assert not is_finite(np.array([0.0, bad]))
