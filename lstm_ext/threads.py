"""The number of threads that a call may use. The compiled half starts them and shares work (_threads.pyx)."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lstm_ext import _threads
from lstm_ext.checks import as_size

_CGROUP_ROOT = Path("/sys/fs/cgroup")


def set_num_threads(num_threads: int | None) -> None:
    """Set the maximum number of threads of calls without ``num_threads``.

    Work that is too small to gain from several threads runs on one, and a call never uses more threads than the CPUs
    that this process may use (affinity and cgroup quota). Results are the same to the bit for any number.

    Parameters
    ----------
    num_threads : int or None
        At least 1. None restores the default: those CPUs, or ``OMP_NUM_THREADS`` if that is less, or 1 in a
        worker process of a pool (multiprocessing, concurrent.futures, joblib, loky).

    Raises
    ------
    TypeError, ValueError
        If it is not an integer of at least 1 or None.
    """
    global _chosen
    _chosen = None if num_threads is None else as_size("num_threads", num_threads)


def get_num_threads() -> int:
    """Return the maximum number of threads of calls without ``num_threads``.

    Returns
    -------
    int
        The number given to `set_num_threads`, or the default.
    """
    return thread_count(None)


def thread_count(num_threads: int | None) -> int:
    """Return the maximum number of threads of a call with this argument ``num_threads``."""
    global _available
    if _available is None:
        _available = available_cpus()
    if num_threads is not None:
        return min(as_size("num_threads", num_threads), _available)
    if _chosen is not None:
        return min(_chosen, _available)
    return _default or _find_default(_available)


def _find_default(available: int) -> int:
    """Return the default; keep it once it is known whether this process is a worker of a pool."""
    global _default
    default = min(available, _requested())
    if not getattr(_process(), "_inheriting", False):
        _default = default
    return default


def available_cpus() -> int:
    """Return the number of CPUs that this process may use, by affinity and cgroup quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cpus, _threads.MAX_THREADS, *_quotas()))


def _quotas() -> Iterator[int]:
    """Yield the CPUs that each quota of this process's cgroups allows, version 2 or 1."""
    for line in _own_groups().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = _CGROUP_ROOT / "cpu" if controllers else _CGROUP_ROOT
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
                yield _quota(group)
            if group == root:
                break


def _own_groups() -> str:
    """Return the lines ``number:controllers:path`` of this process's groups."""
    try:
        return Path("/proc/self/cgroup").read_text(encoding="utf-8")
    except OSError:
        return ""


def _quota(group: Path) -> int:
    """Return a cgroup's CPUs, rounded up; raise ValueError if they are not limited."""
    if (group / "cpu.max").exists():
        quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
    else:
        quota, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period"))
    if int(quota) <= 0:
        raise ValueError(quota)
    return math.ceil(int(quota) / int(period))


def _requested() -> int:
    """Return the number that the environment requests: 1 in a worker of a pool, or OMP_NUM_THREADS."""
    if _is_pool_worker():
        return 1
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else _threads.MAX_THREADS


def _is_pool_worker() -> bool:
    """Return whether this process is a worker of a pool, or may be one when it has imported the main module."""
    process = _process()
    if process is None:
        return False
    return (
        process.daemon
        or process.name.startswith("LokyProcess")
        or getattr(getattr(process, "_target", None), "__module__", None) == "concurrent.futures.process"
        or getattr(process, "_inheriting", False)
    )


def _process() -> Any:
    """Return multiprocessing's object for this process; None if multiprocessing is not imported."""
    multiprocessing = sys.modules.get("multiprocessing")
    return multiprocessing.current_process() if multiprocessing else None


def _forget_counts() -> None:
    """Forget the counts of the parent of a fork: the child may be a worker of a pool."""
    global _available, _default
    _available = _default = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_counts)

_chosen: int | None = None
_available: int | None = None
_default: int | None = None
