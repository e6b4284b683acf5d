"""Forecaster: the network's inputs and targets follow the definitions, and nothing after the origin leaks in."""

import copy
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

import lstm_ext
from lstm_ext.files import ModelFileError
from lstm_ext.forecasting import forecaster as module
from lstm_ext.forecasting.forecaster import Forecaster

NAN = float("nan")
TINY = {"target": "y", "window": 5, "horizon": 3, "hidden_dim": 3, "epochs": 2, "batch_size": 16}
INPUTS = {"inputs": ["a", "b"]}
SETTINGS = {
    "plain": {},
    "one step": {"horizon": 1, "window": 7},
    "window of one": {"window": 1, "horizon": 2},
    "season": {"season": 4},
    "trend": {"season": 4, "trend_seasons": 2},
    "trend without a season": {"trend_seasons": 3},
    "horizon beyond a season": {"season": 3, "trend_seasons": 1, "horizon": 8, "validation": 0.4},
    "inputs": INPUTS,
    "inputs and trend": {**INPUTS, "season": 3, "trend_seasons": 1},
    "no gap is filled": {**INPUTS, "max_gap": 0},
    "long gaps are filled": {**INPUTS, "max_gap": 6},
    "no validation": {"validation": 0, "season": 2},
}
each_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())


def make_table(rows=91, seed=0, gaps=0.06, times=False):
    """Return a walk, a season and two inputs, with short gaps and a long one in each."""
    rng = np.random.default_rng(seed)
    table = {
        "y": rng.normal(size=rows).cumsum() + 3 * np.sin(np.arange(rows) * np.pi / 2),
        "a": rng.normal(5.0, 3.0, rows),
        "b": rng.normal(size=rows).cumsum(),
    }
    for place, column in enumerate(table.values()):
        column[rng.random(rows) < gaps] = NAN
        column[30 + place : 33 + 2 * place] = NAN
    if times:
        table["t"] = np.datetime64("2000-02-27") + np.arange(rows).astype("timedelta64[D]")
    return table


def make(**settings):
    """Return a tiny forecaster."""
    return Forecaster(**TINY | settings)


def several(*tables):
    """Return one table of several series, named in the column "who"."""
    names = np.repeat(["north", "south", "west"][: len(tables)], [len(table["y"]) for table in tables])
    return {"who": names, **{name: np.concatenate([table[name] for table in tables]) for name in tables[0]}}


def model_bytes(forecaster, folder):
    """Return every bit that a fitted forecaster keeps."""
    forecaster.save(folder / "model")
    return (folder / "model").read_bytes()


# --- an oracle in plain Python, from the rules alone


class Oracle:
    """The windows of one series, each value by its definition."""

    def __init__(self, forecaster, table):
        self.settings = forecaster
        self.raw = [list(table[name]) for name in (forecaster.target, *forecaster.inputs)]
        self.rows = len(self.raw[0])
        self.filled = [self.fill(column) for column in self.raw]

    def fill(self, column):
        column, last = list(column), None
        for row, value in enumerate(column):
            if value == value:
                if last is not None and 1 < row - last <= self.settings.max_gap + 1:
                    for t in range(last + 1, row):
                        column[t] = column[last] + (value - column[last]) * (t - last) / (row - last)
                last = row
        return column

    def known(self, first, last, columns):
        """Return whether the columns have values, given or filled, in all rows from one to another."""
        return first >= 0 and last < self.rows and all(c[t] == c[t] for c in columns for t in range(first, last + 1))

    def origins(self):
        f = self.settings
        needed = max(f.window, (f.trend_seasons + 1) * f.season)
        return [
            t
            for t in range(self.rows)
            if all(column[t] == column[t] for column in self.raw) and self.known(t - needed + 1, t, self.filled)
        ]

    def examples(self, first=0):
        """Return the origins to learn from: their targets are known, and begin at row `first` or later."""
        horizon = self.settings.horizon
        return [t for t in self.origins() if t + 1 >= first and self.known(t + 1, t + horizon, self.filled[:1])]

    def line(self, t, offset):
        f, y = self.settings, self.filled[0]
        last = sum(y[t - k] for k in range(f.season)) / f.season
        if not f.trend_seasons:
            return last
        back = f.trend_seasons * f.season
        earlier = sum(y[t - back - k] for k in range(f.season)) / f.season
        return last + (last - earlier) / back * (offset + (f.season - 1) / 2)

    def departures(self, t, offsets):
        return [self.filled[0][t + k] - self.line(t, k) for k in offsets]

    def past(self):
        return range(1 - self.settings.window, 1)

    def ahead(self):
        return range(1, self.settings.horizon + 1)

    def scale(self):
        """Return mean and deviation of each feature: of the windows' departures, and of all values of the inputs.

        Where the window is a row that does not depart from itself, of the departures ahead.
        """
        single = self.settings.window == 1 and self.settings.season * (1 + self.settings.trend_seasons) == 1
        columns = [np.array([self.departures(t, self.ahead() if single else self.past()) for t in self.examples()])]
        together = [row for row in zip(*self.filled[1:], strict=True) if all(x == x for x in row)]
        columns += [np.array(column) for column in zip(*together, strict=True)]
        return [column.mean() for column in columns], [column.std() or 1.0 for column in columns]

    def X(self, origins, mean, scale):
        features = [
            [self.departures(t, self.past()), *([column[t + k] for k in self.past()] for column in self.filled[1:])]
            for t in origins
        ]
        return (np.array(features).transpose(0, 2, 1) - mean) / scale

    def Y(self, origins, mean, scale):
        return (np.array([self.departures(t, self.ahead()) for t in origins]) - mean[0]) / scale[0]

    def forecasts(self, origins, outputs, mean, scale):
        lines = [[self.line(t, k) for k in self.ahead()] for t in origins]
        return outputs * scale[0] + mean[0] + lines


@pytest.fixture
def trainings(monkeypatch):
    """Record what networks are trained on: X, Y and the validation data."""
    seen = []

    def train(network, X, Y, **options):
        seen.append((X, Y, options.get("validation_data")))
        return lstm_ext.train(network, X, Y, **options)

    monkeypatch.setattr(module, "train", train)
    return seen


