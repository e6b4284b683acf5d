"""Forecast series with a network: one's own data from table to model file and back.

Four rules keep the measured error honest:

- A forecast is made at an *origin*, a row in which the target and every input were observed. Gaps are filled along
  straight lines, so every filled value up to an origin lies between two values that were known there.
- The target's window is measured from a line of its own, through the mean of its last season and, with
  `trend_seasons`, the mean of the season that many earlier. The network learns the season and how the series departs
  from the line; the line follows the level, so that nothing has to be extrapolated to levels never seen. (Without a
  season the line is the window's last value: Zeng et al. 2023, "Are Transformers Effective for Time Series
  Forecasting?", NLinear.)
- `fit` looks at no row from `until` on, not even to fill a gap or to scale.
- The number of epochs is chosen on the last of the known rows, and the network then trained anew on all of them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lstm_ext._version import __version__
from lstm_ext.checks import Array, as_flag, as_number, as_positive, as_size, make_generator, short_list, short_repr
from lstm_ext.files import ModelFileError
from lstm_ext.forecasting.tables import Floats, Series, Source, TimeAxis, bridge_gaps, find_series
from lstm_ext.network import LSTMNetwork, load_model
from lstm_ext.options import Architecture, hinting
from lstm_ext.scaling import SequenceScaler
from lstm_ext.training.callbacks import as_callbacks
from lstm_ext.training.loop import Callback, History, train
from lstm_ext.training.optimizers import Adam

Indices: TypeAlias = NDArray[np.intp]
When: TypeAlias = float | str | np.datetime64 | Mapping[str, str]
"""A time of the table's time column; a number below 1, for that share of each series' rows; or a time by series."""

_DETAILS_KEY = "forecaster"
_SAVED = {"settings", "trained_before", "axis", "scalers"}
_DRIFT_SEASONS = 10
_LARGEST = 1e140  # the squares of larger numbers, and their sums, overflow
_FORECAST_COLUMNS = ("origin", "steps_ahead", "forecast")


class Fit(NamedTuple):
    """What `Forecaster.fit` did.

    Attributes
    ----------
    examples : int
        Windows of the last training.
    epochs : int
        Passes of the last training: those with the least loss on the validation rows.
    watched : History or None
        Of the training whose loss on the validation rows was watched; None without any.
    history : History
        Of the last training.
    """

    examples: int
    epochs: int
    watched: History | None
    history: History


class Evaluation(NamedTuple):
    """Forecasts beside what came, each (N, horizon).

    Attributes
    ----------
    series : ndarray (N,) of str
    origins : ndarray (N,)
        The times of the last rows that each forecast knew.
    observed : ndarray (N, horizon)
        NaN in gaps: they are not scored.
    forecasts : dict of str to ndarray (N, horizon)
        "LSTM", and the baselines.
    """

    series: Array
    origins: Array
    observed: Floats
    forecasts: dict[str, Floats]

    def rmse(self) -> dict[str, float]:
        """Return the root of each one's mean squared error over all that was observed."""
        return {name: float(np.sqrt(np.nanmean(errors**2))) for name, errors in self._errors()}

    def mae(self) -> dict[str, float]:
        """Return each one's mean absolute error over all that was observed."""
        return {name: float(np.nanmean(np.abs(errors))) for name, errors in self._errors()}

    def rmse_by_step(self) -> dict[str, Floats]:
        """Return each one's RMSE by steps ahead, (horizon,); NaN for a step that was never observed."""
        scored = (~np.isnan(self.observed)).sum(axis=0)
        with np.errstate(invalid="ignore"):
            return {name: np.sqrt(np.nansum(errors**2, axis=0) / scored) for name, errors in self._errors()}

    def _errors(self) -> Iterator[tuple[str, Floats]]:
        return ((name, forecast - self.observed) for name, forecast in self.forecasts.items())


