"""A scaler for sequences.

Methods return new arrays, and neither modify nor keep their arguments. float32 stays float32, all other real numbers
become float64; the statistics are float64. The last axis holds the features, as in a network's X (N, T, input_dim).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lstm_ext.checks import Array, as_real, float_dtype, short_repr


class SequenceScaler:
    """Standardise each feature, (x - mean) / scale, with statistics over all axes but the last.

    Fit it on the training data only: statistics that include validation or test data leak information about them, and
    the measured error is too low.

    `mean` and `scale` are read-only; `from_dict` returns a scaler with given ones.

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
        """The standard deviation of each feature (F,), with divisor N, or 1 if it is constant; None before `fit`."""
        return self._scale

    def _use(self, mean: NDArray[np.float64], scale: NDArray[np.float64]) -> None:
        mean.flags.writeable = scale.flags.writeable = False
        self._mean, self._scale = mean, scale

    def fit(self, X: ArrayLike) -> Self:
        """Compute the mean and the standard deviation of each feature.

        Parameters
        ----------
        X : array_like (..., F)
            At least two axes; pass a univariate series as ``series[:, None]``, and sequences of different lengths as
            ``np.concatenate(sequences)``.

        Returns
        -------
        SequenceScaler
            The scaler itself.

        Raises
        ------
        TypeError
            If X does not hold real numbers.
        ValueError
            If X has fewer than two axes, is empty, or holds NaN or Inf, or if a standard deviation overflows or
            underflows in float64.
        """
        values = as_real("X", X, np.dtype(np.float64))
        if values.ndim < 2:
            raise ValueError(f"X has shape {values.shape}; expected (..., F) with at least two axes")
        rows = values.reshape(-1, values.shape[-1])
        constant = (rows == rows[0]).all(axis=0)  # their deviation may not be 0, because the mean is rounded
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
            Also a single row (F,).

        Returns
        -------
        ndarray (..., F)
            A new array, float32 if X is float32, otherwise float64.

        Raises
        ------
        RuntimeError
            If the scaler is not fitted.
        TypeError
            If X does not hold real numbers.
        ValueError
            If X has another number of features, is empty, or holds NaN or Inf.
        """
        return self._apply(X, lambda values, mean, scale: (values - mean) / scale)

    def inverse_transform(self, X: ArrayLike) -> Array:
        """Return X * scale + mean; raises as `transform`.

        Parameters
        ----------
        X : array_like (..., F)
            Also a single row (F,).

        Returns
        -------
        ndarray (..., F)
            A new array, float32 if X is float32, otherwise float64.
        """
        return self._apply(X, lambda values, mean, scale: values * scale + mean)

    def to_dict(self) -> dict[str, list[float]]:
        """Return the statistics as lists, which JSON keeps bit for bit.

        Returns
        -------
        dict
            The lists "mean" and "scale".

        Raises
        ------
        RuntimeError
            If the scaler is not fitted.
        """
        mean, scale = self._fitted()
        return {"mean": mean.tolist(), "scale": scale.tolist()}

    @classmethod
    def from_dict(cls, state: Mapping[str, ArrayLike]) -> Self:
        """Return a scaler with the statistics that `to_dict` returned.

        Parameters
        ----------
        state : mapping
            Two lists of F finite numbers, "mean" and "scale"; the scales are above 0.

        Raises
        ------
        TypeError
            If `state` is not a mapping, or its lists do not hold real numbers.
        ValueError
            If a key is missing or unknown, or the lists are not as described.
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

    def _apply(self, X: ArrayLike, function: Callable[[Array, Array, Array], Array]) -> Array:
        """Return function(X, mean, scale) in the dtype of X; raise ValueError if it overflows."""
        mean, scale = self._fitted()
        values = as_real("X", X, float_dtype(X))
        if values.ndim == 0 or values.shape[-1] != len(mean):
            raise ValueError(f"X has shape {values.shape}; expected (..., {len(mean)}), as in fit")
        return as_real("the scaled X", function(values, mean, scale), values.dtype)

    def _fitted(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if self._mean is None or self._scale is None:
            raise RuntimeError("the SequenceScaler is not fitted; call fit(X) with the training data first")
        return self._mean, self._scale
