"""Evaluations: scores by hand, and the line that a session prints."""

import numpy as np
import pytest

from lstm_ext.forecasting.evaluation import Evaluation

NAN = float("nan")


def test_scores_by_hand():
    observed = np.array([[1.0, NAN, NAN], [0.0, 8.0, NAN]])
    forecasts = {"LSTM": np.array([[1.0, 2.0, 0.0], [3.0, 4.0, 0.0]]), "other": np.zeros((2, 3))}
    evaluation = Evaluation(np.array(["", ""]), np.array([1, 2]), observed, forecasts)
    assert evaluation.rmse() == pytest.approx({"LSTM": np.sqrt(25 / 3), "other": np.sqrt(65 / 3)})
    assert evaluation.mae() == pytest.approx({"LSTM": 7 / 3, "other": 3.0})
    np.testing.assert_allclose(evaluation.rmse_by_step()["LSTM"], [np.sqrt(4.5), 4.0, NAN])
    np.testing.assert_allclose(evaluation.rmse_by_step()["other"], [np.sqrt(0.5), 8.0, NAN])


def test_scores_without_an_observation():
    evaluation = Evaluation(np.array(["a"]), np.array([1]), np.full((1, 2), NAN), {"LSTM": np.ones((1, 2))})
    assert np.isnan([evaluation.rmse()["LSTM"], evaluation.mae()["LSTM"], *evaluation.rmse_by_step()["LSTM"]]).all()


def test_an_evaluation_prints_one_line():
    N = 10_000
    observed = np.zeros((N, 3))
    forecasts = {"LSTM": np.full((N, 3), 0.123456), "last value": np.full((N, 3), 2.0)}
    origins = np.datetime64("2000-01-01") + np.arange(N)
    names = np.repeat(["north", "south"], N // 2)
    assert repr(Evaluation(names, origins, observed, forecasts)) == (
        "Evaluation(10000 origins from 2000-01-01 to 2027-05-18, 2 series, horizon 3; RMSE: LSTM 0.1235, last value 2)"
    )
    nothing = Evaluation(names[:0], origins[:0], observed[:0], {"LSTM": observed[:0]})
    assert repr(nothing) == "Evaluation(0 origins, 0 series, horizon 3; RMSE: LSTM nan)"
