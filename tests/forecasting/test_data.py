"""Windows, scaling, gaps and the CO2 record: values by hand, and each refusal by its message."""

import copy
import csv
import json
import pickle
from importlib import resources

import numpy as np
import pytest

from lstm_ext import SequenceScaler, fill_gaps, load_co2, windows

NAN, INF = float("nan"), float("inf")
NOT_REAL = [
    np.array([1.0, 2.0, None], dtype=object),
    np.array([1.0, 2.0j, 3.0]),
    np.array(["1", "2", "3"]),
    np.array(["2001-01-01", "NaT"], dtype="datetime64[D]"),
]


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


# --- SequenceScaler


@pytest.mark.parametrize("shape", [(50, 3), (7, 11, 3), (2, 3, 5, 3), (40, 1)])
def test_scaler_standardises_each_feature(shape):
    X = np.random.default_rng(0).normal(5.0, 3.0, shape) * np.arange(1.0, shape[-1] + 1)
    scaled = SequenceScaler().fit(X).transform(X)
    assert scaled.shape == shape
    axes = tuple(range(X.ndim - 1))
    np.testing.assert_allclose(scaled.mean(axis=axes), 0.0, atol=1e-13)
    np.testing.assert_allclose(scaled.std(axis=axes), 1.0, rtol=1e-13)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-14)])
def test_scaler_inverts_keeps_the_dtype_and_modifies_nothing(dtype, tolerance):
    X = np.random.default_rng(1).normal(100.0, 5.0, (4, 6, 2)).astype(dtype)
    before = X.copy()
    scaler = SequenceScaler().fit(X)
    scaled = scaler.transform(X)
    restored = scaler.inverse_transform(scaled)
    assert scaled.dtype == restored.dtype == dtype
    np.testing.assert_allclose(restored, X, rtol=tolerance)
    np.testing.assert_array_equal(X, before)


def test_scaler_statistics_are_float64_whatever_X_is():
    X = np.full((1_000_000, 1), 16_777_216.0, np.float32)  # a float32 sum of these goes wrong
    X[::2] += 2.0
    scaler = SequenceScaler().fit(X)
    assert scaler.mean.dtype == scaler.scale.dtype == np.float64
    assert scaler.mean.tolist() == [16_777_217.0]
    assert scaler.scale.tolist() == [1.0]


@pytest.mark.parametrize("constant", [0.1, 0.0, -1e300])
def test_constant_feature_has_scale_one(constant):
    X = np.full((7, 2), constant)
    X[:, 1] = np.arange(7.0)
    scaler = SequenceScaler().fit(X)
    assert scaler.scale[0] == 1.0
    np.testing.assert_array_equal(scaler.transform(X)[:, 0], 0.0)
    assert scaler.transform(X)[:, 1].std() == pytest.approx(1.0)


def test_scaler_uses_the_training_data_only():
    scaler = SequenceScaler().fit([[0.0], [2.0]])
    assert scaler.transform([[101.0]]).tolist() == [[100.0]]
    assert scaler.mean.tolist() == [1.0]


def test_a_second_fit_replaces_the_first():
    scaler = SequenceScaler().fit([[0.0], [2.0]]).fit([[10.0, 0.0], [14.0, 8.0]])
    assert scaler.to_dict() == {"mean": [12.0, 4.0], "scale": [2.0, 4.0]}


def test_scaler_takes_one_row_and_integers():
    scaler = SequenceScaler().fit([[0, 10], [2, 30]])
    assert scaler.transform([1, 40]).tolist() == [0.0, 2.0]
    assert scaler.inverse_transform([0, 2]).tolist() == [1.0, 40.0]


@pytest.mark.parametrize(
    "use", [lambda s: s.transform([[1.0]]), lambda s: s.inverse_transform([[1.0]]), SequenceScaler.to_dict]
)
def test_scaler_that_is_not_fitted(use):
    with pytest.raises(RuntimeError, match=r"not fitted; call fit\(X\)"):
        use(SequenceScaler())


@pytest.mark.parametrize("method", ["fit", "transform", "inverse_transform"])
def test_scaler_refuses_bad_X(method):
    scaler = SequenceScaler().fit([[0.0, 1.0], [2.0, 3.0]])
    kept = scaler.to_dict()
    function = getattr(scaler, method)
    for bad in (NAN, INF):
        with pytest.raises(ValueError, match=rf"X\[1, 0\] is {bad}"):
            function([[0.0, 1.0], [bad, 3.0]])
    for wrong in NOT_REAL:
        with pytest.raises(TypeError, match="X has dtype"):
            function(wrong)
    for shape in ((), (0, 2), (2, 0), (3,)):
        with pytest.raises(ValueError, match="X has shape"):
            function(np.ones(shape))
    assert scaler.to_dict() == kept  # an error changes nothing


