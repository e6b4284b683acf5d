from array import array
from typing import Any

from lstm_ext.checks import Array

__pyx_capi__: dict[str, Any]  # Cython's
__test__: dict[str, Any]

def update_parameters(
    isa: int,
    threads: int,
    kind: int,
    settings: Array | array[float],
    powers: Array,
    moments: Array,
    parameters: Array,
    gradient: Array,
    backup: Array,
) -> bool: ...
