"""The oracle's activations, with their derivatives in terms of their outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]


def _floating(x: ArrayLike) -> Array:
    x = np.asarray(x)
    if x.dtype.kind not in "biufc":
        raise TypeError(f"x must hold numbers, got dtype {x.dtype}")
    return x if x.dtype.kind in "fc" else x.astype(np.float64)


def sigmoid(x: ArrayLike) -> Array:
    """Return 1 / (1 + exp(-x)), elementwise, without overflow.

    Parameters
    ----------
    x : array_like
        Complex numbers are selected on their real part, so that the result stays analytic.

    Returns
    -------
    ndarray
        With the shape of `x`; float64 for integers.
    """
    x = _floating(x)
    positive = x.real >= 0
    e = np.exp(np.where(positive, -x, x))
    return np.where(positive, 1 / (1 + e), e / (1 + e))


def tanh(x: ArrayLike) -> Array:
    """Return the hyperbolic tangent, elementwise.

    Parameters
    ----------
    x : array_like
        Real or complex.

    Returns
    -------
    ndarray
        With the shape of `x`; float64 for integers.
    """
    return np.asarray(np.tanh(_floating(x)))


def _hard_sigmoid(x: Array) -> Array:
    """max(0, min(1, 0.2 x + 0.5)), selected on the real part."""
    y = 0.2 * x + 0.5
    return np.where(y.real <= 0, 0, np.where(y.real >= 1, 1, y)).astype(x.dtype)


def _relu(x: Array) -> Array:
    return np.where(x.real <= 0, 0, x).astype(x.dtype)


GATE_ACTIVATIONS: dict[str, tuple[Any, Any]] = {  # the function, its derivative
    "sigmoid": (sigmoid, lambda y: y * (1 - y)),
    "hard_sigmoid": (_hard_sigmoid, lambda y: ((y.real > 0) & (y.real < 1)).astype(y.dtype) * 0.2),
}
CELL_ACTIVATIONS: dict[str, tuple[Any, Any]] = {
    "tanh": (tanh, lambda y: 1 - y**2),
    "identity": (lambda x: x, np.ones_like),
    "relu": (_relu, lambda y: (y.real > 0).astype(y.dtype)),
}
