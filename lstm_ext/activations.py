"""Sigmoid and tanh on arrays, computed by the kernels (within 4 ULP)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from lstm_ext import _kernels
from lstm_ext.checks import Array, as_array, float_dtype


def sigmoid(x: ArrayLike) -> Array:
    """Return 1 / (1 + exp(-x)), elementwise.

    Parameters
    ----------
    x : array_like
        An array of any shape. float32 and float64 keep their dtype; other real numbers become float64. Inf is allowed,
        and NaN stays NaN.

    Returns
    -------
    ndarray
        An array with the shape of `x`. Results below the smallest normal number may be zero.

    Raises
    ------
    TypeError
        If `x` does not hold real numbers.
    """
    return _apply(_kernels.apply_sigmoid, x)


def tanh(x: ArrayLike) -> Array:
    """Return tanh(x), elementwise.

    Parameters
    ----------
    x : array_like
        As for `sigmoid`.

    Returns
    -------
    ndarray
        As for `sigmoid`.

    Raises
    ------
    TypeError
        If `x` does not hold real numbers.
    """
    return _apply(_kernels.apply_tanh, x)


def _apply(kernel: Callable[[Array, Array], None], x: ArrayLike) -> Array:
    source = as_array("x", x)
    if source.dtype.kind not in "fiub":
        raise TypeError(f"x has dtype {source.dtype}; expected real numbers")
    dtype = float_dtype(source)
    result = np.empty(source.shape, dtype)
    with np.errstate(over="ignore"):  # a long double beyond float64 is Inf
        source = np.ascontiguousarray(source, dtype)
    kernel(source.reshape(-1), result.reshape(-1))
    return result
