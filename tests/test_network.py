"""The compiled cell, layer and network: against the oracle, against themselves bit for bit, and on bad input."""

import copy
import functools
import gc
import pickle
import re
import sys
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import assert_close, assert_parameters_close

import lstm_ext
from lstm_ext import LSTM, LSTMCell, LSTMNetwork, NonFiniteError, _inference, parameter_layout, reference
from lstm_ext.inference import BATCH

DTYPES = ["float32", "float64"]
# Some twice what is measured: the README's figures are of whole vectors, these are of each weight by itself.
FORWARD = {"float32": 1e-6, "float64": 1.5e-14}
GRADIENT = {"float32": 8e-6, "float64": 3e-14}
# N, T, I, H, O: odd on purpose, and past every block: 192 sequences of inference, 256 rows and
# 384 columns of a weight gradient, 4 vectors of a panel
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 1, 3, 2, 13),
    (1, 13, 2, 13, 1),
    (13, 2, 17, 17, 2),
    (17, 5, 1, 34, 3),
    (34, 11, 13, 5, 17),
    (3, 34, 2, 33, 2),
    (2, 3, 70, 70, 70),
    (70, 5, 3, 17, 2),
    (301, 2, 1, 13, 1),
    (7, 3, 34, 101, 5),
]
# Sequences run in the lanes of a vector on some sets and types, units on others: a weight's bits do not tell. Steps and
# inputs past what is turned into lanes at once, and past what one product of weight gradients takes.
LANES_SHAPES = [(19, 3, 2, 5, 2), (101, 13, 7, 12, 3), (37, 9, 70, 20, 2), (34, 4, 3, 24, 17), (33, 3, 200, 3, 1)]
LANES_SHAPES += [
    (9001, 2, 60, 20, 1),
    (34, 2, 3, 40, 1),
    (20, 300, 1, 6, 1),
    (16, 5, 3, 31, 1),
    (100, 3, 3, 16, 1),
    (6, 3, 3, 2, 1),
    (33, 2, 600, 5, 1),
]
# Too many units for the sequences, or more weights than the cache holds: units in the lanes on every set.
UNITS_SHAPES = [(1, 1, 2, 13, 1), (7, 1, 34, 101, 5), (33, 1, 1200, 5, 1), (33, 1, 2500, 5, 1)]
LOSSES = [(loss, readout) for loss in ("mse", "cross_entropy") for readout in ("last", "steps")]


def reading(network, readout):
    """Return a network of another readout with the same parameters."""
    return type(network)._from_parameters(network.parameters, network.architecture.with_readout(readout))


def assert_same_bits(actual, expected):
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert ours.tobytes() == theirs.tobytes()


def make(kind, *sizes, dtype="float64", seed=0, **options):
    """Return a compiled model with the default weights and random biases."""
    model = kind(*sizes, dtype=dtype, seed=seed, **options)
    rng = np.random.default_rng(seed)
    for name, weight in model.named_parameters().items():
        if name.startswith("b_"):
            weight += rng.uniform(-0.5, 0.5, weight.shape)
    return model


def oracle(model):
    """Return the oracle's twin, in float64 with the very same numbers."""
    twin = getattr(reference, type(model).__name__)(
        *model.sizes, dtype="float64", seed=0, **model.architecture.changed()
    )
    twin.parameters = model.parameters
    return twin


def problem(shape, dtype):
    """Return random data for a shape (N, T, I, H, O), in dtype."""
    N, T, I, H, O = shape
    rng = np.random.default_rng(shape)

    def normal(*axes):
        return rng.standard_normal(axes).astype(dtype)

    data = SimpleNamespace(X=normal(N, T, I), h0=normal(N, H), C0=normal(N, H))
    data.dH, data.dh_T, data.dC_T = normal(N, T, H), normal(N, H), normal(N, H)
    data.Y = {
        ("mse", "last"): normal(N, O),
        ("mse", "steps"): normal(N, T, O),
        ("cross_entropy", "last"): rng.integers(0, O, N),
        ("cross_entropy", "steps"): rng.integers(0, O, (N, T)),
    }
    return data


def layer_results(lstm, data, rows=slice(None)):
    """Return H, h_T, C_T, dX, dh0, dC0 and the parameters' gradient."""
    d = {name: value[rows] for name, value in vars(data).items() if name != "Y"}
    H, state, tape = lstm.forward(d["X"], d["h0"], d["C0"], return_tape=True)
    return [H, *state, *lstm.backward(tape, d["dH"], d["dh_T"], d["dC_T"])]


# --- which path a shape takes: the bits do not tell ---


@pytest.fixture
def inference_scratch(monkeypatch):
    """Return a function that predicts and returns the part of the scratch that is for the lanes, NaN where unused."""
    arrays = []

    def empty(shape, dtype):
        arrays.append(np.full(shape, np.nan, dtype))
        return arrays[-1]

    def zeros(shape, dtype):
        arrays.append(np.zeros(shape, dtype))
        return arrays[-1]

    def run(network, X):
        network.predict(X)
        scratch = arrays[-1]
        network.initial_state(min(len(X), BATCH))  # streams have the same arrays, but run no lanes
        return scratch[arrays[-1].size :]

    monkeypatch.setattr(_inference, "empty", empty)
    monkeypatch.setattr(_inference, "zeros", zeros)
    return run


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", LANES_SHAPES[:-1], ids=str)
def test_few_units_run_with_the_batch_in_the_lanes(isa, shape, dtype, inference_scratch):
    N, _, I, H, O = shape
    X = np.ones((N, 1, I), dtype)
    assert np.isfinite(inference_scratch(LSTMNetwork(I, H, O, dtype=dtype, seed=0), X)).any()
    most_units = 12 if isa == "avx512" else 6  # of a training, which does more for each
    if most_units >= H:
        *_, tape = LSTM(I, H, dtype=dtype, seed=0).forward(X, return_tape=True)
        assert 0 < tape._stack.by_lanes[0] <= N


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", UNITS_SHAPES, ids=str)
def test_many_units_and_many_weights_run_with_units_in_the_lanes(isa, shape, dtype, inference_scratch):
    N, _, I, H, O = shape
    X = np.ones((N, 1, I), dtype)
    assert inference_scratch(LSTMNetwork(I, H, O, dtype=dtype, seed=0), X).size == 0
    *_, tape = LSTM(I, H, dtype=dtype, seed=0).forward(X, return_tape=True)
    assert tape._stack.by_lanes == (0,)


# --- against the oracle ---


@functools.cache  # once for all sets
def expected_of_layer(shape, dtype):
    return layer_results(oracle(make(LSTM, *shape[2:4], dtype=dtype)), problem(shape, dtype))


@functools.cache
def expected_of_network(shape, dtype):
    """Return predictions by readout, the outputs of one sequence, and (loss, gradient) by loss and readout."""
    twin, data = oracle(make(LSTMNetwork, *shape[2:], dtype=dtype)), problem(shape, dtype)
    predictions = {readout: twin.predict(data.X, readout=readout) for readout in ("last", "steps")}
    gradients = {
        (loss, readout): oracle(make(LSTMNetwork, *shape[2:], readout=readout, dtype=dtype)).gradient(
            data.X, Y, loss=loss
        )
        for (loss, readout), Y in data.Y.items()
    }
    return predictions, twin.forward(data.X[-1]), gradients


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_cell_agrees_with_the_oracle(isa, shape, dtype):
    *_, I, H, _ = shape
    cell, data = make(LSTMCell, I, H, dtype=dtype), problem(shape, dtype)
    x, h, C, dh, dC = (array[0].reshape(-1, 1) for array in (data.X[:, 0], data.h0, data.C0, data.dh_T, data.dC_T))
    twin = oracle(cell)
    for actual, expected in zip(cell.forward(x, h, C), twin.forward(x, h, C), strict=True):
        assert actual.dtype == dtype
        assert_close(actual, expected, tolerance=FORWARD[dtype])
    *actual, gradient = cell.backward(x, h, C, dh, dC)
    *expected, expected_gradient = twin.backward(x, h, C, dh, dC)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours, theirs, tolerance=GRADIENT[dtype])
    assert_parameters_close(gradient, expected_gradient, parameter_layout(I, H), GRADIENT[dtype])
    assert_same_bits(cell.forward(x[:, 0], h[:, 0], C[:, 0]), cell.forward(x, h, C))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES + LANES_SHAPES)