@each_setting
def test_the_network_learns_what_the_rules_say(settings, trainings):
    forecaster, table = make(**settings), make_table()
    fit = forecaster.fit(table)
    *watched, final = trainings
    oracle = Oracle(forecaster, table)
    origins, scale = oracle.examples(), oracle.scale()
    assert 30 < len(origins) == fit.examples
    np.testing.assert_allclose(final[0], oracle.X(origins, *scale), atol=2e-6)
    np.testing.assert_allclose(final[1], oracle.Y(origins, *scale), atol=2e-6)
    if forecaster.validation:
        cut = int(91 * (1 - forecaster.validation))
        early = Oracle(forecaster, {name: column[:cut] for name, column in table.items()})
        origins, scale = early.examples(), early.scale()
        ((X, Y, (X_after, Y_after)),) = watched
        np.testing.assert_allclose(X, early.X(origins, *scale), atol=2e-6)
        np.testing.assert_allclose(Y, early.Y(origins, *scale), atol=2e-6)
        after = oracle.examples(cut)
        np.testing.assert_allclose(X_after, oracle.X(after, *scale), atol=5e-6)
        np.testing.assert_allclose(Y_after, oracle.Y(after, *scale), atol=5e-6)


@pytest.mark.filterwarnings("ignore:.*no later row")
@each_setting
def test_forecasts_follow_the_definitions(settings):
    forecaster, table = make(**settings), make_table()
    forecaster.fit(table, until=80)
    oracle = Oracle(forecaster, table)
    mean, scale = Oracle(forecaster, {name: column[:79] for name, column in table.items()}).scale()
    origins = oracle.origins()
    outputs = forecaster.network.predict(oracle.X(origins, mean, scale).astype(np.float32))
    expected = oracle.forecasts(origins, outputs, mean, scale)
    found = forecaster.predict(table, every_origin=True)
    assert found["origin"].tolist() == [t + 1 for t in origins for _ in oracle.ahead()]
    assert found["steps_ahead"].tolist() == list(oracle.ahead()) * len(origins)
    np.testing.assert_array_equal(found["row"], found["origin"] + found["steps_ahead"])
    np.testing.assert_allclose(found["forecast"].reshape(expected.shape), expected, rtol=1e-4, atol=1e-4)
    last = forecaster.predict(table)
    assert {name: column.tolist() for name, column in last.items()} == {
        name: column[-forecaster.horizon :].tolist() for name, column in found.items()
    }


@each_setting
@pytest.mark.parametrize("since", [1, 40, 62])
def test_evaluations_follow_the_definitions(settings, since):
    forecaster, table = make(**settings), make_table()
    forecaster.fit(table)
    oracle = Oracle(forecaster, table)
    origins = [t for t in oracle.origins() if since - 2 <= t < 91 - forecaster.horizon]
    evaluation = forecaster.evaluate(table, since=since)
    assert evaluation.origins.tolist() == [t + 1 for t in origins]
    np.testing.assert_array_equal(evaluation.observed, [[table["y"][t + k] for k in oracle.ahead()] for t in origins])
    assert np.isnan(evaluation.observed).any() or since > 40
    found = forecaster.predict(table, every_origin=True)
    forecasts = dict(zip(zip(found["origin"], found["row"], strict=True), found["forecast"], strict=True))
    expected = [[forecasts[t + 1, t + k + 1] for k in oracle.ahead()] for t in origins]
    np.testing.assert_array_equal(evaluation.forecasts["LSTM"], expected)


# --- what was known


@each_setting
@pytest.mark.parametrize("gap", [(), (58, 59), (59, 60, 61), (60, 61), range(55, 66)])
@pytest.mark.parametrize("until", [61, 0.66])
def test_training_does_not_change_with_what_comes_after_until(settings, gap, until, tmp_path):
    """Row 61, counted from 1, is the first one that `fit` ignores."""
    forecaster, table = make(**settings), make_table()
    for name in ("y", "a", "b"):
        table[name][list(gap)] = NAN
    changed = {name: np.where(np.arange(91) < 60, column, 1e6) for name, column in table.items()}
    changed["y"][60::2] = NAN
    forecaster.fit(table, until=until)
    expected = model_bytes(forecaster, tmp_path)
    forecaster.fit(changed, until=until)
    assert model_bytes(forecaster, tmp_path) == expected
    cut = {name: column[:60] for name, column in table.items()}
    forecaster.fit(cut)
    assert model_bytes(forecaster, tmp_path) == expected
    assert forecaster.trained_before == {"": "61"}


def test_training_on_several_series_does_not_change_with_what_comes_after_until(tmp_path):
    tables = [make_table(rows, seed, times=True) for rows, seed in ((91, 1), (67, 2))]
    forecaster = make(**INPUTS, time="t", series="who", season=3)
    results = []
    for changed in (False, True):
        for table in tables:
            after = table["t"] >= np.datetime64("2000-04-20")
            for name in ("y", "a", "b"):
                table[name] = np.where(after & changed, -1e5, table[name])
        forecaster.fit(several(*tables), until="2000-04-20")
        results.append(model_bytes(forecaster, tmp_path))
    assert results[0] == results[1]
    assert forecaster.trained_before == {"north": "2000-04-20", "south": "2000-04-20"}


@pytest.mark.parametrize("row", [59, 58, 40, 10])
def test_every_row_before_until_counts(row, tmp_path):
    """The tests above would pass for a training that ignores the table."""
    table = make_table(gaps=0)
    forecaster = make()
    forecaster.fit(table, until=61)
    before = model_bytes(forecaster, tmp_path)
    table["y"][row] += 1.0
    forecaster.fit(table, until=61)
    assert model_bytes(forecaster, tmp_path) != before


@each_setting
def test_forecasts_do_not_change_with_what_comes_after_the_origin(settings):
    forecaster, table = make(**settings), make_table()
    forecaster.fit(table)
    expected = forecaster.predict(table, every_origin=True)
    for origin in np.unique(expected["origin"]):
        rows = np.arange(1, 92)
        after = {name: np.where(rows > origin, 1e5, column) for name, column in table.items()}
        others = {name: np.where((rows > origin) & np.isnan(column), -7.0, column) for name, column in table.items()}
        gaps = {name: np.where(rows > origin, NAN, column) for name, column in table.items()}
        cut = {name: column[:origin] for name, column in table.items()}
        for changed in (after, others, gaps, cut):
            found = forecaster.predict(changed, every_origin=True)
            known, same = (result["origin"] <= origin for result in (expected, found))
            np.testing.assert_array_equal(found["forecast"][same], expected["forecast"][known])


@pytest.mark.parametrize("column", ["y", "a", "b"])
def test_every_value_of_the_window_counts(column):
    forecaster, table = make(**INPUTS), make_table(gaps=0)
    forecaster.fit(table)
    expected = forecaster.predict(table)["forecast"]
    for row in range(86, 91):
        changed = {name: values + (np.arange(91) == row) * (name == column) for name, values in table.items()}
        assert (forecaster.predict(changed)["forecast"] != expected).all()
    before = {name: values + 9 * (np.arange(91) < 86) for name, values in table.items()}
    np.testing.assert_array_equal(forecaster.predict(before)["forecast"], expected)