@hinting
@dataclass(kw_only=True)
class Forecaster:
    """An LSTM network that forecasts a column of a table from the rows before.

    It sees the last `window` rows of the target and of the inputs and gives the target of the next `horizon` rows at
    once. Several series are learned by one network, each scaled by itself. The settings are read-only:
    ``dataclasses.replace(forecaster, horizon=3)`` makes another forecaster, not fitted.

    Parameters
    ----------
    target : str
        The column to forecast.
    inputs : sequence of str
        Columns that the network sees beside the target's past.
    time : str, optional
        The column of times: numbers or dates. They ascend within each series at equal steps; rows left out are gaps.
        Without it, rows are taken as equally spaced.
    series : str, optional
        The column that tells several series apart.
    window, horizon : int
        Rows that the network sees, and rows that it forecasts.
    season : int
        Rows of a season (24 for days of hours); 1 for none.
    trend_seasons : int
        Seasons over which a window's growth is measured and taken out; 0 for series that do not grow.
    max_gap : int, optional
        Longer gaps are not filled; no window and no target crosses them. By default a quarter of the window.
    hidden_dim : int
        Hidden units.
    epochs, patience : int
        At most so many passes over the training windows, and fewer once the validation loss has not fallen for
        `patience` of them.
    validation : float
        The share of each series' known rows, at their end, that chooses the number of epochs; 0 to train all `epochs`.
    batch_size : int
        Windows for each update.
    learning_rate : float
        Of Adam, at least 0.
    clip_norm : float
        The largest norm of a gradient, above 0.
    seed : int or None
        Of the initial weights and the order of the windows.

    Attributes
    ----------
    network : LSTMNetwork or None
        None before `fit`.
    trained_before : dict of str to str
        By series, the time of the first row that `fit` did not look at, or that would have come next.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above.
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
                f"{name} is read-only; dataclasses.replace(forecaster, {name}=...) makes another forecaster"
            )
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:  # or the class's default would take its place
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
                raise ValueError(f"column {column!r} is one of those of a forecast; rename it in the table")

    @property
    def columns(self) -> list[str]:
        """The columns of a table that are looked at."""
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
            If the table is not as needed; once fitted, also if its times have other steps than in training.
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
            Look only at rows before this time (to a tenth of a step), or at this share of each series' rows; by
            default at all.
        callbacks : iterable of callable
            Each is called as ``callback(network, history)`` after every epoch of the training that chooses the number
            of epochs, and of the only training if `validation` is 0; True stops it.
        verbose : bool
            Show the progress and the losses on stderr, as `train` does.
        num_threads : int, optional
            The most threads to use (`set_num_threads`).

        Returns
        -------
        Fit
            What was done; the trained network is in the forecaster.

        Raises
        ------
        OSError
            If the file cannot be read.
        NonFiniteError
            If the training diverges.
        TypeError, ValueError
            If an argument or the table is not as needed, or the table is too short. The forecaster is as before then.
        """
        callbacks = as_callbacks(callbacks)
        options: dict[str, Any] = {"verbose": as_flag("verbose", verbose), "num_threads": num_threads}
        _check_when("until", until)
        known = [
            one._replace(values=one.values[: row_of("until", one, until, len(one.values))])
            for one in self._find_series(table, None)
        ]
        windows = {one.name: _Windows(self, one) for one in known}
        scalers = self._scale(windows)
        epochs, watched = self.epochs, None
        if self.validation:
            watched = self._watch(windows, callbacks, options)
            epochs = 1 + int(np.argmin(watched.validation_loss))
        left_out = {name: one.too_short() for name, one in windows.items() if name not in scalers}
        if left_out:
            warnings.warn(f"{len(left_out)} series left out: {_reason(left_out)}", stacklevel=2)
        X, Y = self._examples(windows, scalers)
        network, history = self._train(X, Y, epochs, callbacks=() if self.validation else callbacks, **options)
        self.network, self._scalers, self._axis = network, scalers, known[0].axis
        self.trained_before = {one.name: str(one.times(len(one.values))) for one in known if one.name in scalers}
        return Fit(len(X), len(history.loss), watched, history)

    def predict(self, table: Source, *, every_origin: bool = False, num_threads: int | None = None) -> dict[str, Array]:
        """Forecast the rows after each series' last observed row.

        Parameters
        ----------
        table : path-like, mapping or DataFrame
            As in `fit`; `window` rows of each series may do, with seasons `trend_seasons` + 1 of them.
        every_origin : bool
            Forecast from every observed row that has enough of the series before it.
        num_threads : int, optional
            The most threads to use (`set_num_threads`).

        Returns
        -------
        dict of str to ndarray
            A table: the series column, "origin" (the time of the last row that the forecast knew), "steps_ahead", the
            time column ("row" without one) and "forecast", in the unit of the target.

        Raises
        ------
        RuntimeError
            If the forecaster is not fitted.
        OSError, TypeError, ValueError
            As in `fit`, or if no series can be forecast. One that is too short, or was not in training, is left out
            with a warning.
        """
        every_origin = as_flag("every_origin", every_origin)
        parts = []
        for one, windows, origins in self._prepare(table, ahead=False):
            if not every_origin:
                origins = origins[-1:]
                _check_latest(one, origins[0])
            rows = origins[:, None] + self._ahead()
            shape = rows.shape
            part = {
                "origin": np.broadcast_to(one.times(origins)[:, None], shape),
                "steps_ahead": np.broadcast_to(self._ahead(), shape),
                self.time or "row": one.times(rows),
                "forecast": self._forecast(one.name, windows, origins, num_threads),
            }
            label = {} if self.series is None else {self.series: np.full(shape, one.name)}
            parts.append({name: column.reshape(-1) for name, column in (label | part).items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def evaluate(self, table: Source, *, since: When | None = None, num_threads: int | None = None) -> Evaluation:
        """Forecast from every origin of a table and compare with what came.

        The baselines are the last season again (the last value without a season), and the same with the growth per
        season, measured over up to ten seasons.

        Parameters
        ----------
        table : path-like, mapping or DataFrame
            As in `fit`.
        since : time or share, or mapping of series to times, optional
            Forecast no row before this time, or before this share of each series' rows; by default all of them. With
            `trained_before` none that training has seen.
        num_threads : int, optional
            The most threads to use (`set_num_threads`).

        Returns
        -------
        Evaluation
            The forecasts beside what came.

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
        for one, windows, origins in self._prepare(table, since=since, ahead=True):
            observed = one.values[origins[:, None] + self._ahead(), 0]
            ours = self._forecast(one.name, windows, origins, num_threads)
            forecasts = {"LSTM": ours, **windows.baselines(origins)}
            parts.append(Evaluation(np.full(len(origins), one.name), one.times(origins), observed, forecasts))
        result = _join(parts)
        if np.isnan(result.observed).all():
            start = "the time of each series" if isinstance(since, Mapping) else since
            raise ValueError("table holds nothing to score" + ("" if since is None else f" from {start} on"))
        return result

    def save(self, path: str | os.PathLike[str], *, details: Mapping[str, Any] | None = None) -> None:
        """Write the fitted forecaster to a file, whole or not at all; `lstm_ext.load` reads its network.

        Parameters
        ----------
        path : path-like
            Replaced if it exists.
        details : mapping, optional
            Anything that JSON holds, for `lstm_ext.load_model`.

        Raises
        ------
        RuntimeError
            If the forecaster is not fitted.
        OSError
            If the file cannot be written; an older one stays as it was.
        TypeError, ValueError
            If `details` is not what JSON holds, or has the key "forecaster", under which the settings are kept.
        """
        network = self._fitted()
        if details is not None and not isinstance(details, Mapping):
            raise TypeError(f"details is {short_repr(details)}; expected a mapping or None")
        if details is not None and _DETAILS_KEY in details:
            raise ValueError(
                f"details has the key {_DETAILS_KEY!r}, under which the settings are kept; expected others"
            )
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
            With the same forecasts to the bit.

        Raises
        ------
        ModelFileError
            If the file is not a forecaster's, is damaged, or is of a newer version.
        OSError
            If the file cannot be read.
        """
        model = load_model(path)
        if _DETAILS_KEY not in model.details:
            raise ModelFileError(
                f"{path} is a model without a forecaster's settings; expected one that a Forecaster saved"
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
            if architecture != Architecture(*made._sizes()) or features != {architecture.input_dim}:
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
            large = np.argwhere(np.abs(one.values) > _LARGEST)
            if len(large):
                row, column = map(int, large[0])
                raise ValueError(f"{self._place(one, row, column)}; expected a number up to {_LARGEST} in magnitude")
        return found

    def _place(self, series: Series, row: int, column: int) -> str:
        """Describe one cell of the table for an error."""
        name = (self.target, *self.inputs)[column]
        which = f"series {series.name!r}, " if series.name else ""
        when = f"{self.time or 'row'} {series.times(row)}"
        return f"{which}column {name!r}, {when} is {series.values[row, column]}"

    def _sizes(self) -> tuple[int, int, int]:
        return 1 + len(self.inputs), self.hidden_dim, self.horizon

    def _ahead(self) -> Indices:
        return np.arange(1, self.horizon + 1)

    def _fitted(self) -> LSTMNetwork:
        if self.network is None:
            raise RuntimeError("the Forecaster is not fitted; call fit(table) first")
        return self.network

    def _prepare(
        self, table: Source, *, since: When | None = None, ahead: bool
    ) -> list[tuple[Series, _Windows, Indices]]:
        """Return the series that can be forecast, with their origins."""
        self._fitted()
        prepared, left_out = [], {}
        for one in self.find_series(table):
            windows = _Windows(self, one)
            if one.name not in self._scalers:
                left_out[one.name] = f"it was not in training, which had {short_list(self._scalers)}"
                continue
            first = _time_for(one, since)
            start = row_of("since", one, since, 0)
            origins = windows.origins(start, ahead=ahead)
            if start == len(one.values):
                left_out[one.name] = f"its last row, {one.times(start - 1)}, lies before {first}"
            elif not len(origins):
                left_out[one.name] = windows.too_short(first)
            else:
                prepared.append((one, windows, origins))
        if not prepared:
            raise ValueError(_reason(left_out))
        if left_out:
            warnings.warn(f"{len(left_out)} series left out: {_reason(left_out)}", stacklevel=3)
        return prepared

    def _forecast(self, name: str, windows: _Windows, origins: Indices, num_threads: int | None) -> Floats:
        scaler = self._scalers[name]
        outputs = self._fitted().predict(windows.inputs(origins, scaler), num_threads=num_threads)
        return windows.forecasts(origins, outputs, scaler)

    def _watch(self, windows: dict[str, _Windows], callbacks: Iterable[Callback], options: dict[str, Any]) -> History:
        """Train on the first of the known rows, until the loss on the others no longer falls."""
        cuts = {name: int(len(one.values) * (1 - self.validation)) for name, one in windows.items()}
        first = {
            name: _Windows(self, one.series._replace(values=one.values[: cuts[name]])) for name, one in windows.items()
        }
        try:
            scalers = self._scale(first)
        except ValueError as error:
            raise ValueError(f"without the validation rows, a share of {self.validation}, {error}") from None
        if not any(len(windows[name].origins(cuts[name], complete=True)) for name in scalers):
            rows = max(len(one.values) - cuts[name] for name, one in windows.items())
            raise ValueError(
                f"validation is {self.validation}, at most {rows} rows of a series; expected a target of "
                f"{self.horizon} rows, the horizon, in them; 0 trains without"
            )
        validation = self._examples(windows, scalers, cuts)

        def stop(_: LSTMNetwork, history: History) -> bool:
            return len(history.loss) - int(np.argmin(history.validation_loss)) > self.patience

        X, Y = self._examples(first, scalers)
        return self._train(X, Y, self.epochs, validation_data=validation, callbacks=[*callbacks, stop], **options)[1]

    def _scale(self, windows: dict[str, _Windows]) -> dict[str, SequenceScaler]:
        """Return a scaler for each series that has examples."""
        scalers = {name: one.scaler() for name, one in windows.items() if len(one.origins(complete=True))}
        if not scalers:
            raise ValueError(_reason({name: one.too_short() for name, one in windows.items()}))
        return scalers

    def _examples(
        self, windows: dict[str, _Windows], scalers: dict[str, SequenceScaler], starts: Mapping[str, int] | None = None
    ) -> tuple[Array, Array]:
        """Return what a network learns, X (N, window, F) and Y (N, horizon), of all series that have a scaler."""
        origins = {name: windows[name].origins(starts[name] if starts else 0, complete=True) for name in scalers}
        parts = [
            (windows[name].inputs(rows, scalers[name]), windows[name].targets(rows, scalers[name]))
            for name, rows in origins.items()
            if len(rows)
        ]
        X, Y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return X, Y

    def _train(self, X: Array, Y: Array, epochs: int, **options: Any) -> tuple[LSTMNetwork, History]:
        network = LSTMNetwork(*self._sizes(), seed=self.seed)
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


class _Windows:
    """The windows of one series: where they are, what a network sees of them and learns from them.

    Parameters
    ----------
    settings : Forecaster
    series : Series
        With the target in the first column; NaN in gaps.
    """

    def __init__(self, settings: Forecaster, series: Series) -> None:
        assert settings.max_gap is not None
        self.series = series
        self.values = series.values
        self._settings = settings
        self._filled = bridge_gaps(series.values, settings.max_gap)
        self._history = max(settings.window, (settings.trend_seasons + 1) * settings.season)
        self._known = _run_lengths(~np.isnan(self._filled).any(axis=1))
        self._known_target = _run_lengths(~np.isnan(self._filled[:, 0]))

    def too_short(self, since: When | None = None) -> str:
        """Return the reason why there is no origin."""
        longest = int(self._known.max(initial=0))
        return (
            f"it has {len(self.values)} rows, at most {longest} of them without a gap of more than "
            f"{self._settings.max_gap}; expected {self._history} for the window and its seasons, the last of them "
            f"observed, and {self._settings.horizon} more for the horizon"
            f"{'' if since is None else f', these from {since} on'}"
        )

    def origins(self, start: int = 0, *, ahead: bool = True, complete: bool = False) -> Indices:
        """Return the origins whose forecasts lie from row `start` on.

        Parameters
        ----------
        start : int
        ahead : bool
            Only those whose forecasts lie in the series.
        complete : bool
            Only those after which the target has no long gap: the network can learn from them.
        """
        rows, horizon = len(self.values), self._settings.horizon
        observed = ~np.isnan(self.values).any(axis=1)
        origins = np.flatnonzero(observed & (self._known >= self._history))
        origins = origins[origins >= start - 1]
        if ahead or complete:
            origins = origins[origins < rows - horizon] if horizon < rows else origins[:0]
        if complete and len(origins):
            origins = origins[self._known_target[origins + horizon] > horizon]
        return origins

    def scaler(self) -> SequenceScaler:
        """Return a scaler of the target's windows and of the inputs."""
        origins = self.origins(complete=True)
        offsets = self._past() if self._history > 1 else self._settings._ahead()  # a single row departs by nothing
        parts = [self._statistics(self._departures(origins, offsets)[..., None], 0)]
        if self.values.shape[1] > 1:
            inputs = self._filled[:, 1:]
            parts.append(self._statistics(inputs[~np.isnan(inputs).any(axis=1)], 1))
        return SequenceScaler.from_dict({key: np.concatenate([part[key] for part in parts]) for key in parts[0]})

    @np.errstate(over="ignore")
    def inputs(self, origins: Indices, scaler: SequenceScaler) -> Array:
        """Return what the network sees, X (N, window, F), float32."""
        mean, scale = (np.asarray(part) for part in scaler.to_dict().values())
        rows = origins[:, None] + self._past()
        X = np.empty((*rows.shape, self.values.shape[1]), np.float32)
        X[..., 0] = (self._departures(origins, self._past()) - mean[0]) / scale[0]
        for j in range(1, X.shape[2]):
            X[..., j] = (self._filled[rows, j] - mean[j]) / scale[j]
        self._check_range(X, origins, self._past())
        return X

    @np.errstate(over="ignore")
    def targets(self, origins: Indices, scaler: SequenceScaler) -> Array:
        """Return what the network learns, Y (N, horizon), float32."""
        mean, scale = (part[0] for part in scaler.to_dict().values())
        Y = ((self._departures(origins, self._settings._ahead()) - mean) / scale).astype(np.float32)
        self._check_range(Y[..., None], origins, self._settings._ahead())
        return Y

    def forecasts(self, origins: Indices, outputs: Array, scaler: SequenceScaler) -> Floats:
        """Return a network's outputs in the unit of the target, (N, horizon)."""
        mean, scale = (part[0] for part in scaler.to_dict().values())
        return outputs.astype(np.float64) * scale + mean + self._line(origins, self._settings._ahead())

    def baselines(self, origins: Indices) -> dict[str, Floats]:
        """Return the last season again, and with the growth over the seasons before, each (N, horizon)."""
        season, ahead = self._settings.season, self._settings._ahead()
        seasons = -(-ahead // season)
        last = self._filled[origins[:, None] + ahead - seasons * season, 0]
        if season == 1:
            return {"last value": last}
        result = {"last season": last}
        full_seasons = int(self._known_target[origins].min(initial=(_DRIFT_SEASONS + 1) * season)) // season
        if full_seasons > 1:
            growth = self._growth(origins, min(_DRIFT_SEASONS, full_seasons - 1))
            result["last season with drift"] = last + seasons * season * growth
        return result

    def _statistics(self, values: Floats, first: int) -> dict[str, list[float]]:
        """Return the scaler's statistics of columns, the first of which is column `first` of the series."""
        try:
            return SequenceScaler().fit(values).to_dict()
        except ValueError:
            deviations = values.reshape(-1, values.shape[-1]).std(axis=0)
            name = (self._settings.target, *self._settings.inputs)[first + int(deviations.argmin())]
            raise ValueError(f"column {name!r} varies by too little for float64; use a smaller unit") from None

    def _check_range(self, scaled: Array, origins: Indices, offsets: Indices) -> None:
        """Raise unless (N, len(offsets), columns) scaled values are numbers of float32: name the row to blame."""
        wrong = np.argwhere(~np.isfinite(scaled))
        if len(wrong):
            n, j, column = map(int, wrong[0])
            row = int(origins[n] + offsets[j])
            if column == 0:  # the target is measured from a line through the rows before
                first = origins[n] - self._history + 1
                row = int(first + np.abs(self._filled[first : max(row, origins[n]) + 1, 0]).argmax())
            known = self.series._replace(values=self._filled)
            raise ValueError(f"{self._settings._place(known, row, column)}, too far from the training data for float32")

    def _past(self) -> Indices:
        return np.arange(1 - self._settings.window, 1)

    def _departures(self, origins: Indices, offsets: Indices) -> Floats:
        """Return how the target departs from each origin's line, (N, len(offsets))."""
        departures: Floats = self._filled[origins[:, None] + offsets, 0] - self._line(origins, offsets)
        return departures

    def _line(self, origins: Indices, offsets: Indices) -> Floats:
        """Return each origin's line at `offsets` rows from it, (N, len(offsets))."""
        level = np.repeat(self._season_mean(origins), len(offsets), axis=1)
        if not self._settings.trend_seasons:
            return level
        centre = (self._settings.season - 1) / 2  # the mean of the last season lies so many rows before the origin
        return level + self._growth(origins, self._settings.trend_seasons) * (offsets + centre)

    def _growth(self, origins: Indices, seasons: int) -> Floats:
        """Return the growth per row over so many seasons, (N, 1)."""
        rows = seasons * self._settings.season
        return (self._season_mean(origins) - self._season_mean(origins - rows)) / rows

    def _season_mean(self, ends: Indices) -> Floats:
        mean: Floats = self._filled[ends[:, None] - np.arange(self._settings.season), 0].mean(axis=1, keepdims=True)
        return mean


def _run_lengths(mask: Any) -> Indices:
    """Return for each row how many rows up to it are true without a break."""
    rows = np.arange(1, len(mask) + 1)
    return rows - np.maximum.accumulate(np.where(mask, 0, rows))


def _time_for(series: Series, when: When | None) -> Any:
    """Return the time, or the share, that `when` gives for one series; None for none."""
    return when.get(series.name) if isinstance(when, Mapping) else when


def row_of(name: str, series: Series, when: When | None, default: int) -> int:
    """Return the first row of a series at or after a time, or after a share of its rows; errors call it `name`."""
    if isinstance(when, Mapping):
        name, when = f"{name}[{series.name!r}]", when.get(series.name)
    if when is None:
        return default
    if isinstance(when, (int, float, np.integer, np.floating)) and 0 <= when < 1:
        return int(len(series.values) * when)
    return series.row_at(when, name)


def _check_when(name: str, when: When | None) -> None:
    """Raise TypeError for a bool, which would pass for a row."""
    for one in when.values() if isinstance(when, Mapping) else [when]:
        if isinstance(one, (bool, np.bool_)):
            raise TypeError(f"{name} is {one}; expected a time, a share of the rows, or None")


def _check_latest(series: Series, origin: int) -> None:
    """Warn if the target was observed after the last origin."""
    last = np.flatnonzero(~np.isnan(series.values[:, 0]))[-1]
    if origin < last:
        name = f"series {series.name!r}" if series.name else "table"
        warnings.warn(
            f"{name}: forecast from {series.times(origin)}, though its target is known up to {series.times(last)}: no "
            "later row with all inputs observed has a window without a long gap",
            stacklevel=4,
        )


def _reason(left_out: Mapping[str, str]) -> str:
    """Return why series were left out: for the first of them."""
    name, reason = next(iter(left_out.items()))
    return f"series {name!r}: {reason}" if name else f"table: {reason}"


def _join(parts: Sequence[Evaluation]) -> Evaluation:
    """Return one evaluation of all series, with the baselines that all of them have."""
    series, origins, observed = (np.concatenate([part[j] for part in parts]) for j in range(3))
    names = [name for name in parts[0].forecasts if all(name in part.forecasts for part in parts)]
    forecasts = {name: np.concatenate([part.forecasts[name] for part in parts]) for name in names}
    return Evaluation(series, origins, observed, forecasts)
