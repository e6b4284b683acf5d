"""Targets: reading a training's Y for a loss, whose own type says what it takes."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstm_ext.checks import (
    Array,
    Index,
    as_array,
    as_labels,
    as_targets,
    check_length,
    check_live,
    is_mapped,
    without_conversion,
)
from lstm_ext.sequences import Sequences
from lstm_ext.training import losses
from lstm_ext.training.batches import PassOutputs
from lstm_ext.training.losses import CompiledLoss, Loss

_NUMERIC = (int, float, np.number, np.ndarray, list, tuple)  # types of the targets of one sequence


class Targets:
    """The targets of a training's sequences: rows of numbers or labels for a compiled loss, objects for a Python one.

    Parameters
    ----------
    Y : object
        As `train` takes it.
    sequences : Sequences
        Those that Y belongs to; targets have their dtype.
    loss : CompiledLoss or Loss
    width : int
        The number of outputs.
    every_step : bool
        Whether every step has a target.
    as_list : bool
        Whether a loss in Python sees a list of arrays, one for each sequence.
    backwards : bool
        Whether the network runs from the sequences' ends, and its outputs with it.

    Attributes
    ----------
    values : object
        Y, for a loss in Python.
    rows : ndarray (n, width), or of intp (n,)
        The targets of a compiled loss, numbers or labels; otherwise empty.
    first : ndarray of int (N,)
        The row at which each sequence begins.
    unchecked : bool
        Whether the rows are memory-mapped and may hold NaN or Inf.
    """

    def __init__(
        self,
        Y: Any,
        sequences: Sequences,
        loss: CompiledLoss | Loss,
        *,
        width: int,
        every_step: bool,
        as_list: bool,
        backwards: bool,
    ) -> None:
        N, self.dtype = len(sequences), sequences.rows.dtype
        self.sequences, self.width, self.every_step, self.as_list = sequences, width, every_step, as_list
        self.values: Any = None
        self.rows: Array = np.empty((0, width), self.dtype)
        self.first: Index = np.arange(N, dtype=np.intp)
        if every_step:
            self.first = np.cumsum(sequences.lengths) - sequences.lengths
        self.unchecked = False
        self._live = self._live_outputs(backwards) if every_step else None
        if not losses.is_compiled(loss):
            self.values = self._read_values(Y)
        elif loss.takes_labels:
            self.rows = self._read(lambda name, y, shape: as_labels(name, y, shape, width), Y)
        else:
            self._read_numbers(Y)

    def of(self, outputs: PassOutputs) -> Any:
        """Return the targets of a pass for a loss in Python; of a chunk, those of its steps."""
        values, members, first, lengths = self.values, outputs.members, outputs.first_step, outputs.lengths
        in_one = isinstance(values, np.ndarray) and not self.as_list
        if not outputs.is_chunk or lengths is None:
            return values[members] if in_one else [values[n] for n in members]
        if in_one:
            return values[members, first : first + int(lengths[0])]
        return [values[n][first : first + T] for n, T in zip(members, lengths.tolist(), strict=True)]

    def _live_outputs(self, backwards: bool) -> NDArray[np.bool_] | None:
        """Return which of the (N, T) outputs of a padded X are live; None if all are."""
        sequences = self.sequences
        if sequences.is_list or sequences.is_whole:
            return None
        live = sequences.live_mask
        return live[:, ::-1] if backwards and sequences.mask is not None else live

    def _read_numbers(self, Y: Any) -> None:
        """Take the rows of Y without a copy if it needs no conversion, and otherwise those of the live steps."""
        rows = self._rows_in_place(Y)
        if rows is None:
            self.rows = self._read(lambda name, y, shape: as_targets(name, y, self.dtype, shape, self.width), Y)
            return
        self.rows, self.unchecked = rows, is_mapped(Y)
        if self.every_step:
            self.first = self.sequences.steps * np.arange(len(self.sequences), dtype=np.intp)

    def _rows_in_place(self, Y: Any) -> Array | None:
        """Return the rows of a Y that needs no conversion, with its padding; None if it has to be read otherwise."""
        sequences, given = self.sequences, without_conversion(Y, self.dtype)
        shape: tuple[int, ...] = (len(sequences), self.width)
        lengths = np.ones(len(sequences), np.intp)
        if self.every_step:
            shape, lengths = (len(sequences), sequences.steps, self.width), sequences.lengths
            if sequences.mask is not None or (sequences.is_list and not sequences.same_length):
                return None
        if given is None or given.shape != shape:
            return None
        if not is_mapped(Y):
            check_live("Y", given, lengths)
        return given.reshape(-1, self.width)

    def _read(self, read: Callable[[str, Any, tuple[int, ...]], Array], Y: Any) -> Array:
        """Return one row for each sequence, or for each live step; `read` takes a name, data and their shape."""
        N, sequences, live = len(self.sequences), self.sequences, self._live
        if not self.every_step:
            return read("Y", Y, (N,))
        if live is not None and not isinstance(Y, (list, tuple)):
            source = as_array("Y", Y)
            if source.shape[:2] == live.shape:  # padding may hold anything
                source = np.where(live.reshape(live.shape + (1,) * (source.ndim - 2)), source, source.dtype.type(0))
            return read("Y", source, live.shape)[live]
        if live is None and sequences.same_length:
            rows = read("Y", Y, (N, sequences.longest))
            return rows.reshape(-1, *rows.shape[2:])
        check_length("Y", Y, N)
        return np.concatenate([read(f"Y[{n}]", Y[n], (int(sequences.lengths[n]),)) for n in range(N)])

    def _read_values(self, Y: Any) -> Any:
        """Return Y for a loss in Python: without padding, and for a single output with the last axis."""
        check_length("Y", Y, len(self.sequences))
        if hasattr(Y, "__array__") or isinstance(Y, (memoryview, array)):
            Y = as_array("Y", Y)
        if self._live is not None and isinstance(Y, np.ndarray) and Y.shape[:2] == self._live.shape:
            if self.sequences.mask is None:
                Y = [y[:length] for y, length in zip(Y, self.sequences.lengths, strict=True)]
            else:
                Y = [y[live] for y, live in zip(Y, self._live, strict=True)]
        return self._with_last_axis(Y) if self.width == 1 else Y

    def _with_last_axis(self, Y: Any) -> Any:
        """Return targets of a single output, if they are floats without the last axis, with it; others as given."""
        lengths = self.sequences.lengths.tolist()
        shapes = [(length,) if self.every_step else () for length in lengths]
        if isinstance(Y, np.ndarray):
            fits = Y.dtype.kind == "f" and all(Y.shape[1:] == shape for shape in set(shapes))
            return Y[..., None] if fits else Y
        if not isinstance(Y, (list, tuple)) or not all(isinstance(y, _NUMERIC) for y in Y):
            return Y
        try:
            parts = [np.asanyarray(y) for y in Y]  # masks are kept
        except ValueError:  # ragged
            return Y
        kinds = {part.dtype.kind for part in parts}
        if not {"f"} <= kinds <= {*"fiu"} or [part.shape for part in parts] != shapes:
            return Y
        return [part[..., None] for part in parts]
