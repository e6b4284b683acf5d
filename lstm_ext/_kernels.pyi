from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstm_ext.checks import Array

__pyx_capi__: dict[str, Any]  # Cython's
__test__: dict[str, Any]

def available_isas() -> tuple[str, ...]: ...
def isa() -> str: ...
def current() -> int: ...
def isa_index(name: str) -> int: ...
def use_isa(name: str) -> None: ...
def build() -> dict[str, str]: ...
def apply_sigmoid(x: Array, y: Array) -> None: ...
def apply_tanh(x: Array, y: Array) -> None: ...
def apply_cell_step(
    z: Array,
    C_prev: Array,
    zone: Array | None,
    C: Array,
    m: Array,
    gates: int,
    hard: bool,
    activation: int,
    clip: float,
    zoneout: float,
    peepholes: Array | None,
    gain_C: Array | None,
    shift_C: Array | None,
) -> None: ...
def apply_cell_step_backward(
    z: Array,
    C_prev: Array,
    zone: Array | None,
    dm: Array,
    dC: Array,
    dz: Array,
    c: Array,
    dn: Array | None,
    gates: int,
    hard: bool,
    activation: int,
    clip: float,
    zoneout: float,
    peepholes: Array | None,
    gain_C: Array | None,
    shift_C: Array | None,
) -> None: ...
def apply_normalize(x: Array, xhat: Array) -> float: ...
def apply_normalize_backward(xhat: Array, rstd: float, gain: Array, dy: Array, dx: Array) -> None: ...
def apply_blend(a: Array, b: Array, y: Array, p: float, mask: Array | None) -> None: ...
def apply_mask(
    key: NDArray[np.uint32], counter: NDArray[np.uint32], threshold: int, dropped: float, kept: float, y: Array
) -> None: ...
def apply_dropout(
    key: NDArray[np.uint32], counter: NDArray[np.uint32], threshold: int, scale: float, x: Array, y: Array
) -> None: ...
def dropout_key(seed: int, update: int) -> tuple[int, int]: ...
def is_finite(array: Array) -> bool: ...
def find_not_finite(rows: Array, first: NDArray[np.intp], lengths: NDArray[np.intp]) -> int: ...
