"""Callbacks of a training: their checks, and calling them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from lstm_ext.checks import short_repr

_Callback = TypeVar("_Callback", bound=Callable[..., Any])


def as_callbacks(callbacks: Iterable[_Callback]) -> tuple[_Callback, ...]:
    """Return the callbacks of a training as a tuple of callables."""
    try:
        result = tuple(callbacks)
    except (TypeError, NotImplementedError):  # the latter from a memoryview
        raise TypeError(f"callbacks is {short_repr(callbacks)}; expected an iterable of callables") from None
    for n, callback in enumerate(result):
        if not callable(callback):
            raise TypeError(f"callbacks[{n}] is {short_repr(callback)}; expected a callable")
    return result


def run_callbacks(callbacks: Sequence[Callable[..., Any]], *arguments: Any) -> bool:
    """Call all callbacks and return whether one of them stops the training."""
    answers = [callback(*arguments) for callback in callbacks]
    for n, answer in enumerate(answers):
        if answer is not None and not isinstance(answer, (bool, np.bool_)):
            returned = short_repr(answer)
            raise TypeError(f"callbacks[{n}] returned {returned}; expected True to stop, or None or False to go on")
    return any(answers)
