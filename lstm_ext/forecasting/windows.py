"""Windows of a series, and filled gaps.

The functions return new arrays, and neither modify nor keep their arguments. float32 stays float32, all other real
numbers become float64. A gap is NaN; only `fill_gaps` accepts gaps.
"""

from __future__ import annotations

import operator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lstm_ext.checks import Array, as_array, as_real, as_size, float_dtype, short_repr


def windows(
    series: ArrayLike, n_in: int, n_out: int, *, step: int = 1, target: int | None = None
) -> tuple[Array, Array]:
    """Cut a series into input windows and the rows that follow each of them.

    Window i starts at row ``i * step``: ``X[i] = series[i*step : i*step + n_in]``, and ``Y[i]`` is the next `n_out`
    rows. Rows at the end that do not fill a window are left out.

    X always has a feature axis, as networks expect. Y has one only if it holds several features: for a series (T,), or
    with `target`, Y is (N, n_out), as ``train(network, X, Y)`` expects for a network with ``output_dim=n_out``.

    Parameters
    ----------
    series : array_like (T,) or (T, F)
        Real and finite; see `fill_gaps` for a series with gaps.
    n_in, n_out : int
        Rows in a window, and rows to predict after it.
    step : int
        Rows from the start of one window to the start of the next. A step longer than the series gives one window.
    target : int, optional
        The column to predict, for a series (T, F); negative values count from the end. By default all columns.

    Returns
    -------
    X : ndarray (N, n_in, F)
        ``N = (T - n_in - n_out) // step + 1``; F is 1 for a series (T,). X and Y are contiguous copies.
    Y : ndarray (N, n_out) or (N, n_out, F)
        The rows that follow each window.

    Raises
    ------
    TypeError
        If the series does not hold real numbers, or a size is not an integer.
    ValueError
        If the series has another rank, is empty, holds NaN or Inf, or has fewer than ``n_in + n_out`` rows; if a size
        is below 1, or `target` is not a column.

    Examples
    --------
    >>> X, Y = windows([0.0, 1.0, 2.0, 3.0, 4.0], n_in=2, n_out=2)
    >>> X.shape, Y.tolist()
    ((2, 2, 1), [[2.0, 3.0], [3.0, 4.0]])
    """
    values = _as_series(as_real("series", series, float_dtype(series)))
    n_in, n_out, step = as_size("n_in", n_in), as_size("n_out", n_out), as_size("step", step)
    if len(values) < n_in + n_out:
        raise ValueError(f"series has {len(values)} rows; expected at least n_in + n_out = {n_in + n_out}")
    predicted = values if target is None else values[:, _as_column(target, values.shape)]
    starts = np.arange(0, len(values) - n_in - n_out + 1, min(step, len(values)))[:, None]
    X = values.reshape(len(values), -1)[starts + np.arange(n_in)]
    Y = predicted[starts + np.arange(n_in, n_in + n_out)]
    return X, Y


def fill_gaps(series: ArrayLike) -> Array:
    """Fill each gap by linear interpolation between the values on either side.

    A filled value depends on the value *after* its gap, so cut off the test data before you fill a series.

    Parameters
    ----------
    series : array_like (T,) or (T, F)
        Equally spaced rows, with NaN in gaps. Each column is filled separately.

    Returns
    -------
    ndarray, same shape
        A copy, float32 if the series is float32, otherwise float64.

    Raises
    ------
    TypeError
        If the series does not hold real numbers.
    ValueError
        If the series has another rank, is empty or holds Inf, or if a column begins or ends with a gap, because
        nothing is extrapolated.

    Examples
    --------
    >>> fill_gaps([1.0, float("nan"), 3.0]).tolist()
    [1.0, 2.0, 3.0]
    """
    filled, gaps = _find_gaps(series)
    steps = np.arange(len(filled))
    for number, (column, gap) in enumerate(zip(_columns(filled), _columns(gaps), strict=True)):
        name = "series" if filled.ndim == 1 else f"series[:, {number}]"
        for row, verb in ((0, "begins"), (-1, "ends")):
            if gap[row]:
                raise ValueError(f"{name} {verb} with a gap; expected observed values at both ends")
        column[gap] = np.interp(steps[gap], steps[~gap], column[~gap])
    return filled


def _find_gaps(series: ArrayLike) -> tuple[Array, NDArray[np.bool_]]:
    """Return a checked copy of a series (T,) or (T, F) with 0 in its gaps, and a mask of the gaps.

    Raises
    ------
    TypeError
        If the series does not hold real numbers.
    ValueError
        If it has another rank, is empty or holds Inf.
    """
    source = as_array("series", series)
    dtype = float_dtype(source)
    gaps = np.isnan(source) if source.dtype.kind == "f" else np.zeros(source.shape, np.bool_)
    values = np.where(gaps, 0, source) if gaps.any() else source.copy()
    return _as_series(as_real("series", values, dtype)), gaps


def _as_series(values: Array) -> Array:
    if values.ndim not in (1, 2):
        raise ValueError(f"series has shape {values.shape}; expected (T,) or (T, F)")
    return values


def _columns(values: Array) -> Array:
    """Return views of the columns."""
    return values.reshape(len(values), -1).T


def _as_column(target: int, shape: tuple[int, ...]) -> int:
    """Return `target` if it is a column of a series of that shape."""
    if len(shape) == 1:
        given = short_repr(target)
        raise ValueError(f"target is {given} for a series of shape {shape}; expected None, or a series (T, F)")
    try:
        if isinstance(target, (bool, np.bool_)):
            raise TypeError
        column = operator.index(target)
    except TypeError:
        raise TypeError(f"target is {short_repr(target)}; expected an integer or None") from None
    if not -shape[1] <= column < shape[1]:
        raise ValueError(f"target is {column}; expected a column from {-shape[1]} to {shape[1] - 1}")
    return column
