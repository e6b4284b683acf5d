"""Sequences for training: windows of a series, a scaler, gaps, and one record to try them on.

- New arrays come out; nothing that comes in is modified or shared.
- float32 stays float32, all other real numbers become float64; a scaler's statistics are float64.
- The last axis holds the features, as in the networks' X (N, T, input_dim).
- A gap is NaN. Only `fill_gaps` accepts gaps; the others name the first one and stop.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lstm_ext.checks import Array, as_array, as_real, as_size, float_dtype, short_repr


def windows(
    series: ArrayLike, n_in: int, n_out: int, *, step: int = 1, target: int | None = None
) -> tuple[Array, Array]:
    """Cut a series into input windows and the rows that follow each of them.

    Window i starts at row ``i * step``: ``X[i] = series[i*step : i*step + n_in]``, and Y[i] holds the
    next `n_out` rows. Rows at the end that fill no whole window are left out.

    X always has a feature axis, because the networks want one. Y has one only if it holds several
    features: a series (T,), or one column chosen by `target`, gives Y (N, n_out), which is what
    ``train(network, X, Y)`` takes for a network with ``output_dim=n_out``.

    Parameters
    ----------
    series : array_like (T,) or (T, F)
        Real and finite; see `fill_gaps` for a series with gaps.
    n_in, n_out : int
        Rows of a window and rows to predict.
    step : int
        Rows from the start of one window to the start of the next. A step longer than the series gives one window.
    target : int, optional
        The column to predict of a series (T, F), negative from the end; without it all of them.

    Returns
    -------
    X : ndarray (N, n_in, F)
        ``N = (T - n_in - n_out) // step + 1``; F is 1 for a series (T,). X and Y are contiguous copies.
    Y : ndarray (N, n_out) or (N, n_out, F)
        The rows that follow each window.

    Raises
    ------
    TypeError
        If the series does not hold real numbers, or a size is no integer.
    ValueError
        If the series has another rank, is empty, holds NaN or Inf, or has fewer than
        ``n_in + n_out`` rows; if a size is below 1, or `target` names no column.

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


class SequenceScaler:
    """Standardise each feature: (x - mean) / scale, taken over all axes but the last.

    Fit it on the training data only. Statistics that have seen the validation or the test data tell the
    network about them, and the measured error is then too good.

    `mean` and `scale` are read-only; `from_dict` makes a scaler of given ones.

    Examples
    --------
    >>> X = np.array([[[1.0, 5.0], [3.0, 5.0]]])  # (N, T, F) = (1, 2, 2)
    >>> SequenceScaler().fit(X).transform(X).tolist()
    [[[-1.0, 0.0], [1.0, 0.0]]]
    """

    __slots__ = ("_mean", "_scale")

    def __init__(self) -> None:
        self._mean: NDArray[np.float64] | None = None
        self._scale: NDArray[np.float64] | None = None

    @property
    def mean(self) -> NDArray[np.float64] | None:
        """The mean of each feature (F,), read-only; None before `fit`."""
        return self._mean

    @property
    def scale(self) -> NDArray[np.float64] | None:
        """The standard deviation (divisor N), 1 for a constant feature (F,), read-only; None before `fit`."""
        return self._scale

    def _use(self, mean: NDArray[np.float64], scale: NDArray[np.float64]) -> None:
        mean.flags.writeable = scale.flags.writeable = False
        self._mean, self._scale = mean, scale

    def fit(self, X: ArrayLike) -> Self:
        """Take the mean and the standard deviation of each feature.

        Parameters
        ----------
        X : array_like (..., F)
            At least two axes; a univariate series is ``series[:, None]``. Sequences of different lengths
            are fitted as ``np.concatenate(sequences)``.

        Returns
        -------
        SequenceScaler
            Itself.

        Raises
        ------
        TypeError
            If X does not hold real numbers.
        ValueError
            If X has fewer than two axes, is empty, holds NaN or Inf, or if a standard deviation overflows
            or vanishes in float64.
        """
        values = as_real("X", X, np.dtype(np.float64))
        if values.ndim < 2:
            raise ValueError(f"X has shape {values.shape}; expected (..., F) with at least two axes")
        rows = values.reshape(-1, values.shape[-1])
        constant = (rows == rows[0]).all(axis=0)  # the mean's rounding can hide that a deviation is 0
        with np.errstate(over="ignore", invalid="ignore"):
            mean = np.where(constant, rows[0], rows.mean(axis=0))
            scale = np.where(constant, 1.0, rows.std(axis=0))
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            j = np.flatnonzero(~(np.isfinite(scale) & (scale > 0)))[0]
            raise ValueError(f"X[..., {j}] has the standard deviation {scale[j]}; expected a finite one above 0")
        self._use(mean, scale)
        return self

    def transform(self, X: ArrayLike) -> Array:
        """Return (X - mean) / scale.

        Parameters
        ----------
        X : array_like (..., F)
            A single row (F,) will do.

        Returns
        -------
        ndarray (..., F)
            A new array, float32 if X is, otherwise float64.

        Raises
        ------
        RuntimeError
            If the scaler is not fitted.
        TypeError
            If X does not hold real numbers.
        ValueError
            If X has another number of features, is empty, or holds NaN or Inf.
        """
        mean, scale = self._fitted()
        values = _as_rows(X, len(mean))
        return _finite_in((values - mean) / scale, values.dtype)

    def inverse_transform(self, X: ArrayLike) -> Array:
        """Return X * scale + mean; the errors are those of `transform`.

        Parameters
        ----------
        X : array_like (..., F)
            A single row (F,) will do.

        Returns
        -------
        ndarray (..., F)
            A new array, float32 if X is, otherwise float64.
        """
        mean, scale = self._fitted()
        values = _as_rows(X, len(mean))
        return _finite_in(values * scale + mean, values.dtype)

    def to_dict(self) -> dict[str, list[float]]:
        """Return the statistics in a form that JSON keeps to the bit.

        Returns
        -------
        dict
            Of the lists "mean" and "scale".

        Raises
        ------
        RuntimeError
            If the scaler is not fitted.
        """
        mean, scale = self._fitted()
        return {"mean": mean.tolist(), "scale": scale.tolist()}

    @classmethod
    def from_dict(cls, state: Mapping[str, ArrayLike]) -> Self:
        """Return the scaler that `to_dict` described.

        Parameters
        ----------
        state : mapping
            The keys "mean" and "scale", each with a list of F finite numbers, the scales above 0.

        Raises
        ------
        TypeError
            If `state` is no mapping, or its lists do not hold real numbers.
        ValueError
            If a key is missing or unknown, or the lists are not as above.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state is {short_repr(state)}; expected the mapping that to_dict returns")
        if set(state) != {"mean", "scale"}:
            raise ValueError(f"state has the keys {short_repr(list(state))}; expected 'mean' and 'scale'")
        mean, scale = (as_real(f"state[{key!r}]", state[key], np.dtype(np.float64)).copy() for key in ("mean", "scale"))
        if mean.ndim != 1 or mean.shape != scale.shape:
            raise ValueError(f"state has lists of shape {mean.shape} and {scale.shape}; expected (F,) twice")
        if not (scale > 0).all():
            j = np.flatnonzero(scale <= 0)[0]
            raise ValueError(f"state['scale'][{j}] is {scale[j]}; expected numbers above 0")
        scaler = cls()
        scaler._use(mean, scale)
        return scaler

    def _fitted(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if self._mean is None or self._scale is None:
            raise RuntimeError("the SequenceScaler is not fitted; call fit(X) with the training data first")
        return self._mean, self._scale


def fill_gaps(series: ArrayLike) -> Array:
    """Fill each gap along the straight line between the two values beside it.

    A filled value depends on the value *after* its gap: cut a series where the training years end before
    filling it, not afterwards.

    Parameters
    ----------
    series : array_like (T,) or (T, F)
        Rows at equal distances in time, NaN where there is no value. Each column is filled by itself.

    Returns
    -------
    ndarray, same shape
        A copy, float32 if the series is, otherwise float64.

    Raises
    ------
    TypeError
        If the series does not hold real numbers.
    ValueError
        If the series has another rank, is empty or holds Inf, or if a column begins or ends with a gap:
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
        for end, place in ((0, "begins"), (-1, "ends")):
            if gap[end]:
                raise ValueError(f"{name} {place} with a gap; expected observed values at both ends")
        column[gap] = np.interp(steps[gap], steps[~gap], column[~gap])
    return filled


