"""Arguments of the command line: options shared by commands, their conversion, and checks made before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import lstm_ext
from lstm_ext.files import check_writable
from lstm_ext.forecasting import plots
from lstm_ext.forecasting.forecaster import Forecaster
from lstm_ext.forecasting.series import Series, When

EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


def as_names(context: click.Context, option: click.Parameter, value: str | None) -> list[str] | None:
    """Return the column names in a list separated by commas."""
    return None if value is None else [name.strip() for name in value.split(",")]


def as_when(context: click.Context, option: click.Parameter, value: str | None) -> When | None:
    """Return a number from 0 to 1 as a float, a share of the rows; anything else as text, a time."""
    try:
        return float(value) if value is not None and 0 <= float(value) <= 1 else value
    except ValueError:
        return value


def setting(flag: str, name: str, kind: type, text: str, **options: Any) -> Callable[[Any], Any]:
    """Return an option that sets a field of `Forecaster`; its default is shown in the help."""
    default = Forecaster.__dataclass_fields__[name].default
    if isinstance(default, (int, float)):
        text = f"{text}  [default: {default}]"
    return click.option(flag, name, type=kind, help=text, **options)


def _set_threads(context: click.Context, option: click.Parameter, value: int | None) -> None:
    if value is not None:
        lstm_ext.set_num_threads(value)


threads = click.option(
    "--threads",
    type=click.IntRange(min=1),
    expose_value=False,
    callback=_set_threads,
    help="Maximum number of threads.  [default: the number of CPUs, or OMP_NUM_THREADS]",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def check_outputs(model: Path, plot: Path, file: Path | None) -> None:
    """Raise an error if the files that `train` writes have unsuitable names or cannot be written."""
    check_different(model=model, plot=plot, FILE=file)
    if plot.suffix[1:] not in plots.FORMATS:
        raise click.UsageError(f"plot is {plot}; expected a name that ends in one of {', '.join(plots.FORMATS)}")
    for path in (model, plot):
        check_writable(path)


def check_held_out(forecaster: Forecaster, series: list[Series], until: When) -> None:
    """Raise an error if too few rows are held out for a forecast to be scored."""
    rows = max(len(one.values) - one.first_row("until", until, 0) for one in series)
    if rows < forecaster.horizon:
        raise click.UsageError(
            f"--until {until} holds out at most {rows} rows of a series; expected at least {forecaster.horizon}, the "
            "horizon, or --until 1 to train on all rows"
        )


def check_different(**paths: Path | None) -> None:
    """Raise an error if two of some paths are the same file."""
    given = {name: path for name, path in paths.items() if path is not None}
    if len({path.resolve() for path in given.values()}) < len(given):
        stated = ", ".join(f"{name} is {path}" for name, path in given.items())
        raise click.UsageError(f"{stated}; expected different files")
