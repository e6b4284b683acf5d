"""Tables: columns of CSV files, Parquet files and data frames, and the equally spaced series in them.

- Only the columns that are asked for are read. Errors name the column and the row, counted from 1 without the header.
- An empty field, NaN, NA, N/A, null and none are gaps, and so is every row that a time column leaves out.
- Times are numbers or ISO dates (eight digits like 20240131 are a date). They ascend within each series, every row a
  whole number of steps after the one before, to a tenth of a step. The step is the median one; dates may be spaced by
  calendar months.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self, TextIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lstm_ext.checks import Array, as_array, as_choice, as_path, as_positive, short_list, short_repr

Table: TypeAlias = Mapping[str, Any]
"""Columns by name, each (rows,); a pandas DataFrame is one too."""
Source: TypeAlias = str | os.PathLike[str] | Table
"""A table, or the path of a CSV file or, by its suffix ``.parquet`` or ``.pq``, of a Parquet file."""
Floats: TypeAlias = NDArray[np.float64]

_GAPS = {"", "na", "n/a", "nan", "nat", "null", "none", "<na>"}
_NO_NAME = {"", "nan", "None", "NaT", "<NA>"}  # NA may well be a series
_COMPACT_DATE = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")
_DIGITS = 9  # of a step
_JITTER = 0.1  # of a step
_SPARSEST = 1000  # steps for each row: beyond that the step is not what it seems
_UNITS = {"week": 604_800_000_000, "day": 86_400_000_000, "hour": 3_600_000_000, "minute": 60_000_000}
_SECOND = 1_000_000


class TimeAxis(NamedTuple):
    """How times are counted, in ticks, and how many ticks lie between two rows.

    Attributes
    ----------
    kind : {"row", "number", "time", "month"}
        A tick is a row, a unit of a numeric column, a microsecond since 1970, or a month since 1970.
    step : float
        Ticks from row to row.
    offset : int
        For months, where in its month a time lies, in microseconds: negative from the month's end.
    """

    kind: str
    step: float
    offset: int = 0

    def checked(self) -> Self:
        """Return itself; raise TypeError or ValueError if its fields are not as above."""
        as_choice("kind", self.kind, ("row", "number", "time", "month"))
        as_positive("step", self.step)
        if type(self.offset) is not int:
            raise TypeError(f"offset is {self.offset!r}; expected an integer")
        return self

    def times(self, ticks: Any) -> Array:
        """Return ticks as what the time column holds."""
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
        """Return the tick of a time that a user gives, for months the first at or after it.

        Raises
        ------
        ValueError
            If `time`, which the error calls `name`, is not of the column's kind.
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
        """Return the step in words."""
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
    axis : TimeAxis
    start : float
        The tick of the first row.
    values : ndarray (T, F)
        NaN in gaps.
    """

    name: str
    axis: TimeAxis
    start: float
    values: Floats

    def times(self, index: Any) -> Array:
        """Return the times of rows, which may lie beyond the end."""
        return self.axis.times(self.start + np.asarray(index) * self.axis.step)

    def row_at(self, time: Any, name: str = "time") -> int:
        """Return the first row at or after a time: 0 if all are, T if none is."""
        row = np.ceil((self.axis.tick(time, name) - self.start) / self.axis.step - _JITTER)
        return int(np.clip(row, 0, len(self.values)))


def find_series(
    source: Source, columns: Sequence[str], *, time: str | None, series: str | None, axis: TimeAxis | None = None
) -> list[Series]:
    """Return the series of a table, on equally spaced rows, in the order in which they begin there.

    Parameters
    ----------
    source : Source
    columns : sequence of str
        Of the numbers, in the order of `Series.values`.
    time : str or None
        The column of times; without one the rows are taken as equally spaced.
    series : str or None
        The column that tells the series apart.
    axis : TimeAxis, optional
        What the times must agree with.

    Raises
    ------
    OSError
        If a file cannot be read.
    ImportError
        If it is a Parquet file and pyarrow is not installed.
    TypeError
        If `source` is neither a path nor a table.
    ValueError
        If a column is missing, there twice or not of numbers or times, if times are not as above, or if there are no
        rows.
    """
    table = read_columns(source, [*columns, *(name for name in (time, series) if name is not None)])
    rows = len(table[columns[0]])
    values = np.stack([_numbers(name, table[name]) for name in columns], axis=1)
    members = {"": np.arange(rows)} if series is None else _members(series, table[series])
    if time is None:
        return [Series(name, TimeAxis("row", 1.0), 1.0, values[chosen]) for name, chosen in members.items()]
    kind, offset, ticks = _ticks(time, table[time], list(members.values()), axis)
    axis = _axis(time, kind, offset, [ticks[chosen] for chosen in members.values()], axis)
    return [_spread(name, axis, time, table[time], ticks, values, chosen) for name, chosen in members.items()]


def read_columns(source: Source, names: Sequence[str]) -> dict[str, Array]:
    """Return some columns of a table, (rows,) each; the errors are those of `find_series`."""
    if isinstance(source, (str, os.PathLike)):
        path = as_path("table", source)
        title = str(path)
        columns = (_read_parquet if is_parquet(path) else _read_csv)(path, names)
    elif isinstance(source, Mapping) or hasattr(source, "keys"):
        title = "table"
        _check_names(title, names, list(source.keys()))
        columns = {name: as_array(f"column {name!r}", source[name]) for name in names}
    else:
        raise TypeError(f"table is {type(source).__name__}; expected a path, a mapping of columns or a DataFrame")
    shapes = {name: column.shape for name, column in columns.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"{title} has columns of the shapes {shapes}; expected (rows,) for all of them")
    if not all(shapes[name][0] for name in names):
        raise ValueError(f"{title} has no rows; expected a header and at least one row")
    return columns


def is_parquet(path: Path) -> bool:
    """Whether the suffix says that a file is a Parquet file."""
    return path.suffix.lower() in (".parquet", ".pq")


def column_names(path: Path) -> list[str]:
    """Return the names in the header of a file; the errors are those of `find_series`."""
    if is_parquet(path):
        with _open_parquet(path) as file:
            return list(file.schema_arrow.names)
    with _open_csv(path) as reader:
        return next(reader)


def encode_table(table: Table, path: Path | None = None) -> bytes:
    """Return a table as a file: Parquet if the path's suffix says so, otherwise CSV."""
    if path is not None and is_parquet(path):
        arrow, parquet = _pyarrow()
        sink = arrow.BufferOutputStream()
        parquet.write_table(arrow.table(dict(table)), sink)
        return bytes(sink.getvalue())
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    columns = (column.astype(str) if column.dtype.kind == "M" else column for column in table.values())
    writer.writerows(zip(*(column.tolist() for column in columns), strict=True))
    return text.getvalue().encode()


