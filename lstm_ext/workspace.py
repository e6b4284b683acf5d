"""The memory of the arrays that the passes work in."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lstm_ext.checks import Array, check_allocatable

if TYPE_CHECKING:
    from lstm_ext.options import Architecture

INFERENCE_NUMBERS = 2**20  # of the outputs of a layer, or of the head, at a time where nothing is kept
_LINE = 64  # bytes of a cache line


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return an uninitialised array that starts on a cache line."""
    check_allocatable("a work array", *shape)
    size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size + _LINE, np.uint8)
    start = -buffer.ctypes.data % _LINE
    return buffer[start : start + size].view(dtype).reshape(shape)


def steps_at_once(architecture: Architecture, rows: int, width: int, steps: int) -> int:
    """Return how many steps of some sequences, with outputs of this width, to run at a time where nothing is kept.

    All of them where the network begins at the sequences' ends.
    """
    if architecture.directions == 2 or architecture.options.go_backwards:
        return steps
    return min(steps, max(1, INFERENCE_NUMBERS // (rows * width)))
