"""The memory that the passes of a training may take: a budget in bytes, or a number of steps to keep."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lstm_ext.checks import as_size, short_repr


@dataclass(frozen=True)
class Memory:
    """A bound of the memory that the passes of a training take.

    Parameters
    ----------
    recompute_every : int, optional
        Number of steps whose activations are kept at a time; all by default.
    budget : int, optional
        Maximum size in bytes; not together with `recompute_every`.
    """

    recompute_every: int | None = None
    budget: int | None = None

    def segment(self, steps: int, size: Callable[[int], int]) -> int:
        """Return the number of steps whose activations are kept at a time; 0: all.

        Parameters
        ----------
        steps : int
            Number of steps of a pass.
        size : callable
            Returns the bytes that the passes take if they keep the activations of k steps at a time; all for k = 0.
        """
        if self.budget is not None:
            return _largest_segment(self.budget, steps, size)
        return min(self.recompute_every or 0, steps)


NO_BOUND = Memory()


def as_memory(recompute_every: Any, memory_budget: Any) -> Memory:
    """Return the bounds; at most one of them is given."""
    if recompute_every is not None and memory_budget is not None:
        raise ValueError("recompute_every and memory_budget are both given; expected one of them")
    if recompute_every is not None:
        return Memory(recompute_every=as_size("recompute_every", recompute_every))
    if memory_budget is None:
        return NO_BOUND
    if not isinstance(memory_budget, str):
        return Memory(budget=as_size("memory_budget", memory_budget))
    found = re.fullmatch(r"\s*(\d+\.?\d*)\s*([KMGT]?)(i?)B\s*", memory_budget, re.IGNORECASE)
    if found is None:
        raise ValueError(
            f"memory_budget is {short_repr(memory_budget)}; expected bytes, or a number and a unit, as '256MB'"
        )
    number, prefix, binary = found.groups()
    unit = (1024 if binary else 1000) ** " KMGT".index(prefix.upper() or " ")
    return Memory(budget=as_size("memory_budget", int(min(float(number) * unit, sys.maxsize))))


def _largest_segment(budget: int, steps: int, size: Callable[[int], int]) -> int:
    """Return the largest number of steps whose activations fit into a budget, or 0 if those of all steps do."""
    if size(0) <= budget:
        return 0
    low = root = math.isqrt(steps - 1) + 1
    if size(root) > budget:  # fewer steps may still take less: states begin every segment, but they are small
        smallest = min(range(1, root + 1), key=size)
        if size(smallest) > budget:
            raise ValueError(
                f"memory_budget is {budget} bytes; batches of this size and sequences of this length need at least "
                f"{min(size(0), size(smallest))}"
            )
        return max(k for k in range(smallest, root) if size(k) <= budget)
    high = steps
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= budget else (low, middle)
    return low
