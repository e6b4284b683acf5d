"""Tables: every form of the same data gives the same columns, and errors name the column and the row."""

import datetime
import decimal
import sys

import numpy as np
import pytest
from helpers import only

from lstm_ext.forecasting.series import TimeAxis, find_series
from lstm_ext.forecasting.tables import column_names, encode_table, read_columns

NAN = float("nan")
DAY = 86_400_000_000  # microseconds


def numbers(source, column="y"):
    return only(source, column).values[:, 0].tolist()


def assert_numbers(source, expected, column="y"):
    np.testing.assert_array_equal(only(source, column).values[:, 0], expected)


# --- CSV


@pytest.mark.parametrize(
    "text",
    [
        "t,y\n1,5\n2,7\n",
        "t;y\n1;5\n2;7\n",
        "t\ty\n1\t5\n2\t7\n",
        "\ufeffy,t\n5,1\n7,2\n",
        "t,y\r\n1,5\r\n2,7\r\n",
        "t,y\r1,5\r2,7\r",
        "t,y\n1,5\n2,7",
        "t,y\n\n1,5\n\n\n2,7\n\n",
        " t , y \n 1 , 5 \n 2 , 7 \n",
        't,"y"\n"1","5"\n2,"7"\n',
        't,"a,b;c",y\n1,"x, ""y"" z",5\n2,"two\nlines",7\n',
        "y,t\n5.0,1\n0.7e1,2\n",
        "t,y,z\n1,+5,text\n2,7.,\n",
        '"a, b";y\n1;5\n2;7\n',
        "\nt;y\n1;5\n2;7\n",
    ],
)
def test_forms_of_the_same_csv(csv, text):
    assert numbers(csv(text)) == [5.0, 7.0]


@pytest.mark.parametrize("gap", ["", " ", "NA", "na", "N/A", "n/a", "NaN", "nan", "NaT", "null", "None", "<NA>"])
def test_words_for_a_gap(csv, gap):
    assert_numbers(csv(f"x,y\n1,{gap}\n1,2.5\n1, {gap} \n"), [NAN, 2.5, NAN])
    assert_numbers({"y": [gap, "2.5"]}, [NAN, 2.5])


def test_an_empty_field_of_a_single_column(csv):
    assert_numbers(csv('y\n1\n""\n3\n'), [1.0, NAN, 3.0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "table.csv"),
        ("\n\n", "table.csv"),
        ("x,y\n", "table.csv has no rows; expected a header and at least one row"),
        ("x,z\n1,2\n", "has no column 'y'; its columns are x, z"),
        ("Y\n1\n", "has no column 'y'; its columns are Y"),
        ("y,x,y\n1,2,3\n", "has 2 columns 'y'; its columns are y, x, y"),
        ("y, y\n1,2\n", "has 2 columns 'y'"),
        ("x,y\n1,2\n\n3\n", "row 2 has 1 fields; expected 2, as in the header"),
        ("x,y\n1,2\n1,2\n3,4,5\n", "row 3 has 3 fields; expected 2"),
        ("x,y\n1,2\n  \n", "row 2 has 1 fields; expected 2"),
        ("x,y\n1,2\n1,warm\n", "column 'y', row 2 is 'warm'; expected a number"),
        ("x,y\n1,1 000\n", "column 'y', row 1 is '1 000'; expected a number"),
        ("x;y\n1;2\n1;0,5\n", "column 'y', row 2 is '0,5'; expected a number"),
        ("x,y\n1,2\n1,inf\n", "column 'y', row 2 is inf; expected a number"),
        ("x,y\n1,2\n1,-Infinity\n", "column 'y', row 2 is -inf; expected a number"),
        ("x,y\n1,1e999\n", "column 'y', row 1 is inf; expected a number"),
        ("x,y\n1,0x10\n", "column 'y', row 1 is '0x10'; expected a number"),
        ("x,y\n1,2024-01-01\n", "column 'y', row 1 is '2024-01-01'; expected a number"),
        ("x,y\n1,\x00\n", "column 'y', row 1 is"),
        ('x,y\n1,"2\n', "table.csv is not a CSV file in UTF-8"),
        ('x,y\n1,"2"3\n', "table.csv is not a CSV file in UTF-8"),
        (b"x,y\n1,\xe9\n", "table.csv is not a CSV file in UTF-8"),
        (b"x,\xe9\n1,2\n", "table.csv is not a CSV file in UTF-8"),
        ("x,y\n1,2\n".encode("utf-16"), "table.csv is not a CSV file in UTF-8"),
        (b"PK\x03\x04\x14\x00\x06\x00\x08\x00\xff\xfe", "table.csv is not a CSV file in UTF-8"),
        (b"x,y\n1," + 200_000 * b"2" + b"\n", "table.csv is not a CSV file in UTF-8"),
    ],
)
def test_errors_name_column_and_row(csv, text, message):
    with pytest.raises(ValueError, match=message):
        only(csv(text))


