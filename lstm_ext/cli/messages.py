"""Messages of the command line: lines of output, progress, and errors and warnings in one line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import click

from lstm_ext.checks import NonFiniteError
from lstm_ext.network import LSTMNetwork
from lstm_ext.training.loop import History
from lstm_ext.verification import VerificationError

Printer: TypeAlias = Callable[[Iterable[str]], None]


def printer(as_json: bool) -> Printer:
    """Return a function that prints lines: on stderr with --json, because stdout then holds the JSON object."""

    def say(lines: Iterable[str]) -> None:
        for line in lines:
            click.echo(line, err=as_json)

    return say


class EpochLines:
    """A callback of `train` that prints a line every five epochs."""

    def __init__(self, say: Printer) -> None:
        self._say = say

    def __call__(self, _: LSTMNetwork, history: History) -> None:
        epoch = len(history.loss)
        if epoch % 5 == 0:
            validation = f", validation loss {history.validation_loss[-1]:.4g}" if history.validation_loss else ""
            self._say([f"  epoch {epoch}: loss {history.loss[-1]:.4g}{validation}"])


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Print an error that the user can fix as one line on stderr, and exit with status 2."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message())
    except click.Abort:  # click raises it for Ctrl-C
        _complain("interrupted")
        sys.exit(130)
    except OSError as error:
        _fail(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
    except (ImportError, ValueError, MemoryError, NonFiniteError, VerificationError) as error:
        _fail(str(error))


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Print each warning once, without its place in the code."""
    shown: set[str] = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            _complain(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def _fail(message: str) -> None:
    _complain(message)
    sys.exit(2)


def _complain(message: str) -> None:
    click.echo(f"lstm-ext: {' '.join(message.split())}", err=True)
