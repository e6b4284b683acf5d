"""The commands of `lstm-ext`."""

from __future__ import annotations

import copy
import functools
import json
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np

import lstm_ext
from lstm_ext.files import check_writable, write_whole
from lstm_ext.forecasting.evaluation import Evaluation
from lstm_ext.forecasting.forecaster import Forecaster
from lstm_ext.forecasting.series import Series, When
from lstm_ext.forecasting.tables import Table, column_names, encode_table, is_parquet, read_columns
from lstm_ext.network import LSTMNetwork, load_model
from lstm_ext.verification import to_reference

try:
    import click

    from lstm_ext.cli import arguments, messages, reports
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


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(lstm_ext.__version__, prog_name="lstm-ext")
def commands() -> None:
    """Forecast the series of a table with LSTM networks, trained on CPUs and checked against a NumPy oracle.

    \b
    lstm-ext train river.csv --time date --target flow --inputs rain,snow --window 60 --horizon 7
    lstm-ext predict river.safetensors river.csv -o next.csv
    lstm-ext evaluate river.safetensors newer.csv
    """  # noqa: D301 - the mark keeps click from joining lines


@commands.command(short_help="Check the compiled code against the NumPy oracle.")
def verify() -> None:
    """Check the compiled code against the NumPy oracle on this machine."""
    lstm_ext.verify()


@commands.command(short_help="Train a forecaster on a table, and measure its error.")
@click.argument("file", required=False, type=arguments.EXISTING_FILE)
@arguments.setting("--target", "target", str, "Column to forecast.")
@arguments.setting(
    "--inputs",
    "inputs",
    str,
    "Further columns that the network sees.",
    callback=arguments.as_names,
    metavar="COLUMN,...",
)
@arguments.setting("--time", "time", str, "Column of times: numbers or ISO dates, at equal steps.")
@arguments.setting("--series", "series", str, "Column that names the series of each row.")
@arguments.setting("--window", "window", int, "Rows that the network sees.")
@arguments.setting("--horizon", "horizon", int, "Rows to forecast.")
@arguments.setting("--season", "season", int, "Rows in a season, such as 24 for hourly data; 1 for no season.")
@arguments.setting("--trend-seasons", "trend_seasons", int, "Seasons over which growth is measured and removed.")
@arguments.setting("--max-gap", "max_gap", int, "Longest gap to fill, in rows.  [default: a quarter of the window]")
@arguments.setting("--hidden", "hidden_dim", int, "Hidden units.")
@arguments.setting("--epochs", "epochs", int, "Maximum number of epochs.")
@arguments.setting("--patience", "patience", int, "Stop after this number of epochs without a lower validation loss.")
@arguments.setting("--validation", "validation", float, "Share of the training rows that chooses the number of epochs.")
@arguments.setting("--batch-size", "batch_size", int, "Windows per update.")
@arguments.setting("--learning-rate", "learning_rate", float, "Learning rate of Adam.")
@arguments.setting("--clip-norm", "clip_norm", float, "Maximum norm of a gradient.")
@arguments.setting("--seed", "seed", int, "Seed of the initial weights and of the order of the windows.")
@click.option(
    "--until",
    callback=arguments.as_when,
    metavar="TIME|SHARE",
    help="Train on the rows before this time, or on this share of each series; measure the error on the other rows. "
    "1 for all rows.  [default: 0.8]",
)
@click.option(
    "--model", type=arguments.FILE, help="Where to write the model.  [default: FILE's name with .safetensors]"
)
@click.option(
    "--plot",
    type=arguments.FILE,
    help="Where to draw the forecasts: .png, .svg or .pdf.  [default: FILE's name with .png]",
)
@arguments.threads
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and the progress on stderr.")
def train(
    file: Path | None, until: When | None, model: Path | None, plot: Path | None, as_json: bool, **given: Any
) -> None:
    """Train a forecaster on FILE, a CSV or Parquet table, and measure its error on the held-out rows.

    Rows are taken in the order of the file. Gaps (empty fields, NaN, NA, and times without a row) of up to --max-gap
    rows are filled by linear interpolation; windows do not cross longer ones. Forecasts start from observed rows, and
    gaps are not scored. The last training rows choose the number of epochs; then a new network is trained on all
    training rows.

    Without FILE: the weekly CO2 record of Mauna Loa, trained on the years up to 1993.
    """
    settings = {name: value for name, value in given.items() if value is not None}
    forecaster, table, until = _job(file, settings, until)
    if until is None and plot is not None:
        raise click.UsageError(f"plot is {plot}, but --until 1 holds out no rows to draw")
    stem = "co2" if file is None else file.stem
    model, plot = model or Path(f"{stem}.safetensors"), plot or Path(f"{stem}.png")
    arguments.check_outputs(model, plot, file)
    say = messages.printer(as_json)
    series = forecaster.find_series(table)
    report: dict[str, Any] = {"table": [reports.describe_series(one) for one in series]}
    say(reports.table_lines(report["table"]))
    if until is not None:
        arguments.check_held_out(forecaster, series, until)
    shows_bars = sys.stderr.isatty()  # elsewhere, lines show the progress
    fit = forecaster.fit(
        table, until=until, callbacks=[] if shows_bars else [messages.EpochLines(say)], verbose=shows_bars
    )
    report["training"] = reports.describe_fit(forecaster, fit)
    seconds = sum(sum(history.seconds) for history in (fit.watched, fit.history) if history is not None)
    say(reports.fit_lines(report["training"], seconds))
    evaluation = None if until is None else forecaster.evaluate(table, since=until)
    if evaluation is not None:
        report["held_out"] = reports.describe_evaluation(forecaster, evaluation)
        say(reports.evaluation_lines(report["held_out"]))
    report["oracle_difference"] = _oracle_difference(forecaster, table)
    say([f"largest difference from the NumPy oracle (float64) in the next forecast: {report['oracle_difference']:.1e}"])

    outdated = evaluation is None and plot.exists()
    written = _write(forecaster, model, report, plot, series, evaluation)
    removed = f"; removed {plot}, the picture of an earlier model" if outdated else ""
    say([f"wrote {' and '.join(map(str, written))}{removed}"])
    if as_json:
        click.echo(json.dumps({**report, "seconds": seconds, "written": list(map(str, written))}))


