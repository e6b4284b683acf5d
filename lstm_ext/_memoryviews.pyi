from typing import Any

__pyx_capi__: dict[str, Any]  # Cython's
__test__: dict[str, Any]
