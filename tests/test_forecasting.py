"""The recipe and the baselines: by definition on small series, and nothing that was not known at the origin."""

from dataclasses import replace

import numpy as np
import pytest

from lstm_ext.data import SequenceScaler, load_co2
from lstm_ext.forecasting import (
    CO2_HELD_OUT,
    CO2_VALIDATION,
    Recipe,
    actual,
    examples,
    find_origins,
    forecasts,
    inputs,
    rmse,
    rmse_by_horizon,
    seasonal_naive,
    split_index,
    training_data,
)

NAN = float("nan")
SMALL = Recipe(season=4, horizon=3, window=5, trend_seasons=2, drift_seasons=2)
RECIPES = [
    SMALL,
    replace(SMALL, window=20, horizon=1),
    replace(SMALL, horizon=9),  # longer than a season
    replace(SMALL, season=1, trend_seasons=5, drift_seasons=3),
    replace(SMALL, season=5, trend_seasons=1, drift_seasons=1),
]
WALK = np.random.default_rng(0).normal(size=60).cumsum()


def seasonal_line(slope, steps=60, season=4):
    return 7.0 + slope * np.arange(steps) + np.tile([0.0, 3.0, -1.0, 0.5], steps // season)


def with_gaps(series, *steps):
    series = series.copy()
    series[list(steps)] = NAN
    return series


def toy_network(X, horizon):
    """Return outputs (N, horizon) in which every value of a window has a part."""
    return np.tanh(X[:, :, 0] @ np.random.default_rng(1).normal(size=(X.shape[1], horizon)))


def every_forecast(series, origins, recipe, scaler):
    outputs = toy_network(inputs(series, origins, recipe, scaler), recipe.horizon)
    return np.stack(
        [
            forecasts(outputs, series, origins, recipe, scaler),
            seasonal_naive(series, origins, recipe),
            seasonal_naive(series, origins, recipe, drift=True),
        ]
    )


# --- what was known


@pytest.mark.parametrize("recipe", RECIPES)
def test_forecasts_do_not_change_with_what_comes_after_the_origin(recipe):
    series = with_gaps(WALK, 3, 9, 10, 11, 31, 32, 40, 45)
    scaler = training_data(series[:30], recipe)[2]
    origins = find_origins(series, recipe)
    expected = every_forecast(series, origins, recipe, scaler)
    for number, origin in enumerate(origins):
        others = series.copy()
        others[origin + 1 :] = np.where(np.isnan(series[origin + 1 :]), 50.0, -1e3)
        gaps = with_gaps(series, *range(origin + 1, len(series)))
        for changed in (others, gaps, series[: origin + 1]):
            forecast = every_forecast(changed, [origin], recipe, scaler)
            np.testing.assert_allclose(forecast[:, 0], expected[:, number], rtol=1e-11)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_value_up_to_the_origin_may_count(recipe):
    """The test above would pass for forecasts that ignore the series."""
    origin = 50
    scaler = training_data(WALK[:40], recipe)[2]
    expected = every_forecast(WALK, [origin], recipe, scaler)
    changed = WALK.copy()
    changed[origin] += 1.0
    assert (every_forecast(changed, [origin], recipe, scaler)[0] != expected[0]).all()


@pytest.mark.parametrize("gap", [(), (37, 38, 39), (38, 39, 40, 41), (40, 41)])
def test_training_does_not_change_with_the_held_out_years(gap):
    dates = np.datetime64("2000-01-01") + 7 * np.arange(60)
    series = with_gaps(WALK, 20, *gap)
    changed = with_gaps(np.where(np.arange(60) < 40, WALK, 1e3), 20, *gap)
    results = []
    for values in (series, changed):
        validation, held_out = split_index(dates, dates[30]), split_index(dates, dates[40])
        X, Y, scaler = training_data(values[:held_out], SMALL)
        origins = find_origins(values[:held_out], SMALL, validation)
        early = training_data(values[:validation], SMALL)[2]
        results.append((X, Y, scaler.mean, scaler.scale, *examples(values[:held_out], origins, SMALL, early)))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_gap_at_the_end_of_training_is_no_target():
    series = with_gaps(WALK, 37, 38, 39)[:40]
    assert find_origins(series, SMALL)[-1] == 36 - SMALL.horizon


def test_origins_are_observed_and_forecast_from_start_on():
    series = with_gaps(WALK, 30, 33, 34, 50)
    origins = find_origins(series, SMALL, start=30)
    assert origins.tolist() == [t for t in range(29, 57) if t not in (30, 33, 34, 50)]
    assert find_origins(WALK, SMALL).tolist() == list(range(SMALL.first_origin, 57))


@pytest.mark.parametrize(("recipe", "first"), [(SMALL, 11), (replace(SMALL, window=30), 29), (Recipe(), 207)])
def test_first_origin_is_the_first_that_has_all_it_needs(recipe, first):
    assert recipe.first_origin == first
    scaler = SequenceScaler().fit([[0.0], [1.0]])
    series = np.arange(300.0)
    inputs(series, [first], recipe, scaler)
    with pytest.raises(ValueError, match=f"origins holds {first - 1}; expected a step from {first}"):
        inputs(series, [first - 1], recipe, scaler)


# --- the windows


def test_inputs_and_targets_by_definition():
    origin, scaler = 20, SequenceScaler().fit([[0.0], [4.0]])
    X, Y = examples(WALK, [origin], SMALL, scaler)
    last, earlier = WALK[17:21].mean(), WALK[9:13].mean()  # centred at 18.5 and, two seasons before, 10.5

    def departure(step):
        return WALK[step] - (last + (last - earlier) / 8 * (step - 18.5))

    assert X.shape == (1, 5, 1)
    np.testing.assert_allclose(X[0, :, 0], [(departure(t) - 2) / 2 for t in range(16, 21)])
    np.testing.assert_allclose(Y[0], [(departure(t) - 2) / 2 for t in range(21, 24)])


@pytest.mark.parametrize("recipe", RECIPES)
def test_windows_do_not_change_with_level_and_slope(recipe):
    X, Y, scaler = training_data(WALK, recipe)
    lifted = training_data(WALK + 300.0 + 0.25 * np.arange(60), recipe)
    np.testing.assert_allclose(lifted[0], X, atol=1e-12)
    np.testing.assert_allclose(lifted[1], Y, atol=1e-12)
    np.testing.assert_allclose(lifted[2].scale, scaler.scale)


def test_the_scaler_is_fitted_on_the_training_windows():
    X, _, _ = training_data(WALK, SMALL)
    assert X.mean() == pytest.approx(0.0, abs=1e-12)
    assert X.std() == pytest.approx(1.0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_forecasts_undo_the_targets(recipe):
    series = with_gaps(WALK, 25)
    _, _, scaler = training_data(series[:40], recipe)
    origins = find_origins(series, recipe, 26)
    _, Y = examples(series, origins, recipe, scaler)
    forecast = forecasts(Y, series, origins, recipe, scaler)
    np.testing.assert_allclose(forecast, actual(series, origins, recipe), atol=1e-12)


def test_forecast_beyond_the_end():
    _, _, scaler = training_data(WALK, SMALL)
    X = inputs(WALK, [59], SMALL, scaler)
    assert forecasts(np.zeros((1, 3)), WALK, [59], SMALL, scaler).shape == (1, 3)
    assert X.shape == (1, 5, 1)
    with pytest.raises(ValueError, match="origins holds 59; expected a step from 11 to 56"):
        examples(WALK, [59], SMALL, scaler)


def test_nothing_is_modified():
    series = with_gaps(WALK, 13, 58, 59)
    before = series.copy()
    X, _, scaler = training_data(series, SMALL)
    every_forecast(series, find_origins(series, SMALL), SMALL, scaler)
    np.testing.assert_array_equal(series, before)
    assert np.isfinite(X).all()


# --- the baselines


@pytest.mark.parametrize("slope", [0.0, 0.5, -2.0])
@pytest.mark.parametrize("horizon", [1, 3, 4, 10])
def test_baselines_on_a_season_with_a_slope(slope, horizon):
    recipe = replace(SMALL, horizon=horizon)
    series = seasonal_line(slope)
    origins = find_origins(series, recipe)
    observed = actual(series, origins, recipe)
    seasons = np.ceil(np.arange(1, horizon + 1) / 4)
    naive = seasonal_naive(series, origins, recipe)
    np.testing.assert_allclose(observed - naive, np.tile(4 * slope * seasons, (len(origins), 1)), atol=1e-12)
    assert rmse(seasonal_naive(series, origins, recipe, drift=True), observed) < 1e-12


@pytest.mark.parametrize("recipe", RECIPES)
def test_drift_is_the_mean_growth_up_to_the_origin(recipe):
    origin = 44
    season = recipe.season
    growth = np.mean(
        [WALK[s] - WALK[s - season] for s in range(origin + 1 - recipe.drift_seasons * season, origin + 1)]
    )
    naive = seasonal_naive(WALK, [origin], recipe)
    drift = seasonal_naive(WALK, [origin], recipe, drift=True)
    np.testing.assert_allclose(drift - naive, growth * np.ceil(np.arange(1, recipe.horizon + 1) / season)[None])


def test_drift_has_its_own_window():
    recipe = replace(SMALL, drift_seasons=5)
    with pytest.raises(ValueError, match="origins holds 22; expected a step from 23 to 59"):
        seasonal_naive(WALK, [22], recipe, drift=True)
    growth = (WALK[20:24].mean() - WALK[:4].mean()) / 5
    naive = seasonal_naive(WALK, [23], recipe)
    np.testing.assert_allclose(seasonal_naive(WALK, [23], recipe, drift=True), naive + growth)


def test_co2_baselines():
    dates, ppm = load_co2()
    recipe = Recipe()
    validation, held_out = split_index(dates, CO2_VALIDATION), split_index(dates, CO2_HELD_OUT)
    origins = find_origins(ppm[:held_out], recipe, validation)
    observed = actual(ppm[:held_out], origins, recipe)
    assert (dates[origins[0]], dates[validation]) == (np.datetime64("1989-12-30"), np.datetime64("1990-01-06"))
    assert observed.shape == (157, 52)
    assert rmse(seasonal_naive(ppm, origins, recipe), observed) == pytest.approx(1.252, abs=5e-4)
    assert rmse(seasonal_naive(ppm, origins, recipe, drift=True), observed) == pytest.approx(0.871, abs=5e-4)


# --- scores


def test_rmse_scores_what_was_observed():
    forecast = [[1.0, 2.0, 0.0], [3.0, 4.0, 0.0]]
    observed = [[1.0, NAN, NAN], [0.0, 8.0, NAN]]
    assert rmse(forecast, observed) == pytest.approx(np.sqrt((0 + 9 + 16) / 3))
    np.testing.assert_allclose(rmse_by_horizon(forecast, observed), [np.sqrt(4.5), 4.0, NAN])


def test_actual_keeps_gaps():
    series = with_gaps(WALK, 22, 23)
    assert np.isnan(actual(series, [20, 21], SMALL)).tolist() == [[False, True, True], [True, True, False]]


@pytest.mark.parametrize("score", [rmse, rmse_by_horizon])
@pytest.mark.parametrize(
    ("forecast", "observed", "message"),
    [
        ([[1.0]], [[1.0, 2.0]], r"forecast has shape \(1, 1\) and observed \(1, 2\)"),
        ([1.0], [1.0], "forecast has shape"),
        ([[NAN]], [[1.0]], "forecast holds NaN"),
        ([[1.0]], [[NAN]], "observed holds only NaN"),
    ],
)
def test_scores_refuse(score, forecast, observed, message):
    with pytest.raises(ValueError, match=message):
        score(forecast, observed)


# --- refusals


@pytest.mark.parametrize(
    "name", ["season", "horizon", "window", "trend_seasons", "drift_seasons", "hidden_dim", "epochs", "batch_size"]
)
def test_recipe_refuses_sizes(name):
    with pytest.raises(ValueError, match=f"{name} is 0; expected at least 1"):
        Recipe(**{name: 0})
    with pytest.raises(TypeError, match=f"{name} is 1.5; expected an integer"):
        Recipe(**{name: 1.5})


@pytest.mark.parametrize("name", ["learning_rate", "clip_norm"])
def test_recipe_refuses_numbers(name):
    for value in (-1.0, NAN):
        with pytest.raises(ValueError, match=f"{name} is {value}"):
            Recipe(**{name: value})


@pytest.mark.parametrize(
    ("series", "error", "message"),
    [
        (np.ones((20, 1)), ValueError, r"series has shape \(20, 1\); expected \(T,\)"),
        (np.full(20, NAN), ValueError, "series holds only gaps"),
        (with_gaps(WALK, 0), ValueError, "series begins with a gap"),
        (np.where(np.arange(60) == 5, np.inf, WALK), ValueError, r"series\[5\] is inf"),
        (WALK.astype(object), TypeError, "series has dtype object"),
        (WALK.astype(complex), TypeError, "series has dtype complex128"),
        (WALK[:14], ValueError, "series ends after 14 steps; expected 15 or more"),
        (with_gaps(WALK, 14)[:15], ValueError, "series ends after 14 steps; expected 15 or more"),
    ],
)
def test_series_are_refused(series, error, message):
    for function in (find_origins, training_data):
        with pytest.raises(error, match=message):
            function(series, SMALL)


@pytest.mark.parametrize(
    ("origins", "message"),
    [
        ([10], "origins holds 10; expected a step from 11 to 59"),
        ([20, 60], "origins holds 60; expected a step from 11 to 59"),
        ([20, -1], "origins holds -1; expected a step"),
        ([20, 30, 31], "origins holds 30; expected an observed step, not a gap"),
        ([20.0], "origins has shape .* expected .* integers"),
        ([], "origins has shape"),
        (20, "origins has shape"),
    ],
)
def test_origins_are_refused(origins, message):
    series = with_gaps(WALK, 30)
    scaler = SequenceScaler().fit([[0.0], [1.0]])
    with pytest.raises(ValueError, match=message):
        inputs(series, origins, SMALL, scaler)
    with pytest.raises(ValueError, match=message):
        seasonal_naive(series, origins, SMALL)


def test_outputs_are_refused():
    scaler = SequenceScaler().fit([[0.0], [1.0]])
    with pytest.raises(ValueError, match=r"outputs has shape \(1, 2\); expected \(1, 3\)"):
        forecasts([[1.0, 2.0]], WALK, [20], SMALL, scaler)
    with pytest.raises(ValueError, match="is nan; expected finite"):
        forecasts([[1.0, 2.0, NAN]], WALK, [20], SMALL, scaler)


def test_split_index():
    dates = np.array(["2000-01-01", "2000-01-08", "2000-01-15"], "datetime64[D]")
    assert [split_index(dates, day) for day in ("2000-01-02", "2000-01-08", "2000-01-09")] == [1, 1, 2]
    for day in ("1999-01-01", "2000-01-01", "2000-01-16"):
        with pytest.raises(ValueError, match=f"day is {day}; expected a day that splits"):
            split_index(dates, day)
    for wrong in (dates[::-1], dates[[0, 0, 1]], dates[None]):
        with pytest.raises(ValueError, match="dates of shape"):
            split_index(wrong, "2000-01-08")
