from typing import Any

from lstm_ext.checks import Array

__pyx_capi__: dict[str, Any]  # Cython's
__test__: dict[str, Any]

def packed_sizes(isa: int, input_dim: int, hidden_dim: int, output_dim: int, dtype: str) -> dict[str, int]: ...
def pack_cell_weights(isa: int, W: Array, b: Array, packed: Array) -> None: ...
def pack_head_weights(isa: int, W_y: Array, panels: Array) -> None: ...
def forward(
    isa: int,
    steps: int,
    rows: Array,
    first: Array,
    packed: Array,
    hx: Array,
    C: Array,
    gates: Array,
    H: Array,
) -> None: ...
def backward(
    isa: int,
    steps: int,
    batch: int,
    W: Array,
    hx: Array,
    C: Array,
    gates: Array,
    dH: Array,
    dh: Array,
    dC: Array,
    dX: Array,
    dW: Array,
    db: Array,
    packed_h: Array,
    packed_x: Array,
    dz: Array,
    panels: Array,
) -> None: ...
def inference_size(isa: int, input_dim: int, hidden_dim: int, output_dim: int, batch: int, itemsize: int) -> int: ...
def infer(
    isa: int,
    batch_size: int,
    hidden_dim: int,
    parameters: Array,
    rows: Array,
    offsets: Array,
    every_step: bool,
    scratch: Array,
    Y: Array,
) -> None: ...
def step(
    isa: int, t: int, x: Array, packed: Array, hx: Array, C: Array, panels: Array, b_y: Array, y: Array
) -> None: ...