def _find_gaps(series: ArrayLike) -> tuple[Array, NDArray[np.bool_]]:
    """Return a checked copy of a series (T,) or (T, F), 0 in its gaps, and where they are.

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


def load_co2() -> tuple[NDArray[np.datetime64], NDArray[np.float64]]:
    """Return the weekly CO2 record of Mauna Loa, 1958-03-29 to 2001-12-29.

    Its source, licence and citation are in ``lstm_ext/records/README.md``.

    Returns
    -------
    dates : ndarray (2284,), datetime64[D]
        Every Saturday, none left out.
    ppm : ndarray (2284,), float64
        Parts per million by volume; NaN in the 59 weeks without a value.

    Examples
    --------
    >>> dates, ppm = load_co2()
    >>> str(dates[0]), float(ppm[0])
    ('1958-03-29', 316.1)
    """
    from importlib import resources  # takes longer to import than all of lstm_ext

    text = resources.files("lstm_ext").joinpath("records", "co2.csv").read_text(encoding="ascii")
    rows = [line.split(",") for line in text.splitlines()[1:]]
    dates = np.array([date for date, _ in rows], dtype="datetime64[D]")
    ppm = np.array([float(value) if value else np.nan for _, value in rows])
    return dates, ppm


def _as_series(values: Array) -> Array:
    if values.ndim not in (1, 2):
        raise ValueError(f"series has shape {values.shape}; expected (T,) or (T, F)")
    return values


def _columns(values: Array) -> Array:
    """Return views of the columns."""
    return values.reshape(len(values), -1).T


def _as_column(target: int, shape: tuple[int, ...]) -> int:
    """Return `target` if it names a column of a series of that shape."""
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


def _finite_in(result: Array, dtype: np.dtype[Any]) -> Array:
    """Return the result of a transform in `dtype`, or raise ValueError where it overflows."""
    return as_real("the scaled X", result, dtype)


def _as_rows(X: ArrayLike, features: int) -> Array:
    values = as_real("X", X, float_dtype(X))
    if values.ndim == 0 or values.shape[-1] != features:
        raise ValueError(f"X has shape {values.shape}; expected (..., {features}), as in fit")
    return values