def test_layer_agrees_with_the_oracle(rounding_isa, shape, dtype):
    *_, I, H, _ = shape
    lstm, data = make(LSTM, I, H, dtype=dtype), problem(shape, dtype)
    actual, expected = layer_results(lstm, data), expected_of_layer(shape, dtype)
    assert all(array.dtype == dtype for array in actual)
    for name, *pair in zip(("H", "h_T", "C_T"), actual, expected, strict=False):
        assert_close(*pair, name, FORWARD[dtype])
    for t in range(shape[1]):
        assert_close(actual[3][:, t], expected[3][:, t], f"dX, t = {t}", GRADIENT[dtype])
    for name, *pair in zip(("dh0", "dC0"), actual[4:6], expected[4:6], strict=True):
        assert_close(*pair, name, GRADIENT[dtype])
    assert_parameters_close(actual[6], expected[6], parameter_layout(I, H), GRADIENT[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES + LANES_SHAPES)
def test_network_agrees_with_the_oracle(rounding_isa, shape, dtype):
    network, data = make(LSTMNetwork, *shape[2:], dtype=dtype), problem(shape, dtype)
    expected_predictions, expected_outputs, expected_gradients = expected_of_network(shape, dtype)
    for readout, expected in expected_predictions.items():
        actual = network.predict(data.X, readout=readout)
        assert actual.dtype == dtype
        assert_close(actual, expected, tolerance=FORWARD[dtype])
    outputs = network.forward(data.X[-1])
    assert isinstance(outputs, list)
    assert {y.shape for y in outputs} == {(shape[4], 1)}
    assert_close(outputs, expected_outputs, tolerance=FORWARD[dtype])
    for (loss, readout), Y in data.Y.items():
        value, gradient = reading(network, readout).gradient(data.X, Y, loss=loss)
        expected, expected_gradient = expected_gradients[loss, readout]
        assert isinstance(value, float)
        assert gradient.dtype == dtype
        assert_close(value, expected, f"{loss}, {readout}", FORWARD[dtype])
        assert_parameters_close(gradient, expected_gradient, parameter_layout(*shape[2:]), GRADIENT[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_default_weights_agree_without_biases_too(isa, dtype):
    network = LSTMNetwork(3, 34, 2, dtype=dtype, seed=5)
    data = problem((5, 17, 3, 34, 2), dtype)
    assert_close(network.predict(data.X), oracle(network).predict(data.X), tolerance=FORWARD[dtype])


def test_omitted_states_and_gradients_are_zeros(isa):
    lstm, data = make(LSTM, 3, 13), problem((5, 4, 3, 13, 1), "float64")
    zeros, dH = np.zeros((5, 13)), np.zeros_like(data.dH)
    *_, tape = lstm.forward(data.X, return_tape=True)
    *_, tape0 = lstm.forward(data.X, zeros, zeros, return_tape=True)
    assert_same_bits(lstm.backward(tape, data.dH), lstm.backward(tape0, data.dH, zeros, zeros))
    assert_same_bits(
        lstm.backward(tape, dh_T=data.dh_T, dC_T=data.dC_T),
        lstm.backward(tape, dH, data.dh_T, data.dC_T),
    )
    assert not any(gradient.any() for gradient in lstm.backward(tape))


@pytest.mark.parametrize("N", [7, 401])
@pytest.mark.parametrize("H", [5, 13, 16])
def test_without_a_tape_the_results_are_the_same(isa, H, N):
    """Even where the batch runs in parts."""
    lstm, data = make(LSTM, 3, H), problem((N, 4, 3, H, 1), "float64")
    H, state = lstm.forward(data.X, data.h0, data.C0)
    assert_same_bits([H, *state], layer_results(lstm, data)[:3])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("readout", ["last", "steps"])
def test_runs_of_one_length_among_others(isa, readout, dtype):
    """Neighbours of one length run side by side, up to 192; the last run ends in its middle, one has one sequence."""
    network, rng = make(LSTMNetwork, 3, 13, 2, dtype=dtype), np.random.default_rng(0)
    X = [rng.standard_normal((T, 3)).astype(dtype) for T in [4] * 200 + [2] * 7 + [5] + [2] * 3]
    alone = [network.predict(x[None], readout=readout)[0] for x in X]
    assert_same_bits(network.predict(X, readout=readout), alone)
    assert_same_bits(network.predict(X[:200], readout=readout), alone[:200])
    assert_same_bits(network.predict(np.array(X[:200]), readout=readout), alone[:200])


def test_sequences_of_different_lengths(isa):
    network, rng = make(LSTMNetwork, 3, 13, 2), np.random.default_rng(0)
    X = [rng.standard_normal((T, 3)) for T in (5, 1, 17)]
    last, steps = network.predict(X), network.predict(X, readout="steps")
    assert [y.shape for y in steps] == [(5, 2), (1, 2), (17, 2)]
    for x, y, ys in zip(X, last, steps, strict=True):
        assert_same_bits([y, ys], [network.predict(x[None])[0], np.hstack(network.forward(x)).T])


@pytest.mark.parametrize("readout", ["last", "steps"])
def test_cross_entropy_of_large_logits(isa, readout):
    network, data = make(LSTMNetwork, 3, 13, 5, readout=readout), problem((4, 3, 3, 13, 5), "float64")
    network.b_y = 1e4 * np.arange(-2, 3).reshape(5, 1)
    Y = data.Y["cross_entropy", readout]
    value, gradient = network.gradient(data.X, Y, loss="cross_entropy")
    expected = oracle(network).gradient(data.X, Y, loss="cross_entropy")
    assert_close(value, expected[0], tolerance=1e-12)
    assert_close(gradient, expected[1], tolerance=1e-12)


# --- bit for bit ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES + LANES_SHAPES)
def test_bits_are_those_of_every_set(shape, dtype, assert_same_on_every_fma_isa):
    network, data = make(LSTMNetwork, *shape[2:], dtype=dtype), problem(shape, dtype)
    lstm = make(LSTM, *shape[2:4], dtype=dtype)

    def results():
        yield from layer_results(lstm, data)
        yield from network.forward(data.X[-1])
        for (loss, readout), Y in data.Y.items():
            yield network.predict(data.X, readout=readout)
            value, gradient = reading(network, readout).gradient(data.X, Y, loss=loss)
            yield from (np.float64(value), gradient)

    assert_same_on_every_fma_isa(results)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("H", "T"), [(1, 3), (2, 3), (5, 23), (13, 3), (17, 3), (34, 3), (40, 3)])
def test_a_row_does_not_know_its_batch(isa, H, T, dtype):
    data, lstm = problem((34, T, 5, H, 1), dtype), make(LSTM, 5, H, dtype=dtype)
    whole = layer_results(lstm, data)[:6]
    orders = [[n] for n in range(34)]
    orders += [np.random.default_rng(H).permutation(34)[:n] for n in (34, 33, 13, 7, 2)]
    for order in orders:
        part = layer_results(lstm, data, order)[:6]
        assert_same_bits(part, [result[order] for result in whole])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("readout", ["last", "steps"])
def test_a_batch_in_parts_is_the_whole_batch(isa, readout, dtype):
    network, data = make(LSTMNetwork, 3, 17, 2, dtype=dtype), problem((401, 2, 3, 17, 2), dtype)
    whole = network.predict(data.X, readout=readout)
    for cut in (1, 34, 192, 200):
        parts = [network.predict(X, readout=readout) for X in (data.X[:cut], data.X[cut:])]
        assert_same_bits([np.concatenate(parts)], [whole])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "H"), [(1, 1), (2, 34), (13, 17), (34, 2)])
def test_step_by_step_is_the_whole_sequence(isa, N, H, dtype):
    data, network = problem((N, 7, 3, H, 2), dtype), make(LSTMNetwork, 3, H, 2, dtype=dtype)
    layer = LSTM(3, H, dtype=dtype)
    layer.parameters = network.lstm_cell.parameters
    outputs, (states, (h_T, C_T)) = network.predict(data.X, readout="steps"), layer.forward(data.X)
    state = network.initial_state(N)
    h = C = np.zeros((H, 1))
    for t in range(7):
        y, again = network.step(data.X[:, t], state)
        assert again is state
        h, C = network.lstm_cell.forward(data.X[0, t], h, C)
        assert_same_bits([y, state.h, h[:, 0]], [outputs[:, t], states[:, t], states[0, t]])
    assert_same_bits([state.h, state.C, C[:, 0]], [h_T, C_T, C_T[0]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "T", "I", "H"), [(100, 10, 3, 5), (37, 70, 2, 13), (20, 3, 130, 3), (33, 5, 3, 32)])
def test_one_of_a_large_batch_is_itself_alone(isa, N, T, I, H, dtype):
    network, X = make(LSTMNetwork, I, H, 2, dtype=dtype), problem((N, T, I, H, 2), dtype).X
    for readout in ("last", "steps"):
        alone = [network.predict(x[None], readout=readout)[0] for x in X]
        assert_same_bits([network.predict(X, readout=readout)], [np.array(alone)])


def test_a_tape_can_be_used_twice(isa):
    lstm, data = make(LSTM, 3, 5), problem((37, 9, 3, 5, 1), "float64")
    *_, tape = lstm.forward(data.X, data.h0, data.C0, return_tape=True)
    assert_same_bits(lstm.backward(tape, data.dH), lstm.backward(tape, data.dH))


