"""The oracle is proven here: its gradients against complex-step derivatives, the rest by hand."""

from itertools import product

import numpy as np
import pytest

from lstm_ext import reference
from lstm_ext.reference import LSTM, LSTMCell, LSTMNetwork, parameter_layout, train_lstm

pytestmark = pytest.mark.filterwarnings("error")

STEP = 1e-30  # of the complex step: its square vanishes, and nothing cancels
TOLERANCE = 1e-13
SIZES = list(product((1, 2, 5), (1, 3), (1, 3), (1, 2, 7)))  # T, N, I, H
DIMENSIONS = [(1, 1, 4), (3, 2, 1), (3, 7, 4)]  # I, H, O


def relative_error(actual, expected):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    scale = np.linalg.norm(expected)
    return np.linalg.norm(actual - expected) / (scale if scale > 0 else 1.0)


def assert_close(actual, expected, what, tolerance=TOLERANCE):
    error = relative_error(actual, expected)
    assert error <= tolerance, f"{what}: relative error {error}"


def assert_parameters_close(actual, expected, *dims):
    """Compare two flat vectors, each named parameter by itself."""
    assert actual.shape == expected.shape
    for name, (offset, (rows, columns)) in parameter_layout(*dims).items():
        part = slice(offset, offset + rows * columns)
        assert_close(actual[part], expected[part], name)


def complex_step(function, arguments, name):
    """Return d function(**arguments) / d arguments[name], for a function of complex arrays."""
    gradient = np.zeros(arguments[name].shape)
    for index in np.ndindex(gradient.shape):
        moved = arguments[name].astype(complex)
        moved[index] += 1j * STEP
        gradient[index] = function(**{**arguments, name: moved}).imag / STEP
    return gradient


def randomised(model, rng):
    """Give every parameter, the biases too, a value of the usual size."""
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
    assert_parameters_close(gradients.parameters, complex_step(loss, arguments, "parameters"), I, H)
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
    assert_parameters_close(gradients.parameters, complex_step(loss, arguments, "parameters"), I, H)
    dX = complex_step(loss, arguments, "X")
    for t in range(T):
        assert_close(gradients.dX[:, t], dX[:, t], f"dX, t = {t}")
    assert_close(gradients.dh0, complex_step(loss, arguments, "h0"), "dh0")
    assert_close(gradients.dC0, complex_step(loss, arguments, "C0"), "dC0")


def random_targets(rng, loss, target, N, T, outputs):
    rows = (N,) if target == "last" else (N, T)
    if loss == "mse":
        return rng.standard_normal((*rows, outputs))
    return rng.integers(outputs, size=rows)


@pytest.mark.parametrize(("I", "H", "O"), DIMENSIONS)
@pytest.mark.parametrize("N", [1, 3])
@pytest.mark.parametrize("T", [1, 2, 5])
@pytest.mark.parametrize("target", ["last", "steps"])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_network_gradients(loss, target, N, T, I, H, O):
    # A gradient that is one number (H = 1) may cancel to 1/200 of its terms, and keep their
    # rounding error; with this seed none does.
    rng = np.random.default_rng([4, N, T, I, H, O])
    network = randomised(LSTMNetwork(I, H, O, dtype="float64"), rng)
    twin = LSTMNetwork(I, H, O, dtype="complex128")
    X, Y = rng.standard_normal((N, T, I)), random_targets(rng, loss, target, N, T, O)

    def criterion(parameters):  # from predict alone, so that the loss is checked as well
        twin.parameters = parameters
        y = twin.predict(X, target=target)
        if loss == "mse":
            return np.mean((y - Y) ** 2)
        p = np.exp(y) / np.exp(y).sum(axis=-1, keepdims=True)
        return -np.mean(np.log(np.take_along_axis(p, Y[..., np.newaxis], axis=-1)))

    value, gradient = network.gradient(X, Y, loss=loss, target=target)
    assert isinstance(value, float)
    assert value == pytest.approx(criterion(network.parameters).real, rel=1e-13, abs=1e-15)
    expected = complex_step(criterion, {"parameters": network.parameters}, "parameters")
    assert_parameters_close(gradient, expected, I, H, O)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_gradient_is_analytic(loss):
    """A complex step through the gradient itself agrees with central differences."""
    rng = np.random.default_rng(5)
    network = randomised(LSTMNetwork(2, 2, 3, dtype="complex128"), rng)
    X, Y = rng.standard_normal((3, 4, 2)), random_targets(rng, loss, "steps", 3, 4, 3)
    start, h = network.parameters, 1e-5

    def gradient(parameters):
        network.parameters = parameters
        return network.gradient(X, Y, loss=loss, target="steps")[1]

    for direction in rng.standard_normal((3, start.size)):
        change = gradient(start + 1j * STEP * direction).imag / STEP
        expected = gradient(start + h * direction) - gradient(start - h * direction)
        assert_close(change, expected.real / (2 * h), "second derivative", 1e-7)


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
        assert_close(actual, expected, "state", 1e-15)
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
            assert_close(H[n, t], h[:, 0], f"h, t = {t}", 1e-14)
        assert_close(h_T[n], h[:, 0], "h_T", 1e-14)
        assert_close(C_T[n], C[:, 0], "C_T", 1e-14)