def test_the_baselines_of_an_origin_know_no_more():
    forecaster, table = make(season=4, horizon=6), make_table(gaps=0)
    forecaster.fit(table)
    expected = forecaster.evaluate(table, since=60)
    changed = {name: np.where(np.arange(91) > 70, 1e4, column) for name, column in table.items()}
    found = forecaster.evaluate(changed, since=60)
    early = expected.origins <= 71
    assert early.any()
    for name, forecast in expected.forecasts.items():
        np.testing.assert_array_equal(found.forecasts[name][early], forecast[early])


# --- time, share and row


def test_until_as_a_time_a_share_and_a_row(tmp_path):
    dated, numbered = (make(time=time, validation=0) for time in ("t", None))
    table = make_table(80, times=True)
    results = []
    moments = ["2000-04-07", np.datetime64("2000-04-07"), "2000-04-06T12:00", table["t"][40].item(), 0.5]
    for until in moments:
        dated.fit(table, until=until)
        results.append(dated.network.parameters.tobytes())
        assert dated.trained_before == {"": "2000-04-07"}
    for until in (41, "41", 40.5, 0.5):
        numbered.fit(table, until=until)
        results.append(numbered.network.parameters.tobytes())
    assert len(set(results)) == 1


def test_a_share_is_taken_of_each_series(trainings):
    long, short = make_table(200, gaps=0), make_table(80, seed=1, gaps=0)
    for table in (long, short):
        for column in table.values():
            column[np.isnan(column)] = 0.0
    forecaster = make(series="who", validation=0)
    forecaster.fit(several(long, short), until=0.5)
    assert len(trainings[0][0]) == (100 - 7) + (40 - 7)
    evaluation = forecaster.evaluate(several(long, short), since=0.5)
    assert [evaluation.origins[evaluation.series == name].min() for name in ("north", "south")] == [100, 40]


def test_an_until_beyond_the_end_is_all_and_none_at_the_beginning():
    table = make_table(60)
    assert make().fit(table, until=99).examples == make().fit(table).examples
    with pytest.raises(
        ValueError, match=r"^until is -3, which leaves no row to train on; expected a later time or share"
    ):
        make().fit(table, until=-3)


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("yesterday", "is 'yesterday'; expected a number, as in the table, or a share of the rows such as 0.8"),
        ([1], r"is \[1\]; expected"),
        ({"": "x"}, r"\[''\] is 'x'; expected"),
        (NAN, "is nan; expected"),
    ],
)
def test_until_and_since_of_another_kind(when, message):
    forecaster = make()
    forecaster.fit(make_table(60))
    with pytest.raises(ValueError, match=f"^until ?{message}"):
        forecaster.fit(make_table(60), until=when)
    with pytest.raises(ValueError, match=f"^since ?{message}"):
        forecaster.evaluate(make_table(60), since=when)


@pytest.mark.parametrize("when", [True, np.False_, {"": True}])
def test_a_bool_is_no_row(when):
    forecaster = make()
    with pytest.raises(TypeError, match=r"until is (True|False); expected a time, a share of the rows, or None"):
        forecaster.fit(make_table(60), until=when)
    forecaster.fit(make_table(60))
    with pytest.raises(TypeError, match=r"since is (True|False); expected a time, a share of the rows, or None"):
        forecaster.evaluate(make_table(60), since=when)


@pytest.mark.parametrize("share", [np.float32(0.5), np.float16(0.5)])
def test_a_share_of_any_precision(share):
    assert make().fit(make_table(60), until=share).examples == make().fit(make_table(60), until=0.5).examples


# --- the number of epochs, the seed


def test_the_epochs_are_those_with_the_least_validation_loss(tmp_path):
    forecaster = make(epochs=40, patience=3, learning_rate=0.05)
    fit = forecaster.fit(make_table(gaps=0))
    losses = fit.watched.validation_loss
    assert fit.epochs == 1 + int(np.argmin(losses)) == len(fit.history.loss)
    assert fit.epochs == len(losses) - 3 < 37
    assert fit.history.validation_loss == []
    alone = replace(forecaster, validation=0, epochs=fit.epochs)
    again = alone.fit(make_table(gaps=0))
    assert (again.watched, again.epochs) == (None, fit.epochs)
    assert alone.network.parameters.tobytes() == forecaster.network.parameters.tobytes()


def test_patience_counts_passes_without_a_better_one():
    fit = make(epochs=9, patience=50).fit(make_table())
    assert len(fit.watched.loss) == 9
    constant = make(learning_rate=0.0, epochs=9, patience=2).fit(make_table())
    assert (constant.epochs, len(constant.watched.loss)) == (1, 3)


def test_callbacks_watch_and_may_stop():
    lengths = []

    def stop_at_two(network, history):
        lengths.append((network.sizes, len(history.loss), len(history.validation_loss)))
        return len(lengths) == 2

    fit = make(epochs=5).fit(make_table(), callbacks=iter([stop_at_two]))
    assert lengths == [((1, 3, 3), 1, 1), ((1, 3, 3), 2, 2)]
    assert len(fit.watched.loss) == 2


@pytest.mark.parametrize("answer", [True, np.True_])
def test_callbacks_watch_the_only_training_without_validation(answer):
    lengths = []

    def stop_at_two(network, history):
        lengths.append((len(history.loss), len(history.validation_loss)))
        return answer if len(lengths) == 2 else None

    fit = make(epochs=5, validation=0).fit(make_table(), callbacks=[stop_at_two])
    assert lengths == [(1, 0), (2, 0)]
    assert (fit.epochs, len(fit.history.loss), fit.watched) == (2, 2, None)


@pytest.mark.parametrize("validation", [0, 0.2])
@pytest.mark.parametrize("answer", [1, "no", np.ones(2)])
def test_a_callback_that_returns_no_flag(validation, answer):
    forecaster = make(validation=validation)
    with pytest.raises(TypeError, match=r"callbacks\[0\] returned .*; expected True to stop, or None or False"):
        forecaster.fit(make_table(), callbacks=[lambda *_: answer])
    assert forecaster.network is None


