"""The command line: `lstm-ext`, also `python -m lstm_ext`."""

from __future__ import annotations

import copy
import functools
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

import lstm_ext
from lstm_ext.cli import reports
from lstm_ext.files import check_writable, write_whole
from lstm_ext.forecasting.forecaster import Forecaster, When, row_of
from lstm_ext.forecasting.tables import Series, Table, column_names, encode_table, is_parquet, read_columns
from lstm_ext.network import LSTMNetwork, load_model
from lstm_ext.training.loop import History
from lstm_ext.verification import VerificationError, to_reference

try:
    import click

    from lstm_ext.forecasting import plots
except ImportError:
    sys.exit(
        'lstm-ext: the command line needs more packages (extra "cli"): pip install click matplotlib safetensors tqdm'
    )

# The settings for the CO2 record were chosen on four blocks of four years, 1978 to 1993, each forecast by a network
# trained on the years before it.
_CO2 = {"target": "ppm", "time": "date", "window": 52, "horizon": 52, "season": 52, "trend_seasons": 3}
_CO2_HELD_OUT = "1994-01-01"
_HELD_OUT = 0.8

_TABLE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)


def _names(context: click.Context, option: click.Parameter, value: str | None) -> list[str] | None:
    """Return names of columns that are separated by commas."""
    return None if value is None else [name.strip() for name in value.split(",")]


def _when(context: click.Context, option: click.Parameter, value: str | None) -> When | None:
    """Return a share of the rows, or a time as it is in the table."""
    try:
        return float(value) if value is not None and 0 <= float(value) <= 1 else value
    except ValueError:
        return value


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(lstm_ext.__version__, prog_name="lstm-ext")
def commands() -> None:
    """LSTM networks on CPUs, checked against a NumPy oracle: forecast the series of a table.

    \b
    lstm-ext train river.csv --time date --target flow --inputs rain,snow --window 60 --horizon 7
    lstm-ext predict river.safetensors river.csv -o next.csv
    lstm-ext evaluate river.safetensors newer.csv
    """  # noqa: D301 - the mark keeps click from joining lines


def _set_threads(context: click.Context, option: click.Parameter, value: int | None) -> None:
    if value is not None:
        lstm_ext.set_num_threads(value)


_threads = click.option(
    "--threads",
    type=click.IntRange(min=1),
    expose_value=False,
    callback=_set_threads,
    help="Most threads to use.  [default: the CPUs, or OMP_NUM_THREADS]",
)


@commands.command()
def verify() -> None:
    """Run the compiled passes against the NumPy oracle on this machine."""
    lstm_ext.verify()


def _setting(flag: str, name: str, kind: type, text: str, **options: Any) -> Callable[[Any], Any]:
    """Return an option of `train` that sets a field of the Forecaster."""
    default = Forecaster.__dataclass_fields__[name].default
    if isinstance(default, (int, float)):
        text = f"{text}  [default: {default}]"
    return click.option(flag, name, type=kind, help=text, **options)


class _Passes:
    """A callback that tells of every fifth pass."""

    def __init__(self, say: Callable[[Iterable[str]], None]) -> None:
        self._say = say

    def __call__(self, _: LSTMNetwork, history: History) -> None:
        epoch = len(history.loss)
        if epoch % 5 == 0:
            validation = f", validation {history.validation_loss[-1]:.4g}" if history.validation_loss else ""
            self._say([f"  pass {epoch}: loss {history.loss[-1]:.4g}{validation}"])


