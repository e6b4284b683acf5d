"""Tables: columns of CSV files, Parquet files and data frames.

- Only the requested columns are read. Errors name the column and the row; rows count from 1, without the header.
- An empty field, NaN, NA, N/A, null and none are gaps.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lstm_ext.checks import Array, as_array, as_path, short_list, short_repr

Table: TypeAlias = Mapping[str, Any]
"""Columns by name, each (rows,). A pandas DataFrame is accepted too."""
Source: TypeAlias = str | os.PathLike[str] | Table
"""A table, or the path of a CSV file or of a Parquet file (``.parquet`` or ``.pq``)."""
Floats: TypeAlias = NDArray[np.float64]

_GAPS = {"", "na", "n/a", "nan", "nat", "null", "none", "<na>"}


def read_columns(source: Source, names: Sequence[str]) -> dict[str, Array]:
    """Return the named columns of a table, (rows,) each; raises as `series.find_series`."""
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
        raise ValueError(f"{title} has columns of shapes {shapes}; expected (rows,) for all of them")
    if not all(shapes[name][0] for name in names):
        raise ValueError(f"{title} has no rows; expected a header and at least one row")
    return columns


def is_parquet(path: Path) -> bool:
    """Return whether a path has the suffix of a Parquet file."""
    return path.suffix.lower() in (".parquet", ".pq")


def column_names(path: Path) -> list[str]:
    """Return the column names of a file; raises as `series.find_series`."""
    if is_parquet(path):
        with _open_parquet(path) as file:
            return list(file.schema_arrow.names)
    with _open_csv(path) as reader:
        return next(reader)


def encode_table(table: Table, path: Path | None = None) -> bytes:
    """Return the bytes of a file with this table: Parquet if `is_parquet(path)`, otherwise CSV."""
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


def parse_numbers(name: str, column: Array) -> Floats:
    """Return a column as float64, NaN in gaps."""
    if column.dtype.kind in "fiub":
        numbers: Floats = column.astype(np.float64)
    else:
        fields = column.tolist() if column.dtype.kind in "cU" else column  # float() takes NumPy's complex numbers
        numbers = np.array([_number(name, row, field) for row, field in enumerate(fields)])
    infinite = np.isinf(numbers)
    if infinite.any():
        raise ValueError(f"column {name!r}, row {infinite.argmax() + 1} is {numbers[infinite][0]}; expected a number")
    return numbers


def _number(name: str, row: int, field: Any) -> float:
    if is_gap(field):
        return np.nan
    try:
        return float(field)
    except (OverflowError, TypeError, ValueError):
        raise ValueError(f"column {name!r}, row {row + 1} is {short_repr(field)}; expected a number") from None


def is_gap(field: Any) -> bool:
    return str(field).strip().lower() in _GAPS


def _read_csv(path: Path, names: Sequence[str]) -> dict[str, Array]:
    """Return columns of str."""
    with _open_csv(path) as reader:
        header = next(reader)
        _check_names(str(path), names, header)
        positions = [header.index(name) for name in names]
        fields: list[list[str]] = [[] for _ in names]
        for row in reader:
            if len(row) != len(header):
                raise ValueError(
                    f"{path}, row {len(fields[0]) + 1} has {len(row)} fields; expected {len(header)}, as in the header"
                )
            for field, position in zip(fields, positions, strict=True):
                field.append(row[position])
    return {name: np.array(field, dtype=object) for name, field in zip(names, fields, strict=True)}


@contextmanager
def _open_csv(path: Path) -> Iterator[Iterator[list[str]]]:
    """Yield the rows that are not empty, the header first.

    The separator is comma, semicolon or tab: whichever splits the header into the most columns.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            separator = max(",;\t", key=lambda one: len(_first_row(file, one)))
            file.seek(0)
            rows = csv.reader(file, delimiter=separator, strict=True)
            header = [name.strip() for name in next(filter(None, rows), [])]
            # Empty lines are skipped, except in a table of one column: there they are gaps.
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
            raise ValueError(f"{path} is not a Parquet file, or is cut short or damaged: {error}") from None


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
        count = present.count(name)
        if count != 1:
            found = f"{count} columns" if count else "no column"
            raise ValueError(f"{title} has {found} {name!r}; its columns are {short_list(present)}")
