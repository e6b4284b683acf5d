"""The windows of one series: their origins, what the network sees (X), and what it learns (Y).

The target is measured from a line through the mean of its last season; with `trend_seasons`, the line also goes through
the mean of the season that many seasons earlier. The network learns the season and the departures from the line. The
line follows the level of the series, so the network never has to extrapolate to unseen levels. (Without a season, the
line is the window's last value: NLinear, Zeng et al. 2023, "Are Transformers Effective for Time Series Forecasting?")
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lstm_ext.checks import Array
from lstm_ext.forecasting.series import Series, When, bridge_gaps
from lstm_ext.forecasting.tables import Floats
from lstm_ext.scaling import SequenceScaler

Indices: TypeAlias = NDArray[np.intp]


class WindowSizes(NamedTuple):
    """How a window is cut, in rows; the fields are those of `Forecaster`."""

    window: int
    horizon: int
    season: int
    trend_seasons: int
    max_gap: int

    @property
    def past(self) -> Indices:
        """The rows that the network sees, relative to the origin."""
        return np.arange(1 - self.window, 1)

    @property
    def ahead(self) -> Indices:
        """The rows that it forecasts, relative to the origin."""
        return np.arange(1, self.horizon + 1)

    @property
    def history(self) -> int:
        """The rows up to an origin that a forecast needs: the window's and those of the line."""
        return max(self.window, (self.trend_seasons + 1) * self.season)


