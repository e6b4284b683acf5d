"""Series: the rows of a table on equally spaced times.

Times are numbers or ISO dates (eight digits like 20240131 are a date). Within each series they ascend, and every row
lies a whole number of steps after the one before, to within a tenth of a step. The step is the median one; dates may be
spaced by calendar months. Rows that the time column leaves out are gaps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lstm_ext.checks import Array, as_choice, as_positive, short_repr
from lstm_ext.forecasting.tables import Floats, Source, is_gap, parse_numbers, read_columns

When: TypeAlias = float | str | np.datetime64 | Mapping[str, str]
"""A time as in the time column; a share of each series' rows (a number below 1); or a time for each series, by name."""

_NO_NAME = {"", "nan", "None", "NaT", "<NA>"}  # NA may be the name of a series
_COMPACT_DATE = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")
_DIGITS = 9  # of a step
_JITTER = 0.1  # of a step
_MAX_STEPS_PER_ROW = 1000  # above that, the step found is not the table's
_UNITS = {"week": 604_800_000_000, "day": 86_400_000_000, "hour": 3_600_000_000, "minute": 60_000_000}
_SECOND = 1_000_000


class TimeAxis(NamedTuple):
    """The unit in which times are counted (the tick), and the step from row to row.

    Attributes
    ----------
    kind : {"row", "number", "time", "month"}
        The tick: a row, a unit of a numeric column, a microsecond since 1970, or a month since 1970.
    step : float
        Ticks from one row to the next.
    offset : int
        For months, microseconds from the start of the month; negative ones are counted from its end.
    """

    kind: str
    step: float
    offset: int = 0

    def checked(self) -> Self:
        """Return self; raise TypeError or ValueError if a field is not as described."""
        as_choice("kind", self.kind, ("row", "number", "time", "month"))
        as_positive("step", self.step)
        if type(self.offset) is not int:
            raise TypeError(f"offset is {self.offset!r}; expected an integer")
        return self

    def times(self, ticks: Any) -> Array:
        """Return ticks as times of the time column's type."""
        if self.kind == "month":
            starts = np.rint(ticks).astype("datetime64[M]").astype("datetime64[us]")
            return _coarsest(starts + np.timedelta64(self.offset, "us"))
        if self.kind == "time":
            return _coarsest(np.rint(ticks).astype("datetime64[us]"))
        numbers: Floats = np.asarray(ticks, np.float64)
        if (np.rint(numbers) == numbers).all():
            return numbers.astype(np.int64)
        return np.around(numbers, int(_DIGITS - np.floor(np.log10(self.step))))  # 0.7, not 0.7000000000000001

    def tick(self, time: Any, name: str = "time") -> float:
        """Return the tick of a time that the user gave; for months, the first tick at or after it.

        Raises
        ------
        ValueError
            If `time` is not of the column's kind; the message calls it `name`.
        """
        dates = self.kind in ("time", "month")
        try:
            ticks = 0.0 if dates else float(time)
            microseconds = _date(str(time).strip()) if dates else None
            if not np.isfinite(ticks):
                raise ValueError
        except (TypeError, ValueError):
            expected = f"{'an ISO date' if dates else 'a number'}, as in the table, or a share of the rows such as 0.8"
            raise ValueError(f"{name} is {short_repr(time)}; expected {expected}") from None
        if microseconds is None:
            return ticks
        if self.kind == "time":
            return float(microseconds.astype(np.int64))
        offset = np.timedelta64(self.offset, "us")
        month = np.asarray(microseconds - offset).astype("datetime64[M]")
        return float(month.astype(np.int64) + int(month.astype("datetime64[us]") + offset < microseconds))

    def describe_step(self) -> str:
        """Return the step as text, such as "2 days"."""
        if self.kind != "time":
            return _count(self.step, "" if self.kind == "number" else self.kind)
        for unit, length in _UNITS.items():
            if self.step % length == 0:
                return _count(self.step / length, unit)
        return _count(self.step / _SECOND, "second")


class Series(NamedTuple):
    """Equally spaced rows.

    Attributes
    ----------
    name : str
        The value in the series column; "" without one.
    columns : tuple of str
        The names of the columns of `values`.
    time : str
        The name of the time column; "row" without one.
    axis : TimeAxis
    start : float
        The tick of the first row.
    values : ndarray (T, F)
        NaN in gaps.
    """

    name: str
    columns: tuple[str, ...]
    time: str
    axis: TimeAxis
    start: float
    values: Floats

    def times(self, rows: Any) -> Array:
        """Return the times of rows; rows beyond the end have times too."""
        return self.axis.times(self.start + np.asarray(rows) * self.axis.step)

    def row_at(self, time: Any, name: str = "time") -> int:
        """Return the first row at or after a time; T if there is none."""
        row = np.ceil((self.axis.tick(time, name) - self.start) / self.axis.step - _JITTER)
        return int(np.clip(row, 0, len(self.values)))

    def first_row(self, name: str, when: When | None, default: int) -> int:
        """Return the first row at or after `when`, which errors call `name`; `default` for None."""
        if isinstance(when, Mapping):
            name, when = f"{name}[{self.name!r}]", when.get(self.name)
        if when is None:
            return default
        if isinstance(when, (int, float, np.integer, np.floating)) and 0 <= when < 1:
            return int(len(self.values) * when)
        return self.row_at(when, name)

    def describe_cell(self, row: int, column: int) -> str:
        """Return the place of a value in the table and the value, as text for an error."""
        series = f"series {self.name!r}, " if self.name else ""
        value = self.values[row, column]
        return f"{series}column {self.columns[column]!r}, {self.time} {self.times(row)} is {value}"