@pytest.mark.parametrize("method", ["transform", "inverse_transform"])
def test_scaler_refuses_another_number_of_features(method):
    scaler = SequenceScaler().fit(np.arange(6.0).reshape(3, 2))
    with pytest.raises(ValueError, match=r"X has shape \(4, 3\); expected \(\.\.\., 2\)"):
        getattr(scaler, method)(np.ones((4, 3)))


@pytest.mark.parametrize("size", [1e300, 1e-300])
def test_scaler_refuses_deviations_that_float64_cannot_hold(size):
    with pytest.raises(
        ValueError, match=r"^X\[\.\.\., 1\] has the standard deviation .*; expected a finite one above 0$"
    ):
        SequenceScaler().fit([[1.0, size] * 5000, [2.0, -size] * 5000])


def test_scaler_survives_json_to_the_bit():
    scaler = SequenceScaler().fit(np.random.default_rng(2).normal(size=(9, 4, 3)))
    state = json.loads(json.dumps(scaler.to_dict()))
    again = SequenceScaler.from_dict(state)
    np.testing.assert_array_equal(again.mean, scaler.mean)
    np.testing.assert_array_equal(again.scale, scaler.scale)
    assert again.to_dict() == state


def test_what_a_scaler_has_is_not_written_to():
    fitted = SequenceScaler().fit([[0.0, 5.0], [2.0, 5.0]])
    for scaler in (fitted, SequenceScaler.from_dict(fitted.to_dict())):
        for name in ("mean", "scale", "std", "scael"):
            with pytest.raises(AttributeError):
                setattr(scaler, name, np.ones(2))
        for statistics in (scaler.mean, scaler.scale):
            with pytest.raises(ValueError, match="read-only"):
                statistics[0] = 3.0
        assert scaler.to_dict() == {"mean": [1.0, 5.0], "scale": [1.0, 1.0]}


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_of_a_scaler(copied):
    assert copied(SequenceScaler()).mean is None
    assert copied(SequenceScaler().fit([[0.0], [4.0]])).to_dict() == {"mean": [2.0], "scale": [2.0]}


def test_from_dict_shares_nothing():
    state = {"mean": np.zeros(2), "scale": np.ones(2)}
    scaler = SequenceScaler.from_dict(state)
    state["mean"][:] = 9.0
    assert scaler.mean.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ([1.0] * 10_000, TypeError, r"^state is .{,100}; expected"),
        (dict.fromkeys(range(10_000)), ValueError, r"^state has the keys .{,100}; expected"),
        ({"mean": [0.0]}, ValueError, "state has the keys"),
        ({"mean": [0.0], "scale": [1.0], "extra": [1.0]}, ValueError, "state has the keys"),
        ({"mean": [0.0, 1.0], "scale": [1.0]}, ValueError, "state has lists of shape"),
        ({"mean": [[0.0]], "scale": [[1.0]]}, ValueError, "state has lists of shape"),
        ({"mean": [NAN], "scale": [1.0]}, ValueError, r"state\['mean'\]\[0\] is nan"),
        ({"mean": [0.0], "scale": [0.0]}, ValueError, r"state\['scale'\]\[0\] is 0.0"),
        ({"mean": [0.0], "scale": [-1.0]}, ValueError, r"state\['scale'\]\[0\] is -1.0"),
        ({"mean": ["a"], "scale": [1.0]}, TypeError, r"state\['mean'\] has dtype"),
    ],
)
def test_from_dict_refuses(state, error, message):
    with pytest.raises(error, match=message):
        SequenceScaler.from_dict(state)


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


# --- load_co2


def test_co2_record():
    dates, ppm = load_co2()
    assert dates.shape == ppm.shape == (2284,)
    assert dates.dtype == "datetime64[D]"
    assert ppm.dtype == np.float64
    assert (str(dates[0]), str(dates[-1])) == ("1958-03-29", "2001-12-29")
    assert (np.diff(dates) == np.timedelta64(7, "D")).all()
    assert np.isnan(ppm).sum() == 59
    assert (ppm[0], ppm[-1]) == (316.1, 371.5)
    # The sum, the extremes and a gap, as statsmodels.datasets.co2 has them.
    assert np.nansum(ppm) == pytest.approx(756816.5, abs=1e-6)
    assert (np.nanmin(ppm), np.nanmax(ppm)) == (313.0, 373.9)
    gap = (dates >= np.datetime64("1964-01-25")) & (dates < np.datetime64("1964-05-30"))
    assert gap.sum() == 18
    assert np.isnan(ppm[gap]).all()


def test_co2_rows_are_well_formed():
    with resources.files("lstm_ext.forecasting.records").joinpath("co2.csv").open(encoding="ascii") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["date", "co2"]
    assert {len(row) for row in rows} == {2}


def test_co2_can_be_filled():
    _, ppm = load_co2()
    filled = fill_gaps(ppm)
    observed = ~np.isnan(ppm)
    np.testing.assert_array_equal(filled[observed], ppm[observed])
    assert np.isfinite(filled).all()
    assert np.abs(np.diff(filled)).max() < 4.0
