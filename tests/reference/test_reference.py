"""Proof of the oracle: its gradients by complex-step derivatives, the rest by hand."""

import copy
import functools
import pickle
from itertools import combinations, cycle, product

import helpers
import numpy as np
import pytest
from helpers import assert_parameters_close

from lstm_ext import reference
from lstm_ext.reference import LSTM, LSTMCell, LSTMNetwork, parameter_layout, train_lstm

pytestmark = pytest.mark.filterwarnings("error")

STEP = 1e-30  # of the complex step: its square vanishes, and nothing cancels
TOLERANCE = 1e-13
assert_close = functools.partial(helpers.assert_close, tolerance=TOLERANCE)
SIZES = list(product((1, 2, 5), (1, 3), (1, 3), (1, 2, 7)))  # T, N, I, H
HEADS_OF_NETWORKS = [  # loss, readout, I, H, O: many units, whose derivatives take long, once for each loss
    *(
        (loss, readout, *sizes)
        for loss in ("mse", "cross_entropy")
        for readout in ("last", "steps")
        for sizes in ((1, 1, 4), (3, 2, 1))
    ),
    ("mse", "last", 3, 7, 4),
    ("cross_entropy", "steps", 3, 7, 4),
]


def complex_step(function, arguments, name):
    """Return d function(**arguments) / d arguments[name], for a function of complex arrays."""
    gradient = np.zeros(arguments[name].shape)
    for index in np.ndindex(gradient.shape):
        moved = arguments[name].astype(complex)
        moved[index] += 1j * STEP
        gradient[index] = function(**{**arguments, name: moved}).imag / STEP
    return gradient


def randomised(model, rng):
    """Give every parameter, including the biases, a value of the usual size."""
    model.parameters = rng.uniform(-0.7, 0.7, model.parameters.shape)
    return model


def article_sigmoid(x):
    return 1 / (1 + np.exp(-x))


def article_step(cell, x_t, h_prev, C_prev):
    """Return (h_t, C_t) of one column by the equations, as the article writes them."""
    combined = np.vstack((h_prev, x_t.reshape(-1, 1)))
    f_t = article_sigmoid(np.dot(cell.W_f, combined) + cell.b_f)
    i_t = article_sigmoid(np.dot(cell.W_i, combined) + cell.b_i)
    C_tilde = np.tanh(np.dot(cell.W_C, combined) + cell.b_C)
    o_t = article_sigmoid(np.dot(cell.W_o, combined) + cell.b_o)
    C_t = f_t * C_prev + i_t * C_tilde
    return o_t * np.tanh(C_t), C_t


# --- gradients against complex-step derivatives ---


@pytest.mark.parametrize(("I", "H"), list(product((1, 3), (1, 2, 7))))
def test_cell_gradients(I, H):
    rng = np.random.default_rng(100 * I + H)
    cell = randomised(LSTMCell(I, H, dtype="float64"), rng)
    twin = LSTMCell(I, H, dtype="complex128")
    arguments = {"parameters": cell.parameters, "x_t": rng.standard_normal((I, 1))}
    arguments |= {name: rng.standard_normal((H, 1)) for name in ("h_prev", "C_prev")}
    dh, dC = rng.standard_normal((2, H, 1))

    def loss(parameters, x_t, h_prev, C_prev):
        twin.parameters = parameters
        h_t, C_t = twin.forward(x_t, h_prev, C_prev)
        return np.sum(dh * h_t) + np.sum(dC * C_t)

    states = (arguments[name] for name in ("x_t", "h_prev", "C_prev"))
    gradients = cell.backward(*states, dh, dC)
    assert_parameters_close(
        gradients.parameters, complex_step(loss, arguments, "parameters"), parameter_layout(I, H), TOLERANCE
    )
    for name in ("x_t", "h_prev", "C_prev"):
        actual = getattr(gradients, {"x_t": "dx"}.get(name, f"d{name}"))
        assert_close(actual, complex_step(loss, arguments, name), f"d{name}")


@pytest.mark.parametrize(("T", "N", "I", "H"), SIZES)
def test_lstm_gradients(T, N, I, H):
    rng = np.random.default_rng([T, N, I, H])
    lstm = randomised(LSTM(I, H, dtype="float64"), rng)
    twin = LSTM(I, H, dtype="complex128")
    arguments = {"parameters": lstm.parameters, "X": rng.standard_normal((N, T, I))}
    arguments |= {name: rng.standard_normal((N, H)) for name in ("h0", "C0")}
    dH = rng.standard_normal((N, T, H))
    dh_T, dC_T = rng.standard_normal((2, N, H))

    def loss(parameters, X, h0, C0):
        twin.parameters = parameters
        H, (h_T, C_T) = twin.forward(X, h0, C0)
        return np.sum(dH * H) + np.sum(dh_T * h_T) + np.sum(dC_T * C_T)

    states = (arguments[name] for name in ("X", "h0", "C0"))
    *_, tape = lstm.forward(*states, return_tape=True)
    gradients = lstm.backward(tape, dH, dh_T, dC_T)
    assert_parameters_close(
        gradients.parameters, complex_step(loss, arguments, "parameters"), parameter_layout(I, H), TOLERANCE
    )
    dX = complex_step(loss, arguments, "X")
    for t in range(T):
        assert_close(gradients.dX[:, t], dX[:, t], f"dX, t = {t}")
    assert_close(gradients.dh0, complex_step(loss, arguments, "h0"), "dh0")
    assert_close(gradients.dC0, complex_step(loss, arguments, "C0"), "dC0")


def random_targets(rng, loss, readout, N, T, outputs):
    rows = (N,) if readout == "last" else (N, T)
    if loss == "mse":
        return rng.standard_normal((*rows, outputs))
    return rng.integers(outputs, size=rows)


@pytest.mark.parametrize("N", [1, 3])
@pytest.mark.parametrize("T", [1, 5])
@pytest.mark.parametrize(("loss", "readout", "I", "H", "O"), HEADS_OF_NETWORKS)
def test_network_gradients(loss, readout, N, T, I, H, O):
    # A gradient that is one number (H = 1) may cancel to 1/200 of its terms, and keep their
    # rounding error; with this seed none does.
    rng = np.random.default_rng([4, N, T, I, H, O])
    network = randomised(LSTMNetwork(I, H, O, readout=readout, dtype="float64"), rng)
    twin = LSTMNetwork(I, H, O, readout=readout, dtype="complex128")
    X, Y = rng.standard_normal((N, T, I)), random_targets(rng, loss, readout, N, T, O)

    def criterion(parameters):  # from predict alone, so that the loss is checked as well
        twin.parameters = parameters
        y = twin.predict(X)
        if loss == "mse":
            return np.mean((y - Y) ** 2)
        p = np.exp(y) / np.exp(y).sum(axis=-1, keepdims=True)
        return -np.mean(np.log(np.take_along_axis(p, Y[..., np.newaxis], axis=-1)))

    value, gradient = network.gradient(X, Y, loss=loss)
    assert isinstance(value, float)
    assert value == pytest.approx(criterion(network.parameters).real, rel=1e-13, abs=1e-15)
    expected = complex_step(criterion, {"parameters": network.parameters}, "parameters")
    assert_parameters_close(gradient, expected, parameter_layout(I, H, O), TOLERANCE)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_gradient_is_analytic(loss):
    """A complex step through the gradient itself agrees with central differences."""
    rng = np.random.default_rng(5)
    network = randomised(LSTMNetwork(2, 2, 3, readout="steps", dtype="complex128"), rng)
    X, Y = rng.standard_normal((3, 4, 2)), random_targets(rng, loss, "steps", 3, 4, 3)
    start, h = network.parameters, 1e-5

    def gradient(parameters):
        network.parameters = parameters
        return network.gradient(X, Y, loss=loss)[1]

    for direction in rng.standard_normal((3, start.size)):
        change = gradient(start + 1j * STEP * direction).imag / STEP
        expected = gradient(start + h * direction) - gradient(start - h * direction)
        assert_close(change, expected.real / (2 * h), "second derivative", tolerance=1e-7)


def test_complex_step_reaches_the_loss():
    network = LSTMNetwork(1, 2, 1, dtype="complex128", seed=0)
    network.b_y = network.b_y + 1j * STEP
    value, gradient = network.gradient(np.ones((1, 2, 1)), np.zeros((1, 1)))
    assert value.imag / STEP == pytest.approx(gradient[-1].real, rel=1e-13)


def test_none_stands_for_zeros():
    rng = np.random.default_rng(6)
    lstm = LSTM(3, 2, dtype="float64", seed=1)
    X, zeros = rng.standard_normal((4, 5, 3)), np.zeros((4, 2))
    H, last, tape = lstm.forward(X, return_tape=True)
    H_zeros, last_zeros = lstm.forward(X, zeros, zeros)
    assert np.array_equal(H, H_zeros) and np.array_equal(last, last_zeros)
    dH, dh_T, dC_T = rng.standard_normal((4, 5, 2)), *rng.standard_normal((2, 4, 2))
    total = lstm.backward(tape, dH, dh_T, dC_T)
    alone = [
        lstm.backward(tape, dH),
        lstm.backward(tape, dh_T=dh_T),
        lstm.backward(tape, None, None, dC_T),
    ]
    for name, expected in total._asdict().items():
        assert all(np.linalg.norm(getattr(part, name)) > 0 for part in alone)
        assert_close(sum(getattr(part, name) for part in alone), expected, name)
    assert not any(np.any(gradient) for gradient in lstm.backward(tape))


# --- the forward pass against the equations ---


def test_cell_forward():
    rng = np.random.default_rng(1)
    cell = randomised(LSTMCell(3, 4, dtype="float64"), rng)
    x, h, C = rng.standard_normal((3, 1)), *rng.standard_normal((2, 4, 1))
    h_t, C_t = cell.forward(x, h, C)
    assert h_t.shape == C_t.shape == (4, 1)
    for actual, expected in zip((h_t, C_t), article_step(cell, x, h, C), strict=True):
        assert_close(actual, expected, "state", tolerance=1e-15)
    flat = cell.forward(x[:, 0], h, C)
    assert np.array_equal(flat, (h_t, C_t))
    same = cell.backward(x[:, 0], h, C, h, C)
    assert all(map(np.array_equal, same, cell.backward(x, h, C, h, C)))
    assert same.dx.shape == (3, 1) and same.dh_prev.shape == same.dC_prev.shape == (4, 1)