def find_series(
    source: Source, columns: Sequence[str], *, time: str | None, series: str | None, axis: TimeAxis | None = None
) -> list[Series]:
    """Return the series of a table on equally spaced rows, in the order of their first rows.

    Parameters
    ----------
    source : Source
    columns : sequence of str
        Columns of numbers, in the order of `Series.values`.
    time : str or None
        The column of times; None for equally spaced rows.
    series : str or None
        The column that names the series of each row; None for a single series.
    axis : TimeAxis, optional
        The axis of the training, which the times must match.

    Raises
    ------
    OSError
        If a file cannot be read.
    ImportError
        If it is a Parquet file and pyarrow is not installed.
    TypeError
        If `source` is neither a path nor a table.
    ValueError
        If a column is missing, duplicated or not of numbers or times; if times are not equally spaced; or if there are
        no rows.
    """
    table = read_columns(source, [*columns, *(name for name in (time, series) if name is not None)])
    rows = len(table[columns[0]])
    values = np.stack([parse_numbers(name, table[name]) for name in columns], axis=1)
    members = {"": np.arange(rows)} if series is None else _members(series, table[series])
    if time is None:
        axis = TimeAxis("row", 1.0)
        return [Series(name, (*columns,), "row", axis, 1.0, values[chosen]) for name, chosen in members.items()]
    kind, offset, ticks = _ticks(time, table[time], list(members.values()), axis)
    axis = _axis(time, kind, offset, [ticks[chosen] for chosen in members.values()], axis)
    found = []
    for name, chosen in members.items():
        spread = _spread(axis, time, table[time][chosen], ticks[chosen], values[chosen], chosen)
        found.append(Series(name, (*columns,), time, axis, float(ticks[chosen[0]]), spread))
    return found


def bridge_gaps(values: Floats, longest: int) -> Floats:
    """Return a copy in which gaps of up to `longest` rows are filled by linear interpolation."""
    bridged = values.copy()
    for column in bridged.T:
        known = np.flatnonzero(~np.isnan(column))
        lengths = np.diff(known)
        for j in np.flatnonzero((lengths > 1) & (lengths <= longest + 1)):
            before, after = known[j], known[j + 1]
            column[before : after + 1] = np.linspace(column[before], column[after], after - before + 1)
    return bridged


def gap_lengths(column: Floats) -> NDArray[np.intp]:
    """Return the length of each gap of a column."""
    edges = np.flatnonzero(np.diff(np.isnan(column), prepend=False, append=False))
    return edges[1::2] - edges[::2]


def _members(name: str, column: Array) -> dict[str, Array]:
    """Return the row numbers of each series."""
    for row, field in enumerate(column):
        if str(field).strip() in _NO_NAME:
            raise ValueError(f"column {name!r}, row {row + 1} is empty; expected the name of a series")
    labels = np.array([str(field).strip() for field in column])
    names, firsts, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rows = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
    return {str(names[j]): rows[j] for j in np.argsort(firsts)}


def _ticks(name: str, column: Array, members: Sequence[Array], expected: TimeAxis | None) -> tuple[str, int, Floats]:
    """Return the kind of a time column, its offset in the month, and its ticks (see `TimeAxis`)."""
    if column.dtype.kind != "M":
        first = next((str(field).strip() for field in column if not is_gap(field)), "")
        if _is_number(first) and not _COMPACT_DATE.fullmatch(first):
            return "number", 0, _complete(name, parse_numbers(name, column))
        column = _dates(name, column)
    times = column.astype("datetime64[us]")
    _complete(name, np.where(np.isnat(times), np.nan, 0.0))
    steps = np.concatenate([np.diff(times[rows]) for rows in members]).astype(np.int64)
    if (expected is not None and expected.kind == "month") or (len(steps) and np.median(steps) >= 28 * _UNITS["day"]):
        month = times.astype("datetime64[M]")
        next_month = month + np.timedelta64(1, "M")
        at_end = next_month.astype("datetime64[us]") - times <= np.timedelta64(_UNITS["day"], "us")
        for months in (next_month, month) if at_end.all() else (month, next_month):  # from the month's end or start
            offsets = times - months.astype("datetime64[us]")
            if (offsets == offsets[0]).all():
                return "month", int(offsets[0].astype(np.int64)), months.astype(np.int64).astype(np.float64)
    return "time", 0, times.astype(np.int64).astype(np.float64)