@commands.command()
@click.argument("file", required=False, type=_TABLE)
@_setting("--target", "target", str, "Column to forecast.")
@_setting(
    "--inputs",
    "inputs",
    str,
    "Columns that the network sees beside the target's past.",
    callback=_names,
    metavar="COLUMN,...",
)
@_setting("--time", "time", str, "Column of times: numbers or ISO dates at equal steps. Rows left out are gaps.")
@_setting("--series", "series", str, "Column that tells several series apart.")
@_setting("--window", "window", int, "Rows that the network sees.")
@_setting("--horizon", "horizon", int, "Rows to forecast.")
@_setting("--season", "season", int, "Rows of a season, such as 24 for days of hours; 1 for none.")
@_setting("--trend-seasons", "trend_seasons", int, "Take out the growth over so many seasons.")
@_setting("--max-gap", "max_gap", int, "Fill no gap of more rows.  [default: a quarter of the window]")
@_setting("--hidden", "hidden_dim", int, "Hidden units.")
@_setting("--epochs", "epochs", int, "Most passes over the training rows.")
@_setting("--patience", "patience", int, "Stop after so many passes without a better validation loss.")
@_setting("--validation", "validation", float, "Share of the training rows that chooses the number of passes.")
@_setting("--batch-size", "batch_size", int, "Windows for each update.")
@_setting("--learning-rate", "learning_rate", float, "Of Adam.")
@_setting("--clip-norm", "clip_norm", float, "Longest gradient.")
@_setting("--seed", "seed", int, "Of the initial weights and the order of the windows.")
@click.option(
    "--until",
    callback=_when,
    metavar="TIME|SHARE",
    help="Train on the rows before this time, or on this share of each series; forecast the others to measure the "
    "error. 1 for all rows.  [default: 0.8]",
)
@click.option("--model", type=_FILE, help="Where to write the model.  [default: FILE's name with .safetensors]")
@click.option(
    "--plot", type=_FILE, help="Where to draw the forecasts: .png, .svg or .pdf.  [default: FILE's name with .png]"
)
@_threads
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and progress on stderr.")
def train(
    file: Path | None, until: When | None, model: Path | None, plot: Path | None, as_json: bool, **given: Any
) -> None:
    """Train a forecaster on FILE, a CSV or Parquet table, and measure it on the rows held out.

    Rows are taken in the order of the file. Gaps (empty fields, NaN, NA, and rows that the time column leaves out)
    are filled along straight lines up to --max-gap rows; windows do not cross longer ones. A forecast starts from an
    observed row, and gaps are not scored. The last training rows choose the number of passes; then the network is
    trained anew on all of them.

    Without FILE: the weekly CO2 record of Mauna Loa, trained on the years up to 1993.
    """
    settings = {name: value for name, value in given.items() if value is not None}
    forecaster, table, until = _job(file, settings, until)
    stem = "co2" if file is None else file.stem
    model, plot = model or Path(f"{stem}.safetensors"), plot or Path(f"{stem}.png")
    _check_outputs(model, plot, file)
    say = _speaker(as_json)
    series = forecaster.find_series(table)
    report: dict[str, Any] = {"table": [reports.describe_series(forecaster, one) for one in series]}
    say(reports.table_lines(report["table"]))
    if until is not None:
        _check_held_out(forecaster, series, until)
    shows_bars = sys.stderr.isatty()  # where it does not, lines tell of the training
    fit = forecaster.fit(table, until=until, callbacks=[] if shows_bars else [_Passes(say)], verbose=shows_bars)
    report["training"] = reports.describe_fit(forecaster, fit)
    seconds = sum(sum(history.seconds) for history in (fit.watched, fit.history) if history is not None)
    say(reports.fit_lines(report["training"], seconds))
    evaluation = None if until is None else forecaster.evaluate(table, since=until)
    if evaluation is not None:
        report["held_out"] = reports.describe_evaluation(forecaster, evaluation)
        say(reports.evaluation_lines(report["held_out"]))
    report["oracle_difference"] = _oracle_difference(forecaster, table)
    say([f"largest difference from the NumPy oracle (float64) in the next forecast: {report['oracle_difference']:.1e}"])

    def save() -> None:
        forecaster.save(model, details={"report": report})

    written = [model]
    if evaluation is None:
        save()
    else:
        drawn = next(one for one in series if one.name == evaluation.series[0])
        file_format = plot.suffix[1:]
        draw = functools.partial(
            plots.draw_evaluation, file_format=file_format, forecaster=forecaster, series=drawn, evaluation=evaluation
        )
        write_whole(plot, draw, then=save)
        written.append(plot)
    say([f"wrote {' and '.join(map(str, written))}"])
    if as_json:
        click.echo(json.dumps({**report, "seconds": seconds, "written": list(map(str, written))}))


@commands.command()
@click.argument("model", type=_TABLE)
@click.argument("file", type=_TABLE)
@click.option("-o", "--output", type=_FILE, help="Where to write the forecasts: .csv or .parquet.  [default: stdout]")
@click.option("--every-origin", is_flag=True, help="Forecast from every observed row, not from the last alone.")
@_threads
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def predict(model: Path, file: Path, output: Path | None, every_origin: bool, as_json: bool) -> None:
    """Forecast the rows after the last observed one of FILE, for each series, with a MODEL that `train` wrote."""
    forecaster = Forecaster.load(model)
    if output is not None:
        _check_different(output=output, model=model, FILE=file)
        if not is_parquet(output) and output.suffix.lower() != ".csv":
            raise click.UsageError(f"output is {output}; expected a name that ends in .csv or .parquet")
        check_writable(output)
    table = forecaster.predict(file, every_origin=every_origin)
    if output is not None:
        content = encode_table(table, output)
        write_whole(output, lambda file: file.write(content))
    if as_json:
        columns = {name: column.astype(str) if column.dtype.kind == "M" else column for name, column in table.items()}
        click.echo(json.dumps({name: column.tolist() for name, column in columns.items()}))
    elif output is None:
        click.echo(encode_table(table), nl=False)


