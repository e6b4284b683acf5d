"""The arrays that the passes work in, named by how long they live.

``ws_*`` is kept from forward to backward, ``scratch_*`` is not. With B sequences of T steps, the kept part has about
``T * B * (I + 6 H)`` elements: the rows [h | x], the cell state and the four gates of every step.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, NoReturn

import numpy as np

from lstm_ext import _passes
from lstm_ext.checks import Array, check_allocatable

_LINE = 64  # bytes of a cache line


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return an uninitialised array that starts on a cache line."""
    check_allocatable("a work array", *shape)
    size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size + _LINE, np.uint8)
    start = -buffer.ctypes.data % _LINE
    return buffer[start : start + size].view(dtype).reshape(shape)


def _with_slack(shape: tuple[int, ...], slack: int, dtype: np.dtype[Any]) -> Array:
    """Return an aligned array that may be read `slack` elements past its end."""
    size = math.prod(shape)
    return aligned_empty((size + slack,), dtype)[:size].reshape(shape)


def _row_stride(columns: int, dtype: np.dtype[Any]) -> int:
    """Return a row length of an odd number of cache lines, so that no stack of rows falls into one set of the cache."""
    per_line = _LINE // dtype.itemsize
    return (-(-columns // per_line) | 1) * per_line


class Shape(NamedTuple):
    """What the size of every work array follows from."""

    steps: int
    batch: int
    input_dim: int
    hidden_dim: int
    output_dim: int
    dtype: np.dtype[Any]
    isa: int

    def packed_sizes(self) -> dict[str, int]:
        """Return the number of elements of every packed array."""
        return _passes.packed_sizes(self.isa, self.input_dim, self.hidden_dim, self.output_dim, self.dtype.name)


class Activations:
    """What sequence_forward works on; how it lays C and the gates out is between it and sequence_backward.

    Parameters
    ----------
    shape : Shape
    keep : {"all", "hidden", "latest"}
        Keep the states and gates of all steps, for a backward pass; only h of all steps; or the latest states, in two
        slots that alternate.
    """

    def __init__(self, shape: Shape, *, keep: str) -> None:
        steps, batch, input_dim, hidden_dim, _, dtype, self.isa = shape
        stride = _row_stride(hidden_dim + input_dim, dtype)
        self.ws_hx = aligned_empty((2 if keep == "latest" else steps + 1, batch, stride), dtype)
        self.ws_C = aligned_empty((steps + 1 if keep == "all" else 1, batch, hidden_dim), dtype)
        self.ws_gates = aligned_empty((steps if keep == "all" else 0, batch, 4 * hidden_dim), dtype)
        self.scratch_packed = aligned_empty((shape.packed_sizes()["cell"],), dtype)

    def __reduce__(self) -> NoReturn:
        raise TypeError("tapes and stream states are packed for this process; save the network instead")


class BackwardScratch:
    """What sequence_backward needs beside the activations and the gradients of the states."""

    def __init__(self, shape: Shape, *, want_dX: bool) -> None:
        steps, batch, _, hidden_dim, _, dtype, _ = shape
        sizes = shape.packed_sizes()
        self.scratch_packed_h = aligned_empty((sizes["h"],), dtype)
        self.scratch_packed_x = aligned_empty((sizes["x"] if want_dX else 0,), dtype)
        self.scratch_panels = aligned_empty((sizes["panels"],), dtype)
        self.scratch_sums = np.empty(sizes["sums"])
        rows = max(1, min(steps, sizes["chunk_rows"] // batch)) * batch
        self.scratch_dz = _with_slack((rows, _row_stride(4 * hidden_dim, dtype)), sizes["slack"], dtype)


class HeadScratch:
    """The outputs of every slot (see _epoch.pyx) and their gradient, and what the head's passes need."""

    def __init__(self, shape: Shape, *, every_step: bool) -> None:
        steps, batch, _, _, output_dim, dtype, _ = shape
        sizes = shape.packed_sizes()
        slots = steps if every_step else 1
        self.ws_outputs = aligned_empty((slots, batch, output_dim), dtype)
        self.ws_doutputs = _with_slack((slots, batch, output_dim), sizes["slack"], dtype)
        self.scratch_packed = aligned_empty((sizes["head"],), dtype)
        self.scratch_packed_backward = aligned_empty((sizes["head_backward"],), dtype)


class StateGradients:
    """The gradients that pass from step to step, and those that the head sends to every step."""

    def __init__(self, shape: Shape, *, every_step: bool) -> None:
        steps, batch, _, hidden_dim, _, dtype, _ = shape
        self.scratch_dh = aligned_empty((batch, hidden_dim), dtype)
        self.scratch_dC = aligned_empty((batch, hidden_dim), dtype)
        self.scratch_dH = aligned_empty((batch if every_step else 0, steps, hidden_dim), dtype)
