"""The command line: `lstm-ext`, also `python -m lstm_ext`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import lstm_ext
from lstm_ext import persistence
from lstm_ext.forecasting import (
    CO2_HELD_OUT,
    CO2_VALIDATION,
    Floats,
    Indices,
    Recipe,
    actual,
    examples,
    find_origins,
    forecasts,
    inputs,
    rmse,
    rmse_by_horizon,
    seasonal_naive,
    split_index,
    training_data,
)
from lstm_ext.network import LSTMNetwork
from lstm_ext.training import History
from lstm_ext.verification import VerificationError, to_reference

try:
    import click
    import matplotlib
    import safetensors  # noqa: F401 - missing, it should not be missed after the work
except ImportError:
    sys.exit('lstm-ext: the command line needs more packages: pip install "lstm_ext[cli]"')


class Evaluation(NamedTuple):
    """Forecasts over the held-out years and what was observed, each (N, horizon)."""

    origins: Indices
    observed: Floats
    forecasts: dict[str, Floats]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(lstm_ext.__version__, prog_name="lstm-ext")
def commands() -> None:
    """LSTM networks on CPUs, checked against a NumPy oracle."""


@commands.command()
def verify() -> None:
    """Run the compiled passes against the NumPy oracle on this machine."""
    lstm_ext.verify()


_CO2 = Recipe()
_FORMATS = ("png", "svg", "pdf")
_FILE = click.Path(dir_okay=False, path_type=Path)


@commands.command()
@click.option("--model", default="co2.safetensors", show_default=True, type=_FILE, help="Where to write the network.")
@click.option(
    "--plot", default="co2.png", show_default=True, type=_FILE, help="Where to write the picture: .png, .svg or .pdf."
)
@click.option("--hidden", default=_CO2.hidden_dim, show_default=True, help="Hidden units.")
@click.option("--epochs", default=_CO2.epochs, show_default=True, help="Passes over the training years.")
@click.option("--seed", default=0, show_default=True, help="Of the initial weights and the shuffling.")
def train(model: Path, plot: Path, hidden: int, epochs: int, seed: int) -> None:
    """Train a forecaster on the weekly CO2 record of Mauna Loa and measure it on the last years.

    The network is trained on the years before 1990 and watched on 1990 to 1993; its settings were chosen on the years
    up to there. Then it is trained anew on all of them, and forecasts the held-out years 1994 to 2001, 52 weeks ahead
    from every observed week.
    """
    _check_outputs(model, plot)
    recipe = Recipe(hidden_dim=hidden, epochs=epochs)
    dates, ppm = lstm_ext.load_co2()
    _watch(dates, ppm, recipe, seed)
    known = ppm[: split_index(dates, CO2_HELD_OUT)]
    X, Y, scaler = training_data(known, recipe)
    click.echo(f"training again with the same settings on {len(X)} windows up to {dates[len(known) - 1]}")
    network, history = _fit(X, Y, recipe, seed)
    evaluation = _evaluate(dates, ppm, network, scaler, recipe)
    errors = {name: rmse(forecast, evaluation.observed) for name, forecast in evaluation.forecasts.items()}
    _report(errors, len(evaluation.origins), network, inputs(ppm, evaluation.origins, recipe, scaler), history)
    persistence.save(model, network, scaler=scaler, details={"rmse_ppm": errors, "seed": seed})
    persistence.write_whole(plot, lambda part: _plot(part, plot.suffix[1:], dates, ppm, evaluation))
    click.echo(f"wrote {model} and {plot}")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an error the user can mend is one line on stderr and exit status 2."""
    try:
        commands.main(arguments, prog_name="lstm-ext", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message())
    except click.Abort:  # what click makes of Ctrl-C
        click.echo("lstm-ext: interrupted", err=True)
        sys.exit(130)
    except (OSError, ValueError, MemoryError, lstm_ext.NonFiniteError, VerificationError) as error:
        _fail(str(error))


def _check_outputs(model: Path, plot: Path) -> None:
    """Raise now what would go wrong after the work."""
    if model.resolve() == plot.resolve():
        raise click.BadParameter(f"model and plot are both {model}; expected two files")
    if plot.suffix[1:] not in _FORMATS:
        raise click.BadParameter(f"plot is {plot}; expected a name that ends in one of {', '.join(_FORMATS)}")
    for path in (model, plot):
        persistence.check_writable(path)


def _fail(message: str) -> None:
    click.echo(f"lstm-ext: {' '.join(message.split())}", err=True)
    sys.exit(2)


