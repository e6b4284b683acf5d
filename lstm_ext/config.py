"""Information about this installation and this machine for bug reports."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np

from lstm_ext import _kernels
from lstm_ext._version import __version__
from lstm_ext.threads import get_num_threads


def show_config() -> None:
    """Print versions, machine, instruction sets, threads and build, to paste into a bug report."""
    for name, value in _config().items():
        print(f"{name:17}{value}")


def _config() -> dict[str, str]:
    return {
        "lstm_ext": __version__,
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "NumPy": np.__version__,
        "platform": platform.platform(),
        "CPU": _cpu(),
        "instruction set": f"{_kernels.isa()} (available: {', '.join(_kernels.available_isas())})",
        "LSTM_EXT_ISA": os.environ.get("LSTM_EXT_ISA", "not set"),
        "threads": f"{get_num_threads()} (CPUs: {os.cpu_count()})",
        **_kernels.build(),
    }


def _cpu() -> str:
    """Return the processor's name, as far as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