@pytest.mark.parametrize(("N", "T"), [(1, 1), (1, 4), (3, 4)])
def test_lstm_forward(N, T):
    rng = np.random.default_rng(2)
    lstm = randomised(LSTM(2, 3, dtype="float64"), rng)
    X, h0, C0 = rng.standard_normal((N, T, 2)), *rng.standard_normal((2, N, 3))
    H, (h_T, C_T) = lstm.forward(X, h0, C0)
    assert H.shape == (N, T, 3) and h_T.shape == C_T.shape == (N, 3)
    for n in range(N):
        h, C = h0[n].reshape(-1, 1), C0[n].reshape(-1, 1)
        for t in range(T):
            h, C = article_step(lstm.lstm_cell, X[n, t], h, C)
            assert_close(H[n, t], h[:, 0], f"h, t = {t}", tolerance=1e-14)
        assert_close(h_T[n], h[:, 0], "h_T", tolerance=1e-14)
        assert_close(C_T[n], C[:, 0], "C_T", tolerance=1e-14)


def test_network_forward_and_predict():
    rng = np.random.default_rng(3)
    network = randomised(LSTMNetwork(2, 3, 4, dtype="float64"), rng)
    X = rng.standard_normal((3, 5, 2))
    last, steps = network.predict(X), network.predict(X, readout="steps")
    assert last.shape == (3, 4) and steps.shape == (3, 5, 4)
    assert_close(last, steps[:, -1], "last", tolerance=1e-15)
    for n in range(3):
        outputs = network.forward(X[n])
        assert [y.shape for y in outputs] == [(4, 1)] * 5
        h = C = np.zeros((3, 1))
        for t in range(5):
            h, C = article_step(network.lstm_cell, X[n, t], h, C)
            y = np.dot(network.W_y, h) + network.b_y
            assert_close(outputs[t], y, f"y, t = {t}", tolerance=1e-14)
            assert_close(steps[n, t], y[:, 0], f"steps, t = {t}", tolerance=1e-14)


def test_cross_entropy_of_large_logits():
    network = LSTMNetwork(1, 1, 3, dtype="float64", seed=0)
    network.W_y, network.b_y = np.zeros((3, 1)), [[1000.0], [0.0], [-1000.0]]
    X = np.ones((2, 1, 1))
    value, gradient = network.gradient(X, [0, 2], loss="cross_entropy")
    assert value == 1000.0  # the mean of 0 and 2000
    assert np.array_equal(gradient[-3:], [0.5, 0.0, -0.5])


# --- sigmoid and tanh ---


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_activation_edges(dtype):
    x = np.array([0.0, -0.0, 1e30, -1e30, np.inf, -np.inf, np.nan], dtype)
    s, t = reference.sigmoid(x), reference.tanh(x)
    assert s.dtype == t.dtype == x.dtype
    np.testing.assert_array_equal(s, np.array([0.5, 0.5, 1, 0, 1, 0, np.nan], dtype))
    np.testing.assert_array_equal(t, np.array([0, 0, 1, -1, 1, -1, np.nan], dtype))
    assert np.array_equal(np.signbit(t[:2]), [False, True])


def test_activation_values():
    x = np.linspace(-40, 40, 2001)
    np.testing.assert_allclose(reference.sigmoid(x), article_sigmoid(x), rtol=1e-15)
    np.testing.assert_allclose(reference.tanh(x), np.tanh(x), rtol=0)
    assert reference.sigmoid(np.array([-700.0])) == pytest.approx(np.exp(-700.0), rel=1e-15, abs=0)
    assert reference.sigmoid([[0, 1]]).dtype == reference.tanh([[0, 1]]).dtype == np.float64
    assert reference.sigmoid(np.zeros((2, 3))).shape == (2, 3)


def test_activations_are_analytic():
    x = np.array([-1e3, -30.0, -1.0, -0.0, 0.0, 0.5, 30.0, 1e3])
    s, t = (f(x + 1j * STEP) for f in (reference.sigmoid, reference.tanh))
    np.testing.assert_allclose(s.real, reference.sigmoid(x), rtol=1e-15)
    np.testing.assert_allclose(s.imag / STEP, s.real * reference.sigmoid(-x), rtol=1e-14)
    e = np.exp(-2 * np.abs(x))
    np.testing.assert_allclose(t.imag / STEP, 4 * e / (1 + e) ** 2, rtol=1e-13)


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_activations_refuse_text(name):
    with pytest.raises(TypeError, match=r"^x must hold numbers"):
        getattr(reference, name)(["a"])


# --- parameters ---


def test_layout():
    layout = parameter_layout(2, 3, 4)
    W, b = (3, 5), (3, 1)
    assert layout == {
        "W_i": (0, W),
        "W_f": (15, W),
        "W_C": (30, W),
        "W_o": (45, W),
        "b_i": (60, b),
        "b_f": (63, b),
        "b_C": (66, b),
        "b_o": (69, b),
        "W_y": (72, (4, 3)),
        "b_y": (84, (4, 1)),
    }
    assert list(layout)[:8] == list(parameter_layout(2, 3)) == list(layout)[:-2]


def test_parameters_are_the_named_weights():
    network = LSTMNetwork(2, 3, 4, dtype="float64")
    vector = np.arange(88.0)
    network.parameters = vector
    assert np.array_equal(network.parameters, vector)
    assert np.array_equal(network.lstm_cell.parameters, vector[:72])
    for name, (offset, (rows, columns)) in parameter_layout(2, 3, 4).items():
        weight = getattr(network if name.endswith("y") else network.lstm_cell, name)
        expected = vector[offset : offset + rows * columns].reshape(rows, columns)
        assert np.array_equal(weight, expected), name
    lstm = LSTM(2, 3, dtype="float64")
    lstm.parameters = vector[:72]
    assert np.array_equal(lstm.lstm_cell.parameters, lstm.parameters)
    assert np.array_equal(lstm.parameters, vector[:72])


def test_weights_keep_identity_shape_and_dtype():
    cell = LSTMCell(2, 3, seed=0)
    view = cell.W_f
    cell.W_f = cell.W_i
    cell.W_f -= np.ones((3, 5))
    cell.parameters = 2 * cell.parameters
    assert cell.W_f is view and view.dtype == np.float32
    assert np.array_equal(view, cell.W_i - 2)
    for value in (np.zeros((3, 1)), np.zeros((5, 3))):
        with pytest.raises(ValueError, match=r"^W_f must have shape \(3, 5\), got"):
            cell.W_f = value
    with pytest.raises(ValueError, match=r"^parameters must have shape \(72,\), got \(71,\)"):
        cell.parameters = np.zeros(71)
    assert np.array_equal(view, cell.W_i - 2)


# --- initialisation ---


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_glorot(dtype):
    network = LSTMNetwork(30, 20, 40, dtype=dtype, seed=3)
    cell = network.lstm_cell
    for gate in "fiCo":
        W, b = getattr(cell, f"W_{gate}"), getattr(cell, f"b_{gate}")
        assert W.dtype == b.dtype == dtype and W.shape == (20, 50) and b.shape == (20, 1)
        h, x, a = W[:, :20].astype(float), W[:, 20:], np.sqrt(6 / 50)
        np.testing.assert_allclose(h @ h.T, np.eye(20), atol=1e-6 if dtype == "float32" else 1e-14)
        assert 0.95 * a < np.abs(x).max() <= a and abs(x.mean()) < 0.1 * a
        assert np.all(b == (1 if gate == "f" else 0))
    a = np.sqrt(6 / 60)
    assert network.W_y.dtype == network.b_y.dtype == dtype
    assert 0.95 * a < np.abs(network.W_y).max() <= a and not network.b_y.any()


def test_glorot_draws_in_the_documented_order():
    rng = np.random.default_rng(7)
    network = LSTMNetwork(2, 3, 4, dtype="float64", seed=7)
    for gate in "ifCo":
        a = np.sqrt(6 / 5)
        x = rng.uniform(-a, a, (3, 2))
        Q, R = np.linalg.qr(rng.standard_normal((3, 3)))
        W = getattr(network.lstm_cell, f"W_{gate}")
        assert np.array_equal(W, np.hstack((Q * np.sign(np.diag(R)), x))), gate
    a = np.sqrt(6 / 7)
    assert np.array_equal(network.W_y, rng.uniform(-a, a, (4, 3)))


def test_seed():
    before = np.random.get_state()[1].copy()
    first = LSTMNetwork(2, 3, 4, dtype="float64", seed=9)
    assert np.array_equal(first.parameters, LSTMNetwork(2, 3, 4, dtype="float64", seed=9).parameters)
    float32 = LSTMNetwork(2, 3, 4, seed=9).parameters
    assert np.array_equal(float32, first.parameters.astype("float32"))
    for layer in (LSTM, LSTMCell):
        cell = layer(2, 3, dtype="float64", seed=9)
        assert np.array_equal(cell.parameters, first.lstm_cell.parameters)
    assert not np.array_equal(LSTM(2, 3, seed=1).parameters, LSTM(2, 3, seed=2).parameters)
    assert not np.array_equal(LSTM(2, 3).parameters, LSTM(2, 3).parameters)
    assert np.array_equal(np.random.get_state()[1], before)  # the global generator is left alone


def test_reference_draws_as_the_article():
    np.random.seed(0)
    network = LSTMNetwork(2, 3, 4, dtype="float64", init="reference")
    np.random.seed(0)
    for gate in "fiCo":
        assert np.array_equal(getattr(network.lstm_cell, f"W_{gate}"), np.random.randn(3, 5)), gate
        assert not getattr(network.lstm_cell, f"b_{gate}").any()
    assert np.array_equal(network.W_y, np.random.randn(4, 3))
    assert not network.b_y.any()
    assert network.dtype == "float64"


