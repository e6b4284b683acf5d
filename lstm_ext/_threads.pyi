from typing import Any, final

import numpy as np
from numpy.typing import NDArray

__pyx_capi__: dict[str, Any]  # Cython's
__test__: dict[str, Any]

MAX_THREADS: int

@final
class ExclusiveUse:
    def __init__(self, thing: object, message: str, *, nests: bool = False) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *args: object) -> None: ...

def _rehearse(threads: int, done: NDArray[np.intp], pauses: int) -> None: ...
def _adjust(*, rests: bool = True, lateness: int = 0, signal_seconds: float = 0.1) -> None: ...
