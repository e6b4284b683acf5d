"""The memory of the arrays that the passes work in."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lstm_ext.checks import Array, check_allocatable

_LINE = 64  # bytes of a cache line


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return an uninitialised array that starts on a cache line."""
    check_allocatable("a work array", *shape)
    size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size + _LINE, np.uint8)
    start = -buffer.ctypes.data % _LINE
    return buffer[start : start + size].view(dtype).reshape(shape)