def _watch(dates: Any, ppm: Floats, recipe: Recipe, seed: int) -> None:
    """Train on the first years and show the error on the validation years."""
    validation, held_out = split_index(dates, CO2_VALIDATION), split_index(dates, CO2_HELD_OUT)
    X, Y, scaler = training_data(ppm[:validation], recipe)
    known = ppm[:held_out]
    validation_data = examples(known, find_origins(known, recipe, validation), recipe, scaler)
    click.echo(f"training on {len(X)} windows of {recipe.window} weeks up to {dates[validation - 1]}")

    def show(_: LSTMNetwork, history: History) -> None:
        epoch = len(history.loss)
        if epoch % 5 == 0 or epoch == recipe.epochs:
            to_ppm = float(scaler.to_dict()["scale"][0])
            ours, theirs = (np.sqrt(losses[-1]) * to_ppm for losses in (history.loss, history.validation_loss))
            click.echo(f"  epoch {epoch:3}: error {ours:.3f} ppm, validation {theirs:.3f} ppm")

    _fit(X, Y, recipe, seed, validation_data=validation_data, callbacks=[show])


def _fit(X: Floats, Y: Floats, recipe: Recipe, seed: int, **options: Any) -> tuple[LSTMNetwork, History]:
    network = LSTMNetwork(1, recipe.hidden_dim, recipe.horizon, seed=seed)
    history = lstm_ext.train(
        network,
        X,
        Y,
        optimizer=lstm_ext.Adam(recipe.learning_rate),
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        clip_norm=recipe.clip_norm,
        seed=seed,
        **options,
    )
    return network, history


def _evaluate(
    dates: Any, ppm: Floats, network: LSTMNetwork, scaler: lstm_ext.SequenceScaler, recipe: Recipe
) -> Evaluation:
    origins = find_origins(ppm, recipe, split_index(dates, CO2_HELD_OUT))
    outputs = network.predict(inputs(ppm, origins, recipe, scaler))
    contestants = {
        "LSTM": forecasts(outputs, ppm, origins, recipe, scaler),
        "seasonal-naive": seasonal_naive(ppm, origins, recipe),
        "seasonal-naive with drift": seasonal_naive(ppm, origins, recipe, drift=True),
    }
    return Evaluation(origins, actual(ppm, origins, recipe), contestants)


def _report(errors: dict[str, float], origins: int, network: LSTMNetwork, X: Floats, history: History) -> None:
    click.echo(f"trained in {sum(history.seconds):.2f} s ({lstm_ext.isa()}, one thread)")
    click.echo(f"held-out years, 52 weeks ahead from {origins} weeks:")
    for name, error in errors.items():
        click.echo(f"  {name:26} RMSE {error:.3f} ppm")
    ours = errors["LSTM"]
    for name in list(errors)[1:]:
        share = 1 - ours / errors[name]
        click.echo(f"  the LSTM is {abs(share):.0%} {'better' if share > 0 else 'WORSE'} than {name}")
    difference = np.abs(network.predict(X) - to_reference(network).predict(X)).max()
    click.echo(f"largest difference from the NumPy oracle (float64) over these forecasts, scaled: {difference:.1e}")


def _plot(path: Path, file_format: str, dates: Any, ppm: Floats, evaluation: Evaluation) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(9, 7), height_ratios=(3, 2), layout="constrained")
    first = evaluation.origins[0]
    recent = slice(max(0, first - 104), None)
    above.plot(dates[recent], ppm[recent], color="0.6", linewidth=2, label="observed")
    for number, n in enumerate(range(0, len(evaluation.origins), 52)):
        origin = evaluation.origins[n]
        ahead = dates[origin + 1 : origin + 1 + evaluation.observed.shape[1]]
        label = "forecast, 52 weeks from one origin" if number == 0 else None
        above.plot(ahead, evaluation.forecasts["LSTM"][n], color=f"C{number % 2}", linewidth=1, label=label)
    above.axvline(dates[first], color="0.3", linestyle=":", linewidth=1)
    above.set(ylabel="CO2 at Mauna Loa (ppm)", title="Weekly CO2: record and LSTM forecasts of the held-out years")
    above.legend(loc="upper left")
    for name, forecast in evaluation.forecasts.items():
        error = rmse(forecast, evaluation.observed)
        by_horizon = rmse_by_horizon(forecast, evaluation.observed)
        below.plot(np.arange(1, len(by_horizon) + 1), by_horizon, label=f"{name} ({error:.2f} ppm)")
    below.set(xlabel="weeks ahead", ylabel="RMSE (ppm)", ylim=(0, None))
    below.legend()
    figure.savefig(path, format=file_format, dpi=120)
    pyplot.close(figure)
