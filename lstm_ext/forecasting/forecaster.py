"""Forecast the series of a table with an LSTM network: training, forecasts, evaluation, model files.

Three rules keep the measured error honest:

- A forecast is made at an *origin*, a row in which the target and every input were observed. Gaps are filled by linear
  interpolation, so every filled value up to an origin lies between two values that were known there.
- `fit` ignores all rows from `until` on: it neither fills gaps nor scales with them.
- `fit` chooses the number of epochs on the last of its rows (the validation rows), then trains a new network on all of
  its rows.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Self, cast

import numpy as np

from lstm_ext._version import __version__
from lstm_ext.checks import Array, as_flag, as_number, as_positive, as_size, make_generator, short_list, short_repr
from lstm_ext.files import ModelFileError
from lstm_ext.forecasting.evaluation import Evaluation, join_evaluations, naive_forecasts
from lstm_ext.forecasting.examples import Examples, Indices, WindowSizes
from lstm_ext.forecasting.series import Series, TimeAxis, When, find_series
from lstm_ext.forecasting.tables import Floats, Source
from lstm_ext.network import LSTMNetwork, load_model
from lstm_ext.options import Architecture, hinting
from lstm_ext.scaling import SequenceScaler
from lstm_ext.training.callbacks import as_callbacks
from lstm_ext.training.loop import Callback, History, train
from lstm_ext.training.optimizers import Adam

_DETAILS_KEY = "forecaster"
_SAVED = {"settings", "trained_before", "axis", "scalers"}
_MAX_MAGNITUDE = 1e140  # sums of squares of larger numbers overflow
_FORECAST_COLUMNS = ("origin", "steps_ahead", "forecast")


class Fit(NamedTuple):
    """The result of `Forecaster.fit`.

    Attributes
    ----------
    examples : int
        Windows in the final training.
    epochs : int
        Epochs of the final training. With validation, the number with the lowest validation loss.
    watched : History or None
        History of the training that chose the number of epochs; None without validation.
    history : History
        History of the final training.
    """

    examples: int
    epochs: int
    watched: History | None
    history: History


@hinting
@dataclass(kw_only=True)
class Forecaster:
    """An LSTM network that forecasts a column of a table from the rows before.

    The network takes the last `window` rows of the target and of the inputs, and returns the target of the next
    `horizon` rows. One network learns all series; each series has a scaler of its own. The settings are read-only:
    ``dataclasses.replace(forecaster, horizon=3)`` returns a new forecaster, not fitted.

    Parameters
    ----------
    target : str
        The column to forecast.
    inputs : sequence of str
        Further columns that the network sees.
    time : str, optional
        The column of times: numbers or dates, ascending at equal steps within each series. Missing rows are gaps.
        Without this column, the rows are taken to be equally spaced.
    series : str, optional
        The column that names the series of each row; without it, the table is a single series.
    window, horizon : int
        The number of rows that the network sees, and the number that it forecasts.
    season : int
        Rows in a season, such as 24 for hourly data with a daily season; 1 for no season.
    trend_seasons : int
        Seasons over which a window's growth is measured and removed; 0 for series that do not grow.
    max_gap : int, optional
        Longest gap to fill, in rows; windows and targets do not cross longer ones. By default a quarter of the window.
    hidden_dim : int
        Hidden units.
    epochs : int
        Maximum number of epochs.
    patience : int
        Epochs without a lower validation loss after which training stops.
    validation : float
        The share of each series' training rows, taken from their end, on which the number of epochs is chosen. With 0,
        `fit` trains for `epochs` epochs.
    batch_size : int
        Windows per update.
    learning_rate : float
        The learning rate of Adam, at least 0.
    clip_norm : float
        Gradients with a larger norm are scaled down to it; above 0.
    seed : int or None
        Seed of the initial weights and of the order of the windows.

    Attributes
    ----------
    network : LSTMNetwork or None
        The trained network; None before `fit`.
    trained_before : dict of str to str
        For each series, the time of the first row after those that `fit` used.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.
    """

    target: str
    inputs: Sequence[str] = ()
    time: str | None = None
    series: str | None = None
    window: int = 48
    horizon: int = 1
    season: int = 1
    trend_seasons: int = 0
    max_gap: int | None = None
    hidden_dim: int = 32
    epochs: int = 50
    patience: int = 10
    validation: float = 0.15
    batch_size: int = 64
    learning_rate: float = 0.004
    clip_norm: float = 1.0
    seed: int | None = 0
    network: LSTMNetwork | None = field(default=None, init=False, repr=False)
    trained_before: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    _scalers: dict[str, SequenceScaler] = field(default_factory=dict, init=False, repr=False)
    _axis: TimeAxis | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.inputs, (str, memoryview)) or not isinstance(self.inputs, Sequence):
            raise TypeError(f"inputs is {short_repr(self.inputs)}; expected a list of column names")
        settings = vars(self)
        settings["inputs"] = tuple(self.inputs)
        self._check_columns()
        for size in ("window", "horizon", "season", "hidden_dim", "epochs", "patience", "batch_size"):
            settings[size] = as_size(size, settings[size])
        settings["max_gap"] = as_size("max_gap", self.window // 4 if self.max_gap is None else self.max_gap, low=0)
        settings["trend_seasons"] = as_size("trend_seasons", self.trend_seasons, low=0)
        settings["validation"] = as_number("validation", self.validation, low=0, high=1)
        settings["learning_rate"] = as_number("learning_rate", self.learning_rate, low=0)
        settings["clip_norm"] = as_positive("clip_norm", self.clip_norm)
        make_generator(self.seed)
        settings["seed"] = None if self.seed is None else int(self.seed)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.__dataclass_fields__:
            raise AttributeError(f"Forecaster has no attribute {name!r}")
        if self.__dataclass_fields__[name].init and name in vars(self):
            raise AttributeError(
                f"{name} is read-only; dataclasses.replace(forecaster, {name}=...) returns a new forecaster"
            )
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:  # otherwise the default of the class would show through
        raise AttributeError(f"{name} cannot be deleted")

    def _check_columns(self) -> None:
        inputs = {f"inputs[{j}]": name for j, name in enumerate(self.inputs)}
        optional = {key: name for key, name in (("time", self.time), ("series", self.series)) if name is not None}
        for key, name in {"target": self.target, **inputs, **optional}.items():
            if not isinstance(name, str):
                raise TypeError(f"{key} is {short_repr(name)}; expected the name of a column")
        for name in self.columns:
            if self.columns.count(name) > 1:
                raise ValueError(f"column {name!r} is named twice; expected different columns")
        for column in optional.values():
            if column in _FORECAST_COLUMNS or (column == "row" and self.time is None):
                raise ValueError(f"column {column!r} is also a column of the forecasts; rename it in the table")

    @property
    def columns(self) -> list[str]:
        """The columns of a table that the forecaster reads."""
        return [self.target, *self.inputs, *(name for name in (self.time, self.series) if name is not None)]

    def find_series(self, table: Source) -> list[Series]:
        """Return the series of a table on equally spaced rows.

        Parameters
        ----------
        table : path-like, mapping or DataFrame
            As in `fit`.

        Returns
        -------
        list of Series
            The target in the first column, NaN in gaps.

        Raises
        ------
        OSError
            If the file cannot be read.
        TypeError, ValueError
            If a column is missing or not as described, or, once fitted, if the time step differs from that of training.
        """
        return self._find_series(table, self._axis)

    def fit(
        self,
        table: Source,
        *,
        until: When | None = None,
        callbacks: Iterable[Callback] = (),
        verbose: bool = True,
        num_threads: int | None = None,
    ) -> Fit:
        """Train a network on a table.

        Parameters
        ----------
        table : path-like, mapping or DataFrame
            A CSV file, a Parquet file (``.parquet``), or columns by name.
        until : time or share, optional
            Use only the rows before this time (to a tenth of a step), or this share of each series' rows; by default
            all rows.
        callbacks : iterable of callable
            Each is called as ``callback(network, history)`` after every epoch of the training that chooses the number
            of epochs, or of the only training if `validation` is 0. Training stops if one returns True.
        verbose : bool
            Show the progress and the losses on stderr, as `train` does.
        num_threads : int, optional
            Maximum number of threads; by default that of `set_num_threads`.

        Returns
        -------
        Fit
            The number of windows and epochs, and the losses; the forecaster keeps the trained network.

        Raises
        ------
        OSError
            If the file cannot be read.
        NonFiniteError
            If the training diverges.
        TypeError, ValueError
            If an argument or the table is not as described, or the table is too short. The forecaster is unchanged.
        """
        callbacks = as_callbacks(callbacks)
        options: dict[str, Any] = {"verbose": as_flag("verbose", verbose), "num_threads": num_threads}
        _check_when("until", until)
        known = [
            one._replace(values=one.values[: one.first_row("until", until, len(one.values))])
            for one in self._find_series(table, None)
        ]
        if not any(len(one.values) for one in known):
            raise ValueError(f"until is {until!r}, which leaves no row to train on; expected a later time or share")
        examples = {one.name: Examples(one, self._window_sizes) for one in known}
        scalers = _scalers(examples)
        epochs, watched = self.epochs, None
        if self.validation:
            watched = self._choose_epochs(examples, callbacks, options)
            epochs = 1 + int(np.argmin(watched.validation_loss))
        left_out = {name: one.too_short() for name, one in examples.items() if name not in scalers}
        if left_out:
            warnings.warn(f"{len(left_out)} series left out: {_reason(left_out)}", stacklevel=2)
        X, Y = _arrays(examples, scalers)
        network, history = self._train(X, Y, epochs, callbacks=() if self.validation else callbacks, **options)
        self.network, self._scalers, self._axis = network, scalers, known[0].axis
        self.trained_before = {one.name: str(one.times(len(one.values))) for one in known if one.name in scalers}
        return Fit(len(X), len(history.loss), watched, history)

    def predict(self, table: Source, *, every_origin: bool = False, num_threads: int | None = None) -> dict[str, Array]:
        """Forecast the rows after each series' last observed row.

        Parameters
        ----------
        table : path-like, mapping or DataFrame
            As in `fit`. Each series needs `window` rows, or ``(trend_seasons + 1) * season`` if that is more.
        every_origin : bool
            Forecast from every observed row that has enough rows before it.
        num_threads : int, optional
            Maximum number of threads; by default that of `set_num_threads`.

        Returns
        -------
        dict of str to ndarray
            A table: the series column, "origin" (the time of the last row that the forecast saw), "steps_ahead", the
            time column ("row" without one) and "forecast", in the units of the target.

        Raises
        ------
        RuntimeError
            If the forecaster is not fitted.
        OSError, TypeError, ValueError
            As in `fit`, or if no series can be forecast. A series that is too short, or was not in training, is left
            out with a warning.
        """
        every_origin = as_flag("every_origin", every_origin)
        parts = []
        for one, examples, origins in self._prepare(table, ahead=False):
            if not every_origin:
                origins = origins[-1:]
                _warn_if_outdated(one, origins[0])
            rows = origins[:, None] + self._window_sizes.ahead
            shape = rows.shape
            part = {
                "origin": np.broadcast_to(one.times(origins)[:, None], shape),
                "steps_ahead": np.broadcast_to(self._window_sizes.ahead, shape),
                one.time: one.times(rows),
                "forecast": self._forecast(examples, origins, num_threads),
            }
            label = {} if self.series is None else {self.series: np.full(shape, one.name)}
            parts.append({name: column.reshape(-1) for name, column in (label | part).items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def evaluate(self, table: Source, *, since: When | None = None, num_threads: int | None = None) -> Evaluation:
        """Forecast from every origin of a table, and compare with the observations that followed.

        The baselines are a seasonal-naive forecast, which repeats the last season (the last value, if there is no
        season), and the same with drift: plus the mean growth per season, measured over up to ten seasons.

        Parameters
        ----------
        table : path-like, mapping or DataFrame
            As in `fit`.
        since : time or share, or mapping of series to times, optional
            Score only rows from this time on, or after this share of each series' rows; by default all rows. Pass
            `trained_before` to score only rows that training has not seen.
        num_threads : int, optional
            Maximum number of threads; by default that of `set_num_threads`.

        Returns
        -------
        Evaluation
            The forecasts and the observations.

        Raises
        ------
        RuntimeError
            If the forecaster is not fitted.
        OSError, TypeError, ValueError
            As in `fit`, or if nothing can be scored. A series that is too short, or was not in training, is left out
            with a warning.
        """
        _check_when("since", since)
        parts = []
        for one, examples, origins in self._prepare(table, since=since, ahead=True):
            observed = one.values[origins[:, None] + self._window_sizes.ahead, 0]
            ours = self._forecast(examples, origins, num_threads)
            forecasts = {"LSTM": ours, **naive_forecasts(examples, origins)}
            parts.append(Evaluation(np.full(len(origins), one.name), one.times(origins), observed, forecasts))
        result = join_evaluations(parts)
        if np.isnan(result.observed).all():
            start = "the time of each series" if isinstance(since, Mapping) else since
            raise ValueError("table holds nothing to score" + ("" if since is None else f" from {start} on"))
        return result

    def save(self, path: str | os.PathLike[str], *, details: Mapping[str, Any] | None = None) -> None:
        """Write the fitted forecaster to a file, atomically; `lstm_ext.load` reads its network.

        Parameters
        ----------
        path : path-like
            The file. An existing one is replaced.
        details : mapping, optional
            Further JSON data to keep in the file; `lstm_ext.load_model` returns them.

        Raises
        ------
        RuntimeError
            If the forecaster is not fitted.
        OSError
            If the file cannot be written. An existing file is unchanged.
        TypeError, ValueError
            If `details` cannot be kept as JSON, or has the key "forecaster", which is reserved for the settings.
        """
        network = self._fitted()
        if details is not None and not isinstance(details, Mapping):
            raise TypeError(f"details is {short_repr(details)}; expected a mapping or None")
        if details is not None and _DETAILS_KEY in details:
            raise ValueError(f"details has the key {_DETAILS_KEY!r}, which is reserved for the settings")
        assert self._axis is not None
        settings = {one.name: getattr(self, one.name) for one in fields(self) if one.init}
        own = {
            "settings": {**settings, "inputs": list(self.inputs)},
            "trained_before": self.trained_before,
            "axis": self._axis._asdict(),
            "scalers": {name: scaler.to_dict() for name, scaler in self._scalers.items()},
        }
        network.save(path, details={**(details or {}), _DETAILS_KEY: own})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a forecaster that `save` wrote.

        Parameters
        ----------
        path : path-like
            The file.

        Returns
        -------
        Forecaster
            A forecaster with the same forecasts, bit for bit.

        Raises
        ------
        ModelFileError
            If the file does not hold a forecaster, is damaged, or was written by a newer version.
        OSError
            If the file cannot be read.
        """
        model = load_model(path)
        if _DETAILS_KEY not in model.details:
            raise ModelFileError(
                f"{path} is a model without a forecaster's settings; expected a file that Forecaster.save wrote"
            )
        try:
            own = model.details[_DETAILS_KEY]
            settings = {one.name for one in fields(cls) if one.init}
            unknown = sorted({*own} - _SAVED) + sorted({*own["settings"]} - settings)
            if unknown:
                raise ModelFileError(
                    f"{path} was written by a newer lstm_ext than {__version__}, which does not know "
                    f"{short_list(unknown)}: upgrade lstm_ext to load it"
                )
            made = cls(**own["settings"])
            made._scalers = {name: SequenceScaler.from_dict(state) for name, state in own["scalers"].items()}
            made._axis = TimeAxis(**own["axis"]).checked()
            made.trained_before = {name: str(own["trained_before"][name]) for name in made._scalers}
            features = {len(scaler.to_dict()["mean"]) for scaler in made._scalers.values()}
            architecture = model.network.architecture
            if architecture != Architecture(*made._network_sizes) or features != {architecture.input_dim}:
                raise ValueError(f"a network with {architecture} does not fit its settings")
        except ModelFileError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"{path} has damaged metadata: {error}") from None
        made.network = model.network
        return made

    def _find_series(self, table: Source, axis: TimeAxis | None) -> list[Series]:
        found = find_series(table, [self.target, *self.inputs], time=self.time, series=self.series, axis=axis)
        for one in found:
            large = np.argwhere(np.abs(one.values) > _MAX_MAGNITUDE)
            if len(large):
                cell = one.describe_cell(*map(int, large[0]))
                raise ValueError(f"{cell}; expected a number up to {_MAX_MAGNITUDE} in magnitude")
        return found

    @property
    def _window_sizes(self) -> WindowSizes:
        return WindowSizes(self.window, self.horizon, self.season, self.trend_seasons, cast(int, self.max_gap))

    @property
    def _network_sizes(self) -> tuple[int, int, int]:
        return 1 + len(self.inputs), self.hidden_dim, self.horizon

    def _fitted(self) -> LSTMNetwork:
        if self.network is None:
            raise RuntimeError("the Forecaster is not fitted; call fit(table) first")
        return self.network

    def _prepare(
        self, table: Source, *, since: When | None = None, ahead: bool
    ) -> list[tuple[Series, Examples, Indices]]:
        """Return the series that can be forecast, with their origins; warn of the others."""
        self._fitted()
        prepared, left_out = [], {}
        for one in self.find_series(table):
            examples = Examples(one, self._window_sizes)
            if one.name not in self._scalers:
                left_out[one.name] = f"it was not in training, which had {short_list(self._scalers)}"
                continue
            first = since.get(one.name) if isinstance(since, Mapping) else since
            start = one.first_row("since", since, 0)
            origins = examples.origins(start, ahead=ahead)
            if start == len(one.values):
                left_out[one.name] = f"its last row, {one.times(start - 1)}, lies before {first}"
            elif not len(origins):
                left_out[one.name] = examples.too_short(ahead=ahead, since=first)
            else:
                prepared.append((one, examples, origins))
        if not prepared:
            raise ValueError(_reason(left_out))
        if left_out:
            warnings.warn(f"{len(left_out)} series left out: {_reason(left_out)}", stacklevel=3)
        return prepared

    def _forecast(self, examples: Examples, origins: Indices, num_threads: int | None) -> Floats:
        scaler = self._scalers[examples.series.name]
        outputs = self._fitted().predict(examples.inputs(origins, scaler), num_threads=num_threads)
        return examples.forecasts(origins, outputs, scaler)

    def _choose_epochs(
        self, examples: dict[str, Examples], callbacks: Iterable[Callback], options: dict[str, Any]
    ) -> History:
        """Train without the validation rows until their loss stops falling; return that training's history."""
        cuts = {name: int(len(one.series.values) * (1 - self.validation)) for name, one in examples.items()}
        earlier = {name: one.until(cuts[name]) for name, one in examples.items()}
        try:
            scalers = _scalers(earlier)
        except ValueError as error:
            raise ValueError(f"without the validation rows, a share of {self.validation}, {error}") from None
        if not any(len(examples[name].origins(cuts[name], complete=True)) for name in scalers):
            rows = max(len(one.series.values) - cuts[name] for name, one in examples.items())
            raise ValueError(
                f"validation is {self.validation}, at most {rows} rows of a series; expected enough for a target of "
                f"{self.horizon} rows, the horizon, or 0 to train without validation"
            )
        validation = _arrays(examples, scalers, cuts)

        def stop(_: LSTMNetwork, history: History) -> bool:
            return len(history.loss) - int(np.argmin(history.validation_loss)) > self.patience

        X, Y = _arrays(earlier, scalers)
        return self._train(X, Y, self.epochs, validation_data=validation, callbacks=[*callbacks, stop], **options)[1]

    def _train(self, X: Array, Y: Array, epochs: int, **options: Any) -> tuple[LSTMNetwork, History]:
        network = LSTMNetwork(*self._network_sizes, seed=self.seed)
        history = train(
            network,
            X,
            Y,
            optimizer=Adam(self.learning_rate),
            batch_size=self.batch_size,
            epochs=epochs,
            clip_norm=self.clip_norm,
            seed=self.seed,
            **options,
        )
        return network, history


