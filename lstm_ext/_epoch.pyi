from lstm_ext.plan import Plan

FORWARD: int
LOSS: int
BACKWARD: int
UPDATE: int

def run(plan: Plan, step: int, last_step: int, phases: int, seconds: float = ...) -> tuple[int, bool]: ...
