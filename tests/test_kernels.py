"""The activations, to the ULP, and what a call leaves behind in the processor's control word.

The check over all 2^32 float32 inputs is marked slow: ``pytest -m slow -s tests/test_kernels.py``
prints the worst error of each function (minutes long).
"""

import signal
from functools import cache

import numpy as np
import pytest

from lstm_ext import LSTM, LSTMCell, LSTMNetwork, NonFiniteError, _kernels, _passes, sigmoid, tanh, train

FUNCTIONS = {"sigmoid": sigmoid, "tanh": tanh}
KERNELS = {"sigmoid": _kernels.apply_sigmoid, "tanh": _kernels.apply_tanh}
BUDGET = 4  # ULP, of results from the smallest normal number up
LENGTHS = [1, 2, 13, 17, 34, 70]


def exact(name, x):
    """Return the function in the precision of x."""
    with np.errstate(over="ignore"):
        return np.tanh(x) if name == "tanh" else 1 / (1 + np.exp(-x))


def ulp_errors(actual, expected):
    """Return |actual - expected| in ULP of the actual dtype; 0 if both are below FLT_MIN."""
    smallest = np.finfo(actual.dtype).tiny
    magnitude = np.abs(expected)
    unit = np.spacing(np.maximum(magnitude, smallest).astype(actual.dtype)).astype(expected.dtype)
    error = np.abs(actual - expected) / unit
    both_tiny = (magnitude < smallest) & (np.abs(actual) <= smallest)
    return np.where(both_tiny, 0, error)


def float32_range(start, stop, step=1):
    """Return the floats of a range of bit patterns."""
    return np.arange(start, stop, step, dtype=np.uint32).view(np.float32)


@cache
def float32_sample(name):
    """Return every 1009th float32, NaN and Inf among them, and the function's values in float64."""
    x = float32_range(0, 2**32, 1009)
    with np.errstate(invalid="ignore"):  # signalling NaN among them
        return x, exact(name, x.astype(np.float64))


@cache
def float64_sample(name):
    """Return float64 of all sizes, and the function's values in longdouble."""
    rng = np.random.default_rng(0)
    n = 30_000
    sizes = rng.choice((-1, 1), n) * 10 ** rng.uniform(-320, 308, n)
    x = np.concatenate((rng.uniform(-760, 760, n), rng.uniform(-20, 20, n), sizes))
    return x, exact(name, x.astype(np.longdouble))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32_activations_are_within_the_budget(isa, name):
    x, expected = float32_sample(name)
    actual = FUNCTIONS[name](x)
    assert actual.dtype == np.float32
    number = ~np.isnan(x)
    assert np.array_equal(np.isnan(actual), ~number)
    errors = ulp_errors(actual[number], expected[number])
    assert errors.max() <= BUDGET, f"{errors.max()} ULP at {x[number][errors.argmax()]!r}"


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 60, reason="longdouble is no wider")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_activations_are_within_the_budget(isa, name):
    x, expected = float64_sample(name)
    actual = FUNCTIONS[name](x)
    assert actual.dtype == np.float64
    errors = ulp_errors(actual, expected)
    assert errors.max() <= BUDGET, f"{errors.max()} ULP at {x[errors.argmax()]!r}"


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_float32(name):
    """All 2^32 inputs on the instruction set in use (``LSTM_EXT_ISA``); `pytest -m slow -s`."""
    chunk, worst, at = 1 << 22, 0.0, None
    for start in range(0, 2**32, chunk):
        x = float32_range(start, start + chunk)
        actual, number = FUNCTIONS[name](x), ~np.isnan(x)
        assert np.array_equal(np.isnan(actual), ~number)
        errors = ulp_errors(actual[number], exact(name, x[number].astype(np.float64)))
        if errors.size and errors.max() > worst:
            worst, at = errors.max(), x[number][errors.argmax()]
    print(f"\n{_kernels.isa()} {name}: {worst:.3f} ULP at {at!r} ({float(at).hex()})")
    assert 0 < worst <= BUDGET


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exact_cases(isa, dtype):
    x = np.array([0, 88, 104, 1e30, np.inf], dtype)
    assert tanh(x).tolist() == [0, 1, 1, 1, 1]
    assert tanh(-x).tolist() == [0, -1, -1, -1, -1]
    assert np.signbit(tanh(-x)).all()
    assert not np.signbit(tanh(x)).any()
    assert sigmoid(x).tolist() == [0.5, 1, 1, 1, 1]
    below = sigmoid(-x)
    assert below[0] == 0.5
    assert below[3:].tolist() == [0, 0]
    assert ulp_errors(below[1:3], exact("sigmoid", -x[1:3].astype(np.float64))).max() <= BUDGET
    assert not np.signbit(below).any()
    for function in FUNCTIONS.values():
        assert np.isnan(function(np.array([0, np.nan, -np.nan], dtype))).tolist() == [0, 1, 1]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_activation_bits_are_those_of_every_set(name, assert_same_on_every_fma_isa):
    x32, x64 = float32_sample(name)[0], float64_sample(name)[0]

    def results():
        for x in (x32[~np.isnan(x32)], x64):
            y = FUNCTIONS[name](x)
            yield np.where(np.abs(y) < np.finfo(y.dtype).tiny, 0, y)

    assert_same_on_every_fma_isa(results)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("n", LENGTHS)
