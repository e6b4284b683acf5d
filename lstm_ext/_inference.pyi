from typing import Any

import numpy as np
from typing_extensions import disjoint_base

from lstm_ext.checks import Array

__test__: dict[str, Any]  # Cython's

def infer(
    isa: int,
    threads: int,
    batch_size: int,
    sizes: tuple[int, ...],
    parameters: Array,
    X: Any,
    every_step: bool,
) -> Array | None: ...

@disjoint_base
class Streams:
    sizes: tuple[int, ...]
    batch: int
    steps: int
    dtype: np.dtype[Any]
    scratch: Array
    def __init__(self, isa: int, threads: int, sizes: tuple[int, ...], batch: int, parameters: Array) -> None: ...
    def advance(self, x: Any, y: Array | None) -> Array | None: ...
    def state(self) -> tuple[int, int, int]: ...
