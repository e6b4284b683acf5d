from typing import Any

from lstm_ext.training.plan import Plan

__test__: dict[str, Any]  # Cython's
FORWARD: int
LOSS: int
BACKWARD: int
UPDATE: int
DONE: int
NOT_FINITE: int
UPDATE_NOT_FINITE: int

def run(plan: Plan, step: int, last_step: int, phases: int, seconds: float) -> tuple[int, int]: ...