def _scalers(examples: dict[str, Examples]) -> dict[str, SequenceScaler]:
    """Return a scaler for each series that the network can learn from."""
    scalers = {name: one.scaler() for name, one in examples.items() if len(one.origins(complete=True))}
    if not scalers:
        raise ValueError(_reason({name: one.too_short() for name, one in examples.items()}))
    return scalers


def _arrays(
    examples: dict[str, Examples], scalers: dict[str, SequenceScaler], starts: Mapping[str, int] | None = None
) -> tuple[Array, Array]:
    """Return X (N, window, F) and Y (N, horizon) of all series with a scaler, with targets from row `starts` on."""
    origins = {name: examples[name].origins(starts[name] if starts else 0, complete=True) for name in scalers}
    parts = [
        (examples[name].inputs(rows, scalers[name]), examples[name].targets(rows, scalers[name]))
        for name, rows in origins.items()
        if len(rows)
    ]
    X, Y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return X, Y


def _check_when(name: str, when: When | None) -> None:
    """Raise TypeError for a bool, which would be taken as a number."""
    for one in when.values() if isinstance(when, Mapping) else [when]:
        if isinstance(one, (bool, np.bool_)):
            raise TypeError(f"{name} is {one}; expected a time, a share of the rows, or None")


def _warn_if_outdated(series: Series, origin: int) -> None:
    """Warn if the target was observed after the last origin."""
    last = np.flatnonzero(~np.isnan(series.values[:, 0]))[-1]
    if origin < last:
        name = f"series {series.name!r}" if series.name else "table"
        warnings.warn(
            f"{name}: forecast from {series.times(origin)}, although the target is known up to {series.times(last)}: "
            "no later row has all inputs and a window without a long gap",
            stacklevel=4,
        )


def _reason(left_out: Mapping[str, str]) -> str:
    """Return why the first of some series was left out."""
    name, reason = next(iter(left_out.items()))
    return f"series {name!r}: {reason}" if name else f"table: {reason}"
