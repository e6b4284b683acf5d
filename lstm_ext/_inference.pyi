from typing import Any

import numpy as np
from typing_extensions import disjoint_base

from lstm_ext.checks import Array, Index
from lstm_ext.options import Architecture
from lstm_ext.sequences import Sequences

__test__: dict[str, Any]  # Cython's

def infer(
    isa: int,
    threads: int,
    batch_size: int,
    sizes: tuple[int, ...],
    parameters: Array,
    X: Any,
    checked: bool,
    every_step: bool,
) -> tuple[Array, bool] | None: ...
def infer_layer(
    isa: int,
    threads: int,
    batch_size: int,
    sizes: tuple[int, ...],
    parameters: Array,
    X: Any,
    h0: Any,
    C0: Any,
) -> tuple[Array, Array, Array] | None: ...
def begin_streams(isa: int, threads: int, architecture: Architecture, batch: int, parameters: Array) -> Streams: ...

@disjoint_base
class ForwardPass:
    bytes: int
    def __init__(
        self,
        isa: int,
        architecture: Architecture,
        parameters: Array,
        batch: int,
        steps: int,
        *,
        has_head: bool,
        carries: bool,
        draws: bool = False,
        measure: bool = False,
    ) -> None: ...
    def run(
        self,
        threads: int,
        sequences: Sequences,
        members: Index,
        h0: Array | None = None,
        C0: Array | None = None,
        *,
        last: tuple[Array, Array] | None = None,
        dropout_seed: int | None = None,
        H: Array | None = None,
        H_begin: int = 0,
        Y: Array | None = None,
    ) -> bool: ...
    def apply_head(self, threads: int, features: Array, Y: Array) -> None: ...

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
