from typing import Any

import numpy as np
from typing_extensions import disjoint_base

from lstm_ext._heads import Head
from lstm_ext._stack import LayerStack
from lstm_ext.checks import Array, Index
from lstm_ext.training.losses import CompiledLoss
from lstm_ext.training.optimizers import Optimizer

__test__: dict[str, Any]  # Cython's
FORWARD: int
LOSS: int
BACKWARD: int
UPDATE: int
DONE: int
NOT_FINITE: int
UPDATE_NOT_FINITE: int
INDEX: np.dtype[np.intp]

@disjoint_base
class TrainingLoop:
    parameters: Array
    gradient: Array
    losses: Array
    counts: Array
    norms: Array
    updates: int
    unchecked_X: bool
    unchecked_Y: bool
    def __init__(
        self,
        stack: LayerStack,
        head: Head,
        *,
        parameters: Array,
        gradient: Array,
        rows: Array,
        first: Index,
        lengths: Index,
        loss: CompiledLoss | None,
        targets: Array,
        target_first: Index,
        unchecked_X: bool,
        unchecked_Y: bool,
        optimizer: Optimizer | None,
        backup: Array,
        clip_norm: float,
        dropout_seed: int | None,
        threads: int,
    ) -> None: ...
    def set_order(self, members: Index, unsorted_positions: Index, starts: Index, first_steps: Index) -> None: ...
    def trust_data(self) -> None: ...
    def run(self, index: int, stop: int, phases: int, seconds: float) -> tuple[int, int]: ...
