"""Forecast a seasonal series: what a network sees and learns, and the baselines that it has to beat.

NumPy only; nothing here trains. A network of ``LSTMNetwork(1, hidden_dim, horizon)`` takes a window of the
series and returns the next `horizon` values at once. Three rules keep the measured error honest:

- A forecast is made at an *origin* t, a step that was observed. Gaps are filled along straight lines, so
  each filled value before t lies between two values that were known at t; no origin lies inside a gap.
- Every window is measured from its own straight line, through the mean of its last season and the mean of
  the season `trend_seasons` earlier. The network learns the season and how the series departs from the
  line; the line follows the level, so that nothing has to be extrapolated to levels never seen.
- What a function is given counts as known. Cut the series where the training years end
  (``training_data(series[:held_out], recipe)``), and gaps, targets and scaler end there too.

    series[:held_out] -> training_data -> train -> network.predict(inputs(...)) -> forecasts -> rmse
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lstm_ext.checks import as_number, as_size
from lstm_ext.data import SequenceScaler, fill_gaps, find_gaps

CO2_VALIDATION = np.datetime64("1990-01-01")
"""The last of the four-year blocks, from 1978 on, by which the network's settings were chosen."""
CO2_HELD_OUT = np.datetime64("1994-01-01")
"""The CO2 record's years from here on are for the last measurement: no setting of the network was chosen by them."""

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that was chosen, for weekly CO2 on the years before 1994.

    Attributes
    ----------
    season : int
        Steps from one season to the next; 1 for a series without one.
    horizon : int
        Steps to forecast.
    window : int
        Steps that the network sees.
    trend_seasons : int
        Seasons over which a window's line measures growth.
    drift_seasons : int
        Seasons over which the baseline's drift measures it. The years before 1994 prefer 3; ten are harder to beat on
        the held-out years, so the baseline gets the benefit of hindsight.
    hidden_dim, epochs, batch_size : int
    learning_rate, clip_norm : float
        Of the network and of its training with Adam on the squared error.
    """

    season: int = 52
    horizon: int = 52
    window: int = 52
    trend_seasons: int = 3
    drift_seasons: int = 10
    hidden_dim: int = 32
    epochs: int = 25
    batch_size: int = 64
    learning_rate: float = 0.004
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        sizes = ("season", "horizon", "window", "trend_seasons", "drift_seasons", "hidden_dim", "epochs", "batch_size")
        for name in sizes:
            object.__setattr__(self, name, as_size(name, getattr(self, name)))
        for name in ("learning_rate", "clip_norm"):
            object.__setattr__(self, name, as_number(name, getattr(self, name), low=0))

    @property
    def first_origin(self) -> int:
        """The first step before which there is enough of the series."""
        return max(self.window, (self.trend_seasons + 1) * self.season) - 1


def split_index(dates: ArrayLike, day: str | np.datetime64) -> int:
    """Return the index of the first of the ascending `dates` at or after `day`.

    Raises
    ------
    ValueError
        If `dates` do not ascend, or none or all of them come before `day`.
    """
    days = np.asarray(dates, "datetime64[D]")
    if days.ndim != 1 or not (np.diff(days) > np.timedelta64(0, "D")).all():
        raise ValueError(
            f"dates of shape {days.shape} are not as needed; expected (T,), each later than the one before"
        )
    index = int(np.searchsorted(days, np.datetime64(day)))
    if not 0 < index < len(days):
        raise ValueError(f"day is {day}; expected a day that splits the dates {days[:1]} to {days[-1:]}")
    return index


def find_origins(series: ArrayLike, recipe: Recipe, start: int = 0) -> Indices:
    """Return the observed steps whose forecasts lie from `start` on and within the series.

    Parameters
    ----------
    series : array_like (T,)
        NaN where there is no value.
    recipe : Recipe
    start : int
        The first step that may be forecast: the origins begin one step before it.

    Returns
    -------
    ndarray (N,), intp

    Raises
    ------
    TypeError, ValueError
        If the series is not real (T,), begins with a gap or holds Inf, or if it holds no origin.
    """
    known, observed = _fill(series)
    first = max(recipe.first_origin, start - 1)
    steps = np.arange(first, len(known) - recipe.horizon)
    origins = steps[np.isin(steps, observed)]
    if not len(origins):
        needed = first + 1 + recipe.horizon
        raise ValueError(f"series ends after {len(known)} steps; expected {needed} or more, and an observed origin")
    return origins


def training_data(series: ArrayLike, recipe: Recipe) -> tuple[Floats, Floats, SequenceScaler]:
    """Return the examples at every origin of the training years, and the scaler fitted on them.

    Parameters
    ----------
    series : array_like (T,)
        The training years alone, NaN where there is no value.
    recipe : Recipe

    Returns
    -------
    X : ndarray (N, window, 1)
    Y : ndarray (N, horizon)
        Filled values are learned from like observed ones.
    scaler : SequenceScaler
        Of the windows; outputs are on the same scale.

    Raises
    ------
    TypeError, ValueError
        As `find_origins`.
    """
    origins = find_origins(series, recipe)
    scaler = SequenceScaler().fit(_windows(series, origins, recipe))
    return *examples(series, origins, recipe, scaler), scaler


def examples(series: ArrayLike, origins: ArrayLike, recipe: Recipe, scaler: SequenceScaler) -> tuple[Floats, Floats]:
    """Return the scaled windows X (N, window, 1) and what follows them, Y (N, horizon).

    Raises
    ------
    TypeError, ValueError
        As `inputs`, or if the series ends before an example does.
    """
    known, steps = _prepare(series, origins, recipe, ahead=recipe.horizon)
    ahead = _ahead(recipe)
    Y = known[steps + ahead] - _line(known, steps, recipe, ahead)
    return inputs(series, origins, recipe, scaler), scaler.transform(Y[..., None])[..., 0]


def inputs(series: ArrayLike, origins: ArrayLike, recipe: Recipe, scaler: SequenceScaler) -> Floats:
    """Return the scaled windows that end at the origins, X (N, window, 1).

    No value after an origin has any influence on its window.

    Raises
    ------
    TypeError, ValueError
        If the series is not real (T,), begins with a gap or holds Inf; if an origin is no observed step, or comes
        before ``recipe.first_origin``.
    """
    return scaler.transform(_windows(series, origins, recipe))


def forecasts(
    outputs: ArrayLike, series: ArrayLike, origins: ArrayLike, recipe: Recipe, scaler: SequenceScaler
) -> Floats:
    """Return a network's outputs (N, horizon) as forecasts in the unit of the series, (N, horizon).

    Raises
    ------
    TypeError, ValueError
        As `inputs`, or if the outputs have another shape or are not finite.
    """
    known, steps = _prepare(series, origins, recipe)
    departures = np.asarray(outputs, np.float64)
    if departures.shape != (len(steps), recipe.horizon):
        raise ValueError(f"outputs has shape {departures.shape}; expected ({len(steps)}, {recipe.horizon})")
    return scaler.inverse_transform(departures[..., None])[..., 0] + _line(known, steps, recipe, _ahead(recipe))


def seasonal_naive(series: ArrayLike, origins: ArrayLike, recipe: Recipe, *, drift: bool = False) -> Floats:
    """Return the last season again, as forecasts (N, horizon): y(t + h - k season), k = ceil(h / season).

    With `drift`, plus k times the growth per season, which is the mean of y(s) - y(s - season) over the
    `drift_seasons` seasons of steps s that end at the origin.

    Raises
    ------
    TypeError, ValueError
        As `inputs`; the drift needs an origin with ``drift_seasons + 1`` seasons before it.
    """
    if drift:
        recipe = replace(recipe, trend_seasons=recipe.drift_seasons)
    known, steps = _prepare(series, origins, recipe)
    ahead = _ahead(recipe)
    seasons = -(-ahead // recipe.season)
    last: Floats = known[steps + ahead - seasons * recipe.season]
    return last + seasons * recipe.season * _slope(known, steps, recipe) if drift else last


def actual(series: ArrayLike, origins: ArrayLike, recipe: Recipe) -> Floats:
    """Return what was observed after the origins, (N, horizon), with NaN for gaps: they are not scored.

    Raises
    ------
    TypeError, ValueError
        As `examples`.
    """
    _, steps = _prepare(series, origins, recipe, ahead=recipe.horizon)
    observed: Floats = np.asarray(series, np.float64)[steps + _ahead(recipe)]
    return observed


def rmse(forecast: ArrayLike, observed: ArrayLike) -> float:
    """Return the root of the mean squared error over all observed values.

    Parameters
    ----------
    forecast : array_like (N, horizon)
    observed : array_like (N, horizon)
        From `actual`; NaN is not scored.

    Raises
    ------
    ValueError
        If the shapes differ, a forecast is not finite, or nothing was observed.
    """
    return float(np.sqrt(np.nanmean(_squared_errors(forecast, observed))))


def rmse_by_horizon(forecast: ArrayLike, observed: ArrayLike) -> Floats:
    """Return the `rmse` of each step ahead, (horizon,); NaN for a step at which nothing was observed."""
    squares = _squared_errors(forecast, observed)
    scored = ~np.isnan(squares)
    with np.errstate(invalid="ignore"):
        by_step: Floats = np.sqrt(np.where(scored, squares, 0).sum(axis=0) / scored.sum(axis=0))
    return by_step


def _squared_errors(forecast: ArrayLike, observed: ArrayLike) -> Floats:
    given, values = np.asarray(forecast, np.float64), np.asarray(observed, np.float64)
    if given.ndim != 2 or given.shape != values.shape:
        raise ValueError(f"forecast has shape {given.shape} and observed {values.shape}; expected (N, horizon) twice")
    if not np.isfinite(given).all():
        raise ValueError("forecast holds NaN or Inf; expected finite numbers")
    if np.isnan(values).all():
        raise ValueError("observed holds only NaN; expected a value to score")
    errors: Floats = (given - values) ** 2
    return errors


def _fill(series: ArrayLike) -> tuple[Floats, Indices]:
    """Return the series filled up to its last observed step, and the observed steps."""
    values, gaps = find_gaps(series)
    if values.ndim != 1:
        raise ValueError(f"series has shape {values.shape}; expected (T,)")
    observed = np.flatnonzero(~gaps)
    if not len(observed):
        raise ValueError("series holds only gaps; expected observed values")
    known = np.asarray(series, np.float64)[: observed[-1] + 1]
    return fill_gaps(known), observed


def _prepare(series: ArrayLike, origins: ArrayLike, recipe: Recipe, ahead: int = 0) -> tuple[Floats, Indices]:
    """Return the filled series and the checked origins as a column (N, 1), with `ahead` known steps after each."""
    known, observed = _fill(series)
    steps = np.asarray(origins)
    if steps.ndim != 1 or steps.dtype.kind not in "iu" or not len(steps):
        raise ValueError(f"origins has shape {steps.shape} and dtype {steps.dtype}; expected (N,) integers")
    low, high = recipe.first_origin, len(known) - 1 - ahead
    for wrong, expected in (
        ((steps < low) | (steps > high), f"a step from {low} to {high}"),
        (~np.isin(steps, observed), "an observed step, not a gap"),
    ):
        if wrong.any():
            raise ValueError(f"origins holds {steps[wrong][0]}; expected {expected}")
    return known, steps.astype(np.intp)[:, None]


def _ahead(recipe: Recipe) -> Indices:
    return np.arange(1, recipe.horizon + 1)


def _windows(series: ArrayLike, origins: ArrayLike, recipe: Recipe) -> Floats:
    """Return what the network sees, unscaled: the departures from each window's line, (N, window, 1)."""
    known, steps = _prepare(series, origins, recipe)
    past = np.arange(1 - recipe.window, 1)
    departures: Floats = known[steps + past] - _line(known, steps, recipe, past)
    return departures[..., None]


def _season_mean(known: Floats, ends: Indices, recipe: Recipe) -> Floats:
    mean: Floats = known[ends - np.arange(recipe.season)].mean(axis=1, keepdims=True)
    return mean


def _slope(known: Floats, origins: Indices, recipe: Recipe) -> Floats:
    """Return the growth per step, (N, 1)."""
    steps = recipe.trend_seasons * recipe.season
    growth = _season_mean(known, origins, recipe) - _season_mean(known, origins - steps, recipe)
    return growth / steps


def _line(known: Floats, origins: Indices, recipe: Recipe, offsets: Indices) -> Floats:
    """Return each origin's line at `offsets` steps from it, (N, len(offsets))."""
    centre = (recipe.season - 1) / 2  # the mean of the last season lies this many steps before the origin
    return _season_mean(known, origins, recipe) + _slope(known, origins, recipe) * (offsets + centre)
