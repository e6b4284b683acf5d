"""Sequences of equal or different lengths, in any form that users have them, as one array of rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lstm_ext._kernels import is_finite
from lstm_ext.checks import (
    Array,
    Data,
    Index,
    as_array,
    as_numbers,
    as_real,
    as_shape,
    check_live,
    check_shape,
    convert,
    without_conversion,
)


class Sequences:
    """N sequences in one array of rows: sequence n is rows[first[n] : first[n] + lengths[n]].

    Padding is not read: it may hold anything. An X that needs no conversion is not copied, also with `lengths`; its
    padding is then among the rows. A list, and an X with a `mask` that leaves steps out, are copied.

    Parameters
    ----------
    X : array_like (N, T, input_dim), or a list of arrays (T_n, input_dim)
        The data.
    input_dim : int
        The width of a row.
    dtype : dtype
        The type of the rows.
    lengths : array_like of int (N,), optional
        The number of live steps of each sequence of a padded X, from the first on.
    mask : array_like of bool (N, T), optional
        True for the live steps of X, which may be anywhere. Not together with `lengths`.
    defer : bool
        Whether the caller checks an X that needs no conversion for NaN and Inf, batch by batch.

    Attributes
    ----------
    rows : ndarray (rows, input_dim)
        X itself if it needs no conversion and no mask leaves steps out, else a copy of the live steps.
    first, lengths : ndarray of int (N,)
        The row at which each sequence begins, and the number of its live steps.
    longest : int
        The largest number of live steps.
    same_length : bool
        Whether all sequences have the same number of live steps.
    steps : int
        The number T of steps of X, with its padding; for a list, `longest`.
    mask : ndarray of bool (N, T), or None
        The mask, unless it is True everywhere.
    is_list : bool
        Whether X is a list.
    unchecked : bool
        Whether the rows may hold NaN or Inf, as with `defer`.

    Raises
    ------
    TypeError, ValueError
        If X is neither (N, T, input_dim) nor N arrays (T_n, input_dim), or its live steps are not finite real numbers;
        if lengths or mask are not as above, or a sequence has no live step.
    """

    def __init__(
        self,
        X: Data,
        input_dim: int,
        dtype: np.dtype[Any],
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        defer: bool = False,
    ) -> None:
        given = [name for name, value in (("lengths", lengths), ("mask", mask)) if value is not None]
        if len(given) == 2:
            raise ValueError("lengths and mask are both given; expected one of them")
        self.mask: NDArray[np.bool_] | None = None
        self.rows: Array
        self.first: Index
        self.lengths: Index
        self.steps: int
        self.longest: int
        self.same_length: bool
        self.unchecked = False
        self.is_list = isinstance(X, (list, tuple)) and len(X) > 0
        if self.is_list:
            if given:
                raise ValueError(
                    f"{given[0]} is given with a list of sequences; expected None: each has its own length"
                )
            parts = [as_shape(f"X[{n}]", x, dtype, ("T", input_dim)) for n, x in enumerate(cast("Sequence[Any]", X))]
            self.rows = np.concatenate(parts)
            self._count(np.array([len(part) for part in parts]))
            self.steps = self.longest
            return
        array = without_conversion(X, dtype)
        shape = "N", "T", input_dim
        source = as_numbers("X", X, shape) if array is None else array
        check_shape("X", source.shape, shape)
        self._count_live(lengths, mask, *source.shape[:2])
        if self.mask is not None or (array is None and not self.is_whole):
            self.rows = _live_rows(source, self.live_mask, dtype)
            return
        self.unchecked = defer and array is not None
        if array is None:
            array = convert("X", source, dtype)
        elif not self.unchecked and (not self.is_whole or not is_finite(array)):
            check_live("X", array, self.lengths)
        self.rows = array.reshape(-1, input_dim)
        self.first = np.arange(0, len(self.rows), self.steps, dtype=np.intp)

    def _count_live(self, lengths: ArrayLike | None, mask: ArrayLike | None, N: int, T: int) -> None:
        """Set the attributes that follow from `lengths` or `mask`."""
        self.steps = T
        live = None if mask is None else _as_mask(mask, N, T)
        if lengths is not None:
            self._count(_as_lengths(lengths, N, T))
        elif live is not None and not live.all():
            self.mask = live
            self._count(live.sum(axis=1))
        else:
            self.lengths = np.empty(N, np.intp)  # np.full takes twice as long, which counts in small calls
            self.lengths.fill(T)
            self.longest, self.same_length = T, True

    def _count(self, lengths: Array) -> None:
        """Set the attributes of sequences whose rows follow one another."""
        self.lengths = lengths.astype(np.intp)
        self.first = np.cumsum(self.lengths) - self.lengths
        self.longest = int(self.lengths.max())
        self.same_length = int(self.lengths.min()) == self.longest

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def by_length(self) -> Index:
        """The numbers of the sequences (N,), the longest first."""
        if self.same_length:  # sorting takes 2 us, which small calls feel
            return np.arange(len(self), dtype=np.intp)
        return longest_first(self.lengths)

    @property
    def is_whole(self) -> bool:
        """Whether all N T steps of X are live."""
        return self.same_length and self.longest == self.steps

    @property
    def in_place(self) -> bool:
        """Whether all N T steps of X are rows, live or not."""
        return len(self.rows) == len(self) * self.steps

    @property
    def has_padding(self) -> bool:
        """Whether there is padding among the rows."""
        return not self.is_whole and self.in_place

    def new_rows(self, width: int) -> Array:
        """Return an array (rows, width) to write to, with zeros if `rows` has padding."""
        return (np.zeros if self.has_padding else np.empty)((len(self.rows), width), self.rows.dtype)

    def scatter(self, rows: Array) -> Any:
        """Return an array with one row for each of `rows` in the form in which X was given.

        Parameters
        ----------
        rows : ndarray (rows, width)
            One row for each of `self.rows`.

        Returns
        -------
        ndarray (N, T, width), or a list of arrays (T_n, width)
            Zeros for steps without a row. A list for a list of sequences of different lengths. Views of the given rows
            if no zeros are added.
        """
        if self.is_list and not self.same_length:
            return np.split(rows, self.first[1:])
        return self.pad(rows)

    def pad(self, rows: Array) -> Array:
        """Do the same as `scatter`, but return one array for a list too."""
        shape = (len(self), self.steps, *rows.shape[1:])
        if len(rows) == len(self) * self.steps:  # not `in_place`: these may be only the live rows
            return rows.reshape(shape)
        padded = np.zeros(shape, rows.dtype)
        padded[self.live_mask] = rows
        return padded

    @cached_property
    def live_mask(self) -> NDArray[np.bool_]:
        """Which of the N x T steps are live."""
        return np.arange(self.steps) < self.lengths[:, None] if self.mask is None else self.mask


def longest_first(lengths: Index, batch_size: int | None = None) -> Index:
    """Return the order that sorts sequences by length, the longest first, all or within each batch; ties keep theirs.

    Parameters
    ----------
    lengths : ndarray of int (N,)
        The sequences' lengths.
    batch_size : int, optional
        The number of sequences of a batch; the last may be smaller.
    """
    if batch_size is None or batch_size >= len(lengths):
        return np.argsort(-lengths, kind="stable")
    return np.lexsort((-lengths, np.arange(len(lengths)) // batch_size))


def _live_rows(source: Array, live: NDArray[np.bool_], dtype: np.dtype[Any]) -> Array:
    """Return the live rows as finite numbers."""
    try:
        return as_real("X", source[live], dtype)
    except ValueError:
        as_real("X", np.where(live[:, :, None], source, 0), dtype)  # the same error, with the index in X
        raise


def _as_lengths(lengths: ArrayLike, N: int, T: int) -> Array:
    source = as_array("lengths", lengths, (N,))
    check_shape("lengths", source.shape, (N,))
    if source.dtype.kind not in "iu":
        raise TypeError(f"lengths has dtype {source.dtype}; expected integers")
    wrong = np.flatnonzero((source < 1) | (source > T))
    if len(wrong):
        raise ValueError(f"lengths[{wrong[0]}] is {source[wrong[0]]}; expected from 1 to {T}, the steps of X")
    return source


def _as_mask(mask: ArrayLike | None, N: int, T: int) -> NDArray[np.bool_]:
    source = as_array("mask", mask, (N, T))
    check_shape("mask", source.shape, (N, T))
    if source.dtype != np.bool_:
        raise TypeError(f"mask has dtype {source.dtype}; expected bool, True for a live step")
    empty = np.flatnonzero(~source.any(axis=1))
    if len(empty):
        raise ValueError(f"mask[{empty[0]}] is False everywhere; expected at least one live step")
    return source.copy()