@commands.command(short_help="Forecast the rows after the last one of a table.")
@click.argument("model", type=arguments.EXISTING_FILE)
@click.argument("file", type=arguments.EXISTING_FILE)
@click.option(
    "-o", "--output", type=arguments.FILE, help="Where to write the forecasts: .csv or .parquet.  [default: stdout]"
)
@click.option("--every-origin", is_flag=True, help="Forecast from every observed row, not only from the last.")
@arguments.threads
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def predict(model: Path, file: Path, output: Path | None, every_origin: bool, as_json: bool) -> None:
    """Forecast the rows after the last observed row of each series in FILE, with a MODEL that `train` wrote."""
    forecaster = Forecaster.load(model)
    if output is not None:
        arguments.check_different(output=output, model=model, FILE=file)
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


@commands.command(short_help="Measure the error of a model on a table.")
@click.argument("model", type=arguments.EXISTING_FILE)
@click.argument("file", type=arguments.EXISTING_FILE)
@click.option(
    "--since",
    callback=arguments.as_when,
    metavar="TIME|SHARE",
    help="Score the rows from this time on, or after this share of each series; 0 for all rows.  [default: the end of "
    "the training rows]",
)
@arguments.threads
@arguments.as_json
def evaluate(model: Path, file: Path, since: When | None, as_json: bool) -> None:
    """Forecast from every observed row of FILE, and compare the errors with those of naive forecasts."""
    forecaster = Forecaster.load(model)
    evaluation = forecaster.evaluate(file, since=forecaster.trained_before if since is None else since)
    report = reports.describe_evaluation(forecaster, evaluation)
    if as_json:
        click.echo(json.dumps(report))
    else:
        messages.printer(as_json)(reports.evaluation_lines(report))


@commands.command(short_help="Show the weights and settings of a model.")
@click.argument("model", type=arguments.EXISTING_FILE)
@arguments.as_json
def info(model: Path, as_json: bool) -> None:
    """Show the layers of MODEL, its settings, and the report of its training."""
    found = load_model(model)
    if as_json:
        click.echo(json.dumps(reports.describe_model(found)))
    else:
        messages.printer(as_json)([found.network.summary(), *reports.outline(found.details)])


def main(given: list[str] | None = None) -> None:
    """Run the command line with the given arguments, by default those of the process."""
    with messages.warnings_in_one_line(), messages.errors_in_one_line():
        commands.main(given, prog_name="lstm-ext", standalone_mode=False)


def _job(file: Path | None, settings: dict[str, Any], until: When | None) -> tuple[Forecaster, Table, When | None]:
    """Return a forecaster, its table, and where the held-out rows begin; None if none are held out."""
    if file is None:
        for name in ("target", "inputs", "time", "series"):
            if name in settings:
                raise click.UsageError(f"--{name} names a column, but FILE is missing")
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


def _write(
    forecaster: Forecaster,
    model: Path,
    report: dict[str, Any],
    plot: Path,
    series: list[Series],
    evaluation: Evaluation | None,
) -> list[Path]:
    """Write the model and the picture of its evaluation; return their paths."""

    def save() -> None:
        forecaster.save(model, details={"report": report})

    if evaluation is None:
        save()
        plot.unlink(missing_ok=True)  # it would show an earlier model
        return [model]
    drawn = next(one for one in series if one.name == evaluation.series[0])
    draw = functools.partial(
        plots.draw_evaluation, file_format=plot.suffix[1:], forecaster=forecaster, series=drawn, evaluation=evaluation
    )
    write_whole(plot, draw, then=save)
    return [model, plot]


def _oracle_difference(forecaster: Forecaster, table: Table) -> float:
    """Return the largest difference between the oracle's forecast of the rows after the table and ours."""
    oracle = copy.copy(forecaster)
    oracle.network = cast(Any, to_reference(cast(LSTMNetwork, forecaster.network)))
    ours, theirs = (one.predict(table)["forecast"] for one in (forecaster, oracle))
    return float(np.abs(ours - theirs).max())