def test_a_sequence_cut_in_two_is_the_whole(isa):
    lstm, data = make(LSTM, 3, 13), problem((5, 9, 3, 13, 1), "float64")
    H, state = lstm.forward(data.X, data.h0, data.C0)
    first, middle = lstm.forward(data.X[:, :4], data.h0, data.C0)
    second, last = lstm.forward(data.X[:, 4:], *middle)
    assert_same_bits([np.concatenate((first, second), axis=1), *last], [H, *state])


def test_a_cell_step_backward_is_a_layer_of_one_step(isa):
    lstm, data = make(LSTM, 3, 13), problem((1, 1, 3, 13, 1), "float64")
    arguments = (data.X[0, 0], data.h0[0], data.C0[0], data.dh_T[0], data.dC_T[0])
    cell = lstm.lstm_cell.backward(*arguments)
    data.dH[...] = 0
    layer = layer_results(lstm, data)[3:]
    assert_same_bits([part.reshape(-1) for part in cell], [part.reshape(-1) for part in layer])


# --- a stream's state ---


def test_a_state_keeps_the_weights_of_its_start(isa):
    network, data = make(LSTMNetwork, 3, 13, 2), problem((4, 3, 3, 13, 2), "float64")
    expected = network.predict(data.X, readout="steps")
    state = network.initial_state(4)
    network.parameters *= 2
    for t in range(3):
        assert_same_bits([network.step(data.X[:, t], state)[0]], [expected[:, t]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_streams_advance_by_what_needs_no_conversion_alone(dtype):
    network = make(LSTMNetwork, 3, 13, 2, dtype=dtype)
    state, x, y = network.initial_state(4), np.ones((4, 3), dtype), np.full((4, 2), 7, dtype)
    wrong = x.copy()
    wrong[3, 2] = np.nan
    others = [x[:3], x[:, :2], x.T, x[0], x[None], np.ones((8, 3), dtype)[::2], wrong, unaligned(x), x.tolist(), None]
    others += [x.astype(other) for other in (np.float16, np.int32, np.int64, x.dtype.newbyteorder())]
    for other in others:
        assert state.advance(other, y) is None
        assert state.advance(other, None) is None
    for bad in (y[:3], y[:, :1], y.T, y.astype(np.int32), readonly(y), unaligned(y), y.tolist()):
        assert state.advance(x, bad) is None
    assert (state.steps, y.min(), y.max()) == (0, 7, 7)
    assert state.advance(x, y) is y
    assert state.steps == 1
    assert_same_bits([y], [network.predict(x[:, None])])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_takes_every_layout(dtype):
    network = make(LSTMNetwork, 3, 13, 2, dtype=dtype)
    x = problem((4, 1, 3, 13, 2), dtype).X[:, 0]
    expected, _ = network.step(x, network.initial_state(4))
    for variant in VARIANTS.values():
        state, y = network.initial_state(4), np.empty((4, 2), dtype)
        assert network.step(variant(x), state, out=y)[0] is y
        assert state.steps == 1
        assert_same_bits([y], [expected])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "H", "O"), [(1, 1, 1), (2, 34, 3), (13, 17, 17)])
def test_a_step_writes_to_out(isa, N, H, O, dtype):
    network, data = make(LSTMNetwork, 3, H, O, dtype=dtype), problem((N, 5, 3, H, O), dtype)
    expected, state = network.predict(data.X, readout="steps"), network.initial_state(N)
    y = np.empty((N, O), dtype)
    for t in range(5):
        given, again = network.step(data.X[:, t], state, out=y)
        assert given is y
        assert again is state
        assert_same_bits([y], [expected[:, t]])


def test_a_step_with_out_allocates_nothing_that_stays():
    """While it runs NumPy has some hundred bytes to describe buffers, whatever their size; a y would take 400 kB."""
    network = LSTMNetwork(3, 5, 100, seed=0)
    state, x, y = network.initial_state(1000), np.ones((1000, 3), np.float32), np.empty((1000, 100), np.float32)
    repeats = [None] * 100
    for _ in repeats:
        network.step(x, state, out=y)
    tracemalloc.start()
    try:
        before, blocks = tracemalloc.get_traced_memory()[0], sys.getallocatedblocks()
        for _ in repeats:
            network.step(x, state, out=y)
        blocks = sys.getallocatedblocks() - blocks
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 100
    assert peak - before < 2000
    assert blocks < 5


def test_results_of_a_step_are_the_callers(isa):
    network, x = make(LSTMNetwork, 3, 13, 2), np.ones((4, 3))
    state = network.initial_state(4)
    y, _ = network.step(x, state)
    kept, h = y.copy(), state.h
    network.step(x, state)
    assert_same_bits([y], [kept])
    fresh = network.initial_state(4)
    network.step(x, fresh)
    assert_same_bits([h], [fresh.h])


# --- inputs ---

INPUTS = ("X", "h0", "C0", "dH", "dh_T", "dC_T")


def everything(lstm, network, data):
    """Return the results of every method that takes data."""
    yield from layer_results(lstm, data)
    column = [array[0] for array in (data.h0, data.C0, data.dh_T, data.dC_T)]
    yield from lstm.lstm_cell.forward(data.X[0][0], *column[:2])
    yield from lstm.lstm_cell.backward(data.X[0][0], *column)
    yield from network.forward(data.X[0])
    yield network.step([x[0] for x in data.X], network.initial_state(len(data.X)))[0]
    for (loss, readout), Y in data.Y.items():
        yield network.predict(data.X, readout=readout)
        value, gradient = reading(network, readout).gradient(data.X, Y, loss=loss)
        yield from (np.float64(value), gradient)


def changed(data, change):
    """Return the data with every array changed; class labels stay integers."""
    new = SimpleNamespace(**{name: change(getattr(data, name)) for name in INPUTS})
    new.Y = {key: change(Y) for key, Y in data.Y.items()}
    return new


def strided(array):
    wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), 99, array.dtype)
    wide[..., 1::2] = array
    return wide[..., 1::2]


def unaligned(array):
    raw = np.empty(array.nbytes + 1, np.uint8)
    result = raw[1:].view(array.dtype).reshape(array.shape)
    result[...] = array
    return result


def readonly(array):
    result = array.copy()
    result.flags.writeable = False
    return result


VARIANTS = {
    "strided": strided,
    "reversed": lambda array: np.ascontiguousarray(array[..., ::-1])[..., ::-1],
    "Fortran order": np.asfortranarray,
    "transposed": lambda array: np.ascontiguousarray(array.T).T,
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "unaligned": unaligned,
    "read-only": readonly,
    "lists": lambda array: array.tolist(),
    "float64": lambda array: array.astype("float64") if array.dtype.kind == "f" else array,
    "longdouble": lambda array: array.astype("longdouble") if array.dtype.kind == "f" else array,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_memory_layout_and_dtype_of_inputs_do_not_matter(variant, dtype):
    lstm, network = make(LSTM, 3, 13, dtype=dtype), make(LSTMNetwork, 3, 13, 5, dtype=dtype)
    data = problem((5, 4, 3, 13, 5), dtype)
    expected = list(everything(lstm, network, data))
    assert_same_bits(everything(lstm, network, changed(data, VARIANTS[variant])), expected)


@pytest.mark.parametrize("integer", ["int8", "int64", "uint16", "bool"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_integers_are_numbers(dtype, integer):
    lstm, network = make(LSTM, 3, 13, dtype=dtype), make(LSTMNetwork, 3, 13, 5, dtype=dtype)
    data = problem((5, 4, 3, 13, 5), dtype)
    whole = changed(data, lambda a: np.abs(np.rint(a)).astype(integer) if a.dtype == dtype else a)
    floats = changed(whole, lambda a: a.astype(dtype) if a.dtype == integer else a)
    floats.Y = {key: data.Y[key] if key[0] == "cross_entropy" else Y for key, Y in floats.Y.items()}
    whole.Y = {key: data.Y[key] if key[0] == "cross_entropy" else Y for key, Y in whole.Y.items()}
    assert_same_bits(everything(lstm, network, whole), list(everything(lstm, network, floats)))


@pytest.mark.parametrize("labels", ["int8", "uint64", ">i4"])
def test_labels_of_any_integer_type(labels):
    network, data = make(LSTMNetwork, 3, 13, 5, readout="steps"), problem((5, 4, 3, 13, 5), "float64")
    Y = data.Y["cross_entropy", "steps"]
    expected, actual = (
        network.gradient(data.X, y, loss="cross_entropy")[1] for y in (Y, np.asfortranarray(Y.astype(labels)))
    )
    assert_same_bits([actual], [expected])


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_are_never_modified(isa, dtype):
    lstm, network = make(LSTM, 3, 13, dtype=dtype), make(LSTMNetwork, 3, 13, 5, dtype=dtype)
    data = problem((5, 4, 3, 13, 5), dtype)
    before = copy.deepcopy(data)
    results = list(everything(lstm, network, data))
    for result in results:
        if result.flags.writeable:
            result[...] = 7  # no result shares memory with an input or with a weight
    for name in INPUTS:
        assert_same_bits([getattr(data, name)], [getattr(before, name)])
    for key, Y in data.Y.items():
        assert_same_bits([Y], [before.Y[key]])
    assert_same_bits([lstm.parameters], [make(LSTM, 3, 13, dtype=dtype).parameters])
    assert_same_bits([network.parameters], [make(LSTMNetwork, 3, 13, 5, dtype=dtype).parameters])


# --- what a model says about itself ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (LSTMCell, "LSTMCell(input_dim=3, hidden_dim=13, "),
        (LSTM, "LSTM(input_dim=3, hidden_dim=13, "),
        (LSTMNetwork, "LSTMNetwork(input_dim=3, hidden_dim=13, output_dim=2, "),
    ],
)
def test_repr_makes_another_of_its_kind(dtype, kind, words):
    model = make(kind, *(3, 13, 2)[: words.count("_dim")], dtype=dtype)
    assert repr(model) == f"{words}dtype='{dtype}')"
    twin = eval(repr(model))
    assert type(twin) is kind
    assert (twin.sizes, twin.dtype) == (model.sizes, model.dtype)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1000, 3, 2)])
