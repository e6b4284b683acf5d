from typing import Any

import numpy as np
from typing_extensions import disjoint_base

from lstm_ext.checks import Array
from lstm_ext.options import Architecture

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
def begin_streams(isa: int, threads: int, architecture: Architecture, batch: int, parameters: Array) -> Streams: ...

@disjoint_base
class Streams:
    architecture: Architecture
    batch: int
    steps: int
    dtype: np.dtype[Any]
    h: Array
    C: Array
    def __init__(self, threads: int, architecture: Architecture, batch: int, parameters: Array) -> None: ...
    def advance(self, x: Any, y: Array | None) -> Array | None: ...

@disjoint_base
class PlainStreams(Streams):
    def __init__(self, isa: int, threads: int, architecture: Architecture, batch: int, parameters: Array) -> None: ...

@disjoint_base
class LayerStreams(Streams):
    def __init__(self, isa: int, threads: int, architecture: Architecture, batch: int, parameters: Array) -> None: ...
