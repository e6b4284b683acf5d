"""The progress of a training on standard error: a bar, or lines."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Progress:
    """Shows nothing, as for ``verbose=False``; the others derive from it."""

    def advance(self, batches: int) -> None:
        """Show that some more batches are done."""

    def end_epoch(self, loss: float, validation_loss: float | None) -> None:
        """Show the losses of an epoch that has ended."""

    def close(self) -> None:
        """Show the last losses when the training ends."""


_UNWRITABLE = suppress(OSError, ValueError)  # a closed standard error does not end a training


class _Bar(Progress):
    def __init__(self, tqdm: Any, total: int) -> None:
        self._bar = tqdm(total=total, unit="batch")

    def advance(self, batches: int) -> None:
        with _UNWRITABLE:
            self._bar.update(batches)

    def end_epoch(self, loss: float, validation_loss: float | None) -> None:
        self._bar.set_postfix_str(_losses(loss, validation_loss), refresh=False)

    def close(self) -> None:
        with _UNWRITABLE:
            self._bar.close()


class _Lines(Progress):
    """Writes a line after an epoch, at most one a second, and always one for the last epoch."""

    def __init__(self, epochs: int) -> None:
        self._epoch, self._epochs, self._written, self._waiting = 0, epochs, -math.inf, ""

    def end_epoch(self, loss: float, validation_loss: float | None) -> None:
        self._epoch += 1
        self._waiting = f"epoch {self._epoch}/{self._epochs}: {_losses(loss, validation_loss)}"
        if time.monotonic() - self._written >= 1:
            self.close()

    def close(self) -> None:
        if self._waiting:
            with _UNWRITABLE:
                print(self._waiting, file=sys.stderr, flush=True)
            self._written, self._waiting = time.monotonic(), ""


def _losses(loss: float, validation_loss: float | None) -> str:
    validation = "" if validation_loss is None else f", validation loss {validation_loss:#.4g}"
    return f"loss {loss:#.4g}{validation}"


@contextmanager
def showing_progress(epochs: int, batches: int, *, verbose: bool) -> Iterator[Progress]:
    """Show the progress of a training while the body runs: a bar on a terminal with tqdm, otherwise lines.

    Parameters
    ----------
    epochs, batches : int
        The number of epochs, and of batches in each.
    verbose : bool
        Whether to show anything.
    """
    progress = Progress()
    if verbose and sys.stderr is not None:
        tqdm = _tqdm() if _is_terminal(sys.stderr) else None
        with _UNWRITABLE:
            progress = _Lines(epochs) if tqdm is None else _Bar(tqdm, epochs * batches)
    try:
        yield progress
    finally:
        progress.close()


def _is_terminal(file: Any) -> bool:
    try:
        return bool(file.isatty())
    except (AttributeError, ValueError):  # an object of the user's, or a closed file
        return False


def _tqdm() -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm
