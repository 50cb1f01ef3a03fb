"""Momentum: closed forms of v_k = (1-eta)^k grad_0 + eta sum_j (1-eta)^(k-j) grad_j."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedef.estimators import momentum

floats = st.floats(-1e3, 1e3, width=32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_first_gradient_is_the_first_v_bit_for_bit(dtype):
    gradient = np.array([0.1, -0.0, 1e-30], dtype=dtype)
    for eta in (0.1, 1.0):
        assert momentum(None, gradient, eta).tobytes() == gradient.tobytes()


@given(arrays(np.float32, 4, elements=floats), arrays(np.float32, 4, elements=floats))
def test_eta_one_is_no_momentum_bit_for_bit(v, gradient):
    assert momentum(v, gradient, 1.0).tobytes() == gradient.tobytes()


@given(
    st.lists(arrays(np.float64, 3, elements=floats), min_size=1, max_size=12),
    st.floats(0.01, 1.0),
)
def test_the_closed_form(gradients, eta):
    v = None
    for gradient in gradients:
        v = momentum(v, gradient, eta)
    k = len(gradients) - 1
    expected = (1 - eta) ** k * gradients[0]
    for j in range(1, k + 1):
        expected = expected + eta * (1 - eta) ** (k - j) * gradients[j]
    np.testing.assert_allclose(v, expected, rtol=1e-12, atol=1e-10)


def test_a_step_of_a_constant_gradient_shrinks_the_error_by_one_minus_eta():
    gradient, v = np.array([2.0, -1.0]), np.array([10.0, 7.0])
    for _ in range(5):
        error = v - gradient
        v = momentum(v, gradient, 0.25)
        np.testing.assert_allclose(v - gradient, 0.75 * error, rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept_and_inputs_are_not_changed(dtype):
    v, gradient = np.ones(2, dtype), np.zeros(2, dtype)
    assert momentum(v, gradient, 0.1).dtype == dtype
    assert v.tolist() == [1.0, 1.0]
    assert gradient.tolist() == [0.0, 0.0]