@pytest.mark.parametrize("validation", [0, 0.2])
@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (3, "callbacks is 3; expected an iterable of callables"),
        (memoryview(np.zeros((2, 2))), "callbacks is <memory at 0x[0-9a-f]+>; expected an iterable"),
        ([len, "stop"], r"callbacks\[1\] is 'stop'; expected a callable"),
    ],
)
def test_callbacks_that_are_none(validation, callbacks, message):
    with pytest.raises(TypeError, match=message):
        make(validation=validation).fit({"y": "not even looked at"}, callbacks=callbacks)


def test_the_settings_reach_the_training(monkeypatch):
    seen, rates = [], []

    def train(network, X, Y, **options):
        seen.append(options)
        return lstm_ext.train(network, X, Y, **options)

    def adam(learning_rate):
        rates.append(learning_rate)
        return lstm_ext.Adam(learning_rate)

    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "Adam", adam)
    settings = {"batch_size": 7, "clip_norm": 0.25, "seed": 9, "epochs": 2}
    make(**settings, learning_rate=0.003).fit(make_table(), num_threads=1)
    assert rates == [0.003, 0.003]
    assert len(seen) == 2
    assert {name: seen[0][name] for name in settings} == settings
    assert {name: seen[1][name] for name in settings if name != "epochs"} == {
        name: value for name, value in settings.items() if name != "epochs"
    }
    assert [options["num_threads"] for options in seen] == [1, 1]


def test_verbose_is_for_both_trainings(capsys):
    make(epochs=2).fit(make_table(), verbose=True)
    assert capsys.readouterr().err.count("epoch 1/") == 2
    make(epochs=2).fit(make_table(), verbose=False)
    assert capsys.readouterr() == ("", "")
    with pytest.raises(TypeError, match="verbose is 'no'; expected"):
        make().fit(make_table(), verbose="no")


def test_the_same_seed_gives_the_same_bits(tmp_path):
    results = []
    for seed in (4, 4, 5):
        forecaster = make(seed=seed)
        np.random.seed(len(results))
        forecaster.fit(make_table())
        results.append(forecaster.network.parameters.tobytes())
    assert results[0] == results[1] != results[2]


def test_any_number_of_threads_gives_the_same_bits(monkeypatch):
    lstm_ext.get_num_threads()
    monkeypatch.setattr(lstm_ext.threads, "_available", 4)
    table, results = make_table(rows=400), []
    for num_threads in (1, 3):
        forecaster = make(hidden_dim=50, epochs=2)
        forecaster.fit(table, num_threads=num_threads)
        forecasts = forecaster.predict(table, every_origin=True, num_threads=num_threads)["forecast"]
        evaluation = forecaster.evaluate(table, num_threads=num_threads)
        results.append((forecaster.network.parameters.tobytes(), forecasts.tobytes(), evaluation.rmse()))
    assert results[0] == results[1]


def test_it_learns_a_noisy_season_with_a_trend():
    rng = np.random.default_rng(3)
    rows = np.arange(420)
    table = {"y": 100 + 0.05 * rows + 4 * np.sin(2 * np.pi * rows / 12) + 0.3 * rng.normal(size=420)}
    table["y"][200:215] = NAN
    forecaster = Forecaster(target="y", window=14, horizon=4, hidden_dim=8, epochs=15, learning_rate=0.02)
    forecaster.fit(table, until=0.8)
    errors = forecaster.evaluate(table, since=0.8).rmse()
    assert 0.3 < errors["LSTM"] < 0.5  # the noise alone is 0.3; seeds reach 0.42 to 0.48
    assert errors["last value"] > 3


def test_it_learns_from_an_input():
    """The target is the input two rows before; the target's own past does not determine it."""
    rain = np.random.default_rng(4).normal(size=500)
    table = {"y": np.roll(rain, 2), "rain": rain}
    errors = {}
    for inputs in ([], ["rain"]):
        forecaster = make(inputs=inputs, horizon=1, hidden_dim=5, epochs=20, learning_rate=0.03)
        forecaster.fit(table, until=0.8)
        errors[len(inputs)] = forecaster.evaluate(table, since=0.8).rmse()["LSTM"]
    assert errors[0] > 0.9  # the target's standard deviation is 1
    assert errors[1] < 0.16


# --- baselines and scores


def test_last_value_is_the_baseline_without_a_season():
    table = make_table()
    forecaster = make()
    forecaster.fit(table)
    evaluation = forecaster.evaluate(table)
    assert list(evaluation.forecasts) == ["LSTM", "last value"]
    rows = evaluation.origins - 1
    np.testing.assert_array_equal(evaluation.forecasts["last value"], np.repeat(table["y"][rows][:, None], 3, axis=1))


@pytest.mark.parametrize("slope", [0.0, 0.5, -2.0])
@pytest.mark.parametrize("horizon", [1, 3, 4, 10])
@pytest.mark.parametrize("rows", [60, 30])
def test_baselines_on_a_season_with_a_slope(slope, horizon, rows):
    steps = np.arange(rows)
    table = {"y": 7.0 + slope * steps + np.resize([0.0, 3.0, -1.0, 0.5], rows)}
    forecaster = make(season=4, horizon=horizon, validation=0)
    forecaster.fit(table)
    evaluation = forecaster.evaluate(table, since=14)
    seasons = np.ceil(np.arange(1, horizon + 1) / 4)
    behind = evaluation.observed - evaluation.forecasts["last season"]
    np.testing.assert_allclose(behind, np.broadcast_to(4 * slope * seasons, behind.shape), atol=1e-12)
    assert evaluation.rmse()["last season with drift"] < 1e-12


@pytest.mark.parametrize(("since", "seasons"), [(71, 10), (60, 10), (40, 8), (15, 2), (13, 2)])
def test_drift_is_the_growth_over_up_to_ten_seasons_that_are_known(since, seasons):
    walk = np.random.default_rng(0).normal(size=80).cumsum()
    forecaster = make(season=4, horizon=6)
    forecaster.fit({"y": walk})
    evaluation = forecaster.evaluate({"y": walk}, since=since)
    growths = [np.mean([walk[t - k] - walk[t - k - 4] for k in range(4 * seasons)]) for t in evaluation.origins - 1]
    difference = evaluation.forecasts["last season with drift"] - evaluation.forecasts["last season"]
    np.testing.assert_allclose(difference, np.outer(growths, [1, 1, 1, 1, 2, 2]), atol=1e-12)


def test_no_drift_where_only_one_season_is_known():
    walk = np.random.default_rng(0).normal(size=80).cumsum()
    forecaster = make(season=4)
    forecaster.fit({"y": walk})
    assert list(forecaster.evaluate({"y": walk}).forecasts) == ["LSTM", "last season"]
    assert "last season with drift" in forecaster.evaluate({"y": walk}, since=9).forecasts


