"""SequenceScaler: values by hand, and each refusal by its message."""

import copy
import json
import pickle

import numpy as np
import pytest
from helpers import NOT_REAL

from lstm_ext import SequenceScaler

NAN, INF = float("nan"), float("inf")


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