def test_tails_are_neither_missed_nor_overrun(isa, name, dtype, n):
    x = np.linspace(-3, 3, n + 2, dtype=dtype)
    one_by_one = np.array([FUNCTIONS[name](value) for value in x])
    y = np.full(n + 2, 7, dtype)
    KERNELS[name](x[1:-1], y[1:-1])
    assert y[0] == y[-1] == 7
    assert y[1:-1].tobytes() == one_by_one[1:-1].tobytes()
    KERNELS[name](y, y)  # in place
    assert y[0] == FUNCTIONS[name](dtype(7))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_activations_take_any_array(name):
    function = FUNCTIONS[name]
    x = np.linspace(-4, 4, 24).reshape(2, 3, 4)
    expected = function(x)
    frozen = x.copy()
    frozen.flags.writeable = False
    wide = np.repeat(x, 2, axis=2)
    for other in (x.tolist(), np.asfortranarray(x), x.astype(">f8"), wide[..., ::2], frozen):
        assert np.array_equal(function(other), expected)
    assert function(x.astype("f4")).dtype == function(x.astype(">f4")).dtype == np.float32
    assert np.array_equal(function(np.arange(-3, 4)), function(np.arange(-3.0, 4)))
    assert function(1).shape == ()
    assert function(np.empty((0, 3))).shape == (0, 3)


@pytest.mark.parametrize("x", ["a", 1j, None, [object()]])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_activations_refuse_what_is_no_real_number(name, x):
    with pytest.raises(TypeError, match=r"^x has dtype"):
        FUNCTIONS[name](x)


# --- packing ---


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("input_dim", "hidden_dim"), [(1, 1), (3, 5), (2, 17), (16, 32), (37, 41)])
def test_packed_cell_weights_are_those_of_each_block(isa, dtype, input_dim, hidden_dim):
    sizes = _passes.packed_sizes(_kernels.current(), input_dim, hidden_dim, 1, dtype)
    lanes, blocks = sizes["slack"] // 4, -(-hidden_dim * 4 // sizes["slack"])
    rng = np.random.default_rng(0)
    W = rng.standard_normal((4 * hidden_dim, hidden_dim + input_dim)).astype(dtype)
    b = rng.standard_normal((4 * hidden_dim, 1)).astype(dtype)
    expected = np.zeros((4, blocks * lanes, 1 + input_dim + hidden_dim), dtype)
    columns = np.concatenate((b, W[:, hidden_dim:], W[:, :hidden_dim]), axis=1)
    expected[:, :hidden_dim] = columns.reshape(4, hidden_dim, -1)
    expected = expected.reshape(4, blocks, lanes, -1).transpose(1, 3, 0, 2)
    packed = np.full(sizes["cell"] + 1, 7, dtype)
    _passes.pack_cell_weights(_kernels.current(), 1, W, b, packed)
    assert np.array_equal(packed[:-1].reshape(expected.shape), expected)
    assert packed[-1] == 7


# --- denormals are flushed during a call, and only then ---