def bridge_gaps(values: Floats, longest: int) -> Floats:
    """Return a copy with each gap of up to `longest` rows filled along the line between the values beside it."""
    bridged = values.copy()
    for column in bridged.T:
        known = np.flatnonzero(~np.isnan(column))
        lengths = np.diff(known)
        for j in np.flatnonzero((lengths > 1) & (lengths <= longest + 1)):
            before, after = known[j], known[j + 1]
            column[before : after + 1] = np.linspace(column[before], column[after], after - before + 1)
    return bridged


def gap_lengths(column: Floats) -> NDArray[np.intp]:
    """Return the lengths of a column's gaps."""
    edges = np.flatnonzero(np.diff(np.isnan(column), prepend=False, append=False))
    return edges[1::2] - edges[::2]


def _read_csv(path: Path, names: Sequence[str]) -> dict[str, Array]:
    """Return columns of text."""
    with _open_csv(path) as reader:
        header = next(reader)
        _check_names(str(path), names, header)
        places = [header.index(name) for name in names]
        fields: list[list[str]] = [[] for _ in names]
        for row in reader:
            if len(row) != len(header):
                raise ValueError(
                    f"{path}, row {len(fields[0]) + 1} has {len(row)} fields; expected {len(header)}, as in the header"
                )
            for field, place in zip(fields, places, strict=True):
                field.append(row[place])
    return {name: np.array(field, dtype=object) for name, field in zip(names, fields, strict=True)}


