from typing import Any

import numpy as np
from typing_extensions import disjoint_base

from lstm_ext.checks import Array, Index
from lstm_ext.options import Architecture
from lstm_ext.sequences import Sequences

__pyx_capi__: dict[str, Any]  # Cython's
__test__: dict[str, Any]

def check_stack(what: str, architecture: Architecture, steps: int, batch: int) -> None: ...

@disjoint_base
class LayerStack:
    dtype: np.dtype[Any]
    bytes: int
    by_lanes: tuple[int, ...]
    def __init__(
        self,
        isa: int,
        architecture: Architecture,
        dtype: np.dtype[Any],
        steps: int,
        batch: int,
        *,
        keep: bool,
        want_dX: bool = False,
        want_outputs: bool = False,
        draws: bool = False,
        segment: int = 0,
        measure: bool = False,
        gaps: list[tuple[int, int]] | None = None,
    ) -> None: ...

def forward(
    stack: LayerStack,
    threads: int,
    sequences: Sequences,
    members: Index,
    seed: int,
    parameters: Array,
    h0: Array | None,
    C0: Array | None,
    H: Array,
    h_T: Array,
    C_T: Array,
) -> None: ...
def backward(
    stack: LayerStack,
    threads: int,
    sequences: Sequences,
    parameters: Array,
    dH: Array | None,
    dh_T: Array | None,
    dC_T: Array | None,
    dh0: Array,
    dC0: Array,
    dX: Array,
    gradient: Array,
) -> None: ...
