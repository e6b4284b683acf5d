from typing import Any

from lstm_ext.checks import Array
from lstm_ext.plan import Plan

__test__: dict[str, Any]  # Cython's
FORWARD: int
LOSS: int
BACKWARD: int
UPDATE: int
NORM_BLOCK: int

def update_parameters(
    isa: int, threads: int, settings: Array, powers: Array, moments: Array, parameters: Array, gradient: Array
) -> None: ...
def run(plan: Plan, step: int, last_step: int, phases: int, seconds: float) -> tuple[int, bool]: ...