def test_co2_baselines():
    dates, ppm = lstm_ext.load_co2()
    settings = {"window": 52, "horizon": 52, "season": 52, "hidden_dim": 2, "epochs": 1, "validation": 0}
    forecaster = Forecaster(target="ppm", time="date", **settings)
    forecaster.fit({"date": dates, "ppm": ppm}, until="1962-01-01")
    kept = dates < np.datetime64("1994-01-01")
    evaluation = forecaster.evaluate({"date": dates[kept], "ppm": ppm[kept]}, since="1990-01-01")
    assert (str(evaluation.origins[0]), evaluation.observed.shape) == ("1989-12-30", (157, 52))
    assert evaluation.rmse()["last season"] == pytest.approx(1.252, abs=5e-4)
    assert evaluation.rmse()["last season with drift"] == pytest.approx(0.871, abs=5e-4)


# --- several series


@pytest.mark.parametrize(
    "window",
    [5, 2, 1],
)
def test_each_series_is_scaled_by_itself(window):
    tables = [make_table(seed=1), make_table(seed=2)]
    forecaster = make(**INPUTS, series="who", window=window)
    forecaster.fit(several(*tables))
    expected = forecaster.predict(several(*tables), every_origin=True)
    scaled = several(tables[0], {**tables[1], "y": tables[1]["y"] * 1024.0, "a": tables[1]["a"] / 64.0})
    again = replace(forecaster)
    again.fit(scaled)
    found = again.predict(scaled, every_origin=True)
    assert again.network.parameters.tobytes() == forecaster.network.parameters.tobytes()
    factor = np.where(expected["who"] == "south", 1024.0, 1.0)
    np.testing.assert_array_equal(found["forecast"], factor * expected["forecast"])


def test_the_forecasts_of_a_series_do_not_depend_on_other_series():
    tables = [make_table(70, seed) for seed in (1, 2, 3)]
    forecaster = make(series="who")
    forecaster.fit(several(*tables))
    together = forecaster.predict(several(*tables))
    assert together["who"].tolist() == ["north"] * 3 + ["south"] * 3 + ["west"] * 3
    alone = forecaster.predict({"who": np.full(70, "south"), "y": tables[1]["y"]})
    np.testing.assert_array_equal(alone["forecast"], together["forecast"][3:6])
    order = np.random.default_rng(0).permutation(210)
    order = order[np.argsort(np.concatenate([np.arange(70)] * 3)[order], kind="stable")]
    mixed = forecaster.predict({name: np.asarray(column)[order] for name, column in several(*tables).items()})
    for name in ("north", "south", "west"):
        np.testing.assert_array_equal(
            mixed["forecast"][mixed["who"] == name], together["forecast"][together["who"] == name]
        )


def test_series_that_are_too_short_are_left_out_and_named():
    tables = [make_table(70, 1, gaps=0), {name: column[:6] for name, column in make_table(70, 2, gaps=0).items()}]
    forecaster = make(series="who")
    with pytest.warns(UserWarning, match="1 series left out: series 'south': it has 6 rows"):
        forecaster.fit(several(*tables))
    alone = make()
    alone.fit(tables[0])
    assert forecaster.network.parameters.tobytes() == alone.network.parameters.tobytes()
    with pytest.warns(UserWarning, match="1 series left out: series 'south': it was not in training, which had north"):
        assert set(forecaster.predict(several(*tables))["who"]) == {"north"}
    with pytest.raises(ValueError, match="series 'south': it was not in training, which had north"):
        forecaster.predict({"who": ["south"] * 6, "y": tables[1]["y"]})


def test_an_error_lists_a_few_of_many_series():
    forecaster = make(series="who", validation=0, epochs=1)
    table = make_table(10, gaps=0)
    names = np.repeat([f"s{j}" for j in range(30)], 10)
    forecaster.fit({"who": names, "y": np.tile(table["y"], 30)})
    with pytest.raises(ValueError, match=r"series 'other': it was not in training, which had s0, .*, s19, \.\.\.$"):
        forecaster.predict({"who": ["other"] * 10, "y": table["y"]})


def test_all_series_too_short():
    table = several(*({name: column[:7] for name, column in make_table(seed=seed).items()} for seed in (1, 2)))
    with pytest.raises(ValueError, match=r"series 'north': it has 7 rows, .* expected 5 for the window .* and 3 more"):
        make(series="who", validation=0).fit(table)


def test_short_series_can_be_forecast_once_trained():
    forecaster = make(season=3, trend_seasons=1)
    forecaster.fit(make_table())
    table = make_table(6, gaps=0)
    assert forecaster.predict(table)["row"].tolist() == [7, 8, 9]
    needed = "expected 6 for the window and its seasons, the last of them observed"
    with pytest.raises(ValueError, match=rf"^table: it has 5 rows, .*; {needed}$"):  # forecasts need no horizon
        forecaster.predict({"y": table["y"][:5]})
    with pytest.raises(ValueError, match=rf"^table: it has 6 rows, .*; {needed}, and 3 more for the horizon$"):
        forecaster.evaluate(table)
    with pytest.raises(ValueError, match=r", and 3 more for the horizon, these from 5 on$"):
        forecaster.evaluate(table, since=5)


# --- series of many kinds


@pytest.mark.parametrize("value", [0.1, 0.0, -1e9])
@pytest.mark.parametrize("settings", [{}, {"season": 3, "trend_seasons": 2}])
def test_a_constant_series_is_forecast_by_itself(value, settings):
    forecaster = make(**settings, inputs=["a"])
    table = {"y": np.full(50, value), "a": np.full(50, 3.3)}
    forecaster.fit(table)
    np.testing.assert_allclose(forecaster.predict(table)["forecast"], value, rtol=1e-12, atol=1e-12)


def test_windows_do_not_cross_a_long_gap(trainings):
    table = {"y": np.arange(60.0) ** 2}
    table["y"][20:35] = NAN
    make(validation=0).fit(table)
    assert len(trainings[0][0]) == (20 - 7) + (25 - 7)


def test_a_forecast_from_before_the_last_observed_row_is_warned_of():
    """After the last long gap, there are fewer rows than in a window."""
    table = make_table(60, gaps=0)
    forecaster = make()
    forecaster.fit(table)
    table["y"][50:56] = NAN
    with pytest.warns(UserWarning, match="table: forecast from 50, although the target is known up to 60"):
        assert forecaster.predict(table)["origin"].tolist() == [50, 50, 50]