def test_only_the_requested_columns_are_read(csv):
    assert numbers(csv("y,y2,y2,,\n1,warm,inf,,\n2,,,,\n")) == [1.0, 2.0]


def test_column_names(csv, parquet):
    assert column_names(csv(' a ;"b\n,c";\n1;2;3\n')) == ["a", "b\n,c", ""]
    assert column_names(parquet({"a": [1], "b, c": [2]})) == ["a", "b, c"]


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_files_that_cannot_be_read_are_os_errors(tmp_path, name):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(FileNotFoundError, match=name):
        only(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(OSError, match=name):
        only(str(tmp_path / name))


# --- Parquet


def test_parquet_types(parquet):
    pyarrow = pytest.importorskip("pyarrow")
    columns = {
        "ints": pyarrow.array([1, 2, 3], pyarrow.uint8()),
        "nulls": pyarrow.array([1, None, 3], pyarrow.int64()),
        "half": pyarrow.array(np.array([1, 0.5, 3], np.float16)),
        "decimal": pyarrow.array([decimal.Decimal("1.5"), None, decimal.Decimal(3)]),
        "bool": pyarrow.array([True, False, None]),
        "text": ["1.5", "NA", "3"],
        "dictionary": pyarrow.array(["1", "0.5", "1"]).dictionary_encode(),
        "nothing": pyarrow.nulls(3),
        "a.b": [1, 2, 3],
    }
    path = parquet(columns)
    expected = {
        "ints": [1, 2, 3],
        "nulls": [1, NAN, 3],
        "half": [1, 0.5, 3],
        "decimal": [1.5, NAN, 3],
        "bool": [1, 0, NAN],
        "text": [1.5, NAN, 3],
        "dictionary": [1, 0.5, 1],
        "nothing": [NAN] * 3,
        "a.b": [1, 2, 3],
    }
    for name, column in expected.items():
        assert_numbers(path, column, name)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_parquet_timestamps_are_in_utc(parquet, unit, zone):
    pyarrow = pytest.importorskip("pyarrow")
    moments = [datetime.datetime(2024, 1, 1, hour) for hour in (22, 23)]
    found = only(parquet({"y": [1, 2], "t": pyarrow.array(moments, pyarrow.timestamp(unit, zone))}), time="t")
    assert [str(time) for time in found.times([0, 2])] == ["2024-01-01T22:00:00", "2024-01-02T00:00:00"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": [1.0]}, "has no column 'y'; its columns are x"),
        ({"y": np.zeros(0)}, "has no rows"),
        ({"y": ["1", "warm"]}, "column 'y', row 2 is 'warm'"),
        ({"y": [1.0, np.inf]}, "column 'y', row 2 is inf"),
        ({"y": [[1.0], [2.0]]}, "column 'y', row 1 is .*expected a number"),
        ({"y": [{"a": 1.0}]}, "column 'y', row 1 is .*expected a number"),
        ({"y": [datetime.date(2024, 1, 1)]}, "column 'y', row 1 is .*expected a number"),
    ],
)
def test_parquet_refused(parquet, columns, message):
    with pytest.raises(ValueError, match=message):
        only(parquet(columns))