@commands.command()
@click.argument("model", type=_TABLE)
@click.argument("file", type=_TABLE)
@click.option(
    "--since",
    callback=_when,
    metavar="TIME|SHARE",
    help="Score the rows from this time on, or from this share of each series on; 0 for all.  [default: where the "
    "training ended]",
)
@_threads
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(model: Path, file: Path, since: When | None, as_json: bool) -> None:
    """Forecast from every observed row of FILE and compare with what came, beside the naive forecasts."""
    forecaster = Forecaster.load(model)
    evaluation = forecaster.evaluate(file, since=forecaster.trained_before if since is None else since)
    report = reports.describe_evaluation(forecaster, evaluation)
    if as_json:
        click.echo(json.dumps(report))
    else:
        _speaker(as_json)(reports.evaluation_lines(report))


@commands.command()
@click.argument("model", type=_TABLE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(model: Path, as_json: bool) -> None:
    """Tell what MODEL is: its layers, the settings and the report of its training."""
    found = load_model(model)
    if as_json:
        click.echo(json.dumps(reports.describe_model(found)))
    else:
        _speaker(as_json)([found.network.summary(), *reports.outline(found.details)])


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an error the user can mend is one line on stderr and exit status 2."""
    with _warnings_in_one_line():
        try:
            commands.main(arguments, prog_name="lstm-ext", standalone_mode=False)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            sys.exit(2)
        except click.ClickException as error:
            _fail(error.format_message())
        except click.Abort:  # what click makes of Ctrl-C
            _complain("interrupted")
            sys.exit(130)
        except OSError as error:
            _fail(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
        except (ImportError, ValueError, MemoryError, lstm_ext.NonFiniteError, VerificationError) as error:
            _fail(str(error))


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Show each warning once, without its place in the code."""
    told: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in told:
            told.add(str(message))
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


def _job(file: Path | None, settings: dict[str, Any], until: When | None) -> tuple[Forecaster, Table, When | None]:
    """Return the forecaster to train, its table, and where the held-out rows begin, None if nowhere."""
    if file is None:
        for name in ("target", "inputs", "time", "series"):
            if name in settings:
                raise click.UsageError(f"--{name} names a column, but there is no FILE")
        forecaster = Forecaster(**{**_CO2, **settings})
        table: Table = dict(zip(("date", "ppm"), lstm_ext.load_co2(), strict=True))
    elif "target" not in settings:
        raise click.UsageError(f"--target is missing; expected a column of {file}: {', '.join(column_names(file))}")
    else:
        forecaster = Forecaster(**settings)
        table = read_columns(file, forecaster.columns)
    if until is None:
        until = _CO2_HELD_OUT if file is None else _HELD_OUT
    return forecaster, table, None if until == 1 else until


def _check_outputs(model: Path, plot: Path, file: Path | None) -> None:
    """Raise now what would go wrong after the work."""
    _check_different(model=model, plot=plot, FILE=file)
    if plot.suffix[1:] not in plots.FORMATS:
        raise click.UsageError(f"plot is {plot}; expected a name that ends in one of {', '.join(plots.FORMATS)}")
    for path in (model, plot):
        check_writable(path)


def _check_held_out(forecaster: Forecaster, series: list[Series], until: When) -> None:
    """Raise now if nothing could be scored after the training."""
    rows = max(len(one.values) - row_of("until", one, until, 0) for one in series)
    if rows < forecaster.horizon:
        raise click.UsageError(
            f"--until {until} holds out at most {rows} rows of a series; expected {forecaster.horizon}, the horizon, "
            "to measure the error on, or --until 1 to hold out none"
        )


def _check_different(**paths: Path | None) -> None:
    given = {name: path for name, path in paths.items() if path is not None}
    if len({path.resolve() for path in given.values()}) < len(given):
        stated = ", ".join(f"{name} is {path}" for name, path in given.items())
        raise click.UsageError(f"{stated}; expected different files")


def _oracle_difference(forecaster: Forecaster, table: Table) -> float:
    """Return how far the oracle's forecast of the rows after the table is from ours."""
    oracle = copy.copy(forecaster)
    oracle.network = cast(Any, to_reference(cast(LSTMNetwork, forecaster.network)))
    ours, theirs = (one.predict(table)["forecast"] for one in (forecaster, oracle))
    return float(np.abs(ours - theirs).max())


def _speaker(as_json: bool) -> Callable[[Iterable[str]], None]:
    """Return what prints lines for people: on stderr, where stdout is for a program."""

    def say(lines: Iterable[str]) -> None:
        for line in lines:
            click.echo(line, err=as_json)

    return say