def test_times_of_forecasts():
    forecaster = make(time="t", horizon=4)
    table = make_table(61, gaps=0, times=True)
    forecaster.fit(table)
    found = forecaster.predict(table)
    assert list(found) == ["origin", "steps_ahead", "t", "forecast"]
    assert [str(time) for time in found["t"]] == ["2000-04-28", "2000-04-29", "2000-04-30", "2000-05-01"]
    assert {str(time) for time in found["origin"]} == {"2000-04-27"}
    assert found["steps_ahead"].tolist() == [1, 2, 3, 4]


def test_a_fit_on_other_time_steps():
    forecaster, table = make(time="t"), make_table(61, times=True)
    forecaster.fit(table)
    hourly = {**table, "t": np.datetime64("2000-01-01T00") + np.arange(61).astype("timedelta64[h]")}
    with pytest.raises(ValueError, match="column 't' has steps of 1 hour; expected 1 day, as in training"):
        forecaster.predict(hourly)
    forecaster.fit(hourly)
    assert str(forecaster.predict(hourly)["t"][0]) == "2000-01-03T13:00:00"
    with pytest.raises(ValueError, match="column 't' has steps of 1 day; expected 1 hour"):
        forecaster.evaluate(table)


@pytest.mark.parametrize("form", ["csv", "parquet", "frame"])
def test_every_source_gives_the_same_forecasts(tmp_path, form):
    table = make_table(times=True)
    forecaster = make(**INPUTS, time="t")
    forecaster.fit(table)
    expected = forecaster.predict(table)
    if form == "frame":
        source = pytest.importorskip("pandas").DataFrame(table)
    else:
        if form == "parquet":
            pytest.importorskip("pyarrow")
        source = tmp_path / f"table.{form}"
        source.write_bytes(lstm_ext.forecasting.tables.encode_table(table, source))
    again = replace(forecaster)
    again.fit(source)
    found = again.predict(source)
    assert {name: column.tolist() for name, column in found.items()} == {
        name: column.tolist() for name, column in expected.items()
    }


def test_find_series():
    table = make_table(40, times=True)
    (found,) = make(**INPUTS, time="t").find_series(table)
    np.testing.assert_array_equal(found.values, np.stack([table[name] for name in "yab"], axis=1))
    assert found.axis.describe_step() == "1 day"


def test_nothing_that_comes_in_is_modified():
    table = make_table()
    before = {name: column.copy() for name, column in table.items()}
    forecaster = make(**INPUTS)
    forecaster.fit(table)
    forecaster.evaluate(table)
    for name, column in table.items():
        np.testing.assert_array_equal(column, before[name])


# --- errors change nothing


@pytest.mark.parametrize(
    ("settings", "table", "message"),
    [
        ({}, {"y": np.ones(7)}, "it has . rows"),
        ({}, {"y": np.full(50, NAN)}, "at most 0 of them without a gap"),
        ({}, {"y": []}, "no rows"),
        ({}, {"x": np.ones(50)}, "no column 'y'"),
        ({}, {"y": [*"1234567890" * 4, "warm"]}, "row 41 is .*'warm'"),
        ({"window": 60}, make_table(), "expected 60 for the window"),
        ({"horizon": 60}, make_table(), "60 more for the horizon"),
        ({"season": 40, "trend_seasons": 2}, make_table(), "expected 120 for the window and its seasons"),
        ({"validation": 0.02}, make_table(), "validation is 0.02, at most 2 rows of a series"),
        ({"learning_rate": 1e30, "epochs": 9}, make_table(), "epoch"),
        ({"hidden_dim": 10**9}, make_table(), "memory"),
    ],
)
def test_a_fit_that_fails_leaves_the_forecaster_as_it_was(settings, table, message, tmp_path):
    forecaster = make()
    forecaster.fit(make_table())
    before = model_bytes(forecaster, tmp_path)
    vars(forecaster).update(settings)  # which are read-only
    with pytest.raises((ValueError, lstm_ext.NonFiniteError), match=message):
        forecaster.fit(table)
    vars(forecaster).update({name: getattr(make(), name) for name in settings})
    assert model_bytes(forecaster, tmp_path) == before


@pytest.mark.parametrize(
    "name",
    [
        "window",
        "season",
        "trend_seasons",
        "batch_size",
        "max_gap",
        "horizon",
    ],
)
def test_sizes_beyond_all_measure(name):
    forecaster = make(**{name: 10**30})
    if name in ("batch_size", "max_gap"):
        forecaster.fit(make_table())
    else:
        with pytest.raises(ValueError, match=r"it has \d+ rows"):
            forecaster.fit(make_table())


@pytest.mark.parametrize(
    ("rows", "message"), [(7, "table: it has 7 rows"), (9, "without the validation rows, .* 7 rows")]
)
def test_a_table_that_is_too_short_is_told_with_its_own_rows(rows, message):
    with pytest.raises(ValueError, match=message):
        make().fit({"y": np.ones(rows)})


def test_validation_rows_that_are_too_few_for_the_horizon_are_told_of():
    with pytest.raises(ValueError, match=r"validation is 0\.15.* 9 .*horizon"):
        make(horizon=10).fit({"y": np.arange(60.0)})


