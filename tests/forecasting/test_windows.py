"""Windows and filled gaps: values by hand, and each refusal by its message."""

import numpy as np
import pytest
from helpers import NOT_REAL

from lstm_ext import fill_gaps, windows

NAN, INF = float("nan"), float("inf")


# --- windows


@pytest.mark.parametrize("step", [1, 2, 3, 100])
@pytest.mark.parametrize(("n_in", "n_out"), [(1, 1), (3, 2), (4, 5)])
@pytest.mark.parametrize("columns", [1, 2, 5])
def test_windows_hold_the_rows_they_name(n_in, n_out, step, columns):
    series = np.arange(13.0 * columns).reshape(13, columns)
    X, Y = windows(series, n_in, n_out, step=step)
    starts = range(0, 13 - n_in - n_out + 1, step)
    assert X.shape == (len(starts), n_in, columns)
    assert Y.shape == (len(starts), n_out, columns)
    for i, start in enumerate(starts):
        np.testing.assert_array_equal(X[i], series[start : start + n_in])
        np.testing.assert_array_equal(Y[i], series[start + n_in : start + n_in + n_out])


def test_univariate_series_gives_targets_that_train_takes():
    X, Y = windows(np.arange(6.0), 2, 3)
    np.testing.assert_array_equal(X, [[[0], [1]], [[1], [2]]])
    np.testing.assert_array_equal(Y, [[2, 3, 4], [3, 4, 5]])


@pytest.mark.parametrize("target", [0, 1, 2, -1, -3, np.int64(1)])
def test_target_chooses_one_column(target):
    series = np.arange(30.0).reshape(10, 3)
    X, Y = windows(series, 4, 2, target=target)
    assert X.shape == (5, 4, 3)
    np.testing.assert_array_equal(Y, windows(series, 4, 2)[1][:, :, target])


def test_windows_of_the_shortest_series():
    X, Y = windows([1.0, 2.0, 3.0], 2, 1)
    assert X.tolist() == [[[1.0], [2.0]]]
    assert Y.tolist() == [[3.0]]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.float32, np.float32),
        (np.float64, np.float64),
        (np.float16, np.float64),
        (np.int32, np.float64),
        (bool, np.float64),
    ],
)
def test_windows_dtype(given, expected):
    X, Y = windows(np.ones(5, given), 2, 2)
    assert X.dtype == Y.dtype == expected


@pytest.mark.parametrize("shape", [(9,), (9, 2)])
def test_windows_are_contiguous_copies(shape):
    series = np.arange(float(np.prod(shape))).reshape(shape)
    before = series.copy()
    X, Y = windows(series, 3, 2)
    assert X.flags.c_contiguous
    assert Y.flags.c_contiguous
    X[0] = -1.0
    Y[0] = -1.0
    np.testing.assert_array_equal(series, before)
    np.testing.assert_array_equal(X[1], series[1:4].reshape(3, -1))  # windows overlap in the series only
    np.testing.assert_array_equal(Y[1], series[4:6])


def test_windows_of_a_strided_read_only_series():
    series = np.arange(20.0)[::-2]
    series.flags.writeable = False
    X, Y = windows(series, 2, 1)
    np.testing.assert_array_equal(X[:, :, 0], windows(series.copy(), 2, 1)[0][:, :, 0])
    np.testing.assert_array_equal(Y[:, 0], series[2:])


def test_windows_names_the_rows_it_needs():
    with pytest.raises(ValueError, match=r"series has 4 rows.*n_in \+ n_out = 5"):
        windows(np.arange(4.0), 3, 2)


@pytest.mark.parametrize("shape", [(), (3, 2, 2)])
def test_windows_refuses_other_ranks(shape):
    with pytest.raises(ValueError, match=r"series has shape .*expected \(T,\) or \(T, F\)"):
        windows(np.ones(shape), 1, 1)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
@pytest.mark.parametrize("function", [lambda series: windows(series, 1, 1), fill_gaps])
def test_empty_series_are_refused(function, shape):
    with pytest.raises(ValueError, match="series has shape"):
        function(np.ones(shape))


