"""Series: rows on equally spaced times; errors name the column and the row."""

import datetime
import itertools
import tracemalloc

import numpy as np
import pytest
from helpers import only

from lstm_ext.forecasting.series import Series, TimeAxis, bridge_gaps, find_series, gap_lengths

NAN = float("nan")
DAY = 86_400_000_000  # microseconds


# --- times


def months(first, step, count, day="first"):
    """Return dates by calendar months."""
    starts = np.datetime64(first, "M") + np.arange(0, step * count, step).astype("timedelta64[M]")
    next_starts = (starts + np.timedelta64(1, "M")).astype("datetime64[D]")
    days = starts.astype("datetime64[D]") if day == "first" else next_starts - np.timedelta64(1, "D")
    return [str(date) for date in days]


def moments(first, step, count):
    return [str(time) for time in np.datetime64(first) + np.arange(count) * step]


TIMES = {  # nine times, as text, and the step in words
    "ints": ([str(10 + 2 * k) for k in range(9)], "2"),
    "negative": ([str(3 * k - 4) for k in range(9)], "3"),
    "tenths": ([f"{0.1 * k:.1f}" for k in range(9)], "0.1"),
    "years": ([str(1999 + k) for k in range(9)], "1"),
    "decimal years": ([f"{2000 + (k + 0.5) / 12:.4f}" for k in range(9)], None),
    "days": (moments("2024-02-27", np.timedelta64(1, "D"), 9), "1 day"),
    "weeks": (moments("1999-12-25", np.timedelta64(7, "D"), 9), "1 week"),
    "hours": (moments("2023-12-31T19:00", np.timedelta64(1, "h"), 9), "1 hour"),
    "hours with a space": ([f"2024-01-01 {k:02}:30:00" for k in range(9)], "1 hour"),
    "half hours in UTC": ([f"2024-01-01T{k // 2:02}:{30 * (k % 2):02}Z" for k in range(9)], "30 minutes"),
    "seconds": ([f"1969-12-31T23:59:{5 * k:02}" for k in range(9)], "5 seconds"),
    "quarters of seconds": (moments("2024-01-01T00:00:00.000", np.timedelta64(250, "ms"), 9), "0.25 seconds"),
    "first of the month": (months("2023-10", 1, 9), "1 month"),
    "months": ([date[:7] for date in months("2023-10", 1, 9)], "1 month"),
    "15th of the month": ([date[:8] + "15" for date in months("2023-10", 1, 9)], "1 month"),
    "15th at noon": ([date[:8] + "15T12:00:00" for date in months("2023-10", 1, 9)], "1 month"),
    "end of the month": (months("2023-11", 1, 9, "last"), "1 month"),
    "quarters": (months("2023-10", 3, 9), "3 months"),
    "ends of quarters": (months("2023-12", 3, 9, "last"), "3 months"),
    "first of the year": (months("1968-01", 12, 9), "12 months"),
    "end of the year": (months("1968-12", 12, 9, "last"), "12 months"),
}


def as_microseconds(times):
    """Return times as numbers, which can be compared and halved."""
    if "-" in times[0][1:]:
        texts = [time.rstrip("Z") + ("-01" if len(time) == 7 else "") for time in times]
        return np.array(texts, "datetime64[us]").astype(np.int64)
    return np.array(times, np.float64)


@pytest.mark.parametrize(("times", "step"), TIMES.values(), ids=TIMES.keys())
def test_missing_times_are_rows_of_gaps_and_times_go_on_beyond_the_end(csv, times, step):
    rows = [0, 1, 2, 3, 5]
    lines = "\n".join(f"{times[row]},{row}" for row in rows)
    found = only(csv(f"t,y\n{lines}\n"), time="t")
    np.testing.assert_array_equal(found.values[:, 0], [0, 1, 2, 3, NAN, 5])
    if step:
        assert found.axis.describe_step() == step
    beyond = found.times(np.arange(9))
    if beyond.dtype.kind == "M":
        np.testing.assert_array_equal(beyond.astype("datetime64[us]").astype(np.int64), as_microseconds(times))
    else:
        np.testing.assert_allclose(beyond, as_microseconds(times), atol=2e-3)
    for row, time in enumerate(times):
        assert found.row_at(time) == found.row_at(str(found.times(row))) == min(row, 6)
    again = only(csv(f"t,y\n{times[3]},3\n{times[4]},4\n{times[5]},5\n"), time="t", axis=found.axis).times(4)
    assert again == (found.times(7) if beyond.dtype.kind == "M" else pytest.approx(found.times(7), abs=2e-3))