@pytest.mark.parametrize("use", ["predict", "evaluate", "save"])
def test_before_fit(use, tmp_path):
    with pytest.raises(RuntimeError, match=r"the Forecaster is not fitted; call fit\(table\) first"):
        getattr(make(), use)(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_score():
    table = make_table(gaps=0)
    forecaster = make()
    forecaster.fit(table)
    for since in (92, {"": 92}):
        with pytest.raises(ValueError, match=r"its last row, 91, lies before 92$"):
            forecaster.evaluate(table, since=since)
    table["y"][85:] = NAN
    with pytest.raises(ValueError, match=r"table holds nothing to score from 86 on$"):
        forecaster.evaluate(table, since=86)
    with pytest.raises(ValueError, match=r"table holds nothing to score from the time of each series on$"):
        forecaster.evaluate(table, since={"": 86})


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("target", 3, TypeError),
        ("target", None, TypeError),
        ("inputs", "rain", TypeError),
        ("inputs", memoryview(np.ones((2, 2))), TypeError),
        ("inputs", None, TypeError),
        ("inputs", {"rain"}, TypeError),
        ("inputs", [3], TypeError),
        ("inputs", ["y"], ValueError),
        ("inputs", ["a", "a"], ValueError),
        ("time", 3, TypeError),
        ("time", np.arange(10**6), TypeError),
        ("series", b"s", TypeError),
        ("time", "y", ValueError),
        ("time", "origin", ValueError),
        ("series", "y", ValueError),
        ("series", "forecast", ValueError),
        ("series", "steps_ahead", ValueError),
        ("series", "row", ValueError),
        *((name, 0, ValueError) for name in ("window", "horizon", "season", "hidden_dim", "epochs", "patience")),
        ("batch_size", 0, ValueError),
        *((name, 1.5, TypeError) for name in ("window", "horizon", "season", "hidden_dim", "epochs", "patience")),
        *((name, "5", TypeError) for name in ("window", "max_gap", "trend_seasons", "validation", "learning_rate")),
        ("window", True, TypeError),
        ("max_gap", -1, ValueError),
        ("max_gap", 1.5, TypeError),
        ("trend_seasons", -1, ValueError),
        ("trend_seasons", 0.5, TypeError),
        *(
            (name, value, TypeError)
            for name, value in (("trend_seasons", None), ("max_gap", ""), ("max_gap", 0.0), ("trend_seasons", False))
        ),
        ("validation", 1, ValueError),
        ("validation", -0.1, ValueError),
        ("validation", NAN, ValueError),
        ("learning_rate", -1.0, ValueError),
        ("learning_rate", np.inf, ValueError),
        ("clip_norm", -1.0, ValueError),
        ("clip_norm", 0.0, ValueError),
        ("clip_norm", NAN, ValueError),
        ("seed", -1, ValueError),
        ("seed", 0.5, TypeError),
    ],
)
def test_bad_arguments_are_named(name, value, error):
    column = error is ValueError and name in ("inputs", "time", "series")
    with pytest.raises(error, match="^column '" if column else rf"^{name}(\[\d\])? is ") as caught:
        Forecaster(**{"target": "y", name: value})
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("name", ["target", "inputs", "horizon", "window", "season", "validation", "seed", "max_gap"])
def test_settings_are_read_only(name, tmp_path):
    forecaster, other = make(), make(horizon=2)
    forecaster.fit(make_table())
    before = model_bytes(forecaster, tmp_path)
    with pytest.raises(AttributeError, match=rf"^{name} is read-only; dataclasses\.replace"):
        setattr(forecaster, name, getattr(other, name))
    with pytest.raises(AttributeError, match=f"^{name} cannot be deleted"):
        delattr(forecaster, name)
    assert model_bytes(forecaster, tmp_path) == before


def test_there_is_nothing_else_to_set():
    with pytest.raises(AttributeError, match=r"^Forecaster has no attribute 'horizn'$"):
        make().horizn = 3


def test_a_copy_can_be_made():
    forecaster = make(inputs=["a"])
    forecaster.fit(make_table())
    for other in (copy.copy(forecaster), copy.deepcopy(forecaster), pickle.loads(pickle.dumps(forecaster))):
        assert repr(other) == repr(forecaster)
        found, expected = (one.predict(make_table())["forecast"] for one in (other, forecaster))
        np.testing.assert_array_equal(found, expected)
    assert replace(forecaster, horizon=2).network is None


@pytest.mark.parametrize("value", [1, "no", None, np.ones(3)])
def test_every_origin_is_a_flag(value):
    forecaster = make()
    forecaster.fit(make_table())
    with pytest.raises(TypeError, match=r"^every_origin is .*; expected True or False"):
        forecaster.predict(make_table(), every_origin=value)


# --- numbers beyond all measure, in the table's terms


@pytest.fixture(scope="module")
def fitted():
    """Return a forecaster with an input, trained on 60 days."""
    forecaster = make(inputs=["a"], time="t")
    forecaster.fit(make_table(60, gaps=0, times=True))
    return forecaster


OUTLIERS = {
    "too large": (1e300, r"is 1e\+300; expected a number up to 1e\+140 in magnitude"),
    "too large and negative": (-1e300, r"is -1e\+300; expected a number up to 1e\+140 in magnitude"),
    "too large for float32": (1e60, r"is 1e\+60, too far from the training data for float32"),
}


@pytest.mark.parametrize("value", OUTLIERS)
@pytest.mark.parametrize("column", ["y", "a"])
def test_a_number_that_is_too_large_is_found_in_the_table(fitted, value, column):
    number, words = OUTLIERS[value]
    table = make_table(90, gaps=0, times=True)
    table[column][70] = number
    message = f"^column '{column}', t 2000-05-07 {words}"
    for use in (
        lambda: fitted.predict(table, every_origin=True),
        lambda: fitted.evaluate(table),
    ):
        with pytest.raises(ValueError, match=message):
            use()


@pytest.mark.parametrize(
    ("row", "value", "words"),
    [
        (20, -1e300, r"-1e\+300; expected a number up to"),
        (50, 1e20, r"1e\+20, too far from the training data for float32"),
        (57, 1e20, r"1e\+20, too far from the training data for float32"),
    ],
)
def test_a_number_that_is_too_large_to_be_learned(row, value, words):
    """In the training rows, in a validation target, in a validation input."""
    table = make_table(60, gaps=0)
    table["y"] *= 1e-30
    table["y"][row] = value
    with pytest.raises(ValueError, match=f"^series 'north', column 'y', row {row + 1} is {words}"):
        make(series="who").fit(several(table))


def test_a_column_that_hardly_varies():
    table = make_table(60, gaps=0)
    table["a"] = np.arange(60) * 1e-250
    with pytest.raises(ValueError, match="column 'a' varies by too little for float64"):
        make(inputs=["b", "a"]).fit(table)


@pytest.mark.parametrize("name", ["max_gap", "trend_seasons"])
def test_at_least_zero_is_said_of_what_may_be_zero(name):
    with pytest.raises(ValueError, match=f"{name} is -1; expected at least 0"):
        make(**{name: -1})


# --- files


@pytest.mark.filterwarnings("ignore:.*no later row")
@each_setting
def test_a_saved_forecaster_comes_back_to_the_bit(settings, tmp_path):
    table = several(make_table(seed=1, times=True), make_table(70, seed=2, times=True))
    forecaster = make(**settings, time="t", series="who", seed=7)
    forecaster.fit(table, until=0.9)
    forecaster.save(tmp_path / "model", details={"note": [1, "é"]})
    loaded = Forecaster.load(str(tmp_path / "model"))
    assert repr(loaded) == repr(forecaster)
    assert loaded.trained_before == forecaster.trained_before
    for every_origin in (False, True):
        found, expected = (one.predict(table, every_origin=every_origin) for one in (loaded, forecaster))
        assert {name: column.tolist() for name, column in found.items()} == {
            name: column.tolist() for name, column in expected.items()
        }
    assert model_bytes(loaded, tmp_path) == model_bytes(forecaster, tmp_path)
    with pytest.raises(ValueError, match="as in training"):
        loaded.predict({**table, "t": table["t"].astype("datetime64[h]").astype(int)})