def test_a_duplicate_column_in_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table([[1.0], [2.0]], names=["y", "y"]), tmp_path / "table.parquet")
    with pytest.raises(ValueError, match="has 2 columns 'y'"):
        only(tmp_path / "table.parquet")


def test_parquet_that_is_cut_short_or_damaged(parquet):
    path = parquet({"y": np.arange(50.0)})
    whole = path.read_bytes()
    broken = [whole[:length] for length in (0, 3, 8, len(whole) // 2, len(whole) - 1)]
    for content in (*broken, b"y\n1\n2\n" * 9, whole[:6] + 6 * b"\xff" + whole[12:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"table.parquet is not a Parquet file, or is cut short or damaged"):
            only(path)


def test_without_pyarrow_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "table.parquet").write_bytes(b"PAR1")
    with pytest.raises(ImportError, match=r'pyarrow \(extra "parquet"\): pip install pyarrow'):
        only(tmp_path / "table.parquet")
    with pytest.raises(ImportError, match=r'pyarrow \(extra "parquet"\): pip install pyarrow'):
        encode_table({"y": np.zeros(1)}, tmp_path / "out.parquet")


# --- columns in memory


def test_every_source_of_the_same_data_gives_the_same_series(csv, parquet):
    pandas = pytest.importorskip("pandas")
    text = "when,station,y,x\n2024-01-30,b,1.5,1\n2024-01-30,a,2,2\n2024-01-31,b,,3\n2024-02-02,b,4,4\n"
    dates = np.array(["2024-01-30", "2024-01-30", "2024-01-31", "2024-02-02"], "datetime64[ns]")
    lists = {
        "when": [datetime.date(2024, 1, 30), "2024-01-30", np.datetime64("2024-01-31"), "2024-02-02T00:00Z"],
        "station": list("babb"),
        "y": [1.5, 2, None, "4"],
        "x": np.arange(1, 5, dtype=np.int8),
    }
    frame = pandas.DataFrame({"when": dates, "station": list("babb"), "y": [1.5, 2, NAN, 4], "x": [1, 2, 3, 4]})
    masked = frame.assign(
        when=frame.when.dt.tz_localize("UTC"),
        station=frame.station.astype("category"),
        y=frame.y.astype("Float64"),
        x=frame.x.astype("Int64"),
    )
    strings = {name: column.astype("string") for name, column in frame.items()}
    arrow = parquet({name: column.to_numpy() for name, column in frame.items()})
    for source in (csv(text), str(csv(text)), lists, frame, masked, strings, arrow):
        b, a = find_series(source, ["y", "x"], time="when", series="station")
        assert (b.name, a.name, b.axis, a.start) == ("b", "a", TimeAxis("time", DAY), b.start)
        np.testing.assert_array_equal(b.values, [[1.5, 1], [NAN, 3], [NAN, NAN], [4, 4]])
        np.testing.assert_array_equal(a.values, [[2, 2]])
        assert [str(time) for time in b.times(np.arange(5))][3:] == ["2024-02-02", "2024-02-03"]


def test_pandas_na(csv):
    pandas = pytest.importorskip("pandas")
    assert_numbers(pandas.DataFrame({"y": pandas.array([1, pandas.NA], "Int64")}), [1.0, NAN])
    with pytest.raises(ValueError, match="column 't', row 2 is empty; expected a time"):
        only(pandas.DataFrame({"t": [pandas.Timestamp(0), pandas.NaT], "y": [1, 2]}), time="t")


def test_arguments_are_neither_modified_nor_shared():
    table = {"y": np.array([1.0, 2.0]), "t": np.array([1.0, 2.0])}
    only(table, time="t").values[:] = 9.0
    only(table).values[:] = 9.0
    assert table["y"].tolist() == table["t"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ([1.0, 2.0], TypeError, "table is list; expected a path, a mapping of columns or a DataFrame"),
        (np.ones(3), TypeError, "table is ndarray"),
        (None, TypeError, "table is NoneType"),
        ({}, ValueError, "table is empty; expected a header with y"),
        ({"y": []}, ValueError, "table has no rows"),
        ({"y": 3.0}, ValueError, r"\(\).*expected \(rows,\)"),
        ({"y": "text"}, ValueError, r"\(\).*expected \(rows,\)"),
        ({"y": np.ones((4, 1))}, ValueError, r"\(4, 1\).*expected \(rows,\)"),
        ({"y": [1.0, 2.0], "t": [1.0]}, ValueError, r"'y': \(2,\), 't': \(1,\).*expected \(rows,\)"),
        ({"y": [1.0, "warm"]}, ValueError, "column 'y', row 2 is .*warm.*expected a number"),
        ({"y": np.array(["2024-01-01"], "datetime64[D]")}, ValueError, "column 'y', row 1 is .*2024-01-01"),
        ({"y": np.array([1], "timedelta64[D]")}, ValueError, "column 'y', row 1 is"),
        ({"y": np.array([1.0, 2.0 + 1j])}, ValueError, "column 'y', row 1 is"),
        ({"y": [10**400, 1]}, ValueError, "column 'y', row 1 is"),
        ({"y": np.ma.array([1.0, 2.0], mask=[False, True])}, ValueError, "column 'y'.*mask"),
    ],
)
def test_tables_refused(table, error, message):
    time = "t" if isinstance(table, dict) and "t" in table else None
    with pytest.raises(error, match=message):
        only(table, time=time)


def test_a_duplicate_column_in_a_data_frame():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ValueError, match="table has 2 columns 'y'; its columns are y, y"):
        only(pandas.DataFrame([[1.0, 2.0]], columns=["y", "y"]))