def test_summary_is_a_table_of_all_weights(sizes):
    network = make(LSTMNetwork, *sizes, dtype="float64")
    title, *rows, total = network.summary().splitlines()
    assert title == repr(network)
    assert len({len(row) for row in (*rows, total)}) == 1
    assert rows[0].split() == ["layer", "weight", "shape", "parameters", "bytes"]
    for row, (name, weight) in zip(rows[1:], network.named_parameters().items(), strict=True):
        layer = "linear" if name in ("W_y", "b_y") else "LSTM"
        assert row.split() == [layer, name, *str(weight.shape).split(), str(weight.size), str(8 * weight.size)]
    count = network.parameters.size
    assert total.split() == ["total", str(count), str(8 * count)]


OPTIONS = {
    "layers": {"num_layers": 2},
    "directions": {"bidirectional": "concat"},
    "layers and directions": {"num_layers": 2, "bidirectional": "sum", "proj_size": 4, "dropout": 0.25},
    "backwards": {"go_backwards": True},
    "cell": {"peephole": True, "coupled_gates": True, "use_bias": False, "cell_clip": 3.0, "cell_activation": "relu"},
    "norm": {"layer_norm": True, "learn_initial_state": True, "zoneout": (0.1, 0.0)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_repr_shows_the_options_that_are_not_at_their_defaults(options):
    shown = "".join(f"{name}={value!r}, " for name, value in options.items())
    for model, sizes in ((LSTM(3, 13, **options), ""), (LSTMNetwork(3, 13, None, **options), "output_dim=None, ")):
        assert sorted(repr(model).split(", ")) == sorted(
            f"{type(model).__name__}(input_dim=3, hidden_dim=13, {sizes}{shown}dtype='float32')".split(", ")
        )
        twin = eval(repr(model))
        assert (twin.architecture, twin.dtype) == (model.architecture, model.dtype)
    assert "num_layers" not in repr(LSTM(3, 13, num_layers=1, zoneout=0))


def test_summary_names_layers_and_directions():
    def layers(*sizes, **options):
        network = LSTMNetwork(*sizes, **options)
        title, _, *rows, total = network.summary().splitlines()
        assert title == repr(network)
        assert len({len(row) for row in (*rows, total)}) == 1
        assert [row[: row.index("(")].split()[-1] for row in rows] == list(network.named_parameters())
        assert total.split()[1] == str(network.parameters.size)
        return list(dict.fromkeys(" ".join(row[: row.index("(")].split()[:-1]) for row in rows))

    assert layers(3, 5, 2, peephole=True) == ["LSTM", "linear"]
    assert layers(3, 5, None, num_layers=2) == ["LSTM 0", "LSTM 1"]
    assert layers(3, 5, 2, bidirectional="sum") == ["LSTM forward", "LSTM reverse", "linear"]
    deep = layers(3, 5, 2, num_layers=2, bidirectional="concat")
    assert deep == ["LSTM 0 forward", "LSTM 0 reverse", "LSTM 1 forward", "LSTM 1 reverse", "linear"]


def test_a_model_knows_its_options():
    options = OPTIONS["layers and directions"]
    for model in (LSTM(3, 13, **options), LSTMNetwork(3, 13, 2, **options)):
        assert model.options == lstm_ext.Options(**options)
        with pytest.raises(AttributeError):
            model.options = lstm_ext.Options()
    assert LSTM(3, 13).options == lstm_ext.Options()
    assert not hasattr(LSTMCell(3, 13), "options")
    with pytest.raises(TypeError, match="num_layers"):
        LSTMCell(3, 13, num_layers=2)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_only_a_plain_cell_is_a_cell(options):
    assert LSTM(3, 13, forget_bias=2).lstm_cell.b_f[0] == 2
    for model in (LSTM(3, 13, **options), LSTMNetwork(3, 13, 2, **options)):
        with pytest.raises(AttributeError, match=r"^LSTM.*=.* has no lstm_cell.*named_parameters\(\)"):
            _ = model.lstm_cell


def test_without_a_head():
    network = LSTMNetwork(3, 13, None, seed=0)
    assert network.output_dim is None
    assert network.sizes == (3, 13)
    assert_same_bits([network.parameters], [LSTM(3, 13, seed=0).parameters])
    assert_same_bits([network.lstm_cell.parameters], [network.parameters])
    for name in ("W_y", "b_y"):
        assert not hasattr(network, name)
        with pytest.raises(AttributeError, match=rf"^LSTMNetwork\(.*output_dim=None.*\) has no {name}"):
            setattr(network, name, 0)


# --- weights ---

MODELS = [(LSTMCell, (3, 13)), (LSTM, (3, 13)), (LSTMNetwork, (3, 13, 2))]


@pytest.mark.parametrize(("kind", "sizes"), MODELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("init", ["glorot", "reference"])
def test_initial_weights_are_the_oracles(init, dtype, kind, sizes):
    weights = []
    for module in (lstm_ext, reference):
        np.random.seed(3)
        seed = 11 if init == "glorot" else None
        model = getattr(module, kind.__name__)(*sizes, dtype=dtype, init=init, seed=seed)
        weights += [model.parameters, np.random.get_state()[1]]
    assert_same_bits(weights[:2], weights[2:])
    assert weights[0].any()


def test_seeds():
    weights = [LSTMNetwork(3, 13, 2, seed=seed).parameters for seed in (1, 1, 2, None, None)]
    assert np.array_equal(weights[0], weights[1])
    different = weights[1:]
    assert len({array.tobytes() for array in different}) == len(different)
    assert LSTMNetwork(3, 13, 2).dtype == np.float32


@pytest.mark.parametrize(("kind", "sizes"), MODELS)
def test_layout_has_no_gaps_and_is_what_the_views_show(kind, sizes):
    assert parameter_layout(*sizes) == reference.parameter_layout(*sizes)
    model = kind(*sizes, dtype="float64")
    vector, end = np.arange(model.parameters.size, dtype=float), 0
    model.parameters = vector
    named = model.named_parameters()
    assert list(named) == list(parameter_layout(*sizes))
    for name, (offset, (rows, columns)) in parameter_layout(*sizes).items():
        expected = vector[end : end + rows * columns].reshape(rows, columns)
        owner = getattr(model, "lstm_cell", model) if name[-1] != "y" else model
        assert offset == end
        for view in (named[name], getattr(owner, name)):
            assert np.array_equal(view, expected)
            assert np.shares_memory(view, model.parameters)
        end += rows * columns
    assert end == model.parameters.size


def test_a_written_view_changes_vector_and_results():
    network, X = make(LSTMNetwork, 3, 13, 2), problem((2, 4, 3, 13, 2), "float64").X
    for name, (offset, _) in parameter_layout(3, 13, 2).items():
        owner = network if name[-1] == "y" else network.lstm_cell
        before, old = network.predict(X), network.parameters[offset]
        getattr(owner, name)[0, 0] += 0.25
        assert network.parameters[offset] == old + 0.25
        assert not np.array_equal(network.predict(X), before)
        setattr(owner, name, getattr(owner, name) * 0.5)
        assert network.parameters[offset] == (old + 0.25) / 2
        assert_close(network.predict(X), oracle(network).predict(X), tolerance=1e-12)
    network.parameters[...] = 0
    assert not network.lstm_cell.W_o.any()
    assert not network.predict(X).any()


@pytest.mark.parametrize("value", [np.zeros((3, 13)), np.zeros(5), 0.0, np.full((13, 16), np.nan)])
def test_a_weight_keeps_its_shape(value):
    cell = LSTMCell(3, 13, seed=0)
    before = cell.parameters.copy()
    with pytest.raises(ValueError, match=r"^W_f"):
        cell.W_f = value
    with pytest.raises(ValueError, match=r"^parameters"):
        cell.parameters = value
    assert_same_bits([cell.parameters], [before])


def pickled(protocol):
    return lambda model: pickle.loads(pickle.dumps(model, protocol))


def pickled_out_of_band(model):
    """As shared memory would have it: the arrays come back in read-only buffers."""
    buffers = []
    content = pickle.dumps(model, 5, buffer_callback=buffers.append)
    return pickle.loads(content, buffers=[bytes(buffer.raw()) for buffer in buffers])


COPIES = {f"pickle {protocol}": pickled(protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)}
COPIES |= {"pickle out of band": pickled_out_of_band, "deepcopy": copy.deepcopy, "copy": copy.copy}


@pytest.mark.parametrize(("kind", "sizes"), MODELS)
@pytest.mark.parametrize("copied", COPIES)
def test_copies_have_views_of_their_own(copied, kind, sizes):
    model = make(kind, *sizes)
    twin = COPIES[copied](model)
    assert type(twin) is kind
    assert twin.sizes == sizes
    assert twin.dtype == model.dtype
    assert_same_bits([twin.parameters], [model.parameters])
    before = model.parameters.copy()
    cell = getattr(twin, "lstm_cell", twin)
    cell.W_f[0, 0] = 5
    assert twin.parameters[parameter_layout(*sizes)["W_f"][0]] == 5
    twin.parameters[...] = 1
    assert all((view == 1).all() for view in twin.named_parameters().values())
    assert_same_bits([model.parameters], [before])
    x, h = np.ones(3), np.zeros(13)
    model.parameters[...] = 1
    ours, theirs = (getattr(m, "lstm_cell", m).forward(x, h, h) for m in (model, twin))
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("copied", COPIES)
def test_copies_keep_the_options(copied, options):
    model = LSTMNetwork(3, 13, None, dtype="float64", seed=0, **options)
    twin = COPIES[copied](model)
    assert (type(twin), twin.dtype, twin.architecture) == (LSTMNetwork, model.dtype, model.architecture)
    assert_same_bits([twin.parameters], [model.parameters])
    assert list(twin.named_parameters()) == list(model.named_parameters())
    twin.parameters[...] = 1
    assert all((view == 1).all() for view in twin.named_parameters().values())
    assert not (model.named_parameters()["W_i"] == 1).any()


# --- tapes and threads ---


def test_a_tape_keeps_what_it_saw(isa):
    lstm, data = make(LSTM, 3, 13), problem((5, 4, 3, 13, 1), "float64")
    H, state, tape = lstm.forward(data.X, data.h0, data.C0, return_tape=True)
    arguments = tape, data.dH, data.dh_T, data.dC_T
    expected = copy.deepcopy(tuple(lstm.backward(*arguments)))
    assert_same_bits(lstm.backward(*arguments), expected)
    lstm.forward(2 * data.X, return_tape=True)
    lstm.parameters *= 3
    for array in (data.X, data.h0, data.C0, H, *state, *lstm.backward(*arguments)):
        array[...] = 7
    assert_same_bits(lstm.backward(*arguments), expected)


def test_threads_share_a_model():
    """Two threads at once give the bits of one after the other."""
    layer = make(LSTM, 3, 70, dtype="float32")
    network = make(LSTMNetwork, 3, 70, 5, dtype="float32")
    tasks = [problem((34, 34, 3, 70, 5), "float32") for _ in range(8)]
    for k, data in enumerate(tasks):
        data.X += k

    def work(data):
        return [*layer_results(layer, data), network.predict(data.X), network.gradient(data.X, data.Y[LOSSES[0]])[1]]

    expected = list(map(work, tasks))
    with ThreadPoolExecutor(2) as threads:
        for _ in range(4):
            for actual, wanted in zip(threads.map(work, tasks), expected, strict=True):
                assert_same_bits(actual, wanted)


def test_calls_leak_no_memory():
    """The smallest array has 3.5 kB; the allowance is for caches that still fill."""
    lstm, network = make(LSTM, 3, 34), make(LSTMNetwork, 3, 34, 5)
    data = problem((13, 4, 3, 34, 5), "float64")
    bad, sizes = np.full((13, 5), 1e300), []
    tracemalloc.start()
    try:
        for rounds in (50, 100):
            for _ in range(rounds):
                layer_results(lstm, data)
                network.predict(data.X)
                network.step(data.X[:, 0], network.initial_state(13))
                network.gradient(data.X, data.Y["mse", "last"])
                with pytest.raises(NonFiniteError):
                    network.gradient(data.X, bad)
                with pytest.raises(ValueError, match="X"):
                    network.predict(data.X[0])
            gc.collect()
            sizes.append((tracemalloc.get_traced_memory()[0], sys.getallocatedblocks()))
    finally:
        tracemalloc.stop()
    memory, blocks = np.diff(sizes, axis=0)[0] / 100
    assert memory < 1000
    assert blocks < 5


# --- bad input: the exception names the argument, and nothing has changed ---

ZERO = np.zeros
CELL, LAYER = LSTMCell(2, 3, seed=0), LSTM(2, 3, seed=0)
NETWORK = LSTMNetwork(2, 3, 4, seed=0)
OF_STEPS = reading(NETWORK, "steps")
*_, TAPE = LAYER.forward(ZERO((2, 5, 2)), return_tape=True)
*_, OTHER_TAPE = LSTM(2, 4).forward(ZERO((2, 5, 2)), return_tape=True)
*_, DOUBLE_TAPE = LSTM(2, 3, dtype="float64").forward(ZERO((2, 5, 2)), return_tape=True)
STATE = NETWORK.initial_state(2)
LAYERS = LSTMNetwork(2, 3, 4, num_layers=2, seed=0)
GOOD = ZERO((2, 5, 2))
COLUMN = ZERO((3, 1))
HUGE = 2**62


class Tensor:
    """A tensor of another package, which NumPy cannot take as it is."""

    def __init__(self, methods=("detach", "to_dense", "cpu", "float", "numpy"), **what):
        vars(self).update(what | dict.fromkeys(methods))

    def __array__(self, *_, **__):
        raise RuntimeError("cannot convert")


def bad_arrays(shape):
    """Return what is no array of this shape, with the error that it deserves."""
    array = ZERO(shape)
    nan, inf, too_large = array.copy(), array.copy(), array.copy()
    nan.flat[-1], inf.flat[-1], too_large.flat[-1] = np.nan, -np.inf, 1e39
    integers = array.astype(np.int64)
    integers.flat[-1] = -(2**24) - 1
    last = r"\[" + ", ".join(str(n - 1) for n in shape) + r"\]"
    return {
        "rank": (array[None], ValueError, r"has shape \(1, "),
        "width": (ZERO((*shape[:-1], shape[-1] + 1)), ValueError, "has shape .*; expected"),
        "empty": (ZERO((0, *shape[1:])), ValueError, r"has shape \(0, "),
        "empty row": (ZERO((*shape[:-1], 0)), ValueError, r"has shape .*0\)"),
        "complex": (array.astype(complex), TypeError, "has dtype complex128; expected real"),
        "object": (array.astype(object), TypeError, "has dtype object; expected real"),
        "strings": (array.astype(str), TypeError, "has dtype <U32; expected real"),
        "dates": (array.astype("M8[s]"), TypeError, "has dtype datetime64"),
        "string": ("abc", TypeError, "has dtype <U3"),
        "tensor": (
            Tensor(requires_grad=True),
            TypeError,
            r"is a \w+\.Tensor that NumPy cannot take; pass .*\.detach\(\)\.",
        ),
        "dict": ({}, TypeError, "has dtype object"),
        "ragged": (
            [[1.0], [2.0, 3.0]],
            ValueError,
            r"(is a list of 2 entries that differ in shape; expected \(|has shape)",
        ),
        "NaN": (nan, ValueError, last + " is nan; expected finite"),
        "Inf": (inf, ValueError, last + " is -inf; expected finite"),
        "beyond float32": (too_large, ValueError, last + r" is 1e\+39; float32 holds no"),
        "beyond the mantissa": (integers, ValueError, "holds the integer 16777217"),
    }


ARRAYS = {
    "LSTM.forward X": ((2, 5, 2), LAYER.forward),
    "LSTM.forward h0": ((2, 3), lambda h0: LAYER.forward(GOOD, h0)),
    "LSTM.forward C0": ((2, 3), lambda C0: LAYER.forward(GOOD, None, C0)),
    "LSTM.backward dH": ((2, 5, 3), lambda dH: LAYER.backward(TAPE, dH)),
    "LSTM.backward dh_T": ((2, 3), lambda dh: LAYER.backward(TAPE, dh_T=dh)),
    "LSTM.backward dC_T": ((2, 3), lambda dC: LAYER.backward(TAPE, dC_T=dC)),
    "LSTMNetwork.forward X": ((5, 2), NETWORK.forward),
    "LSTMNetwork.predict X": ((2, 5, 2), NETWORK.predict),
    "LSTMNetwork.step x": ((2, 2), lambda x: NETWORK.step(x, STATE)),
    "LSTMNetwork.gradient X": ((2, 5, 2), lambda X: NETWORK.gradient(X, ZERO((2, 4)))),
    "LSTMNetwork.evaluate X": ((2, 5, 2), lambda X: NETWORK.evaluate(X, ZERO((2, 4)))),
    "LSTMNetwork.evaluate Y": ((2, 4), lambda Y: NETWORK.evaluate(GOOD, Y)),
    "LSTMNetwork.gradient Y": ((2, 4), lambda Y: NETWORK.gradient(GOOD, Y)),
    "LSTMNetwork.gradient Y (steps)": ((2, 5, 4), lambda Y: OF_STEPS.gradient(GOOD, Y)),
    "LSTMCell.forward x_t": ((2, 1), lambda x: CELL.forward(x, COLUMN, COLUMN)),
    "LSTMCell.forward h_prev": ((3, 1), lambda h: CELL.forward(ZERO(2), h, COLUMN)),
    "LSTMCell.forward C_prev": ((3, 1), lambda C: CELL.forward(ZERO(2), COLUMN, C)),
    "LSTMCell.backward dh_t": (
        (3, 1),
        lambda dh: CELL.backward(ZERO(2), COLUMN, COLUMN, dh, COLUMN),
    ),
    "LSTMCell.backward dC_t": (
        (3, 1),
        lambda dC: CELL.backward(ZERO(2), COLUMN, COLUMN, COLUMN, dC),
    ),
    "LSTMCell.W_i": ((3, 5), lambda W: setattr(CELL, "W_i", W)),
    "LSTMNetwork.b_y": ((4, 1), lambda b: setattr(NETWORK, "b_y", b)),
}
BAD_ARRAYS = [
    pytest.param(call, given, error, f"{argument.split(' ')[0]}.*{message}", id=f"{name}: {what}")
    for name, (shape, call) in ARRAYS.items()
    for argument in [name.partition(" ")[2] or name.partition(".")[2]]
    for what, (given, error, message) in bad_arrays(shape).items()
]


def snapshot():
    """Return the bits of all that a failed call must leave alone."""
    arrays = [CELL.parameters, LAYER.parameters, NETWORK.parameters, STATE.h, STATE.C]
    return [array.tobytes() for array in arrays] + [np.random.get_state()[1].tobytes()]


def test_numpys_error_state_does_not_matter():
    """Numbers too small for float32 become 0, also for callers to whom that is an error."""
    model = LSTMNetwork(3, 5, 2, seed=0)
    tiny = np.full((4, 7, 3), 1e-320)
    expected = model.predict(np.zeros((4, 7, 3)))
    with np.errstate(all="raise"):
        assert np.array_equal(model.predict(tiny), expected)
        model.step(tiny[:, 0], model.initial_state(4))


@pytest.mark.parametrize(("call", "given", "error", "message"), BAD_ARRAYS)
def test_bad_arrays_are_named(call, given, error, message):
    before = snapshot()
    with pytest.raises(error, match=f"(?s)^{message}"):
        call(given)
    assert snapshot() == before


BAD_CALLS = {
    "zero size": (lambda: LSTMCell(0, 3), ValueError, "input_dim is 0; expected at least 1"),
    "negative": (lambda: LSTM(2, -3), ValueError, "hidden_dim is -3; expected at least 1"),
    "zero output": (lambda: LSTMNetwork(2, 3, 0), ValueError, "output_dim is 0"),
    "float size": (lambda: LSTM(2.0, 3), TypeError, "input_dim is 2.0; expected an integer"),
    "bool size": (lambda: LSTM(2, True), TypeError, "hidden_dim is True; expected an integer"),
    "string size": (lambda: LSTM(2, "3"), TypeError, "hidden_dim is '3'; expected an integer"),
    "None size": (lambda: LSTMNetwork(2, None, 3), TypeError, "hidden_dim is None"),
    "array size": (lambda: LSTM(2, np.array([3, 4])), TypeError, "hidden_dim is array"),
    "product": (
        lambda: LSTM(2, 2**31),
        ValueError,
        "W for input_dim=2, hidden_dim=2147483648 would have 4 x 2147483648 x",
    ),
    "huge input": (lambda: LSTM(HUGE, 2), ValueError, "W for input_dim=4611686018427387904, hidden_dim=2 would have"),
    "huge output": (
        lambda: LSTMNetwork(1, 2, HUGE),
        ValueError,
        "W_y for .*, output_dim=4611686018427387904 would have",
    ),
    "past 64 bits": (lambda: LSTM(2, 2**70), ValueError, "W for .*, hidden_dim=1180591620717411303424 would have"),
    "dtype": (lambda: LSTM(2, 3, dtype="float16"), ValueError, "dtype is 'float16'; expected"),
    "no dtype": (lambda: LSTM(2, 3, dtype="no"), ValueError, "dtype is 'no'; expected"),
    "dtype None": (lambda: LSTM(2, 3, dtype=None), ValueError, "dtype is None; expected"),
    "init": (lambda: LSTM(2, 3, init="zeros"), ValueError, "init is 'zeros'; expected one of"),
    "init None": (lambda: LSTM(2, 3, init=None), ValueError, "init is None; expected one of"),
    "seed with reference": (
        lambda: LSTM(2, 3, init="reference", seed=0),
        ValueError,
        "seed is 0; expected None",
    ),
    "negative seed": (lambda: LSTM(2, 3, seed=-1), ValueError, "seed is -1"),
    "float seed": (lambda: LSTMNetwork(2, 3, 4, seed=0.5), TypeError, "seed is 0.5"),
    "batch": (lambda: NETWORK.initial_state(0), ValueError, "batch is 0; expected at least 1"),
    "float batch": (lambda: NETWORK.initial_state(1.0), TypeError, "batch is 1.0"),
    "huge batch": (
        lambda: NETWORK.initial_state(HUGE),
        ValueError,
        "the states of a batch of 46116860184273879.* streams would have",
    ),
    "batch of 4999 digits": (
        lambda: NETWORK.initial_state(10**4999),
        ValueError,
        "the states of a batch of <int> streams would have",
    ),
    "huge batch of layers": (
        lambda: LAYERS.initial_state(2**47),
        ValueError,
        "the states of a batch of 140737488355328 streams would",
    ),
    "batch of h0": (lambda: LAYER.forward(GOOD, ZERO((1, 3))), ValueError, r"h0 has shape \(1, 3"),
    "batch of C0": (lambda: LAYER.forward(GOOD, C0=ZERO((3, 3))), ValueError, r"C0 has shape \(3"),
    "T = 0": (lambda: LAYER.forward(ZERO((2, 0, 2))), ValueError, r"X has shape \(2, 0, 2\)"),
    "1-D h_prev": (
        lambda: CELL.forward(ZERO(2), ZERO(4), COLUMN),
        ValueError,
        r"h_prev has shape \(4,\); expected \(3, 1\) or \(3,\)",
    ),
    "row": (
        lambda: CELL.forward(ZERO(2), COLUMN.T, COLUMN),
        ValueError,
        r"h_prev has shape \(1, 3\); expected \(3, 1\) or \(3,\)",
    ),
    "return_tape": (lambda: LAYER.forward(GOOD, return_tape="no"), TypeError, "return_tape is 'no'; expected True or"),
    "no tape": (lambda: LAYER.backward(GOOD), TypeError, "tape is .*; expected the tape that forward"),
    "tape None": (lambda: LAYER.backward(None), TypeError, "tape is None; expected the tape that forward"),
    "tape of another layer": (
        lambda: LAYER.backward(OTHER_TAPE),
        ValueError,
        r"tape is of a layer with input_dim=2, hidden_dim=4, float32; expected input_dim=2, hidden_dim=3, float32",
    ),
    "tape of another dtype": (lambda: LAYER.backward(DOUBLE_TAPE), ValueError, "tape is of a"),
    "steps of dH": (
        lambda: LAYER.backward(TAPE, ZERO((2, 4, 3))),
        ValueError,
        r"dH has shape \(2, 4, 3\); expected \(2, 5, 3\)",
    ),
    "readout": (
        lambda: NETWORK.predict(GOOD, readout="unknown"),
        ValueError,
        "readout is 'unknown'; expected one of 'last', 'steps'",
    ),
    "readout of a new network": (
        lambda: LSTMNetwork(2, 3, 4, readout="unknown"),
        ValueError,
        "readout is 'unknown'; expected one of 'last', 'steps'",
    ),
    "readout None": (lambda: LSTMNetwork(2, 3, 4, readout=None), ValueError, "readout is None; expected one of"),
    "readout of another type": (lambda: NETWORK.predict(GOOD, readout=["last"]), ValueError, r"readout is \['last'\]"),
    "ragged widths": (
        lambda: NETWORK.predict([ZERO((5, 2)), ZERO((4, 3))]),
        ValueError,
        r"X\[1\] has shape \(4, 3\); expected \(T, 2\)",
    ),
    "ragged and empty": (
        lambda: NETWORK.predict([ZERO((5, 2)), ZERO((0, 2))]),
        ValueError,
        r"X\[1\] has shape \(0, 2\)",
    ),
    "ragged inside": (
        lambda: NETWORK.predict([[[1, 2], [3]], [[1, 2], [3, 4]]]),
        ValueError,
        "X",
    ),
    "ragged with NaN": (
        lambda: NETWORK.predict([ZERO((5, 2)), np.full((4, 2), np.nan)]),
        ValueError,
        r"X\[1\]\[0, 0\] is nan",
    ),
    "no sequences": (lambda: NETWORK.predict([]), ValueError, r"X has shape \(0,\)"),
    "generator": (lambda: NETWORK.predict(x for x in GOOD), TypeError, "X has dtype object"),
    "gradient of None": (lambda: NETWORK.gradient(None, None), TypeError, "X has dtype object"),
    "loss": (
        lambda: NETWORK.gradient(GOOD, ZERO((2, 4)), loss="unknown"),
        ValueError,
        "loss is 'unknown'; expected one of 'mse', ",
    ),
    "Y None": (lambda: NETWORK.gradient(GOOD, None), TypeError, "Y has dtype object"),
    "N of Y": (
        lambda: NETWORK.gradient(GOOD, ZERO((3, 4))),
        ValueError,
        r"Y has shape \(3, 4\); expected \(2, 4\)",
    ),
    "T of Y": (
        lambda: OF_STEPS.gradient(GOOD, ZERO((2, 4, 4))),
        ValueError,
        r"Y has shape \(2, 4, 4\); expected \(2, 5, 4\)",
    ),
    "float labels": (
        lambda: NETWORK.gradient(GOOD, [0.0, 1.0], loss="cross_entropy"),
        TypeError,
        "Y has dtype float64; expected integer classes",
    ),
    "bool labels": (
        lambda: NETWORK.gradient(GOOD, [True, False], loss="cross_entropy"),
        TypeError,
        "Y has dtype bool; expected integer classes",
    ),
    "names as labels": (
        lambda: NETWORK.gradient(GOOD, ["cat", "dog"], loss="cross_entropy"),
        TypeError,
        r"Y has dtype <U3; expected integer classes: number them with numpy.unique\(Y, return_inverse=True\)$",
    ),
    "label too large": (
        lambda: NETWORK.gradient(GOOD, [0, 4], loss="cross_entropy"),
        ValueError,
        r"Y\[1\] is 4; expected a class from 0 to 3",
    ),
    "label negative": (
        lambda: OF_STEPS.gradient(GOOD, [[0] * 5, [3, 3, -1, 0, 0]], loss="cross_entropy"),
        ValueError,
        r"Y\[1, 2\] is -1; expected a class from 0 to 3",
    ),
    "label past 64 bits": (
        lambda: NETWORK.gradient(GOOD, np.array([0, 2**63], "u8"), loss="cross_entropy"),
        ValueError,
        r"Y\[1\] is 9223372036854775808",
    ),
    "N of labels": (
        lambda: NETWORK.gradient(GOOD, [0], loss="cross_entropy"),
        ValueError,
        r"Y has shape \(1,\); expected \(2,\)",
    ),
    "one-hot labels": (
        lambda: NETWORK.gradient(GOOD, np.eye(4, dtype=int)[:2], loss="cross_entropy"),
        ValueError,
        r"Y has shape \(2, 4\); expected \(2,\)",
    ),
    "ragged labels": (
        lambda: OF_STEPS.gradient(GOOD, [[0, 1], [0]], loss="cross_entropy"),
        ValueError,
        r"Y is a list of 2 entries that differ in shape; expected \(2, 5\)",
    ),
    "no state": (lambda: NETWORK.step(ZERO((2, 2)), None), TypeError, "state is None"),
    "state of another network": (
        lambda: LSTMNetwork(2, 70, 4).step(ZERO((2, 2)), STATE),
        ValueError,
        "state is ",
    ),
    "state of another head": (
        lambda: LSTMNetwork(2, 3, 70).step(ZERO((2, 2)), STATE),
        ValueError,
        "state is ",
    ),
    "state of another dtype": (
        lambda: LSTMNetwork(2, 3, 4, dtype="float64").step(ZERO((2, 2)), STATE),
        ValueError,
        "state is ",
    ),
    "batch of x": (
        lambda: NETWORK.step(ZERO((3, 2)), STATE),
        ValueError,
        r"x has shape \(3, 2\); expected \(2, 2\)",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_arguments_are_named(name):
    call, error, message = BAD_CALLS[name]
    before = snapshot()
    with pytest.raises(error, match=f"(?s)^{message}"):
        call()
    assert snapshot() == before


TENSORS = {
    ".detach().numpy()": Tensor(requires_grad=True, device="cpu", dtype="torch.float32", layout="torch.strided"),
    ".detach().cpu().numpy()": Tensor(requires_grad=True, device="cuda:0"),
    ".to_dense().numpy()": Tensor(layout="torch.sparse_csr"),
    ".float().numpy()": Tensor(dtype="torch.bfloat16"),
    ".dequantize().numpy()": Tensor(["dequantize", "numpy"], is_quantized=True),
    ".unbind()": Tensor(["unbind", "numpy"], is_nested=True),
    ".get()": Tensor(["get"], device="<CUDA Device 0>"),
    ".toarray()": Tensor(["toarray"]),
}


@pytest.mark.parametrize("calls", TENSORS)
def test_tensors_of_other_packages_are_named_with_what_to_do(calls):
    for name, given in (("X", TENSORS[calls]), (r"X\[1\]", [GOOD[0], TENSORS[calls]])):
        with pytest.raises(TypeError, match=rf"^{name} is a \w+\.Tensor that NumPy .*; pass {name}{re.escape(calls)}$"):
            NETWORK.predict(given)
    with pytest.raises(TypeError, match=r"^lengths is a .*; pass lengths\."):
        NETWORK.predict(GOOD, lengths=TENSORS[calls])
    with pytest.raises(TypeError, match=r"^X is not an array: .* gives RuntimeError \(cannot convert\); expected"):
        NETWORK.predict(Tensor([]))


def test_other_layouts_and_types_of_tensors_are_known():
    for tensor, calls in ((Tensor(layout="torch._mkldnn"), "to_dense"), (Tensor(dtype="torch.float8_e4m3fn"), "float")):
        with pytest.raises(TypeError, match=rf"; pass X\.{calls}\(\)\.numpy\(\)$"):
            NETWORK.predict(tensor)


def test_the_tensor_of_a_list_that_numpy_cannot_take_is_named():
    class Taken(Tensor):
        def __array__(self, *_, **__):
            return np.zeros(3)

    with pytest.raises(TypeError, match=r"^Y\[1\] is a \w+\.Tensor .* pass Y\[1\]\.detach\(\)\.numpy\(\)$"):
        NETWORK.evaluate(GOOD, [Taken(["numpy"]), Tensor(["detach", "numpy"], requires_grad=True)])


def test_an_object_whose_attributes_raise_is_no_array():
    class Device(Tensor):
        @property
        def device(self):
            raise RuntimeError("no device")

    for X, name in ((Device(), "X"), ([GOOD[0], Device()], r"X\[1\]")):
        with pytest.raises(TypeError, match=rf"^{name} is not an array: .* gives RuntimeError \(cannot convert\);"):
            NETWORK.predict(X)


def test_a_sparse_matrix_that_numpy_takes_as_an_object_is_named():
    class Matrix:
        def toarray(self):
            return GOOD

    with pytest.raises(TypeError, match=r"^X is a \w+\.\S*Matrix that NumPy cannot take; pass X\.toarray\(\)$"):
        NETWORK.predict(Matrix())


BAD_OUTPUTS = {
    "list": ([[0.0] * 4] * 2, TypeError, r"out is \[\[0.0, .*; expected an ndarray"),
    "masked": (np.ma.zeros((2, 4), "f"), TypeError, "out is masked_array"),
    "dtype": (np.zeros((2, 4)), TypeError, "out has dtype float64; expected float32"),
    "byte order": (np.zeros((2, 4), ">f4"), TypeError, "out has dtype >f4; expected float32"),
    "batch": (np.zeros((3, 4), "f"), ValueError, r"out has shape \(3, 4\); expected \(2, 4\)"),
    "rank": (np.zeros(8, "f"), ValueError, r"out has shape \(8,\); expected \(2, 4\)"),
    "read-only": (readonly(np.zeros((2, 4), "f")), ValueError, "out is read-only, not"),
    "Fortran order": (np.zeros((4, 2), "f").T, ValueError, "out is read-only, not C-contiguous or unaligned; expected"),
    "strided": (strided(np.zeros((2, 4), "f")), ValueError, "out is read-only, not C-contiguous"),
    "unaligned": (unaligned(np.zeros((2, 4), "f")), ValueError, "out is read-only, .* or unaligned"),
}


@pytest.mark.parametrize("name", BAD_OUTPUTS)
def test_bad_outputs_are_named(name):
    out, error, message = BAD_OUTPUTS[name]
    before, held = snapshot(), np.array(out)
    for x in (np.ones((2, 2), "f"), [[1, 2], [3, 4]], [[np.nan] * 2] * 2):
        with pytest.raises(error, match=f"(?s)^{message}"):
            NETWORK.step(x, STATE, out=out)
    assert snapshot() == before
    assert np.array_equal(out, held)


def test_outputs_and_inputs_are_apart():
    network, memory = LSTMNetwork(4, 3, 4, seed=0), np.zeros(17, "f")
    state, out = network.initial_state(2), memory[4:12].reshape(2, 4)
    for x in (out, memory[:8].reshape(2, 4), memory[9:].reshape(2, 4), memoryview(out)):
        with pytest.raises(ValueError, match=r"^out shares memory with x"):
            network.step(x, state, out=out)
    assert state.steps == 0
    assert not memory.any()
    memory = np.ones(16, "f")
    network.step(memory[:8].reshape(2, 4), state, out=memory[8:].reshape(2, 4))  # neighbours
    assert_same_bits([memory[8:].reshape(2, 4)], [network.predict(np.ones((2, 1, 4)))])


def test_a_loss_that_is_not_finite_is_told():
    network = LSTMNetwork(2, 3, 4, dtype="float64", seed=0)
    with pytest.raises(NonFiniteError, match=r"^the loss is inf"):
        network.gradient(GOOD, np.full((2, 4), 1e300))
    network = LSTMNetwork(2, 3, 1, seed=0)
    with pytest.raises(NonFiniteError, match=r"^the gradient's norm is"):
        network.gradient(np.ones((1, 5, 2)), [[-3e38]])


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": "concat"}], ids=str)
@pytest.mark.parametrize("readout", ["last", "steps", "mean", "max"])
def test_predictions_that_are_not_finite_are_told(readout, options):
    """On every route: with what may be wrong, at the caller's line."""
    X, mask = np.zeros((5, 4, 2)), np.array([[True, False, True, True]] * 5)
    for dtype in DTYPES:
        forms = [(X.astype(dtype), {}), (X.tolist(), {}), (X, {"lengths": [4, 3, 4, 2, 1]}), (X, {"mask": mask})]
        for given, how in forms:
            network = LSTMNetwork(2, 3, 1, dtype=dtype, readout=readout, seed=0, **options)
            network.parameters[:] = 1
            network.W_y[:], network.b_y[:] = np.finfo(dtype).max, np.finfo(dtype).max
            with pytest.warns(
                RuntimeWarning, match=f"^the outputs of sequence 0 are not .* large for {dtype}"
            ) as caught:
                network.predict(given, **how)
            assert caught[0].filename == __file__
            for output_dim in (1, None):
                network = LSTMNetwork(2, 3, output_dim, dtype=dtype, readout=readout, seed=0, **options)
                network.predict(given, **how)
                network.parameters[:] = np.nan
                with pytest.warns(RuntimeWarning, match=r"^the outputs of sequence 0 are not .* nan in W_i"):
                    network.predict(given, **how)


@pytest.mark.parametrize("module", [5, "lstm_ext"])
def test_outputs_that_are_not_finite_are_told_to_any_caller(module):
    """Also to one whose module has an odd name; as an error, the warning changes nothing."""
    network = LSTMNetwork(2, 3, 1, seed=0)
    network.parameters[:] = np.nan
    before = snapshot()
    for filters, expected in (("error", pytest.raises), ("always", pytest.warns)):
        with warnings.catch_warnings():
            warnings.simplefilter(filters)
            with expected(RuntimeWarning, match="^the outputs of sequence 0 are not finite"):
                exec("network.predict(X)", {"__name__": module, "network": network, "X": GOOD})
    assert snapshot() == before


def test_the_first_sequence_that_is_not_finite_is_named():
    network = LSTMNetwork(1, 1, 1, seed=0)
    network.parameters[:] = 0
    network.named_parameters()["W_C"][0, 1] = 1
    network.W_y[:] = network.b_y[:] = 3e38
    X = np.zeros((300, 2, 1), "f")
    X[250:] = 10
    for given, how in ((X, {}), (X, {"lengths": np.arange(300) % 2 + 1}), (list(X), {"readout": "steps"})):
        with pytest.warns(RuntimeWarning, match="^the outputs of sequence 250 are not finite"):
            network.predict(given, **how)


def absolute_error(outputs, targets):
    error = np.asarray(outputs) - np.asarray(targets)
    return np.abs(error).mean(), np.sign(error) / error.size


@pytest.mark.parametrize("loss", ["mse", "cross_entropy", absolute_error], ids=["mse", "cross_entropy", "callable"])
@pytest.mark.parametrize("readout", ["last", "steps", "mean"])
def test_evaluate_has_the_bits_of_the_validation_loss(readout, loss):
    rng, lengths = np.random.default_rng(0), np.array([4, 3, 4, 2, 1, 4, 4])
    X, Y = rng.standard_normal((7, 4, 2)), rng.standard_normal((7, 4, 3) if readout == "steps" else (7, 3))
    if loss == "cross_entropy":
        Y = Y.argmax(axis=-1)
    network = LSTMNetwork(2, 3, 3, readout=readout, seed=0, num_layers=2, dropout=0.5)
    for padding in ({}, {"lengths": lengths}) if readout != "steps" or loss != absolute_error else ({},):
        for batch_size in (3, 32):
            how = {"loss": loss, "batch_size": batch_size}
            validation = {"X": X, "Y": Y} | padding
            history = lstm_ext.train(network, X, Y, epochs=1, validation_data=validation, verbose=False, **how)
            assert network.evaluate(X, Y, **how, **padding) == history.validation_loss[0]
    assert network.evaluate(X, Y, **how) == pytest.approx(network.gradient(X, Y, loss=loss)[0], 1e-6)


def test_evaluate_refuses_what_does_not_fit():
    X, Y = np.zeros((40, 9, 2)), np.zeros((40, 4))
    with pytest.raises(ValueError, match=r"^memory_budget is 9 bytes; .* need at least \d+$") as caught:
        NETWORK.evaluate(X, Y, memory_budget=9)
    needed = int(str(caught.value).split()[-1])
    assert NETWORK.evaluate(X, Y, memory_budget=needed) == NETWORK.evaluate(X, Y)
    with pytest.raises(ValueError, match=f"at least {needed}$"):
        NETWORK.evaluate(X, Y, memory_budget=needed - 1)
    with pytest.raises(TypeError, match=r"^batchsize is not an argument; did you mean batch_size\?"):
        NETWORK.evaluate(X, Y, batchsize=3)
    with pytest.raises(ValueError, match=r"^loss is 'unknown'; expected one of 'mse'"):
        NETWORK.evaluate(X, Y, loss="unknown")


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_a_mean_loss_that_is_not_finite_is_told(loss):
    network = LSTMNetwork(2, 3, 4, seed=0)
    network.parameters[:] = np.nan
    Y = np.zeros((5, 4)) if loss == "mse" else np.zeros(5, int)
    with pytest.raises(NonFiniteError, match=r"^the loss is nan in batch 1 of 3$"):
        network.evaluate(np.zeros((5, 4, 2)), Y, loss=loss, batch_size=2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_integers_up_to_the_mantissa_are_exact(dtype):
    limit = 2 ** {"float32": 24, "float64": 53}[dtype]
    layer = LSTM(1, 1, dtype=dtype)
    layer.forward([[[limit]]])
    layer.forward([[[-limit]]])
    for integer in (limit + 1, -limit - 1):
        with pytest.raises(ValueError, match=rf"^X\[0\] holds the integer {limit + 1} in magnitude"):
            layer.forward([[[integer]]])