def test_the_file_is_a_model_file_too(tmp_path):
    forecaster = make()
    forecaster.fit(make_table())
    forecaster.save(tmp_path / "model", details={"note": "x"})
    assert lstm_ext.load(tmp_path / "model").parameters.tobytes() == forecaster.network.parameters.tobytes()
    assert lstm_ext.load_model(tmp_path / "model").details["note"] == "x"


@pytest.mark.parametrize(
    ("details", "error", "message"),
    [
        ({"note": object()}, TypeError, "^details "),
        (3, TypeError, "^details is 3; expected a mapping or None"),
        ([("a", 1)] * 10**5, TypeError, r"^details is \[.{,200}; expected a mapping or None"),
        ({"forecaster": 1}, ValueError, "^details has the key 'forecaster', which is reserved for the settings"),
    ],
)
def test_details_that_cannot_be_kept(tmp_path, details, error, message):
    forecaster = make()
    forecaster.fit(make_table())
    with pytest.raises(error, match=message):
        forecaster.save(tmp_path / "model", details=details)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [{"seed": None}, {"inputs": ("a",)}, {"window": np.int64(5)}, {"max_gap": 0}])
def test_settings_of_other_types_can_be_saved(settings, tmp_path):
    forecaster = make(**settings)
    forecaster.fit(make_table())
    forecaster.save(tmp_path / "model")
    assert repr(Forecaster.load(tmp_path / "model")) == repr(forecaster)


def test_a_seed_of_numpy_can_be_saved(tmp_path):
    forecaster = make(seed=np.int64(3))
    forecaster.fit(make_table())
    forecaster.save(tmp_path / "model")


def test_a_network_alone_is_no_forecaster(tmp_path):
    lstm_ext.LSTMNetwork(1, 3, 3).save(tmp_path / "model")
    with pytest.raises(ModelFileError, match="model is a model without a forecaster's settings"):
        Forecaster.load(tmp_path / "model")


def test_files_that_are_not_models(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        Forecaster.load(tmp_path / "missing")
    forecaster = make()
    forecaster.fit(make_table())
    whole = model_bytes(forecaster, tmp_path)
    for content in (b"", whole[:-1], whole[: len(whole) // 2], whole[:100] + b"X" + whole[101:], b"y\n1\n2\n"):
        (tmp_path / "model").write_bytes(content)
        with pytest.raises(ModelFileError, match="model is"):
            Forecaster.load(tmp_path / "model")


@pytest.mark.parametrize(
    "change",
    [
        lambda own: "text",
        lambda own: [1, 2],
        lambda own: None,
        lambda own: {},
        lambda own: own | {"settings": {}},
        lambda own: own | {"settings": None},
        lambda own: own | {"settings": own["settings"] | {"window": 0}},
        lambda own: own | {"settings": own["settings"] | {"window": "5"}},
        lambda own: own | {"settings": own["settings"] | {"horizon": 2}},
        lambda own: own | {"settings": own["settings"] | {"hidden_dim": 4}},
        lambda own: own | {"settings": own["settings"] | {"inputs": ["a"]}},
        lambda own: own | {"settings": own["settings"] | {"inputs": "a"}},
        lambda own: own | {"scalers": {}},
        lambda own: own | {"scalers": [1]},
        lambda own: own | {"scalers": {"": {}}},
        lambda own: own | {"scalers": {"": {"mean": [0.0], "scale": [0.0]}}},
        lambda own: own | {"axis": {}},
        lambda own: own | {"axis": None},
        lambda own: {key: value for key, value in own.items() if key != "trained_before"},
        lambda own: own | {"scalers": {"": {"mean": [0, 1], "scale": [1, 1]}}},
        lambda own: own | {"axis": {"kind": "moon", "step": 1.0}},
        lambda own: own | {"axis": {"kind": "row", "step": "1"}},
        lambda own: own | {"axis": {"kind": "number", "step": 0}},
    ],
)
def test_damaged_settings_are_a_model_file_error(change, tmp_path):
    forecaster = make()
    forecaster.fit(make_table())
    forecaster.save(tmp_path / "model")
    own = json.loads(json.dumps(lstm_ext.load_model(tmp_path / "model").details["forecaster"]))
    forecaster.network.save(tmp_path / "model", details={"forecaster": change(own)})
    with pytest.raises(ModelFileError, match="model has damaged metadata"):
        Forecaster.load(tmp_path / "model")


def test_settings_of_a_newer_version_are_not_called_damage(tmp_path):
    forecaster = make()
    forecaster.fit(make_table())
    forecaster.save(tmp_path / "model")
    own = lstm_ext.load_model(tmp_path / "model").details["forecaster"]
    newer = [  # the names of one place are unknown in the other
        (own | {"quantiles": [], "settings": own["settings"] | {"network": 1}}, "quantiles, network"),
        (own | {"window": 3}, "window"),
        (own | {"settings": own["settings"] | {"scalers": {}}}, "scalers"),
    ]
    for changed, names in newer:
        forecaster.network.save(tmp_path / "model", details={"forecaster": changed})
        words = f"written by a newer lstm_ext than {lstm_ext.__version__}, which does not know {names}: upgrade"
        with pytest.raises(ModelFileError, match=words):
            Forecaster.load(tmp_path / "model")


def test_the_initial_forget_bias_of_a_network_does_not_matter(tmp_path):
    """Files of the first version hold 1.0, which was the default."""
    forecaster = make()
    forecaster.fit(make_table())
    parameters = forecaster.network.parameters
    forecaster.network = lstm_ext.LSTMNetwork(*forecaster.network.sizes, forget_bias=1.0)
    forecaster.network.parameters = parameters
    forecaster.save(tmp_path / "model")
    assert Forecaster.load(tmp_path / "model").network.parameters.tobytes() == parameters.tobytes()


@pytest.mark.parametrize("options", [{"num_layers": 2}, {"bidirectional": "sum"}, {"peephole": True}])
def test_a_network_with_options_is_not_a_forecasters(options, tmp_path):
    forecaster = make()
    forecaster.fit(make_table())
    forecaster.network = lstm_ext.LSTMNetwork(*forecaster.network.sizes, **options)
    forecaster.save(tmp_path / "model")
    with pytest.raises(ModelFileError, match=f"{next(iter(options))}=.* does not fit its settings"):
        Forecaster.load(tmp_path / "model")