@pytest.mark.parametrize("times", [times for times, _ in TIMES.values()], ids=TIMES.keys())
def test_between_two_times_the_row_is_the_later_one(times):
    found = only({"t": times, "y": np.arange(9)}, time="t")
    middles = as_microseconds(times)[:-1] + np.diff(as_microseconds(times)) / 2
    if found.axis.kind in ("month", "time"):
        middles = middles.astype(np.int64).astype("datetime64[us]")
    assert [found.row_at(middle) for middle in middles] == list(range(1, 9))


@pytest.mark.parametrize("time", ["1990-01-01", "2024-01-01", "2024-01-01T03:00:00", "2024-02-03", "2025-01-01"])
def test_rows_of_any_time(time):
    """Compare with a count of the earlier rows."""
    times = np.array(["2024-01-01", "2024-01-02", "2024-01-03"], "datetime64[us]")
    expected = int((times < np.datetime64(time)).sum())
    found = only({"t": times, "y": np.arange(3)}, time="t")
    given = (time, np.datetime64(time), datetime.datetime.fromisoformat(time), f"{time[:10]}{time[10:] or 'T00:00'}Z")
    assert [found.row_at(one) for one in given] == [expected] * 4


def test_decimal_times_are_written_as_in_the_table():
    found = only({"t": np.round(0.1 * np.arange(5), 1), "y": np.arange(5)}, time="t")
    assert found.times(np.arange(9)).tolist() == [float(f"0.{k}") for k in range(9)]


def test_rows_without_a_time_column_count_from_one():
    found = only({"y": [5.0, 6.0, 7.0]})
    assert (found.axis, found.start) == (TimeAxis("row", 1.0), 1.0)
    assert found.times([0, 2, 4]).tolist() == [1, 3, 5]
    assert [found.row_at(row) for row in (-3, 1, 2, 3, 4, "3", 99)] == [0, 0, 1, 2, 3, 2, 3]
    assert found.axis.describe_step() == "1 row"


def test_offsets_from_utc_and_the_clock_change():
    """On 2024-10-27, 02:30 came twice in Berlin: with offsets, that is two rows; without them, an error."""
    local = ["2024-10-27T01:30+02:00", "2024-10-27T02:30+02:00", "2024-10-27T02:30+01:00", "2024-10-27T03:30+01:00"]
    found = only({"t": local, "y": np.arange(4)}, time="t")
    assert found.values[:, 0].tolist() == [0, 1, 2, 3]
    assert str(found.times(0)) == "2024-10-26T23:30:00"
    with pytest.raises(ValueError, match="column 't', row 3 is 2024-10-27T02:30, not later than row 2"):
        only({"t": [time[:16] for time in local], "y": np.arange(4)}, time="t")
    spring = ["2024-03-31T00:30", "2024-03-31T01:30", "2024-03-31T03:30", "2024-03-31T04:30"]
    assert np.isnan(only({"t": spring, "y": np.arange(4)}, time="t").values[:, 0]).tolist() == [0, 0, 1, 0, 0]


