from typing import Any

import numpy as np
from typing_extensions import disjoint_base

from lstm_ext.checks import Array
from lstm_ext.options import Architecture

__pyx_capi__: dict[str, Any]  # Cython's
__test__: dict[str, Any]
READOUTS: dict[str, int]
POOLED: tuple[str, ...]

@disjoint_base
class Head:
    outputs: Array
    doutputs: Array
    bytes: int
    needs_steps: bool
    def __init__(
        self,
        isa: int,
        architecture: Architecture,
        dtype: np.dtype[Any],
        steps: int,
        batch: int,
        parameter_count: int,
        *,
        keep: bool,
    ) -> None: ...

def apply(isa: int, threads: int, features: Array, parameters: Array, outputs: Array) -> None: ...