def _is_number(field: Any) -> bool:
    try:
        float(field)
    except (TypeError, ValueError):
        return False
    return True


def _dates(name: str, column: Array) -> Array:
    dates = np.full(len(column), "NaT", "datetime64[us]")
    for row, field in enumerate(column):
        text = str(field).strip()
        try:
            if not is_gap(field):
                dates[row] = _date(text)
        except ValueError:
            raise ValueError(
                f"column {name!r}, row {row + 1} is {short_repr(text)}; expected a number or an ISO date like "
                "2024-02-01 12:30"
            ) from None
    return dates


def _date(text: str) -> np.datetime64:
    """Return a date; in UTC, if it has an offset from UTC."""
    date = datetime.fromisoformat(f"{text}-01" if len(text) == len("2024-02") else text)
    if date.tzinfo is not None:
        date = date.astimezone(UTC).replace(tzinfo=None)
    return np.datetime64(date, "us")


def _complete(name: str, ticks: Floats) -> Floats:
    missing = np.isnan(ticks)
    if missing.any():
        raise ValueError(f"column {name!r}, row {missing.argmax() + 1} is empty; expected a time")
    return ticks


def _axis(name: str, kind: str, offset: int, ticks: Sequence[Floats], expected: TimeAxis | None) -> TimeAxis:
    """Return the axis with the median step; with an expected axis, the median of the steps close to its step."""
    with np.errstate(over="ignore"):
        steps = np.concatenate([np.diff(one) for one in ticks])
    if not np.isfinite(steps).all():
        raise ValueError(f"column {name!r} has times too far apart for float64")
    ascending = steps[steps > 0]
    if not len(ascending):
        return TimeAxis(kind, 1.0, offset) if expected is None else expected._replace(offset=offset)
    step = float(np.quantile(ascending, 0.5, method="lower"))
    if expected is not None:
        near = ascending[np.abs(ascending / expected.step - 1) <= _JITTER]
        if kind != expected.kind or not len(near):
            found = TimeAxis(kind, step, offset).describe_step()
            raise ValueError(
                f"column {name!r} has steps of {found}; expected {expected.describe_step()}, as in training"
            )
        step = float(np.quantile(near, 0.5, method="lower"))
    counts = np.rint(steps / step)
    mean = float(steps.sum() / counts.sum()) if (counts * step != steps).any() else step
    if not _irregular(steps / mean).any():  # the median step would drift away from times that jitter
        step = mean
    return TimeAxis(kind, step, offset)


def _irregular(steps: Floats) -> Any:
    """Return where a row does not follow the row before by a whole number of steps, at least one."""
    return (np.abs(steps - np.rint(steps)) > _JITTER) | (np.rint(steps) < 1)


def _spread(axis: TimeAxis, name: str, times: Array, ticks: Floats, values: Floats, rows: Array) -> Floats:
    """Return the values of a series on all steps of the axis, NaN where it has no row.

    For errors: `name` is the time column, `times` are its values, and `rows` the numbers of the rows in the table.
    """
    steps = np.diff(ticks) / axis.step
    wrong = _irregular(steps)
    if wrong.any():
        j = int(wrong.argmax())
        relation = "not later than" if steps[j] <= 0 else f"{steps[j]:.3g} steps of {axis.describe_step()} after"
        raise ValueError(
            f"column {name!r}, row {rows[j + 1] + 1} is {times[j + 1]}, {relation} row {rows[j] + 1}, {times[j]}; "
            "expected ascending times at equal steps, or no time column for equally spaced rows"
        )
    with np.errstate(over="ignore"):
        index = np.concatenate([[0.0], np.cumsum(np.rint(steps))])
    if index[-1] > _MAX_STEPS_PER_ROW * len(rows):
        row = rows[steps.argmax()] + 1
        raise ValueError(
            f"column {name!r} has {len(rows)} rows over {index[-1]:g} steps of {axis.describe_step()}, with the "
            f"longest gap after row {row}; expected at most {_MAX_STEPS_PER_ROW} steps for each row"
        )
    index = index.astype(np.intp)
    spread = np.full((index[-1] + 1, values.shape[1]), np.nan)
    spread[index] = values
    return spread


def _coarsest(times: Array) -> Array:
    """Return times in days if all are whole days, in seconds if all are whole seconds, otherwise unchanged."""
    for unit in ("D", "s"):
        coarse = times.astype(f"datetime64[{unit}]")
        if (coarse == times).all():
            return coarse
    return times


def _count(number: float, unit: str) -> str:
    return f"{number:g} {unit}{'' if number == 1 or not unit else 's'}".strip()