class Examples:
    """The examples of one series for a network.

    Parameters
    ----------
    series : Series
        The target in the first column, NaN in gaps.
    sizes : WindowSizes

    Attributes
    ----------
    filled : ndarray (T, F)
        The values, with gaps of up to `max_gap` rows filled.
    target_runs : ndarray (T,)
        For each row, the number of rows up to it without a gap in the target.
    """

    def __init__(self, series: Series, sizes: WindowSizes) -> None:
        self.series, self.sizes = series, sizes
        self.filled = bridge_gaps(series.values, sizes.max_gap)
        self.target_runs = _run_lengths(~np.isnan(self.filled[:, 0]))
        self._runs = _run_lengths(~np.isnan(self.filled).any(axis=1))

    def until(self, row: int) -> Examples:
        """Return the examples of the rows before `row`; the later ones fill no gap either."""
        return Examples(self.series._replace(values=self.series.values[:row]), self.sizes)

    def origins(self, start: int = 0, *, ahead: bool = True, complete: bool = False) -> Indices:
        """Return the origins whose forecasts begin at row `start` or later.

        Parameters
        ----------
        start : int
        ahead : bool
            Only those whose forecasts end within the series.
        complete : bool
            Only those followed by a target without a gap longer than `max_gap`, from which the network can learn.
        """
        rows, horizon = len(self.series.values), self.sizes.horizon
        observed = ~np.isnan(self.series.values).any(axis=1)
        origins = np.flatnonzero(observed & (self._runs >= self.sizes.history))
        origins = origins[origins >= start - 1]
        if ahead or complete:
            origins = origins[origins < rows - horizon] if horizon < rows else origins[:0]
        if complete and len(origins):
            origins = origins[self.target_runs[origins + horizon] > horizon]
        return origins

    def too_short(self, *, ahead: bool = True, since: When | None = None) -> str:
        """Return why `origins` finds none, as text for an error."""
        needed = f"{self.sizes.history} for the window and its seasons, the last of them observed"
        if ahead:
            needed += f", and {self.sizes.horizon} more for the horizon"
            needed += "" if since is None else f", these from {since} on"
        return (
            f"it has {len(self.series.values)} rows, at most {int(self._runs.max(initial=0))} of them without a gap of "
            f"more than {self.sizes.max_gap}; expected {needed}"
        )

    def scaler(self) -> SequenceScaler:
        """Return a scaler for X: the target's departures from the line, and the inputs."""
        offsets = self.sizes.past if self.sizes.history > 1 else self.sizes.ahead  # a single row is its own line
        departures = self._departures(self.origins(complete=True), offsets)
        parts = [self._statistics(departures[..., None], 0)]
        if self.filled.shape[1] > 1:
            inputs = self.filled[:, 1:]
            parts.append(self._statistics(inputs[~np.isnan(inputs).any(axis=1)], 1))
        return SequenceScaler.from_dict({key: np.concatenate([part[key] for part in parts]) for key in parts[0]})

    @np.errstate(over="ignore")
    def inputs(self, origins: Indices, scaler: SequenceScaler) -> Array:
        """Return X, what the network sees, (N, window, F) in float32."""
        mean, scale = (np.asarray(part) for part in scaler.to_dict().values())
        rows = origins[:, None] + self.sizes.past
        X = np.empty((*rows.shape, self.filled.shape[1]), np.float32)
        X[..., 0] = (self._departures(origins, self.sizes.past) - mean[0]) / scale[0]
        for j in range(1, X.shape[2]):
            X[..., j] = (self.filled[rows, j] - mean[j]) / scale[j]
        self._check_range(X, origins, self.sizes.past)
        return X

    @np.errstate(over="ignore")
    def targets(self, origins: Indices, scaler: SequenceScaler) -> Array:
        """Return Y, what the network learns, (N, horizon) in float32."""
        mean, scale = (part[0] for part in scaler.to_dict().values())
        Y = ((self._departures(origins, self.sizes.ahead) - mean) / scale).astype(np.float32)
        self._check_range(Y[..., None], origins, self.sizes.ahead)
        return Y

    def forecasts(self, origins: Indices, outputs: Array, scaler: SequenceScaler) -> Floats:
        """Return a network's outputs (N, horizon) in the units of the target."""
        mean, scale = (part[0] for part in scaler.to_dict().values())
        return outputs.astype(np.float64) * scale + mean + self._line(origins, self.sizes.ahead)

    def growth(self, origins: Indices, seasons: int) -> Floats:
        """Return the growth per row over the last `seasons` seasons, (N, 1)."""
        rows = seasons * self.sizes.season
        return (self._season_mean(origins) - self._season_mean(origins - rows)) / rows

    def _statistics(self, values: Floats, first: int) -> dict[str, list[float]]:
        """Return mean and scale of the series' columns from `first` on."""
        try:
            return SequenceScaler().fit(values).to_dict()
        except ValueError:
            deviations = values.reshape(-1, values.shape[-1]).std(axis=0)
            name = self.series.columns[first + int(deviations.argmin())]
            raise ValueError(f"column {name!r} varies by too little for float64; use a smaller unit") from None

    def _check_range(self, scaled: Array, origins: Indices, offsets: Indices) -> None:
        """Raise ValueError, with the place in the table, if a scaled value (N, len(offsets), F) is not finite."""
        wrong = np.argwhere(~np.isfinite(scaled))
        if len(wrong):
            n, j, column = map(int, wrong[0])
            row = int(origins[n] + offsets[j])
            if column == 0:  # the line goes through the rows before: the largest value is to blame
                first = origins[n] - self.sizes.history + 1
                row = int(first + np.abs(self.filled[first : max(row, origins[n]) + 1, 0]).argmax())
            cell = self.series._replace(values=self.filled).describe_cell(row, column)
            raise ValueError(f"{cell}, too far from the training data for float32")

    def _departures(self, origins: Indices, offsets: Indices) -> Floats:
        """Return the target minus the line of each origin, (N, len(offsets))."""
        departures: Floats = self.filled[origins[:, None] + offsets, 0] - self._line(origins, offsets)
        return departures

    def _line(self, origins: Indices, offsets: Indices) -> Floats:
        """Return the line of each origin at `offsets` rows from it, (N, len(offsets))."""
        level = np.repeat(self._season_mean(origins), len(offsets), axis=1)
        if not self.sizes.trend_seasons:
            return level
        centre = (self.sizes.season - 1) / 2  # rows from the middle of the last season to the origin
        return level + self.growth(origins, self.sizes.trend_seasons) * (offsets + centre)

    def _season_mean(self, ends: Indices) -> Floats:
        """Return the target's mean over the season that ends at each of some rows, (N, 1)."""
        mean: Floats = self.filled[ends[:, None] - np.arange(self.sizes.season), 0].mean(axis=1, keepdims=True)
        return mean


def _run_lengths(mask: Any) -> Indices:
    """Return, for each row, the number of consecutive true rows that end there."""
    rows = np.arange(1, len(mask) + 1)
    return rows - np.maximum.accumulate(np.where(mask, 0, rows))
