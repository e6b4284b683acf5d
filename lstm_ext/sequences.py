"""Sequences of one or of many lengths, given in any way, as one array of their live rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lstm_ext.checks import Array, Data, as_array, as_numbers, as_real, as_shape, check_shape


class Sequences:
    """N sequences as one array of rows: sequence n is rows[offsets[n] : offsets[n + 1]].

    What is padding is not among the rows, and is not looked at: it may hold anything.

    Parameters
    ----------
    X : array_like (N, T, input_dim), or a list of arrays (T_n, input_dim)
        The data.
    input_dim : int
        The width of a row.
    dtype : dtype
        Of the rows.
    lengths : array_like of int (N,), optional
        How many steps of each sequence of a padded X are live, from the first on.
    mask : array_like of bool (N, T), optional
        Which steps of a padded X are live, anywhere. Not together with `lengths`.

    Attributes
    ----------
    rows : ndarray (sum of the lengths, input_dim)
        The live steps; X itself, and no copy, where all are live and nothing is to be converted.
    offsets : ndarray of int (N + 1,)
        Where each sequence begins, and the end.
    longest : int
        The largest number of live steps.
    same_length : bool
        Whether all sequences have as many live steps.
    steps : int
        The number T of steps of X, with its padding; for a list, `longest`.
    live : ndarray of bool (N, T), or None
        The mask, where one is given that is not True everywhere.
    is_list : bool
        Whether X is a list.

    Raises
    ------
    TypeError, ValueError
        If X is neither (N, T, input_dim) nor N arrays (T_n, input_dim), or its live steps are not finite real numbers;
        if lengths or mask are not as above, or do not leave one live step of each sequence at least.
    """

    def __init__(
        self,
        X: Data,
        input_dim: int,
        dtype: np.dtype[Any],
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> None:
        given = [name for name, value in (("lengths", lengths), ("mask", mask)) if value is not None]
        if len(given) == 2:
            raise ValueError("lengths and mask are both given; expected one of them")
        self.live: NDArray[np.bool_] | None = None
        self.is_list = isinstance(X, (list, tuple)) and len(X) > 0
        if self.is_list:
            if given:
                raise ValueError(
                    f"{given[0]} is given with a list of sequences; expected None: each has its own length"
                )
            parts = [as_shape(f"X[{n}]", x, dtype, ("T", input_dim)) for n, x in enumerate(cast("Sequence[Any]", X))]
            self.rows = np.concatenate(parts)
            counts = np.array([len(part) for part in parts])
            self._count(counts)
            self.steps = int(counts.max())
        elif given:
            shape = "N", "T", input_dim
            source = as_numbers("X", X, shape)
            check_shape("X", source.shape, shape)
            N, self.steps, _ = source.shape
            live = _as_mask(mask, N, self.steps) if lengths is None else _first_steps(lengths, N, self.steps)
            self.rows = _live_rows(source, live, dtype)
            self._count(live.sum(axis=1))
            if mask is not None and len(self.rows) < live.size:
                self.live = live
        else:
            array = as_shape("X", X, dtype, ("N", "T", input_dim))
            N, self.steps, _ = array.shape
            self.rows = array.reshape(-1, input_dim)
            self.offsets = np.arange(0, (N + 1) * self.steps, self.steps, dtype=np.intp)
            self.longest, self.same_length = self.steps, True

    def _count(self, lengths: Array) -> None:
        self.offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.intp)
        self.longest = int(lengths.max())
        self.same_length = int(lengths.min()) == self.longest

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self) -> Array:
        """Return the number of live steps of each sequence."""
        return np.diff(self.offsets)

    def scatter(self, rows: Array) -> Any:
        """Return something for each row as X was given.

        Parameters
        ----------
        rows : ndarray (sum of the lengths, width)
            In the order of `rows`.

        Returns
        -------
        ndarray (N, T, width), or a list of arrays (T_n, width)
            Zeros where there is no row. A list for a list of sequences of different lengths. Views of `rows` where
            nothing is filled in.
        """
        if self.is_list and not self.same_length:
            return np.split(rows, self.offsets[1:-1])
        return self.pad(rows)

    def pad(self, rows: Array) -> Array:
        """Return something for each row as one array, for a list too; otherwise as `scatter`."""
        shape = (len(self), self.steps, *rows.shape[1:])
        if len(rows) == len(self) * self.steps:
            return rows.reshape(shape)
        padded = np.zeros(shape, rows.dtype)
        padded[self.places] = rows
        return padded

    @cached_property
    def places(self) -> NDArray[np.bool_]:
        """Which of the N x T steps are live."""
        return _prefixes(self.lengths(), self.steps) if self.live is None else self.live


def _live_rows(source: Array, live: NDArray[np.bool_], dtype: np.dtype[Any]) -> Array:
    """Return the live rows as finite numbers."""
    if live.all():
        return as_real("X", source, dtype).reshape(-1, source.shape[2])
    try:
        return as_real("X", source[live], dtype)
    except ValueError:
        as_real("X", np.where(live[:, :, None], source, 0), dtype)  # the same error, with its place in X
        raise


def _first_steps(lengths: ArrayLike, N: int, T: int) -> NDArray[np.bool_]:
    source = as_array("lengths", lengths, (N,))
    check_shape("lengths", source.shape, (N,))
    if source.dtype.kind not in "iu":
        raise TypeError(f"lengths has dtype {source.dtype}; expected integers")
    wrong = np.flatnonzero((source < 1) | (source > T))
    if len(wrong):
        raise ValueError(f"lengths[{wrong[0]}] is {source[wrong[0]]}; expected from 1 to {T}, the steps of X")
    return _prefixes(source, T)


def _prefixes(lengths: Array, T: int) -> NDArray[np.bool_]:
    prefixes: NDArray[np.bool_] = np.arange(T) < lengths[:, None]
    return prefixes


def _as_mask(mask: ArrayLike | None, N: int, T: int) -> NDArray[np.bool_]:
    source = as_array("mask", mask, (N, T))
    check_shape("mask", source.shape, (N, T))
    if source.dtype != np.bool_:
        raise TypeError(f"mask has dtype {source.dtype}; expected bool, True for a live step")
    empty = np.flatnonzero(~source.any(axis=1))
    if len(empty):
        raise ValueError(f"mask[{empty[0]}] is False everywhere; expected at least one live step")
    return source.copy()
