from lstm_ext.checks import Array

def packed_sizes(isa: int, input_dim: int, hidden_dim: int, output_dim: int, dtype: str) -> dict[str, int]: ...
def forward(
    isa: int,
    steps: int,
    rows: Array,
    first: Array,
    W: Array,
    b: Array,
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
def linear(isa: int, X: Array, W: Array, b: Array, panels: Array, Y: Array) -> None: ...
def pack(isa: int, W: Array, b: Array, W_y: Array, packed: Array, packed_head: Array) -> None: ...
def step(
    isa: int, t: int, x: Array, packed: Array, hx: Array, C: Array, packed_head: Array, b_y: Array, y: Array
) -> None: ...
