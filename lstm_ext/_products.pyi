from typing import Any

import numpy as np

from lstm_ext.checks import Array

__pyx_capi__: dict[str, Any]  # Cython's
__test__: dict[str, Any]

def check_allocatable(what: str, *factors: int) -> None: ...
def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array: ...
