from typing import Any

from typing_extensions import disjoint_base

from lstm_ext.checks import Array

__pyx_capi__: dict[str, Any]  # Cython's
__test__: dict[str, Any]

def packed_sizes(isa: int, input_dim: int, hidden_dim: int, output_dim: int, dtype: str) -> dict[str, int]: ...
def pack_cell_weights(isa: int, W: Array, b: Array, packed: Array) -> None: ...
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
    states: Array,
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

@disjoint_base
class Streams:
    sizes: tuple[int, ...]
    batch: int
    steps: int
    scratch: Array
    def __init__(self, isa: int, sizes: tuple[int, ...], batch: int, parameters: Array, scratch: Array) -> None: ...
    def advance(self, x: Array, y: Array) -> bool: ...
    def state(self) -> tuple[int, int, int]: ...