def test_times_may_be_a_tenth_of_a_step_off():
    """The mean step does not drift, and rows do not slip."""
    rng = np.random.default_rng(0)
    times = 10.0 * np.arange(200) + rng.uniform(-0.4, 0.4, 200)
    kept = np.r_[0, 1 + np.flatnonzero(rng.random(198) < 0.8), 199]
    found = only({"t": times[kept], "y": np.arange(200.0)[kept]}, time="t")
    observed = ~np.isnan(found.values[:, 0])
    assert np.flatnonzero(observed).tolist() == found.values[observed, 0].tolist() == kept.tolist()
    np.testing.assert_allclose(found.times(np.arange(250)), 10.0 * np.arange(250), atol=1.0)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([1, 2, 2, 3], "row 3 is 2, not later than row 2, 2; expected ascending times at equal steps"),
        ([4, 3, 2, 1], "row 2 is 3, not later than row 1, 4"),
        ([1, 1, 1], "row 2 is 1, not later than row 1, 1"),
        ([0, 10, 20, 35, 45], "row 4 is 35, 1.5 steps of 10 after row 3, 20"),
        ([1, 2, 3, 4, 3.5, 5.5], "row 5 is 3.5, not later than row 4, 4.0"),
        ([1, 2, 3, 4.5], "row 4 is 4.5, 1.5 steps of 1 after row 3, 3.0"),
        (["2024-01-01", "2024-01-02", "2024-01-02"], "row 3 is 2024-01-02, not later than row 2, 2024-01-02"),
        (["2024-01-01", "2024-01-03", "2024-01-02"], "row 3 is 2024-01-02, not later than row 2, 2024-01-03"),
        (["2024-01", "2024-02", "2024-02"], "row 3 is 2024-02, not later than row 2"),
        ([-1.7e308, 1.7e308], "column 't' has times too far apart"),
        (["20240131", "20240201", "2024-02-30"], "row 3 is '2024-02-30'"),
        ([1, "", 3], "column 't', row 2 is empty; expected a time"),
        ([1, NAN, 3], "column 't', row 2 is empty; expected a time"),
        (["2024-01-01", "2024-01-02", ""], "column 't', row 3 is empty; expected a time"),
        (np.array(["2024-01-01", "NaT"], "datetime64[s]"), "column 't', row 2 is empty; expected a time"),
        (["2024-01-01", "2024-02-30"], "column 't', row 2 is '2024-02-30'; expected a number or an ISO date"),
        (["2024-01-01", "01.02.2024"], "column 't', row 2 is '01.02.2024'; expected a number or an ISO date"),
        (["01/02/2024", "02/02/2024"], "column 't', row 1 is '01/02/2024'; expected a number or an ISO date"),
        (["2024-01-01", "3"], "column 't', row 2 is '3'; expected"),
        ([datetime.time(1), datetime.time(2)], "column 't', row 1 is '01:00:00'; expected"),
        (["1", "2", "three"], "column 't', row 3 is 'three'; expected a number"),
        ([1.0, 2.0, np.inf], "column 't', row 3 is inf"),
    ],
)
def test_times_refused(times, message):
    with pytest.raises(ValueError, match=message):
        only({"t": times, "y": np.arange(len(times))}, time="t")


@pytest.mark.parametrize(
    "last",
    [
        "1e12",
        "1e30",
        "1.7e308",
    ],
)
def test_a_huge_jump_is_refused_without_taking_memory(csv, last):
    path = csv(f"t,y\n0,1\n1,2\n2,3\n{last},4\n")
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"column 't' has 4 rows over .* steps of 1"):
            only(path, time="t")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("kind", "time", "message"),
    [
        ("number", "2024-01-01", "time is '2024-01-01'; expected a number, as in the table"),
        ("row", np.datetime64("2024-01-01"), "expected a number"),
        ("number", None, "time is None; expected a number"),
        ("time", "5", "time is '5'; expected an ISO date, as in the table"),
        ("time", 5.5, "time is 5.5; expected an ISO date"),
        ("month", "Monday", "time is 'Monday'; expected an ISO date"),
        ("month", [1], r"time is \[1\]; expected an ISO date"),
        ("time", 5, "time is 5; expected an ISO date"),
        ("number", NAN, "time is nan; expected a number"),
    ],
)
def test_a_time_of_another_kind_is_refused(kind, time, message):
    with pytest.raises(ValueError, match=message):
        Series("", ("y",), "t", TimeAxis(kind, 1.0), 0.0, np.zeros((3, 1))).row_at(time)


def test_a_time_with_a_zone():
    zone = datetime.timezone(datetime.timedelta(hours=2))
    found = only({"t": ["2024-01-01T22:00Z", "2024-01-01T23:00Z"], "y": [1, 2]}, time="t")
    assert found.row_at("2024-01-02T01:00+02:00") == 1
    assert found.row_at(datetime.datetime(2024, 1, 2, 1, tzinfo=zone)) == 1