@contextmanager
def _open_csv(path: Path) -> Iterator[Iterator[list[str]]]:
    """Yield the rows that are not empty, the header first.

    The separator is the one of comma, semicolon and tab that makes most columns of the header.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            separator = max(",;\t", key=lambda one: len(_first_row(file, one)))
            file.seek(0)
            rows = csv.reader(file, delimiter=separator, strict=True)
            header = [name.strip() for name in next(filter(None, rows), [])]
            # An empty line is nothing, but in a table of one column it is a gap.
            yield itertools.chain([header], (row or [""] for row in rows) if len(header) == 1 else filter(None, rows))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path} is not a CSV file in UTF-8: {error}") from None


def _first_row(file: TextIO, separator: str) -> list[str]:
    file.seek(0)
    return next(filter(None, csv.reader(file, delimiter=separator)), [])


def _read_parquet(path: Path, names: Sequence[str]) -> dict[str, Array]:
    with _open_parquet(path) as file:
        _check_names(str(path), names, file.schema_arrow.names)
        table = file.read(columns=list(names))
        return {name: table.column(name).to_numpy() for name in names}


@contextmanager
def _open_parquet(path: Path) -> Iterator[Any]:
    arrow, parquet = _pyarrow()
    with path.open("rb") as stream:
        try:
            yield parquet.ParquetFile(stream)
        except (arrow.ArrowException, OSError) as error:
            raise ValueError(f"{path} is not a whole Parquet file: {error}") from None


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError('Parquet files need the package pyarrow (extra "parquet"): pip install pyarrow') from error
    return pyarrow, pyarrow.parquet


def _check_names(title: str, names: Sequence[str], present: Sequence[str]) -> None:
    if not any(present):
        raise ValueError(f"{title} is empty; expected a header with {', '.join(names)}")
    for name in names:
        times = present.count(name)
        if times != 1:
            found = f"{times} columns" if times else "no column"
            raise ValueError(f"{title} has {found} {name!r}; its columns are {short_list(present)}")


def _numbers(name: str, column: Array) -> Floats:
    """Return a column as numbers, NaN in gaps."""
    if column.dtype.kind in "fiub":
        numbers: Floats = column.astype(np.float64)
    else:
        fields = column.tolist() if column.dtype.kind in "cU" else column  # NumPy's complex would pass for real
        numbers = np.array([_number(name, row, field) for row, field in enumerate(fields)])
    infinite = np.isinf(numbers)
    if infinite.any():
        raise ValueError(f"column {name!r}, row {infinite.argmax() + 1} is {numbers[infinite][0]}; expected a number")
    return numbers


def _number(name: str, row: int, field: Any) -> float:
    if _is_gap(field):
        return np.nan
    try:
        return float(field)
    except (OverflowError, TypeError, ValueError):
        raise ValueError(f"column {name!r}, row {row + 1} is {short_repr(field)}; expected a number") from None


def _is_gap(field: Any) -> bool:
    return str(field).strip().lower() in _GAPS


def _members(name: str, column: Array) -> dict[str, Array]:
    """Return the rows of each series."""
    for row, field in enumerate(column):
        if str(field).strip() in _NO_NAME:
            raise ValueError(f"column {name!r}, row {row + 1} is empty; expected the name of a series")
    labels = np.array([str(field).strip() for field in column])
    names, firsts, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rows = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
    return {str(names[j]): rows[j] for j in np.argsort(firsts)}


def _ticks(name: str, column: Array, members: Sequence[Array], expected: TimeAxis | None) -> tuple[str, int, Floats]:
    """Return the kind of a time column, where in a month its times lie, and its ticks."""
    if column.dtype.kind != "M":
        first = next((str(field).strip() for field in column if not _is_gap(field)), "")
        if _is_number(first) and not _COMPACT_DATE.fullmatch(first):
            return "number", 0, _complete(name, _numbers(name, column))
        column = _dates(name, column)
    times = column.astype("datetime64[us]")
    _complete(name, np.where(np.isnat(times), np.nan, 0.0))
    steps = np.concatenate([np.diff(times[rows]) for rows in members]).astype(np.int64)
    if (expected is not None and expected.kind == "month") or (len(steps) and np.median(steps) >= 28 * _UNITS["day"]):
        month = times.astype("datetime64[M]")
        next_month = month + np.timedelta64(1, "M")
        at_end = next_month.astype("datetime64[us]") - times <= np.timedelta64(_UNITS["day"], "us")
        for months in (next_month, month) if at_end.all() else (month, next_month):  # counted from its end or beginning
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
            if not _is_gap(field):
                dates[row] = _date(text)
        except ValueError:
            raise ValueError(
                f"column {name!r}, row {row + 1} is {short_repr(text)}; expected a number or an ISO date like "
                "2024-02-01 12:30"
            ) from None
    return dates


def _date(text: str) -> np.datetime64:
    """Return a date in UTC, where it says how it lies to it."""
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
    """Return the axis of the median step; of the median of those near to the expected step, where one is."""
    with np.errstate(over="ignore"):
        steps = np.concatenate([np.diff(one) for one in ticks])
    if not np.isfinite(steps).all():
        raise ValueError(f"column {name!r} has times too far apart for any step")
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
    if not _irregular(steps / mean).any():  # where times jitter, the mean step does not drift
        step = mean
    return TimeAxis(kind, step, offset)


def _irregular(steps: Floats) -> Any:
    """Return where rows do not follow one another by a whole number of steps."""
    return (np.abs(steps - np.rint(steps)) > _JITTER) | (np.rint(steps) < 1)


def _spread(name: str, axis: TimeAxis, time: str, column: Array, ticks: Floats, values: Floats, rows: Array) -> Series:
    """Return rows on the axis, NaN where it has none."""
    steps = np.diff(ticks[rows]) / axis.step
    wrong = _irregular(steps)
    if wrong.any():
        j = int(wrong.argmax())
        row, before = rows[j + 1], rows[j]
        relation = "not later than" if steps[j] <= 0 else f"{steps[j]:.3g} steps of {axis.describe_step()} after"
        raise ValueError(
            f"column {time!r}, row {row + 1} is {column[row]}, {relation} row {before + 1}, {column[before]}; expected "
            "ascending times at equal steps, or no time column for rows that are equally spaced"
        )
    with np.errstate(over="ignore"):
        places = np.concatenate([[0.0], np.cumsum(np.rint(steps))])
    if places[-1] > _SPARSEST * len(rows):
        row = rows[steps.argmax()] + 1
        raise ValueError(
            f"column {time!r} has {len(rows)} rows over {places[-1]:g} steps of {axis.describe_step()}, most of them "
            f"after row {row}; expected at most {_SPARSEST} for each row"
        )
    places = places.astype(np.intp)
    spread = np.full((places[-1] + 1, values.shape[1]), np.nan)
    spread[places] = values[rows]
    return Series(name, axis, float(ticks[rows[0]]), spread)


def _coarsest(times: Array) -> Array:
    """Return times in days if they are whole days, else in seconds if whole."""
    for unit in ("D", "s"):
        coarse = times.astype(f"datetime64[{unit}]")
        if (coarse == times).all():
            return coarse
    return times


def _count(number: float, unit: str) -> str:
    return f"{number:g} {unit}{'' if number == 1 or not unit else 's'}".strip()
