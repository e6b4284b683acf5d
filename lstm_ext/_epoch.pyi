from array import array
from typing import Any

from lstm_ext.checks import Array
from lstm_ext.training.plan import Plan

__test__: dict[str, Any]  # Cython's
FORWARD: int
LOSS: int
BACKWARD: int
UPDATE: int
DONE: int
NOT_FINITE: int
UPDATE_NOT_FINITE: int
NORM_BLOCK: int

def update_parameters(
    isa: int,
    threads: int,
    settings: Array | array[float],
    powers: Array,
    moments: Array,
    parameters: Array,
    gradient: Array,
    backup: Array,
) -> bool: ...
def run(plan: Plan, step: int, last_step: int, phases: int, seconds: float) -> tuple[int, int]: ...