# --- training ---


def toy_task():
    """Ragged sequences; the target is the mean of the sequence, and its last value."""
    rng = np.random.default_rng(4)
    X = [rng.uniform(-1, 1, (length, 1)) for length in (3, 5, 2, 1, 4, 3)]
    return X, [np.array([x.mean(), x[-1, 0]]) for x in X]


def test_train_lstm_prints_and_learns(capsys):
    X, Y = toy_task()
    np.random.seed(0)
    network = train_lstm(X, Y, 1, 5, 2, learning_rate=0.1, epochs=30)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 30
    losses = []
    for epoch, line in enumerate(lines):
        head, loss = line.split(", Loss: ")
        assert head == f"Epoch {epoch + 1}/30"
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0] and losses[1] < losses[0]
    assert isinstance(network, LSTMNetwork) and network.dtype == "float64"


def test_train_lstm_is_sgd_on_the_last_output(capsys):
    X, Y = toy_task()
    np.random.seed(0)
    trained = train_lstm(X, Y, 1, 3, 2, learning_rate=0.05, epochs=2)
    printed = [float(line.split("Loss: ")[1]) for line in capsys.readouterr().out.splitlines()]
    np.random.seed(0)
    twin = LSTMNetwork(1, 3, 2, dtype="complex128", init="reference")
    means = []
    for _ in range(2):
        losses = []
        for x, y in zip(X, Y, strict=True):

            def loss(parameters, x=x, y=y):
                twin.parameters = parameters
                return np.mean((twin.forward(x)[-1] - y.reshape(-1, 1)) ** 2)

            start = twin.parameters.real
            losses.append(loss(start).real)
            twin.parameters = start - 0.05 * complex_step(loss, {"parameters": start}, "parameters")
        means.append(np.mean(losses))
    np.testing.assert_allclose(printed, means, rtol=1e-12)
    assert_close(trained.parameters, twin.parameters.real, "parameters", tolerance=1e-12)


def test_train_lstm_trace(capsys):
    """The frozen losses of this program show any change of a number."""
    np.random.seed(0)
    X, Y = toy_task()
    train_lstm(X, Y, 1, 5, 2, epochs=4)
    printed = [float(line.split("Loss: ")[1]) for line in capsys.readouterr().out.splitlines()]
    trace = [0.9486229918674184, 0.8514531891453178, 0.7711400764446172, 0.7041797820249517]
    np.testing.assert_allclose(printed, trace, rtol=1e-12)


def test_train_lstm_accepts_columns_arrays_and_iterables(capsys):
    X, Y = toy_task()
    trained = []
    for targets in (Y, [y.reshape(-1, 1) for y in Y], np.stack(Y), iter(Y)):
        np.random.seed(0)
        trained.append(train_lstm(X, targets, 1, 3, 2, epochs=2).parameters)
    assert all(np.array_equal(trained[0], other) for other in trained[1:])
    assert len(capsys.readouterr().out.splitlines()) == 8


# --- the options: the forward pass against the definitions, row by row, unit by unit where it matters ---

PHILOX = [  # Random123's known answers: counter, key, output
    ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]
OPTIONS = {  # by a short name, one of each kind
    "layers": {"num_layers": 2},
    "concat": {"bidirectional": "concat"},
    "sum": {"bidirectional": "sum"},
    "backwards": {"go_backwards": True},
    "projection": {"proj_size": 2},
    "peephole": {"peephole": True},
    "layer_norm": {"layer_norm": True},
    "coupled": {"coupled_gates": True},
    "clip": {"cell_clip": 0.4},
    "no_bias": {"use_bias": False},
    "hard": {"gate_activation": "hard_sigmoid"},
    "identity": {"cell_activation": "identity"},
    "relu": {"cell_activation": "relu"},
    "learned": {"learn_initial_state": True},
    "dropout": {"num_layers": 2, "dropout": 0.4},
    "recurrent": {"recurrent_dropout": 0.4},
    "zoneout": {"zoneout": (0.4, 0.3)},
    "drop_connect": {"weight_dropout": 0.3},
}
ALONE = {"none": {}, "three_layers": {"num_layers": 3, "dropout": 0.2}} | OPTIONS
FULL = {"num_layers": 2, "bidirectional": "concat", "proj_size": 2, "peephole": True, "layer_norm": True}
FULL |= {"learn_initial_state": True}
CLASHES = [{"concat", "sum"}, {"concat", "backwards"}, {"sum", "backwards"}, {"identity", "relu"}]
PAIRS = {
    f"{one}-{other}": OPTIONS[one] | OPTIONS[other]
    for one, other in combinations(OPTIONS, 2)
    if {one, other} not in CLASHES
}
LENGTHS = [5, 1, 3]
MASK = [[False, True, False, True, True], [False, False, True, False, False], [True, True, False, True, False]]
ROWS = {"full": {}, "lengths": {"lengths": LENGTHS}, "mask": {"mask": MASK}}
MIXED = list(zip(PAIRS.values(), cycle(("lengths", "mask", "lengths"))))  # an odd cycle


def as_parametrize(names, table):
    return pytest.mark.parametrize(names, list(table.values()), ids=list(table))


def own_philox(counter, key):
    """Ten rounds on Python's integers."""
    (a, b, c, d), (k, m) = map(int, counter), map(int, key)
    for _ in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = right >> 32 ^ b ^ k, right & 0xFFFFFFFF, left >> 32 ^ d ^ m, left & 0xFFFFFFFF
        k, m = k + 0x9E3779B9 & 0xFFFFFFFF, m + 0xBB67AE85 & 0xFFFFFFFF
    return a, b, c, d


@pytest.mark.parametrize(("counter", "key", "answer"), PHILOX)
def test_philox_known_answers(counter, key, answer):
    words = [int(word, 16) for word in answer.split()]
    assert reference.philox(counter, key).tolist() == words
    assert own_philox(counter, key) == tuple(words)


def test_philox_broadcasts():
    rng = np.random.default_rng(0)
    a, b = rng.integers(2**32, size=(3, 1)), rng.integers(2**32, size=4)
    words = reference.philox((a, b, 7, 2**32 - 1), (5, 2**32 - 2))
    assert words.shape == (4, 3, 4)
    for m, n in np.ndindex(3, 4):
        assert tuple(words[:, m, n]) == own_philox((a[m, 0], b[n], 7, 2**32 - 1), (5, 2**32 - 2))