def test_network_forward_and_predict():
    rng = np.random.default_rng(3)
    network = randomised(LSTMNetwork(2, 3, 4, dtype="float64"), rng)
    X = rng.standard_normal((3, 5, 2))
    last, steps = network.predict(X), network.predict(X, target="steps")
    assert last.shape == (3, 4) and steps.shape == (3, 5, 4)
    assert_close(last, steps[:, -1], "last", 1e-15)
    for n in range(3):
        outputs = network.forward(X[n])
        assert [y.shape for y in outputs] == [(4, 1)] * 5
        h = C = np.zeros((3, 1))
        for t in range(5):
            h, C = article_step(network.lstm_cell, X[n, t], h, C)
            y = np.dot(network.W_y, h) + network.b_y
            assert_close(outputs[t], y, f"y, t = {t}", 1e-14)
            assert_close(steps[n, t], y[:, 0], f"steps, t = {t}", 1e-14)


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
    assert_close(trained.parameters, twin.parameters.real, "parameters", 1e-12)


def test_train_lstm_trace(capsys):
    """Losses of this very program, frozen: a change of any number shows."""
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
    lstm, network = LSTM(2, 3, dtype=dtype, seed=0), LSTMNetwork(2, 3, 4, dtype=dtype, seed=0)
    X = np.arange(20).reshape(2, 5, 2)  # integers, then lists, are converted
    H, (h_T, C_T), tape = lstm.forward(X.tolist(), return_tape=True)
    value, gradient = network.gradient(X, np.zeros((2, 5, 4)), target="steps")
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
    assert_close(single.predict(X), double.predict(X), "forward", 5e-6)
    assert_close(single.gradient(X, Y)[1], double.gradient(X, Y)[1], "gradient", 2e-5)


# --- errors ---

ZERO = np.zeros
CELL, LAYER, NETWORK = LSTMCell(2, 3), LSTM(2, 3), LSTMNetwork(2, 3, 4)
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
    (lambda: LAYER.backward(X), TypeError, "tape must be one that forward returned, got ndarray"),
    (lambda: LAYER.backward(OTHER_TAPE), ValueError, "tape must be of a layer like this one"),
    (lambda: LAYER.backward(TAPE, ZERO((2, 4, 3))), ValueError, r"dH must .* got \(2, 4, 3\)"),
    (lambda: LAYER.backward(TAPE, dh_T=ZERO((3, 2))), ValueError, r"dh_T must .* got \(3, 2\)"),
    (lambda: LAYER.backward(TAPE, dC_T=ZERO(2)), ValueError, r"dC_T must .* got \(2,\)"),
    (lambda: NETWORK.forward(X), ValueError, r"X must have shape \(T, 2\), got \(2, 5, 2\)"),
    (lambda: NETWORK.predict(X[0]), ValueError, r"X must have shape \(N, T, 2\), got \(5, 2\)"),
    (lambda: NETWORK.predict(X, target="all"), ValueError, "target must be one of .*, got 'all'"),
    (
        lambda: NETWORK.gradient(X, ZERO((2, 4)), loss="mae"),
        ValueError,
        "loss must be one of .*, got 'mae'",
    ),
    (
        lambda: NETWORK.gradient(X, ZERO((2, 5, 4))),
        ValueError,
        r"Y must have shape \(2, 4\), got \(2, 5, 4\)",
    ),
    (
        lambda: NETWORK.gradient(X, ZERO((2, 4)), target="steps"),
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