@pytest.mark.parametrize("series", NOT_REAL, ids=lambda series: str(series.dtype))
@pytest.mark.parametrize("function", [lambda series: windows(series, 1, 1), fill_gaps])
def test_series_that_are_not_real_are_refused(function, series):
    with pytest.raises(TypeError, match="series has dtype"):
        function(series)


@pytest.mark.parametrize("function", [lambda series: windows(series, 1, 1), fill_gaps])
def test_ragged_series_are_refused(function):
    with pytest.raises(ValueError, match="series"):
        function([[1.0, 2.0], [3.0]])


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_windows_names_the_first_value_that_is_not_finite(bad):
    with pytest.raises(ValueError, match=rf"series\[2, 1\] is {bad}"):
        windows([[0, 1], [2, 3], [4, bad], [bad, 7]], 1, 1)


@pytest.mark.parametrize("step", [3, 2**62, 2**63, 2**64, 10**30])
def test_a_step_past_the_end_leaves_one_window(step):
    X, Y = windows(np.arange(7.0), 3, 2, step=step)
    assert X[0, :, 0].tolist() == [0.0, 1.0, 2.0]
    assert Y.tolist() == [[3.0, 4.0]]


@pytest.mark.parametrize("name", ["n_in", "n_out"])
@pytest.mark.parametrize("size", [2**62, 2**63, 2**64, 10**30])
def test_windows_of_huge_sizes(name, size):
    with pytest.raises(ValueError, match=rf"^series has 7 rows; expected at least n_in \+ n_out = {size + 1}$"):
        windows(np.arange(7.0), **{"n_in": 1, "n_out": 1, name: size})


@pytest.mark.parametrize("name", ["n_in", "n_out", "step"])
def test_windows_refuses_sizes(name):
    arguments = {"n_in": 1, "n_out": 1, "step": 1}
    for value in (0, -2):
        with pytest.raises(ValueError, match=f"{name} is {value}; expected at least 1"):
            windows(np.ones(5), **{**arguments, name: value})
    for value in (1.0, "1", None, True):
        with pytest.raises(TypeError, match=f"{name} is .*expected an integer"):
            windows(np.ones(5), **{**arguments, name: value})


def test_windows_refuses_targets():
    series = np.ones((5, 3))
    for value in (3, -4):
        with pytest.raises(ValueError, match=f"target is {value}; expected a column from -3 to 2"):
            windows(series, 1, 1, target=value)
    with pytest.raises(TypeError, match=r"target is 1\.0"):
        windows(series, 1, 1, target=1.0)
    with pytest.raises(ValueError, match="target is 0 for a series of shape"):
        windows(np.ones(5), 1, 1, target=0)


# --- fill_gaps


def test_gaps_are_filled_along_straight_lines():
    series = [1.0, NAN, 2.0, NAN, NAN, NAN, 6.0]
    assert fill_gaps(series).tolist() == [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_each_column_is_filled_by_itself():
    series = np.array([[0.0, 9.0], [NAN, 7.0], [2.0, NAN], [3.0, 3.0]])
    before = series.copy()
    assert fill_gaps(series).tolist() == [[0.0, 9.0], [1.0, 7.0], [2.0, 5.0], [3.0, 3.0]]
    np.testing.assert_array_equal(series, before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_series_without_gaps_is_copied(dtype):
    series = np.arange(4, dtype=dtype)
    filled = fill_gaps(series)
    assert filled.dtype == dtype
    np.testing.assert_array_equal(filled, series)
    filled[0] = 5.0
    assert series[0] == 0.0


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ([NAN, 1.0], "series begins with a gap"),
        ([1.0, NAN], "series ends with a gap"),
        ([NAN, NAN], "series begins with a gap"),
        ([[1.0, 1.0], [1.0, NAN]], r"series\[:, 1\] ends with a gap"),
        ([1.0, INF, NAN, 1.0], r"series\[1\] is inf"),
        (NAN, r"series has shape \(\)"),
        (np.ones((2, 2, 2)), "series has shape"),
    ],
)
def test_fill_gaps_refuses(series, message):
    with pytest.raises(ValueError, match=message):
        fill_gaps(series)