def own_mask(seed, update, p, size, n, t, cell, kind):
    """Return which of `size` elements are dropped."""
    key = own_philox((update % 2**32, update // 2**32, 0, 0), (seed % 2**32, seed // 2**32))[:2]
    words = [own_philox((j // 4, n, t, 8 * cell + kind), key)[j % 4] for j in range(size)]
    return np.array([word < int(p * 2**32) for word in words])


def normalised(v):
    return (v - np.mean(v)) / np.sqrt(np.var(v) + 1e-5)


class OwnCell:
    """One cell of a model on one row, by the definitions."""

    def __init__(self, model, layer, direction, n, seed):
        suffix = (f"_l{layer}" if layer else "") + ("_reverse" if direction else "")
        cut = {name: name.removesuffix(suffix) for name in model.named_parameters() if name.endswith(suffix)}
        names = dict.fromkeys(["W_i", "W_f", "W_C", "W_o", "b_i", "b_f", "b_C", "b_o", "p_i", "p_f", "p_o"])
        names |= dict.fromkeys(["gain_x", "gain_h", "gain_C", "shift_C", "W_r", "h_0", "C_0"])
        self.w = {name: model.named_parameters()[full] for full, name in cut.items() if name in names}
        self.o, self.H, self.n, self.seed = model.options, model.hidden_dim, n, seed
        self.R = self.o.proj_size or self.H
        self.cell = layer * (2 if self.o.bidirectional else 1) + direction

    def keep(self, p, kind, size, n, t):
        """Return factors of dropout."""
        if self.seed is None or not p:
            return np.ones(size)
        return np.where(own_mask(self.seed, 0, p, size, n, t, self.cell, kind), 0, 1 / (1 - p))

    def zone(self, state, size, s):
        p = self.o.zoneout[state]
        if self.seed is None or not p:
            return np.full(size, p)
        return own_mask(self.seed, 0, p, size, self.n, s, self.cell, 2 + state).astype(float)

    def step(self, x, h, C, s):
        o, w, H, R = self.o, self.w, self.H, self.R
        gates = [gate for gate in "ifCo" if f"W_{gate}" in w]
        seen = h * self.keep(o.recurrent_dropout, 1, R, self.n, 0)
        u_h, u_x = [], []
        for k, gate in enumerate(gates):
            for row in range(H):
                W_h = w[f"W_{gate}"][row, :R] * self.keep(o.weight_dropout, 4, R, k * H + row, 0)
                u_h.append(W_h @ seen)
                u_x.append(w[f"W_{gate}"][row, R:] @ x)
        u_h, u_x = np.array(u_h), np.array(u_x)
        if o.layer_norm:
            u_h, u_x = w["gain_h"][:, 0] * normalised(u_h), w["gain_x"][:, 0] * normalised(u_x)
        z = dict(zip(gates, (u_h + u_x).reshape(-1, H), strict=True))
        zero = np.zeros((H, 1))
        z = {gate: z[gate] + w.get(f"b_{gate}", zero)[:, 0] for gate in gates}
        p = {gate: w.get(f"p_{gate}", zero)[:, 0] for gate in "ifo"}
        sigma = article_sigmoid
        if o.gate_activation == "hard_sigmoid":
            sigma = lambda v: np.maximum(0, np.minimum(1, 0.2 * v + 0.5))  # noqa: E731
        act = {"tanh": np.tanh, "identity": lambda v: v, "relu": lambda v: np.maximum(v, 0)}[o.cell_activation]
        i = sigma(z["i"] + p["i"] * C)
        f = 1 - i if o.coupled_gates else sigma(z["f"] + p["f"] * C)
        c = f * C + i * act(z["C"])
        if o.cell_clip is not None:
            c = np.clip(c, -o.cell_clip, o.cell_clip)
        out = sigma(z["o"] + p["o"] * c)
        m = out * act(w["gain_C"][:, 0] * normalised(c) + w["shift_C"][:, 0] if o.layer_norm else c)
        r = w["W_r"] @ m if o.proj_size else m
        zone_h, zone_C = self.zone(0, R, s), self.zone(1, H, s)
        return zone_h * h + (1 - zone_h) * r, zone_C * C + (1 - zone_C) * c

    def run(self, xs, h, C):
        """Return h before and after each step, and the last C."""
        states = [h]
        for s, x in enumerate(xs):
            h, C = self.step(x, states[-1], C, s)
            states.append(h)
        return states, C


def own_row(model, x, live, n, h0, C0, seed):
    """Return (H, h_T, C_T) of one sequence, with steps to skip."""
    o = model.options
    D = 2 if o.bidirectional else 1
    if o.go_backwards:
        x, live = x[::-1], live[::-1]
    merge = {"concat": np.concatenate, "sum": sum, None: lambda parts: parts[0]}[o.bidirectional]
    inputs, h_T, C_T = [x_t for x_t, is_live in zip(x, live, strict=True) if is_live], [], []
    S = len(inputs)
    for layer in range(o.num_layers):
        if layer:
            first = OwnCell(model, layer, 0, n, seed)
            inputs = [x_t * first.keep(o.dropout, 0, len(x_t), n, t) for t, x_t in enumerate(inputs)]
        runs = []
        for direction in range(D):
            cell, way = OwnCell(model, layer, direction, n, seed), inputs[::-1] if direction else inputs
            states, C = cell.run(way, h0[layer * D + direction], C0[layer * D + direction])
            runs.append(states)
            h_T.append(states[-1])
            C_T.append(C)
        after = [(live[: t + 1].sum(), live[t:].sum())[:D] for t in range(len(live))]
        outputs = [merge([states[k] for states, k in zip(runs, ks, strict=True)]) for ks in after]
        inputs = [output for output, is_live in zip(outputs, live, strict=True) if is_live]
    assert len(inputs) == S
    return np.array(outputs), h_T, C_T


def states_of(model, rng, N):
    """Return random initial states, as `forward` takes them."""
    cells = model.options.num_layers * (2 if model.options.bidirectional else 1)
    widths = model.options.proj_size or model.hidden_dim, model.hidden_dim
    return [rng.standard_normal((N, width) if cells == 1 else (cells, N, width)) for width in widths]


def own_forward(model, X, lengths=None, mask=None, h0=None, C0=None, seed=None):
    """Return H, h_T, C_T, row by row; `h0` and `C0` as (cells, N, width)."""
    N, T, _ = X.shape
    H, h_T, C_T = [], [], []
    for n in range(N):
        end = T if lengths is None else lengths[n]
        live = np.ones(end, bool) if mask is None else np.array(mask)[n]
        rows, h, C = own_row(model, X[n, :end], live, n, h0[:, n], C0[:, n], seed)
        H.append(np.vstack((rows, np.zeros((T - end, rows.shape[1])))))
        h_T.append(h)
        C_T.append(C)
    return np.array(H), np.array(h_T).swapaxes(0, 1), np.array(C_T).swapaxes(0, 1)


@pytest.mark.parametrize("seed", [None, 2**40 + 3])
@pytest.mark.parametrize("rows", list(ROWS))
@as_parametrize("options", ALONE)
def test_option_alone_forward(options, rows, seed):
    check_forward(options, rows, seed)


@pytest.mark.parametrize(("options", "rows"), MIXED, ids=list(PAIRS))
def test_option_pair_forward(options, rows):
    check_forward(options, rows, 7)


def check_forward(options, rows, seed):
    rng = np.random.default_rng([11, len(rows)])
    lstm = randomised(LSTM(2, 3, dtype="float64", **options), rng)
    X, (h0, C0) = rng.standard_normal((3, 5, 2)), states_of(lstm, rng, 3)
    H, last = lstm.forward(X, h0, C0, dropout_seed=seed, **ROWS[rows])
    stacked = [state.reshape(-1, 3, state.shape[-1]) for state in (h0, C0)]
    expected = own_forward(lstm, X, **ROWS[rows], h0=stacked[0], C0=stacked[1], seed=seed)
    assert_close(H, expected[0], "H", tolerance=1e-14)
    for name, actual, state in zip(("h_T", "C_T"), last, expected[1:], strict=True):
        assert actual.shape == h0.shape if name == "h_T" else C0.shape
        assert_close(actual.reshape(state.shape), state, name, tolerance=1e-14)


# --- the options: gradients against complex-step derivatives ---


def layer_problem(options, seed, rows, given=True):
    """Return a layer, its gradients, a loss, and its arguments."""
    rng = np.random.default_rng([seed, len(rows)])
    lstm = randomised(LSTM(2, 3, dtype="float64", **options), rng)
    twin = LSTM(2, 3, dtype="complex128", **options)
    X, (h0, C0) = rng.standard_normal((3, 5, 2)), states_of(lstm, rng, 3)
    arguments = {"parameters": lstm.parameters, "X": X} | ({"h0": h0, "C0": C0} if given else {})
    H, last, tape = lstm.forward(*list(arguments.values())[1:], return_tape=True, dropout_seed=seed, **ROWS[rows])
    weights = [rng.standard_normal(array.shape) for array in (H, *last)]

    def loss(parameters, *states, **named):
        twin.parameters = parameters
        H, last = twin.forward(*states, dropout_seed=seed, **named, **ROWS[rows])
        return sum(np.sum(weight * array) for weight, array in zip(weights, (H, *last), strict=True))

    return lstm, lstm.backward(tape, *weights), loss, arguments


@pytest.mark.parametrize("rows", ["lengths", "mask"])
@as_parametrize("options", {"none": {}} | OPTIONS)
def test_option_alone_gradients(options, rows):
    """Every single derivative."""
    _, gradients, loss, arguments = layer_problem(options, 12, rows)
    assert_parameters_close(
        gradients.parameters,
        complex_step(loss, arguments, "parameters"),
        parameter_layout(2, 3, None, **options),
        TOLERANCE,
    )
    dX = complex_step(loss, arguments, "X")
    for t in range(5):
        assert_close(gradients.dX[:, t], dX[:, t], f"dX, t = {t}")
    last = np.arange(3), np.array(ROWS[rows].get("lengths", [5] * 3)) - 1
    assert_close(gradients.dX[last], dX[last], "dX, each row's last step")
    assert_close(gradients.dh0, complex_step(loss, arguments, "h0"), "dh0")
    assert_close(gradients.dC0, complex_step(loss, arguments, "C0"), "dC0")


@pytest.mark.parametrize(("options", "rows"), MIXED, ids=list(PAIRS))
def test_option_pair_gradients(options, rows):
    """Each parameter, each time and each state along a random direction."""
    _, gradients, loss, arguments = layer_problem(options, 13, rows)
    rng = np.random.default_rng(14)
    parts = {"parameters": [], "X": [np.s_[:, t] for t in range(5)], "h0": [np.s_[:]], "C0": [np.s_[:]]}
    for offset, (m, n) in parameter_layout(2, 3, **options).values():
        parts["parameters"].append(np.s_[offset : offset + m * n])
    for name, slices in parts.items():
        gradient = getattr(gradients, {"parameters": name}.get(name, f"d{name}"))
        for part in slices:
            direction = np.zeros(gradient.shape)
            direction[part] = rng.standard_normal(direction[part].shape)
            moved = arguments[name] + 1j * STEP * direction
            expected = loss(**{**arguments, name: moved}).imag / STEP
            scale = np.linalg.norm(gradient[part]) * np.linalg.norm(direction)
            assert abs(np.sum(gradient * direction) - expected) <= TOLERANCE * max(scale, 1e-3), (name, part)


@pytest.mark.parametrize("more", [{}, *map(OPTIONS.get, ("layers", "concat", "projection", "zoneout"))])
def test_learned_states(more):
    """Used where no states are given: their gradient is that of the rows' states together."""
    options = {"learn_initial_state": True, **more}
    lstm, gradients, loss, arguments = layer_problem(options, 15, "lengths", given=False)
    assert_parameters_close(
        gradients.parameters,
        complex_step(loss, arguments, "parameters"),
        parameter_layout(2, 3, None, **options),
        TOLERANCE,
    )
    layout, named = parameter_layout(2, 3, **options), lstm.named_parameters()
    for state, rows in (("h_0", gradients.dh0), ("C_0", gradients.dC0)):
        learned = [name for name in layout if name.startswith(state)]
        assert len(learned) == len(rows.reshape(-1, *rows.shape[-2:]))
        for name, row in zip(learned, rows.reshape(-1, *rows.shape[-2:]), strict=True):
            offset, (size, _) = layout[name]
            assert_close(gradients.parameters[offset : offset + size], row.sum(axis=0), name, tolerance=1e-15)
    given = [np.repeat(np.stack([named[n].T for n in layout if n.startswith(s)]), 3, axis=1) for s in ("h_0", "C_0")]
    given = [state[0] if len(state) == 1 else state for state in given]
    X = arguments["X"]
    for actual, expected in zip(lstm.forward(X)[1], lstm.forward(X, *given)[1], strict=True):
        assert np.array_equal(actual, expected)
    H, _, tape = lstm.forward(X, *given, return_tape=True)
    unused = lstm.backward(tape, np.ones_like(H)).parameters
    for name, (offset, (size, _)) in layout.items():
        if name.startswith(("h_0", "C_0")):
            assert not unused[offset : offset + size].any()


# --- batches, as users give them ---


def test_lists_and_lengths_are_one():
    rng = np.random.default_rng(16)
    lstm = randomised(LSTM(2, 3, dtype="float64", num_layers=2, bidirectional="concat"), rng)
    X = rng.standard_normal((3, 5, 2))
    sequences = [x[:length] for x, length in zip(X, LENGTHS, strict=True)]
    X[~(np.arange(5) < np.array(LENGTHS)[:, None])] = np.nan  # beyond the end nothing is looked at
    results = []
    for data, how in ((X, {"lengths": LENGTHS}), (sequences, {}), (tuple(s.tolist() for s in sequences), {})):
        H, last, tape = lstm.forward(data, return_tape=True, **how)
        results.append([H, *last, *lstm.backward(tape, np.ones((3, 5, 6)))])
    assert results[0][0].shape == (3, 5, 6) and results[1][3].shape == (3, 5, 2)
    for other in results[1:]:
        assert all(map(np.array_equal, results[0], other))
    for n, sequence in enumerate(sequences):
        H, last = lstm.forward(sequence[None])
        assert_close(results[0][0][n, : len(sequence)], H[0], "H of the row alone", tolerance=1e-15)
        assert not results[0][0][n, len(sequence) :].any() and not results[0][3][n, len(sequence) :].any()


def test_gradients_past_the_end_are_ignored():
    rng = np.random.default_rng(17)
    lstm = LSTM(2, 3, dtype="float64", seed=0, bidirectional="sum")
    *_, tape = lstm.forward(rng.standard_normal((3, 5, 2)), lengths=LENGTHS, return_tape=True)
    dH = rng.standard_normal((3, 5, 3))
    expected = lstm.backward(tape, dH)
    dH[~(np.arange(5) < np.array(LENGTHS)[:, None])] = np.nan
    assert all(map(np.array_equal, expected, lstm.backward(tape, dH)))


def test_go_backwards_is_the_reversed_sequence():
    rng = np.random.default_rng(18)
    ahead, back = (LSTM(2, 3, dtype="float64", seed=0, num_layers=2, go_backwards=b) for b in (False, True))
    X = rng.standard_normal((3, 5, 2))
    reverse = [x[:length][::-1] for x, length in zip(X, LENGTHS, strict=True)]
    for actual, expected in zip(back.forward(X, lengths=LENGTHS), ahead.forward(reverse), strict=True):
        assert all(map(np.array_equal, actual, expected))


# --- dropout's seeds ---


def test_seeds_and_updates_choose_the_masks():
    rng = np.random.default_rng(19)
    network = randomised(LSTMNetwork(2, 3, 4, dtype="float64", recurrent_dropout=0.5, zoneout=0.5), rng)
    X, Y = rng.standard_normal((3, 5, 2)), rng.standard_normal((3, 4))
    first, same, *others = (
        network.gradient(X, Y, dropout_seed=seed, update=update)[1]
        for seed, update in ((1, 0), (1, 0), (2, 0), (1, 1), (1 + 2**32, 0), (1, 2**32), (None, 0))
    )
    assert np.array_equal(first, same)
    everything = [first, *others]
    assert all(not np.array_equal(a, b) for a, b in combinations(everything, 2))
    assert np.array_equal(network.predict(X), network.predict(X))


@pytest.mark.parametrize("update", [0, 1, 2**32 + 5])
def test_the_key_of_an_update(update):
    key = reference.cell.Key.of(2**63 + 11, update)
    dropped = key.dropped(0.3, 4, 3, np.arange(9), np.arange(5)[:, None], 2)
    for n in range(5):
        assert np.array_equal(dropped[n], own_mask(2**63 + 11, update, 0.3, 9, n, 2, 3, 4))


@pytest.mark.parametrize("p", [0.0, 0.25, 0.9])
def test_masks_keep_the_mean(p):
    key = reference.cell.Key.of(0, 0)
    mask = key.mask(np.dtype("float32"), p, 0, 0, np.arange(200), np.arange(50)[:, None], 0)
    assert mask.dtype == "float32" and set(np.unique(mask)) <= {np.float32(0), np.float32(1 / (1 - p))}
    assert mask.mean() == pytest.approx(1, abs=0.1) and np.mean(mask == 0) == pytest.approx(p, abs=0.02)


# --- heads ---

HEADS = {
    "plain": {},
    "deep": {"num_layers": 2, "bidirectional": "concat", "proj_size": 2, "learn_initial_state": True},
    "summed": {"bidirectional": "sum", "peephole": True, "dropout": 0.3, "num_layers": 2},
    "backwards": {"go_backwards": True, "layer_norm": True, "zoneout": 0.2},
}


def own_features(network, readout, H, h_T, live):
    """Return the features that the head is applied to."""
    options = network.options
    if readout == "last":
        parts = h_T[-2:] if options.bidirectional else h_T[-1:]
        return np.concatenate(parts, axis=1) if options.bidirectional == "concat" else sum(parts)
    if readout == "steps":
        return H
    pool = {"mean": np.mean, "max": np.max}[readout]
    return np.array([pool(rows[alive], axis=0) for rows, alive in zip(H, live, strict=True)])


@pytest.mark.parametrize("outputs", [None, 4])
@pytest.mark.parametrize("readout", ["last", "steps", "mean", "max"])
@pytest.mark.parametrize("rows", list(ROWS))
@as_parametrize("options", HEADS)
def test_predict(options, rows, readout, outputs):
    rng = np.random.default_rng(20)
    network = randomised(LSTMNetwork(2, 3, outputs, readout=readout, dtype="float64", **options), rng)
    X, cells = rng.standard_normal((3, 5, 2)), options.get("num_layers", 1) * (2 if "bidirectional" in options else 1)
    states = [np.zeros((cells, 3, width)) for width in (options.get("proj_size", 3), 3)]
    for k, state in enumerate(("h_0", "C_0")):
        for cell, name in enumerate(name for name in network.named_parameters() if name.startswith(state)):
            states[k][cell] = network.named_parameters()[name].T
    H, h_T, _ = own_forward(network, X, **ROWS[rows], h0=states[0], C0=states[1])
    live = np.array(MASK) if rows == "mask" else np.arange(5) < np.array(ROWS[rows].get("lengths", [5] * 3))[:, None]
    live = live[:, ::-1] if rows == "mask" and "go_backwards" in options else live
    expected = own_features(network, readout, H, h_T, live)
    if outputs:
        expected = expected @ network.W_y.T + network.b_y.T
    if readout == "steps" and rows == "lengths":
        expected[~live] = 0
    assert_close(network.predict(X, **ROWS[rows]), expected, "y", tolerance=1e-14)


@pytest.mark.parametrize(("loss", "outputs"), [("mse", None), ("mae", 4), ("cross_entropy", 4)])
@pytest.mark.parametrize("readout", ["last", "steps", "mean", "max"])
@pytest.mark.parametrize("rows", ["lengths", "mask"])
@as_parametrize("options", HEADS)
def test_head_gradients(options, rows, readout, loss, outputs):
    rng = np.random.default_rng([21, len(readout)])
    network = randomised(LSTMNetwork(2, 3, outputs, readout=readout, dtype="float64", **options), rng)
    twin = LSTMNetwork(2, 3, outputs, readout=readout, dtype="complex128", **options)
    X, how = rng.standard_normal((3, 5, 2)), ROWS[rows]
    width = network.predict(X).shape[-1]
    Y = rng.integers(width, size=(3, 5)) if loss == "cross_entropy" else rng.standard_normal((3, 5, width))
    Y = Y if readout == "steps" else Y[:, 0]
    live = np.ones((3, 5), bool)
    if rows == "lengths":
        live = np.arange(5) < np.array(LENGTHS)[:, None]
    elif rows == "mask":
        live = np.array(MASK)[:, :: -1 if "go_backwards" in options else 1]
    count = live if readout == "steps" else np.ones(3, bool)

    def criterion(parameters):
        twin.parameters = parameters
        y = twin.predict(X, **how)[count]
        if loss == "mse":
            return np.mean((y - Y[count]) ** 2)
        if loss == "mae":
            return np.mean(np.where(y.real < Y[count], Y[count] - y, y - Y[count]))
        p = np.exp(y) / np.exp(y).sum(axis=-1, keepdims=True)
        return -np.mean(np.log(np.take_along_axis(p, Y[count][..., np.newaxis], axis=-1)))

    value, gradient = network.gradient(X, Y, loss=loss, **how)
    assert value == pytest.approx(criterion(network.parameters).real, rel=1e-13, abs=1e-15)
    for direction in rng.standard_normal((2, gradient.size)):
        expected = criterion(network.parameters + 1j * STEP * direction).imag / STEP
        scale = np.linalg.norm(gradient) * np.linalg.norm(direction)
        assert abs(gradient @ direction - expected) <= TOLERANCE * scale
    if readout == "steps" and rows == "lengths":
        Y[~live] = 99  # nothing past the end counts
        assert np.array_equal(gradient, network.gradient(X, Y, loss=loss, **how)[1])
        lists = ([a[:length] for a, length in zip(A, LENGTHS, strict=True)] for A in (X, Y))
        assert np.array_equal(gradient, network.gradient(*lists, loss=loss)[1])


@pytest.mark.parametrize("readout", ["last", "steps", "mean", "max"])
def test_training_masks_reach_the_gradient(readout):
    """The network's gradient under masks is the layer's, whose masks are proven above."""
    rng = np.random.default_rng(22)
    options = {"num_layers": 2, "dropout": 0.3, "recurrent_dropout": 0.2, "zoneout": 0.2, "weight_dropout": 0.3}
    network = randomised(LSTMNetwork(2, 3, None, readout=readout, dtype="float64", **options), rng)
    layer = LSTM(2, 3, dtype="float64", **options)
    layer.parameters = network.parameters
    X = rng.standard_normal((3, 5, 2))
    H, (h_T, _), tape = layer.forward(X, lengths=LENGTHS, dropout_seed=5, return_tape=True)
    live = np.arange(5) < np.array(LENGTHS)[:, None]
    y = own_features(network, readout, H, h_T, live)
    value, gradient = network.gradient(X, np.zeros_like(y), lengths=LENGTHS, dropout_seed=5)
    counted = y[live] if readout == "steps" else y
    assert value == pytest.approx(np.mean(counted**2), rel=1e-13)
    dy, dH, dh_T = 2 * y / counted.size, np.zeros_like(H), np.zeros_like(h_T)
    if readout == "last":
        dh_T[-1] = dy
    elif readout == "steps":
        dH = dy
    else:
        for n, length in enumerate(LENGTHS):
            if readout == "mean":
                dH[n, :length] = dy[n] / length
            else:
                dH[n, H[n, :length].argmax(axis=0), range(3)] = dy[n]
    assert_close(gradient, layer.backward(tape, dH, dh_T).parameters, "gradient")


def test_equal_largest_share_nothing():
    options = {"cell_activation": "relu", "learn_initial_state": True}
    network = LSTMNetwork(1, 2, None, readout="max", dtype="float64", seed=0, **options)
    network.W_C = np.zeros((2, 3))  # C decays from C_0: no equals; with f = 1 all would be
    network.b_f, network.W_f, network.W_o = np.full((2, 1), 60.0), np.zeros((2, 3)), np.zeros((2, 3))
    network.C_0 = [[1.0], [2.0]]
    X = np.zeros((1, 4, 1))
    steps = network.predict(X, readout="steps")[0]
    assert np.array_equal(steps, np.repeat(steps[:1], 4, axis=0))  # equal at every step
    dH = np.zeros((1, 4, 2))
    dH[0, 0] = 2 * steps[0] / 2
    layer = LSTM(1, 2, dtype="float64", **options)
    layer.parameters = network.parameters
    *_, tape = layer.forward(X, return_tape=True)
    gradient = network.gradient(X, np.zeros((1, 2)))[1]
    assert_close(gradient, layer.backward(tape, dH).parameters, "gradient")


# --- the options: layout, initial weights, dtypes ---


def test_layout_of_everything():
    layout = parameter_layout(5, 4, 2, **FULL | {"proj_size": 3})
    names, shapes = list(layout), {name: shape for name, (_, shape) in layout.items()}
    cell = [f"{kind}_{gate}" for kind in "Wb" for gate in "ifCo"] + ["p_i", "p_f", "p_o"]
    cell += ["gain_x", "gain_h", "gain_C", "shift_C", "W_r", "h_0", "C_0"]
    suffixes = "", "_reverse", "_l1", "_l1_reverse"
    assert names == [name + suffix for suffix in suffixes for name in cell] + ["W_y", "b_y"]
    expected = [(4, 8)] * 4 + [(4, 1)] * 7 + [(16, 1)] * 2 + [(4, 1)] * 2 + [(3, 4), (3, 1), (4, 1)]
    deeper = [(4, 9)] * 4 + expected[4:]
    assert list(shapes.values()) == 2 * expected + 2 * deeper + [(2, 6), (2, 1)]
    offsets = np.cumsum([0] + [m * n for m, n in shapes.values()])
    assert [offset for offset, _ in layout.values()] == offsets[:-1].tolist()
    assert LSTMNetwork(5, 4, 2, **FULL | {"proj_size": 3}).parameters.size == offsets[-1]


def test_layout_of_fewer():
    coupled = parameter_layout(1, 2, coupled_gates=True, peephole=True, use_bias=False, layer_norm=True)
    assert list(coupled) == ["W_i", "W_C", "W_o", "p_i", "p_o", "gain_x", "gain_h", "gain_C", "shift_C"]
    assert coupled["gain_h"][1] == (6, 1)
    summed = parameter_layout(1, 2, 3, num_layers=2, bidirectional="sum", use_bias=False)
    assert summed["W_i"][1] == (2, 3) and summed["W_i_l1_reverse"][1] == (2, 4) and summed["W_y"][1] == (3, 2)
    assert list(summed) == [f"W_{g}{s}" for s in ("", "_reverse", "_l1", "_l1_reverse") for g in "ifCo"] + [
        "W_y",
        "b_y",
    ]


def test_named_parameters_are_the_weights():
    network = LSTMNetwork(2, 3, 4, dtype="float64", num_layers=2, proj_size=2, peephole=True)
    named = network.named_parameters()
    layout = parameter_layout(2, 3, 4, num_layers=2, proj_size=2, peephole=True)
    assert list(named) == list(layout)
    network.parameters = vector = np.arange(network.parameters.size)
    for name, (offset, (m, n)) in layout.items():
        assert np.array_equal(named[name], vector[offset : offset + m * n].reshape(m, n))
    before = network.predict(np.ones((1, 2, 2)))
    named["W_r_l1"][...] = 0
    assert not network.parameters[layout["W_r_l1"][0] :][:6].any()
    assert np.array_equal(network.predict(np.ones((1, 2, 2))), network.b_y.T) and not np.array_equal(
        before, network.b_y.T
    )
    plain = LSTMNetwork(2, 3, 4)
    assert plain.named_parameters()["W_f"] is plain.lstm_cell.W_f
    assert LSTM(2, 3).lstm_cell.named_parameters().keys() == parameter_layout(2, 3).keys()


@as_parametrize("options", OPTIONS)
def test_only_a_plain_layer_has_a_cell(options):
    for model in (LSTM(2, 3, **options), LSTMNetwork(2, 3, 4, **options)):
        with pytest.raises(AttributeError, match=r"no attribute 'lstm_cell': only plain layers"):
            model.lstm_cell  # noqa: B018
        with pytest.raises(AttributeError, match=r"^LSTM\w* has no attribute 'W_q'$"):
            model.W_q  # noqa: B018


INITIAL = {"bare": {}, "full": FULL, "coupled": {"coupled_gates": True, "use_bias": False, "num_layers": 2}}


def own_initial(options, init, rng, I=2, H=3, O=4):
    """Return the flat vector in the documented order of draws."""
    o = reference.Options(**options)
    R = o.proj_size or H
    F = 2 * R if o.bidirectional == "concat" else R
    gates, k = ("iCo" if o.coupled_gates else "ifCo"), 1 / np.sqrt(H)

    def glorot(rows, columns):
        a = np.sqrt(6 / (rows + columns))
        return rng.uniform(-a, a, (rows, columns))

    def orthogonal(rows, columns):
        Q, triangle = np.linalg.qr(rng.standard_normal((rows, columns)))
        return Q * np.sign(np.diag(triangle))

    vector = []
    for layer in range(o.num_layers):
        for _ in range(2 if o.bidirectional else 1):
            width, G = F if layer else I, len(gates)
            if init == "pytorch":
                W = rng.uniform(-k, k, (G * H, R + width))
                b = rng.uniform(-k, k, G * H) + rng.uniform(-k, k, G * H) if o.use_bias else 0
            else:
                b = np.repeat([float(gate == "f") for gate in gates], H)
                if init == "keras":
                    x = glorot(G * H, width)
                    W = np.hstack((orthogonal(G * H, R), x))
                else:
                    x_h = [(glorot(H, width), orthogonal(H, R)) for _ in gates]
                    W = np.vstack([np.hstack(pair[::-1]) for pair in x_h])
            vector += [W] + ([b] if o.use_bias else []) + ([np.zeros((G - 1) * H)] if o.peephole else [])
            if o.layer_norm:
                vector += [np.ones(2 * G * H + H), np.zeros(H)]
            if o.proj_size:
                vector.append(rng.uniform(-k, k, (R, H)) if init == "pytorch" else glorot(R, H))
            if o.learn_initial_state:
                vector.append(np.zeros(R + H))
    k = 1 / np.sqrt(F)
    vector += [rng.uniform(-k, k, (O, F)), rng.uniform(-k, k, O)] if init == "pytorch" else [glorot(O, F), np.zeros(O)]
    return np.concatenate([np.ravel(part) for part in vector])


@as_parametrize("options", INITIAL)
@pytest.mark.parametrize("init", ["glorot", "keras", "pytorch"])
def test_initial_weights(init, options):
    expected = own_initial(options, init, np.random.default_rng(23))
    network = LSTMNetwork(2, 3, 4, dtype="float64", init=init, seed=23, **options)
    assert np.array_equal(network.parameters, expected)
    single = LSTM(2, 3, init=init, seed=23, **options).parameters
    assert np.array_equal(single, expected[: single.size].astype("float32"))


def test_forget_bias():
    for init in ("glorot", "keras", "pytorch"):
        network = LSTMNetwork(2, 3, 4, init=init, forget_bias=-2.5, num_layers=2)
        assert np.all(network.b_f == -2.5) and np.all(network.b_f_l1 == -2.5)
        assert network.b_i.any() == (init == "pytorch")
    given, drawn = (LSTM(2, 3, init="pytorch", seed=0, forget_bias=bias) for bias in (3, None))
    assert np.all(given.b_f == 3) and not np.all(drawn.b_f == 3)
    given.b_f = drawn.b_f
    assert np.array_equal(given.parameters, drawn.parameters)
    assert not LSTM(2, 3, init="reference").b_f.any()
    assert np.all(LSTM(2, 3).b_f == 1)
    assert np.all(LSTM(2, 3, forget_bias=3).lstm_cell.b_f == 3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@as_parametrize("options", ALONE)
def test_options_keep_the_dtype(options, dtype):
    layer = LSTM(2, 3, dtype=dtype, seed=0, **options)
    X = np.random.default_rng(24).standard_normal((3, 5, 2))
    H, last, tape = layer.forward(X, lengths=LENGTHS, dropout_seed=1, return_tape=True)
    steps = [array for run in tape.runs for step in run.steps for array in step[4:]]
    results = [H, *last, *layer.backward(tape, H, *last), *steps]
    for readout in ("last", "steps", "mean", "max"):
        network = LSTMNetwork(2, 3, 4, readout=readout, dtype=dtype, seed=0, **options)
        y = network.predict(X)
        results += [y, network.gradient(X, 0 * y)[1]]
    assert {array.dtype for array in results} == {np.dtype(dtype)}


def test_models_can_be_copied():
    network = LSTMNetwork(2, 3, 4, seed=0)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        twin.lstm_cell.W_f[...] = 0
        assert not twin.W_f.any() and network.W_f.all()
        assert twin.options == network.options and not np.array_equal(twin.parameters, network.parameters)


def test_everything_together():
    """Check all compatible options at once, along random directions."""
    options = FULL | {"cell_clip": 0.7, "dropout": 0.2, "recurrent_dropout": 0.2, "zoneout": (0.2, 0.1)}
    options |= {"weight_dropout": 0.2, "gate_activation": "hard_sigmoid", "cell_activation": "relu"}
    test_option_pair_gradients(options | {"num_layers": 3, "coupled_gates": True}, "mask")


# --- tapes, inputs and dtypes ---


def test_tape_keeps_the_weights_and_the_data():
    rng = np.random.default_rng(8)
    lstm = LSTM(2, 3, dtype="float64", seed=0)
    X, dH = rng.standard_normal((2, 4, 2)), rng.standard_normal((2, 4, 3))
    H, (h_T, C_T), tape = lstm.forward(X, return_tape=True)
    expected = lstm.backward(tape, dH)
    lstm.forward(rng.standard_normal((1, 2, 2)), return_tape=True)
    (run,) = tape.runs
    assert not np.shares_memory(h_T, run.h[-1]) and not np.shares_memory(C_T, run.C[-1])
    lstm.lstm_cell.W_f[...] = 0
    lstm.parameters = 3 * lstm.parameters
    for array in (X, H, h_T, C_T):
        array[...] = 7
    again = lstm.backward(tape, dH)
    assert all(map(np.array_equal, expected, again))
    again.parameters[...] = 0
    assert all(map(np.array_equal, expected, lstm.backward(tape, dH)))


def test_inputs_are_never_modified():
    rng = np.random.default_rng(9)

    def frozen(*shape):
        array = rng.standard_normal(shape)
        array.flags.writeable = False
        arrays.append((array, array.copy()))
        return array

    arrays = []
    cell, lstm = LSTMCell(2, 3, dtype="float64"), LSTM(2, 3, dtype="float64")
    network = LSTMNetwork(2, 3, 4, dtype="float64")
    x, states = frozen(2, 1), [frozen(3, 1) for _ in range(4)]
    cell.forward(x, *states[:2])
    cell.backward(x, *states)
    X, h, C, dH = frozen(2, 5, 2), frozen(2, 3), frozen(2, 3), frozen(2, 5, 3)
    *_, tape = lstm.forward(X, h, C, return_tape=True)
    lstm.backward(tape, dH, h, C)
    network.predict(X)
    network.forward(X[0])
    network.gradient(X, frozen(2, 4))
    network.gradient(X, np.array([0, 3]), loss="cross_entropy")
    train_lstm([X[0]], [frozen(4)], 2, 3, 4, epochs=1)
    reference.sigmoid(X)
    reference.tanh(X)
    network.parameters = frozen(88)
    network.parameters *= 2
    assert all(np.array_equal(array, copy) for array, copy in arrays)


@pytest.mark.parametrize("dtype", ["float32", "float64", np.float64, np.dtype("float32")])
def test_results_have_the_dtype(dtype):
    lstm, network = LSTM(2, 3, dtype=dtype, seed=0), LSTMNetwork(2, 3, 4, readout="steps", dtype=dtype, seed=0)
    X = np.arange(20).reshape(2, 5, 2)  # integers, then lists, are converted
    H, (h_T, C_T), tape = lstm.forward(X.tolist(), return_tape=True)
    value, gradient = network.gradient(X, np.zeros((2, 5, 4)))
    assert isinstance(value, float)
    results = [H, h_T, C_T, *lstm.backward(tape, np.ones((2, 5, 3))), gradient, network.predict(X)]
    assert all(array.dtype == np.dtype(dtype) for array in results)
    assert LSTM(2, 3).dtype == "float32"


def test_float32_agrees_with_float64():
    rng = np.random.default_rng(10)
    single, double = (LSTMNetwork(3, 7, 2, dtype=dtype) for dtype in ("float32", "float64"))
    single.parameters = rng.uniform(-0.4, 0.4, single.parameters.shape)
    double.parameters = single.parameters
    X, Y = rng.standard_normal((4, 9, 3)), rng.standard_normal((4, 2))
    assert_close(single.predict(X), double.predict(X), "forward", tolerance=5e-6)
    assert_close(single.gradient(X, Y)[1], double.gradient(X, Y)[1], "gradient", tolerance=2e-5)


# --- errors ---

ZERO = np.zeros
CELL, LAYER, NETWORK = LSTMCell(2, 3), LSTM(2, 3), LSTMNetwork(2, 3, 4)
OF_STEPS = LSTMNetwork(2, 3, 4, readout="steps")
DEEP = LSTM(2, 3, num_layers=2, bidirectional="sum", proj_size=2)
*_, TAPE = LAYER.forward(ZERO((2, 5, 2)), return_tape=True)
*_, OTHER_TAPE = LSTM(2, 4).forward(ZERO((2, 5, 2)), return_tape=True)
X = ZERO((2, 5, 2))

BAD_CALLS = [
    (lambda: LSTMCell(0, 3), ValueError, "input_dim must be at least 1, got 0"),
    (lambda: LSTMCell(2.0, 3), TypeError, "input_dim must be an integer, got 2.0"),
    (lambda: LSTM(2, True), TypeError, "hidden_dim must be an integer, got True"),
    (lambda: LSTMNetwork(2, 3, -1), ValueError, "output_dim must be at least 1, got -1"),
    (lambda: LSTMCell(2, 3, dtype="float16"), ValueError, "dtype must be .*, got 'float16'"),
    (lambda: LSTM(2, 3, dtype=None), ValueError, "dtype must be .*, got None"),
    (lambda: LSTM(2, 3, dtype="no"), ValueError, "dtype must be .*, got 'no'"),
    (lambda: LSTM(2, 3, init="zeros"), ValueError, "init must be one of .*, got 'zeros'"),
    (lambda: LSTM(2, 3, init="reference", seed=0), ValueError, "seed must be None .*, got 0"),
    (lambda: LSTM(2, 3, seed=-1), ValueError, "seed must be .*, got -1"),
    (lambda: LSTMNetwork(2, 3, 4, seed=0.5), TypeError, "seed must be .*, got 0.5"),
    (
        lambda: CELL.forward(ZERO(3), ZERO((3, 1)), ZERO((3, 1))),
        ValueError,
        r"x_t must have shape \(2, 1\) or \(2,\), got \(3,\)",
    ),
    (
        lambda: CELL.forward(ZERO(2), ZERO((3, 2)), ZERO((3, 1))),
        ValueError,
        r"h_prev must have shape \(3, 1\), got \(3, 2\)",
    ),
    (
        lambda: CELL.forward(ZERO(2), ZERO((3, 1)), ZERO(3)),
        ValueError,
        r"C_prev must have shape \(3, 1\), got \(3,\)",
    ),
    (
        lambda: CELL.backward(ZERO(2), *[ZERO((3, 1))] * 2, ZERO((1, 3)), ZERO((3, 1))),
        ValueError,
        r"dh_t must have shape \(3, 1\), got \(1, 3\)",
    ),
    (
        lambda: CELL.backward(ZERO(2), *[ZERO((3, 1))] * 3, ["a"]),
        TypeError,
        "dC_t must hold numbers for dtype float32",
    ),
    (
        lambda: LAYER.forward(ZERO((5, 2))),
        ValueError,
        r"X must have shape \(N, T, 2\), got \(5, 2\)",
    ),
    (lambda: LAYER.forward(ZERO((2, 0, 2))), ValueError, r"X must .*, got \(2, 0, 2\)"),
    (lambda: LAYER.forward(ZERO((2, 5, 3))), ValueError, r"X must .*, got \(2, 5, 3\)"),
    (lambda: LAYER.forward([[[0, 1], [0]]]), ValueError, r"X\[0\] must be an array, got rows"),
    (lambda: LAYER.forward(X.astype(complex)), TypeError, "X must .* float32, got .* complex128"),
    (lambda: LAYER.forward(X, ZERO((1, 3))), ValueError, r"h0 must have shape \(2, 3\), got \(1"),
    (lambda: LAYER.forward(X, None, ZERO(3)), ValueError, r"C0 must have shape \(2, 3\), got \(3"),
    (lambda: LAYER.backward(X), TypeError, "tape must be a tape that forward returned, got ndarray"),
    (lambda: LAYER.backward(OTHER_TAPE), ValueError, "tape must come from a layer like this one"),
    (lambda: LAYER.backward(TAPE, ZERO((2, 4, 3))), ValueError, r"dH must .* got \(2, 4, 3\)"),
    (lambda: LAYER.backward(TAPE, dh_T=ZERO((3, 2))), ValueError, r"dh_T must .* got \(3, 2\)"),
    (lambda: LAYER.backward(TAPE, dC_T=ZERO(2)), ValueError, r"dC_T must .* got \(2,\)"),
    (lambda: LSTM(2, 3, peepholes=True), TypeError, "peepholes must be one of the options num_layers, bid"),
    (lambda: parameter_layout(2, 3, size=1), TypeError, "size must be one of the options"),
    (lambda: LSTM(2, 3, num_layers=0), ValueError, "num_layers must be at least 1, got 0"),
    (lambda: LSTM(2, 3, bidirectional=1), ValueError, "bidirectional must be one of .*, got 1"),
    (lambda: LSTM(2, 3, bidirectional="mul"), ValueError, "bidirectional must be one of .*, got 'mul'"),
    (lambda: LSTM(2, 3, bidirectional="sum", go_backwards=True), ValueError, "go_backwards must be False"),
    (lambda: LSTM(2, 3, go_backwards=1), TypeError, "go_backwards must be True or False, got 1"),
    (lambda: LSTM(2, 3, proj_size=3), ValueError, "proj_size must be below hidden_dim, 3, got 3"),
    (lambda: LSTM(2, 3, proj_size=0), ValueError, "proj_size must be at least 1, got 0"),
    (lambda: LSTM(2, 3, cell_clip=0), ValueError, "cell_clip must be above 0, got 0"),
    (lambda: LSTM(2, 3, cell_clip=np.inf), ValueError, "cell_clip must be finite, got inf"),
    (lambda: LSTM(2, 3, forget_bias="1"), TypeError, "forget_bias must be a number, got '1'"),
    (lambda: LSTM(2, 3, forget_bias=np.nan), ValueError, "forget_bias must be finite, got nan"),
    (lambda: LSTM(2, 3, forget_bias=1, use_bias=False), ValueError, "forget_bias must be None where there is no b_f"),
    (lambda: LSTM(2, 3, forget_bias=1, coupled_gates=True), ValueError, "forget_bias must be None where there is no"),
    (lambda: LSTM(2, 3, forget_bias=1, init="reference"), ValueError, "forget_bias must be None with init='reference'"),
    (lambda: LSTM(2, 3, dtype=np.zeros(3)), ValueError, r"dtype must be float32, float64 or complex128, got array"),
    (lambda: LSTM(2, 3, gate_activation="tanh"), ValueError, "gate_activation must be one of .*, got 'tanh'"),
    (lambda: LSTM(2, 3, cell_activation="unknown"), ValueError, "cell_activation must be one of .*, got 'unknown'"),
    (lambda: LSTM(2, 3, dropout=0.1), ValueError, "dropout must be 0 with one layer .*, got 0.1"),
    (lambda: LSTM(2, 3, num_layers=2, dropout=1.0), ValueError, "dropout must be at least 0 and below 1, got 1"),
    (lambda: LSTM(2, 3, recurrent_dropout=-0.1), ValueError, "recurrent_dropout must be .*, got -0.1"),
    (lambda: LSTM(2, 3, weight_dropout=True), TypeError, "weight_dropout must be a number, got True"),
    (lambda: LSTM(2, 3, zoneout=(0.1, 1)), ValueError, "zoneout must be at least 0 and below 1, got 1"),
    (lambda: LSTM(2, 3, zoneout=(0.1,)), ValueError, r"zoneout must be a number or a pair .*, got \(0.1,\)"),
    (lambda: LSTM(2, 3, init="he"), ValueError, "init must be one of .*, got 'he'"),
    (lambda: LSTM(2, 3, init="reference", num_layers=2), ValueError, "init must not be 'reference' with options"),
    (lambda: LAYER.forward(X, lengths=[5, 0]), ValueError, "lengths must be 1 to 5, got 0 to 5"),
    (lambda: LAYER.forward(X, lengths=[-1, 3]), ValueError, "lengths must be 1 to 5, got -1 to 3"),
    (lambda: LAYER.forward(X, lengths=[6, 5]), ValueError, "lengths must be 1 to 5, got 5 to 6"),
    (lambda: LAYER.forward(X, lengths=[5, 5, 5]), ValueError, r"lengths must have shape \(2,\), got \(3,\)"),
    (lambda: LAYER.forward(X, lengths=[5.0, 5.0]), TypeError, "lengths must .* int64, got dtype float64"),
    (lambda: LAYER.forward(list(X), lengths=[5, 5]), ValueError, "lengths must be None for a list of sequences"),
    (lambda: LAYER.forward(list(X), mask=np.ones((2, 5), bool)), ValueError, "mask must be None for a list"),
    (lambda: LAYER.forward([]), ValueError, "X must hold at least one sequence, got 0"),
    (lambda: LAYER.forward([X[0], X[1, :0]]), ValueError, r"X\[1\] must have shape \(T, 2\), got \(0, 2\)"),
    (lambda: LAYER.forward(X, mask=np.ones((2, 5))), TypeError, "mask must hold bools, got dtype float64"),
    (lambda: LAYER.forward(X, mask=np.ones((2, 4), bool)), ValueError, r"mask must have shape \(2, 5\), got \(2, 4\)"),
    (lambda: LAYER.forward(X, mask=np.eye(2, 5) * 0 > np.eye(2, 5)), ValueError, "mask must .* got none in row 0"),
    (lambda: LAYER.forward(X, lengths=[1, 2], mask=np.ones((2, 5), bool)), ValueError, "lengths must be None with a"),
    (lambda: LAYER.forward(X, dropout_seed=-1), ValueError, "dropout_seed must be at least 0 .*, got -1"),
    (
        lambda: LAYER.forward(X, dropout_seed=2**64),
        ValueError,
        "dropout_seed must .* below 2.*, got 18446744073709551616",
    ),
    (lambda: LAYER.forward(X, dropout_seed=1.0), TypeError, "dropout_seed must be None or an integer, got 1.0"),
    (lambda: DEEP.forward(X, ZERO((2, 3))), ValueError, r"h0 must have shape \(4, 2, 2\), got \(2, 3\)"),
    (lambda: DEEP.forward(X, None, ZERO((4, 2, 2))), ValueError, r"C0 must have shape \(4, 2, 3\), got \(4, 2, 2\)"),
    (lambda: DEEP.backward(TAPE), ValueError, "tape must come from a layer like this one"),
    (
        lambda: NETWORK.predict([X[0], X[1, :1]], readout="unknown"),
        ValueError,
        "readout must be one of .*, got 'unknown'",
    ),
    (
        lambda: OF_STEPS.gradient([X[0], X[1, :1]], [ZERO((5, 4))]),
        ValueError,
        "Y must hold 2 arrays, as X, got 1",
    ),
    (
        lambda: OF_STEPS.gradient([X[0], X[1, :1]], [ZERO((5, 4))] * 2),
        ValueError,
        r"Y\[1\] must have shape \(1, 4\), got \(5, 4\)",
    ),
    (lambda: NETWORK.forward(X), ValueError, r"X must have shape \(T, 2\), got \(2, 5, 2\)"),
    (lambda: NETWORK.predict(X[0]), ValueError, r"X must have shape \(N, T, 2\), got \(5, 2\)"),
    (lambda: LSTMNetwork(2, 3, 4, readout="unknown"), ValueError, "readout must be one of .*, got 'unknown'"),
    (lambda: NETWORK.predict(X, readout="max"), ValueError, "readout must fit a head for 'last', got 'max'"),
    (
        lambda: LSTMNetwork(2, 3, 4, readout="mean").predict(X, readout="last"),
        ValueError,
        "readout must fit a head for 'mean', got 'last'",
    ),
    (
        lambda: LSTMNetwork(2, 3, 4, readout="mean").forward(X[0]),
        ValueError,
        "readout must fit a head for 'mean', got 'steps'",
    ),
    (lambda: NETWORK.predict(X, readout="unknown"), ValueError, "readout must be one of .*, got 'unknown'"),
    (
        lambda: NETWORK.gradient(X, ZERO((2, 4)), loss="unknown"),
        ValueError,
        "loss must be one of .*, got 'unknown'",
    ),
    (
        lambda: NETWORK.gradient(X, ZERO((2, 5, 4))),
        ValueError,
        r"Y must have shape \(2, 4\), got \(2, 5, 4\)",
    ),
    (
        lambda: OF_STEPS.gradient(X, ZERO((2, 4))),
        ValueError,
        r"Y must have shape \(2, 5, 4\), got \(2, 4\)",
    ),
    (
        lambda: NETWORK.gradient(X, [0.0, 1.0], loss="cross_entropy"),
        TypeError,
        "Y must .* int64, got dtype float64",
    ),
    (
        lambda: NETWORK.gradient(X, [0, 4], loss="cross_entropy"),
        ValueError,
        "Y must hold classes 0 to 3, got 0 to 4",
    ),
    (
        lambda: NETWORK.gradient(X, [-1, 1], loss="cross_entropy"),
        ValueError,
        "Y must hold classes 0 to 3, got -1 to 1",
    ),
    (
        lambda: NETWORK.gradient(X, [0], loss="cross_entropy"),
        ValueError,
        r"Y must have shape \(2,\), got \(1,\)",
    ),
    (lambda: train_lstm(X, ZERO((1, 4)), 2, 3, 4), ValueError, "X and Y .*, got 2 .* and 1"),
    (lambda: train_lstm([], [], 2, 3, 4), ValueError, "X and Y must hold .*, got 0"),
    (lambda: train_lstm(5, [], 2, 3, 4), TypeError, "X must be a sequence of arrays, got 5"),
    (lambda: train_lstm(X, None, 2, 3, 4), TypeError, "Y must be a sequence of arrays, got None"),
    (
        lambda: train_lstm([X[0], ZERO((5, 3))], ZERO((2, 4)), 2, 3, 4),
        ValueError,
        r"X\[1\] must have shape \(T, 2\), got \(5, 3\)",
    ),
    (
        lambda: train_lstm(X, [ZERO(4), ZERO((1, 4))], 2, 3, 4),
        ValueError,
        r"Y\[1\] must have shape \(4, 1\) or \(4,\), got \(1, 4\)",
    ),
    (lambda: train_lstm(X, ZERO((2, 4)), 2, 3, 4, -1), ValueError, "learning_rate must .* got -1"),
    (lambda: train_lstm(X, ZERO((2, 4)), 2, 3, 4, np.nan), ValueError, "learning_rate must"),
    (lambda: train_lstm(X, ZERO((2, 4)), 2, 3, 4, np.inf), ValueError, "learning_rate must"),
    (lambda: train_lstm(X, ZERO((2, 4)), 2, 3, 4, "0.1"), TypeError, "learning_rate must"),
    (lambda: train_lstm(X, ZERO((2, 4)), 2, 0, 4), ValueError, "hidden_dim must .* got 0"),
    (lambda: train_lstm(X, ZERO((2, 4)), 2, 3, 4, epochs=1.5), TypeError, "epochs must .* got 1.5"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS)
def test_bad_arguments_are_named(call, error, message, capsys):
    before = np.random.get_state()[1].copy(), NETWORK.parameters
    with pytest.raises(error, match=f"^{message}"):
        call()
    after = np.random.get_state()[1], NETWORK.parameters
    assert all(map(np.array_equal, before, after))  # it raised before anything changed
    assert capsys.readouterr().out == ""