def denormals_work():
    """Whether this thread's arithmetic keeps denormal numbers, as operands and as results."""
    single = np.float32(1e-40) * np.float32(1) != 0 and np.float32(2e-38) * np.float32(0.5) != 0
    return bool(single) and bool(np.float64(5e-324) * np.float64(1) != 0)


RNG = np.random.default_rng(1)
CELL, LAYER = LSTMCell(3, 13, seed=0), LSTM(3, 13, seed=0)
NETWORK = LSTMNetwork(3, 13, 2, seed=0)
X, Y = RNG.standard_normal((5, 4, 3)), RNG.standard_normal((5, 2))
*_, TAPE = LAYER.forward(X, return_tape=True)
COLUMN = np.zeros((13, 1))
CALLS = {
    "sigmoid": lambda: sigmoid(X),
    "tanh": lambda: tanh(X),
    "cell forward": lambda: CELL.forward(X[0, 0], COLUMN, COLUMN),
    "cell backward": lambda: CELL.backward(X[0, 0], COLUMN, COLUMN, COLUMN, COLUMN),
    "layer forward": lambda: LAYER.forward(X),
    "layer backward": lambda: LAYER.backward(TAPE, dh_T=RNG.standard_normal((5, 13))),
    "forward": lambda: NETWORK.forward(X[0]),
    "predict": lambda: NETWORK.predict(X),
    "step": lambda: NETWORK.step(X[:, 0], NETWORK.initial_state(5)),
    "gradient": lambda: NETWORK.gradient(X, Y),
    "train": lambda: train(NETWORK, X, Y, epochs=2, optimizer="sgd"),
}


@pytest.mark.parametrize("name", CALLS)
def test_control_word_is_restored(isa, name):
    CALLS[name]()
    assert denormals_work()


def test_denormals_are_flushed_inside():
    network = LSTMNetwork(1, 1, 1)
    network.parameters = np.zeros(14)
    network.b_y[0] = 1e-40
    assert network.predict(np.zeros((1, 1, 1))) == 0
    assert tanh(np.float32(1e-40)) == 0


def test_control_word_is_restored_after_an_error():
    with pytest.raises(NonFiniteError):
        LSTMNetwork(3, 13, 2, dtype="float64").gradient(X, np.full((5, 2), 1e300))
    assert denormals_work()
    with pytest.raises(ValueError, match="X"):
        NETWORK.predict(X[..., :2])
    assert denormals_work()


def test_python_code_in_training_sees_denormals():
    seen = []

    def loss(outputs, targets):
        seen.append(denormals_work())
        return 0.0, np.zeros_like(outputs)

    class Idle:
        def update(self, parameters, gradient):
            seen.append(denormals_work())

    def callback(network, history):
        seen.append(denormals_work())

    train(NETWORK, X, Y, loss=loss, optimizer=Idle(), epochs=2, callbacks=[callback])
    assert len(seen) == 6
    assert all(seen)


class Interrupt(Exception):  # noqa: N818, an event
    pass


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")
@pytest.mark.parametrize("stops", [False, True])
def test_signal_handlers_see_denormals(slowest_isa, stops):
    """A handler that runs in the middle of one long pass, whether or not it raises."""
    seen = []

    def handler(*_):
        seen.append(denormals_work())
        if stops:
            raise Interrupt

    layer = LSTM(1, 128, dtype="float64", seed=0)
    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        if stops:
            with pytest.raises(Interrupt):
                layer.forward(np.zeros((64, 600, 1)))
        else:
            layer.forward(np.zeros((64, 600, 1)))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen == [True]
    assert denormals_work()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [0, 1, 2, 13, 17, 34, 70])
def test_every_place_is_looked_at_for_nan_and_inf(dtype, n):
    info = np.finfo(dtype)
    finite = np.resize(np.array([0, -0.0, info.max, info.min, info.tiny, -info.smallest_subnormal, 1], dtype), n)
    assert _kernels.is_finite(finite)
    for place in range(n):
        for wrong in (np.nan, -np.nan, np.inf, -np.inf):
            x = finite.copy()
            x[place] = wrong
            assert not _kernels.is_finite(x)