# --- writing


TABLE = {
    "station, old": np.array(["a,b", 'c"d"', "e\nf", " é "]),
    "n": np.array([1, -2, 3, 2**53]),
    "forecast": np.array([0.1, 1 / 3, -1e-300, 12345678.9]),
}
DATES = np.array(["1999-12-31", "2000-02-29", "2000-03-01", "2024-01-01"], "datetime64[D]")


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
@pytest.mark.parametrize("unit", ["D", "s", "us"])
def test_tables_come_back_from_files(tmp_path, name, unit):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    dates = DATES.astype(f"datetime64[{unit}]") + np.timedelta64(unit != "D", unit)
    table = {**TABLE, "t": dates}
    path = tmp_path / name
    path.write_bytes(encode_table(table, path))
    assert column_names(path) == list(table)
    back = read_columns(path, list(table))
    assert back["station, old"].tolist() == TABLE["station, old"].tolist()
    for column in ("n", "forecast"):
        assert back[column].astype(np.float64).tolist() == TABLE[column].tolist()
    assert back["t"].astype("datetime64[us]").tolist() == dates.astype("datetime64[us]").tolist()


def test_a_csv_file_has_plain_lines():
    table = {"t": DATES[:2], "y": np.array([0.5, 1e-7])}
    assert encode_table(table) == b"t,y\n1999-12-31,0.5\n2000-02-29,1e-07\n"
    assert encode_table({"t": DATES[:1] + np.timedelta64(1, "h")}) == b"t\n1999-12-31T01\n"


def test_an_error_lists_a_few_of_many_columns():
    table = {f"c{j}": [1.0] for j in range(10**5)}
    with pytest.raises(ValueError, match=r"no column 'y'; its columns are c0, .*, c19, ...$"):
        only(table)


@pytest.mark.parametrize("name", ["a\0.csv", "a\ud800.csv"])
def test_names_that_no_file_can_have(name):
    with pytest.raises(ValueError, match=r"^table is 'a.*; expected no NUL and no lone surrogates"):
        only(name)


def test_an_empty_line_is_a_gap_in_a_table_of_one_column(csv):
    np.testing.assert_array_equal(only(csv("y\n1\n\n3\n")).values[:, 0], [1, NAN, 3])


@pytest.mark.parametrize("suffix", [".parquet", ".PQ"])
def test_suffixes_of_parquet(tmp_path, suffix):
    path = tmp_path / f"table{suffix}"
    path.write_bytes(encode_table({"y": np.array([1.0, 2.0])}, path))
    assert only(path).values[:, 0].tolist() == [1, 2]