@pytest.mark.parametrize(
    ("days", "after"),
    [
        (["20240131", "20240201", "20240203"], "2024-02-04"),
        ([20240131, 20240201, 20240203], "2024-02-04"),
        (["19991231", "20000101", "20000103"], "2000-01-04"),
    ],
)
def test_eight_digits_are_a_date(days, after):
    found = only({"t": days, "y": [1, 2, 4]}, time="t")
    np.testing.assert_array_equal(found.values[:, 0], [1, 2, NAN, 4])
    assert str(found.times(4)) == after


# --- the axis of the training


@pytest.mark.parametrize(
    ("times", "axis", "message"),
    [
        ([1, 3, 5], TimeAxis("number", 1.0), "column 't' has steps of 2; expected 1, as in training"),
        (["2024-01-01", "2024-01-02"], TimeAxis("number", 1.0), "has steps of 1 day; expected 1, as in training"),
        ([1, 2], TimeAxis("time", 7.0 * DAY), "has steps of 1; expected 1 week, as in training"),
        (["2024-01-01T01", "2024-01-01T02"], TimeAxis("time", DAY), "has steps of 1 hour; expected 1 day"),
        (["2024-01-01", "2024-04-01"], TimeAxis("month", 1.0), "has steps of 3 months; expected 1 month"),
    ],
)
def test_another_step_than_in_training_is_refused(times, axis, message):
    with pytest.raises(ValueError, match=message):
        only({"t": times, "y": np.arange(len(times))}, time="t", axis=axis)


def test_most_rows_may_be_missing_if_the_step_is_known():
    found = only({"t": [1, 3, 5, 6], "y": [1, 3, 5, 6]}, time="t", axis=TimeAxis("number", 1.0))
    np.testing.assert_array_equal(found.values[:, 0], [1, NAN, 3, NAN, 5, 6])


@pytest.mark.parametrize("kind", ["weeks", "ints", "months", "end of the month"])
def test_one_row_where_the_step_is_known(kind):
    times = TIMES[kind][0]
    axis = only({"t": times, "y": np.arange(9)}, time="t").axis
    found = only({"t": times[4:5], "y": [1.0]}, time="t", axis=axis)
    assert str(found.times(1)).startswith(times[5])


@pytest.mark.parametrize("known", [False, True])
def test_two_ends_of_months_of_equal_length(known):
    axis = TimeAxis("month", 1.0, -DAY) if known else None
    found = only({"t": ["2024-07-31", "2024-08-31"], "y": [1.0, 2.0]}, time="t", axis=axis)
    assert str(found.times(2)) == "2024-09-30"


def test_months_may_lie_elsewhere_in_the_month_than_in_training():
    axis = only({"t": TIMES["months"][0], "y": np.arange(9)}, time="t").axis
    found = only({"t": TIMES["15th of the month"][0][:3], "y": np.arange(3)}, time="t", axis=axis)
    assert str(found.times(3)) == "2024-01-15"


@pytest.mark.parametrize("day", [1, 14, 15, 16, 20, 27])
def test_two_months_of_equal_length(day):
    found = only({"t": [f"2024-07-{day:02}", f"2024-08-{day:02}"], "y": [1.0, 2.0]}, time="t")
    assert str(found.times(2)) == f"2024-09-{day:02}"


def test_times_of_a_long_table_do_not_drift_from_its_own():
    times = 10.0 * np.arange(400)
    found = only({"t": times, "y": times}, time="t", axis=TimeAxis("number", 10.3))
    assert found.times(399) == pytest.approx(3990, abs=1)
    assert found.row_at(2000) == 200


# --- several series


