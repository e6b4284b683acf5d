"""Evaluations: forecasts compared with observations, and the naive forecasts that serve as baselines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lstm_ext.checks import Array
from lstm_ext.forecasting.examples import Examples, Indices
from lstm_ext.forecasting.tables import Floats

_DRIFT_SEASONS = 10


class Evaluation(NamedTuple):
    """Forecasts and the observations that followed. Gaps are NaN and are not scored.

    Attributes
    ----------
    series : ndarray (N,) of str
        The series of each forecast.
    origins : ndarray (N,)
        The time of the last row that each forecast saw.
    observed : ndarray (N, horizon)
        The observations, NaN in gaps.
    forecasts : dict of str to ndarray (N, horizon)
        The network's, "LSTM", and the baselines'.
    """

    series: Array
    origins: Array
    observed: Floats
    forecasts: dict[str, Floats]

    def __repr__(self) -> str:
        """Return a line with counts, the range of the origins, and the RMSE of each model."""
        N, horizon = self.observed.shape
        origins = f" from {self.origins.min()} to {self.origins.max()}" if N else ""
        errors = ", ".join(f"{name} {error:.4g}" for name, error in self.rmse().items())
        return (
            f"Evaluation({N} origins{origins}, {len(np.unique(self.series))} series, horizon {horizon}; RMSE: {errors})"
        )

    def rmse(self) -> dict[str, float]:
        """Return the root mean squared error of each model over all observations; NaN without any."""
        return {name: float(np.sqrt(_mean(errors**2))) for name, errors in self._errors()}

    def mae(self) -> dict[str, float]:
        """Return the mean absolute error of each model over all observations; NaN without any."""
        return {name: float(_mean(np.abs(errors))) for name, errors in self._errors()}

    def rmse_by_step(self) -> dict[str, Floats]:
        """Return the RMSE of each model by steps ahead, (horizon,); NaN for a step that was never observed."""
        return {name: np.sqrt(_mean(errors**2, axis=0)) for name, errors in self._errors()}

    def _errors(self) -> Iterator[tuple[str, Floats]]:
        return ((name, forecast - self.observed) for name, forecast in self.forecasts.items())


def _mean(values: Floats, axis: int | None = None) -> Floats:
    """Return the mean of the values that are not NaN; NaN where there are none."""
    with np.errstate(invalid="ignore"):
        mean: Floats = np.nansum(values, axis=axis) / (~np.isnan(values)).sum(axis=axis)
    return mean


def naive_forecasts(examples: Examples, origins: Indices) -> dict[str, Floats]:
    """Return the baselines by name, each (N, horizon).

    They repeat the last season (the last value, if there is no season); with drift, they add the mean growth per
    season, measured over up to ten seasons.
    """
    season, ahead = examples.sizes.season, examples.sizes.ahead
    seasons = -(-ahead // season)
    last = examples.filled[origins[:, None] + ahead - seasons * season, 0]
    if season == 1:
        return {"last value": last}
    baselines = {"last season": last}
    full_seasons = int(examples.target_runs[origins].min(initial=(_DRIFT_SEASONS + 1) * season)) // season
    if full_seasons > 1:
        growth = examples.growth(origins, min(_DRIFT_SEASONS, full_seasons - 1))
        baselines["last season with drift"] = last + seasons * season * growth
    return baselines


def join_evaluations(parts: Sequence[Evaluation]) -> Evaluation:
    """Return one evaluation of several series, with the models that all of them have."""
    series, origins, observed = (np.concatenate([part[j] for part in parts]) for j in range(3))
    names = [name for name in parts[0].forecasts if all(name in part.forecasts for part in parts)]
    forecasts = {name: np.concatenate([part.forecasts[name] for part in parts]) for name in names}
    return Evaluation(series, origins, observed, forecasts)
