"""Fixtures that write tables to files."""

import pytest


@pytest.fixture
def csv(tmp_path):
    """Return a function that writes a CSV file and returns its path."""

    def write(content, encoding="utf-8"):
        path = tmp_path / "table.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return path

    return write


@pytest.fixture
def parquet(tmp_path):
    """Return a function that writes columns to a Parquet file and returns its path."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def write(columns):
        path = tmp_path / "table.parquet"
        parquet.write_table(pyarrow.table(columns), path)
        return path

    return write