def test_each_series_has_its_own_start(csv):
    rng = np.random.default_rng(1)
    starts = {"b": 5, "NA": 0, "a 1": 17, "07": 9}
    rows = [(start + step, name) for name, start in starts.items() for step in range(rng.integers(5, 30))]
    values = {row: float(n) for n, row in enumerate(rows)}
    rows.sort(key=lambda row: (row[0], rng.random()))
    kept = [row for row in rows if row[0] == starts[row[1]] or rng.random() < 0.8]
    lines = "\n".join(f"{name},{time},{values[time, name]}" for time, name in kept)
    found = find_series(csv(f"who,t,y\n{lines}\n"), ["y"], time="t", series="who")
    assert [one.name for one in found] == list(dict.fromkeys(name for _, name in kept))
    for one in found:
        assert one.times(0) == starts[one.name]
        expected = [values[row] if (row := (time, one.name)) in kept else NAN for time in one.times(np.arange(99))]
        np.testing.assert_array_equal(one.values[:, 0], expected[: len(one.values)])
        assert np.isnan(expected[len(one.values) :]).all()


def test_series_without_times_are_rows_in_order():
    a, b = find_series({"who": list("abaab"), "y": [1, 2, 3, 4, 5]}, ["y"], time=None, series="who")
    assert (a.values[:, 0].tolist(), b.values[:, 0].tolist()) == ([1, 3, 4], [2, 5])


def test_names_of_series_that_are_numbers(csv):
    text = csv("who,y\n2,1\n10,2\n2,3\n")
    for source in (text, {"who": [2, 10, 2], "y": [1, 2, 3]}, {"who": np.array([2, 10, 2], np.int8), "y": [1, 2, 3]}):
        assert [one.name for one in find_series(source, ["y"], time=None, series="who")] == ["2", "10"]


def test_spaces_around_names_of_series(csv):
    found = find_series(csv("who, y\nA , 1\nA, 2\n A, 3\n"), ["y"], time=None, series="who")
    assert [(one.name, len(one.values)) for one in found] == [("A", 3)]


@pytest.mark.parametrize("name", ["", " ", None, NAN, np.datetime64("NaT", "D")])
def test_a_series_without_a_name_is_refused(name):
    with pytest.raises(ValueError, match="column 'who', row 2 is empty; expected the name of a series"):
        find_series({"who": np.array(["a", name], object), "y": [1, 2]}, ["y"], time=None, series="who")


def test_an_error_names_the_row_of_the_file_not_of_the_series():
    table = {"who": list("ababab"), "t": [1, 1, 2, 2, 3, 2], "y": np.arange(6)}
    with pytest.raises(ValueError, match="column 't', row 6 is 2, not later than row 4, 2"):
        find_series(table, ["y"], time="t", series="who")


def test_series_share_one_step():
    table = {"who": list("aaaaabb"), "t": [0, 1, 2, 3, 4, 0, 3], "y": np.arange(7)}
    a, b = find_series(table, ["y"], time="t", series="who")
    assert a.axis == b.axis == TimeAxis("number", 1.0)
    np.testing.assert_array_equal(b.values[:, 0], [5, NAN, NAN, 6])


# --- gaps


@pytest.mark.parametrize("longest", [0, 1, 2, 5, 99])
def test_gaps_are_bridged_by_linear_interpolation(longest):
    rng = np.random.default_rng(longest)
    values = np.where(rng.random((83, 3)) < 0.45, NAN, rng.normal(size=(83, 3)))
    values[:2, 0] = values[-3:, 1] = values[:, 2] = NAN
    values[40, 2] = 1.0
    before = values.copy()
    bridged = bridge_gaps(values, longest)
    np.testing.assert_array_equal(values, before)
    for column, filled in zip(values.T, bridged.T, strict=True):
        known = np.flatnonzero(~np.isnan(column))
        expected = column.copy()
        for left, right in itertools.pairwise(known):
            if 0 < right - left - 1 <= longest:
                expected[left:right] = np.interp(np.arange(left, right), known, column[known])
        np.testing.assert_allclose(filled, expected, rtol=1e-12)
        np.testing.assert_array_equal(filled[known], column[known])


@pytest.mark.parametrize(
    ("column", "lengths"),
    [
        ([1.0, 2.0], []),
        ([NAN], [1]),
        ([NAN, NAN, 1.0, NAN, 2.0, NAN, NAN, NAN], [2, 1, 3]),
        ([1.0, NAN, NAN, 2.0], [2]),
    ],
)
def test_gap_lengths(column, lengths):
    assert gap_lengths(np.array(column)).tolist() == lengths
