"""Single kernels: activations to the ULP, cells with options, masks; and the processor's control word.

The check over all 2^32 float32 inputs is marked slow: ``pytest -m slow -s tests/test_kernels.py``
prints the worst error of each function (minutes long).
"""

import ctypes
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest

from lstm_ext import (
    LSTM,
    LSTMCell,
    LSTMNetwork,
    NonFiniteError,
    Options,
    _kernels,
    sigmoid,
    tanh,
    to_reference,
    train,
)
from lstm_ext.training.driver import PassRunner

FUNCTIONS = {"sigmoid": sigmoid, "tanh": tanh}
KERNELS = {"sigmoid": _kernels.apply_sigmoid, "tanh": _kernels.apply_tanh}
BUDGET = 2.5  # ULP, of results from the smallest normal number up: what the README states
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


FROZEN = {  # SHA-256 of all results: the last digit of a coefficient is far below the budget
    ("sigmoid", "f4"): "3d76fac272a997a59f516ab04eec182d85805039edc0414a89fd8b6a3f3861c9",
    ("sigmoid", "f8"): "4f926a0a51e902df2e722ad0bf70f5a331e169635f9dde67c3e959a9a0b10958",
    ("tanh", "f4"): "4129941e12c12edde0e524151681bf91872bf971c0e802cd27b55b854b8be656",
    ("tanh", "f8"): "1cba758175ec94a053622579f91b4af52f69ca349a1ddec171579f87def130ff",
}


@pytest.mark.skipif(_kernels.available_isas() == ("baseline",), reason="without fused multiply-adds bits differ")
@pytest.mark.parametrize(("name", "dtype"), FROZEN)
def test_activations_keep_their_bits(name, dtype, restored_isa):
    _kernels.use_isa(_kernels.available_isas()[0])
    raw = np.random.PCG64(7).random_raw(1_000_000).view(np.int64)
    x = np.ldexp((raw >> 40).astype(dtype), np.where(raw & 1, -18, -21))  # exact, in [-32, 32) and [-4, 4)
    y = FUNCTIONS[name](x)
    assert hashlib.sha256(y.astype(f"<{dtype}").tobytes()).hexdigest() == FROZEN[name, dtype]


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


@pytest.mark.parametrize("stops", [False, True])
def test_signal_handlers_see_denormals(in_the_midst, stops):
    """Handlers that run in the middle of a pass, whether or not they raise."""
    seen = []

    def handler():
        seen.append(denormals_work())
        if stops:
            raise Interrupt

    layer, X = LSTM(1, 64, dtype="float64", seed=0), np.ones((64, 200, 1))
    expected, *_ = layer.forward(X, num_threads=1)
    if stops:
        with pytest.raises(Interrupt):
            in_the_midst(lambda: layer.forward(X, num_threads=1), handler)
    else:
        H, _ = in_the_midst(lambda: layer.forward(X, num_threads=1), handler)
        assert np.array_equal(H, expected)
    assert seen
    assert all(seen)
    assert denormals_work()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [0, 1, 2, 13, 17, 34, 70])
def test_every_place_is_looked_at_for_nan_and_inf(isa, dtype, n):
    info = np.finfo(dtype)
    finite = np.resize(np.array([0, -0.0, info.max, info.min, info.tiny, -info.smallest_subnormal, 1], dtype), n)
    assert _kernels.is_finite(finite)
    for place in range(n):
        for wrong in (np.nan, -np.nan, np.inf, -np.inf):
            x = finite.copy()
            x[place] = wrong
            assert not _kernels.is_finite(x)


# --- kernels by themselves, called through the table of kernels.h ---

HEADER = Path(__file__).parent.parent / "src/lstm_ext/kernels/kernels.h"
TABLE = [  # what kernels_float and kernels_double hold, the arrays last
    *("lanes", "tile_rows", "sigmoid", "tanh", "matmul", "outer", "transpose", "cell_forward", "cell_backward"),
    *("lanes_forward", "lanes_backward", "cell_step", "cell_step_backward", "normalize", "normalize_backward"),
    *("blend", "mask", "dropout", "are_finite", "sum_of_squares", "losses", "updates"),
]
if HEADER.exists():  # another order would call another kernel
    assert re.findall(r"\(\*(\w+)", HEADER.read_text(encoding="utf-8")) == TABLE[2:]


@cache
def table_at():
    """Return the C function of this name in _kernels.pyx."""
    capsule, api = _kernels.__pyx_capi__["table_at"], ctypes.pythonapi
    name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", api))
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", api))
    function = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_int)
    return function(pointer(capsule, name(capsule)))


def kernel(name, dtype, result=None):
    """Return a kernel of the instruction set in use: a function of arrays (None: NULL), sizes and numbers of ctypes."""
    _, single, double = table_at()(_kernels.current())[:3]
    table = ctypes.cast(single if dtype == "float32" else double, ctypes.POINTER(ctypes.c_void_p))

    def call(*arguments):
        given = [as_argument(argument) for argument in arguments]
        return ctypes.CFUNCTYPE(result, *map(type, given))(table[TABLE.index(name)])(*given)

    return call


def as_argument(value):
    if value is None or isinstance(value, np.ndarray):
        assert value is None or value.flags.c_contiguous
        return ctypes.c_void_p(None if value is None else value.ctypes.data)
    if isinstance(value, ctypes.Structure):
        return ctypes.pointer(value)
    return ctypes.c_ssize_t(value) if isinstance(value, int) else value


def real(dtype, value):
    return (ctypes.c_float if dtype == "float32" else ctypes.c_double)(value)


def address(array):
    return None if array is None else array.ctypes.data


class CellOptions(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int) for name in ("gates", "gate_activation", "cell_activation")),
        *((name, ctypes.c_double) for name in ("clip", "zoneout")),
        *((name, ctypes.c_void_p) for name in ("peepholes", "gain_C", "shift_C")),
    )


def normalize(x, xhat):
    return kernel("normalize", x.dtype, ctypes.c_double)(x.size, x, xhat)


def normalize_backward(xhat, rstd, gain, dy, dx):
    kernel("normalize_backward", xhat.dtype)(xhat.size, xhat, ctypes.c_double(rstd), gain, dy, dx)


def blend(a, b, y, p, mask):
    kernel("blend", y.dtype)(y.size, mask, real(y.dtype, p), a, b, y)


def draw_mask(key, counter, threshold, dropped, kept, y):
    threshold, *values = ctypes.c_uint32(threshold), real(y.dtype, dropped), real(y.dtype, kept)
    kernel("mask", y.dtype)(y.size, key, counter, threshold, *values, y)


def dropout(key, counter, threshold, scale, x, y):
    kernel("dropout", y.dtype)(y.size, key, counter, ctypes.c_uint32(threshold), real(y.dtype, scale), x, y)


# --- cells with options ---


def test_activations_have_the_names_of_their_kernels():
    hints = get_type_hints(Options)
    assert get_args(hints["gate_activation"]) == tuple(_kernels.GATE_ACTIVATIONS)
    assert get_args(hints["cell_activation"]) == tuple(_kernels.CELL_ACTIVATIONS)


@dataclass
class Step:
    """The options of a cell, its arrays for one step, and the step in NumPy, of complex numbers too."""

    gates: int = 4
    hard: bool = False
    activation: str = "tanh"
    clip: float = np.inf
    zoneout: float = 0.0
    peephole: bool = False
    layer_norm: bool = False
    masked: bool = False

    def draw(self, hidden_dim, dtype, seed=0):
        """Return z, C_prev, zone, peepholes, gain, shift; None for those that the options leave out."""
        rng = np.random.default_rng(seed)
        shapes = [(self.gates, hidden_dim), hidden_dim, (self.gates - 1, hidden_dim), hidden_dim, hidden_dim]
        z, C_prev, peepholes, gain, shift = (rng.uniform(-3, 3, shape).astype(dtype) for shape in shapes)
        zone = rng.integers(0, 2, hidden_dim).astype(dtype)
        return (
            z,
            C_prev,
            zone if self.masked else None,
            peepholes if self.peephole else None,
            gain if self.layer_norm else None,
            shift if self.layer_norm else None,
        )

    def gate(self, z):
        if not self.hard:
            return 1 / (1 + np.exp(-z))
        linear = 0.2 * z + 0.5
        return np.where(linear.real < 0, 0, np.where(linear.real > 1, 1, linear))

    def act(self, x):
        return {"tanh": np.tanh(x), "identity": x, "relu": np.where(x.real > 0, x, 0)}[self.activation]

    def expected(self, z, C_prev, zone, peepholes, gain, shift):
        """Return the gates (G, H), C and m."""
        p = [0] * 3 if peepholes is None else peepholes
        i = self.gate(z[0] + p[0] * C_prev)
        f = self.gate(z[1] + p[1] * C_prev) if self.gates == 4 else 1 - i
        g = self.act(z[-2])
        c = f * C_prev + i * g
        c = np.where(c.real > self.clip, self.clip, np.where(c.real < -self.clip, -self.clip, c))
        o = self.gate(z[-1] + p[-1] * c)
        n = c
        if gain is not None:
            d = c - c.mean()
            n = gain * d / np.sqrt((d * d).mean() + 1e-5) + shift
        part = self.zoneout if zone is None else zone
        gates = [i, f, g, o] if self.gates == 4 else [i, g, o]
        return np.stack(gates), part * C_prev + (1 - part) * c, o * self.act(n)

    def options(self, *arrays):
        gate = _kernels.GATE_ACTIVATIONS["hard_sigmoid" if self.hard else "sigmoid"]
        activation = _kernels.CELL_ACTIVATIONS[self.activation]
        return CellOptions(self.gates, gate, activation, self.clip, self.zoneout, *map(address, arrays))

    def run(self, z, C_prev, zone, C, m, *arrays):
        kernel("cell_step", z.dtype)(self.options(*arrays), C.size, z, C_prev, zone, C, m)

    def forward(self, z, C_prev, zone, *arrays):
        """Return what the kernel makes of it."""
        gates, C, m = z.copy(), np.empty_like(C_prev), np.empty_like(C_prev)
        self.run(gates, C_prev, zone, C, m, *arrays)
        return gates, C, m

    def backward(self, gates, C_prev, zone, dm, dC, *arrays):
        """Return dz, dC_prev, c and dn."""
        dC, dz, c, dn = dC.copy(), np.empty_like(gates), np.empty_like(C_prev), np.full_like(C_prev, np.nan)
        step = kernel("cell_step_backward", gates.dtype)
        step(self.options(*arrays), C_prev.size, gates, C_prev, zone, dm, dC, dz, c, dn)
        return dz, dC, c, dn


STEPS = {
    "plain": Step(),
    "coupled": Step(gates=3),
    "hard": Step(hard=True),
    "identity": Step(activation="identity"),
    "relu": Step(activation="relu"),
    "clip": Step(clip=0.7),
    "zoneout": Step(zoneout=0.3),
    "mask": Step(masked=True, zoneout=0.3),
    "peephole": Step(peephole=True),
    "coupled peephole": Step(gates=3, peephole=True),
    "layer norm": Step(layer_norm=True),
    "coupled layer norm": Step(gates=3, layer_norm=True),
    "soft": Step(zoneout=0.2, clip=1.1, peephole=True, layer_norm=True),
    "all": Step(3, True, "relu", 0.9, 0.1, True, True, True),
}
TOLERANCES = {"float32": 5e-6, "float64": 1e-13}
HIDDEN_DIMS = [1, 2, 13, 17, 34]


def assert_near(actual, expected, tolerance):
    """Compare norm-wise."""
    assert np.abs(actual - expected).max() <= tolerance * max(1, np.abs(expected).max())


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("hidden_dim", HIDDEN_DIMS)
@pytest.mark.parametrize("name", STEPS)
def test_cell_step_is_that_of_numpy(isa, name, hidden_dim, dtype):
    step = STEPS[name]
    drawn = step.draw(hidden_dim, dtype)
    expected = step.expected(*(None if a is None else a.astype(float) for a in drawn))
    results = step.forward(*drawn)
    for ours, theirs in zip(results, expected, strict=True):
        assert_near(ours, theirs, TOLERANCES[dtype])
    z, C, m = drawn[0].copy(), drawn[1].copy(), np.empty_like(drawn[1])
    step.run(z, C, drawn[2], C, m, *drawn[3:])  # in place
    assert C.tobytes() == results[1].tobytes() and m.tobytes() == results[2].tobytes()


def complex_step(step, drawn, dm, dC):
    """Return the gradients of sum(dm * m + dC * C) with regard to each drawn array, z and C_prev first."""
    gradients = []
    for k, array in enumerate(drawn):
        if array is None or k == 2:
            gradients.append(None)
            continue
        gradient = np.empty(array.shape)
        for place in np.ndindex(array.shape):
            moved = list(drawn)
            moved[k] = array.astype(complex)
            moved[k][place] += 1e-30j
            _, C, m = step.expected(*moved)
            gradient[place] = (dm * m + dC * C).sum().imag / 1e-30
        gradients.append(gradient)
    return gradients


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("hidden_dim", HIDDEN_DIMS)
@pytest.mark.parametrize("name", STEPS)
def test_cell_step_backward_is_the_derivative(isa, name, hidden_dim, dtype):
    step = STEPS[name]
    drawn = step.draw(hidden_dim, dtype)
    rng = np.random.default_rng(1)
    dm, dC = rng.standard_normal((2, hidden_dim)).astype(dtype)
    exact = complex_step(step, [None if a is None else a.astype(float) for a in drawn], dm, dC)
    gates, *_ = step.forward(*drawn)
    dz, dC_prev, c, dn = step.backward(gates, drawn[1], drawn[2], dm, dC, *drawn[3:])
    tolerance = 100 * TOLERANCES[dtype] if step.layer_norm and hidden_dim == 2 else 4 * TOLERANCES[dtype]
    assert_near(dz, exact[0], tolerance)
    assert_near(dC_prev, exact[1], tolerance)
    if step.peephole:
        before = [drawn[1]] * (step.gates - 2)
        assert_near(dz[: step.gates - 2] * before, exact[3][:-1], tolerance)
        assert_near(dz[-1] * c, exact[3][-1], tolerance)
    if step.layer_norm:
        xhat = np.empty_like(c)
        normalize(c, xhat)
        assert_near(dn * xhat, exact[4], tolerance)
        assert_near(dn, exact[5], tolerance)


def test_where_the_clip_and_the_pieces_begin(isa):
    """At a limit itself the clip's derivative is 1, and that of the hard gate and of relu 0; NaN is kept."""
    step = Step(hard=True, activation="relu", clip=0.5)
    C_prev = np.array([0.5, 0.75, 0.25, 0.5])
    z = np.array([[-2.5] * 4, [9.0] * 4, [1.0, 1.0, -1.0, 0.0], [0.0] * 4])  # i is 0, f is 1: c is C_prev
    gates, C, m = step.forward(z, C_prev, None, None, None, None)
    assert gates[:2].tolist() == [[0] * 4, [1] * 4]
    assert C.tolist() == [0.5, 0.5, 0.25, 0.5] and m.tolist() == [0.25, 0.25, 0.125, 0.25]
    dz, dC, *_ = step.backward(gates, C_prev, None, np.zeros(4), np.ones(4), None, None, None)
    assert dC.tolist() == [1, 0, 1, 1]
    assert not dz.any()
    for option in STEPS.values():
        z, C_prev, *others = option.draw(5, "float32")
        z[-2, 3] = np.nan
        _, C, m = option.forward(z, C_prev, np.zeros(5, "float32") if option.masked else None, *others[1:])
        assert np.isnan(C[3]) and np.isnan(m[3])


@pytest.mark.parametrize("n", [1, 2, 13, 17, 34, 4096, 4099])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_normalisation_and_its_derivative(isa, dtype, n):
    rng = np.random.default_rng(n)
    x = (rng.standard_normal(n) * 3 + 2).astype(dtype)
    gain, dy = rng.uniform(0.5, 2, (2, n)).astype(dtype)
    mean, variance = x.mean(dtype=float), x.var(dtype=float)
    rstd = 1 / np.sqrt(variance + 1e-5)
    xhat, dx = np.empty_like(x), np.empty_like(x)
    assert normalize(x, xhat) == pytest.approx(rstd, rel=1e-12)
    assert_near(xhat, (x - mean) * rstd, TOLERANCES[dtype])
    exact = (x - mean) * rstd
    d = (gain * dy).astype(float)
    normalize_backward(xhat, rstd, gain, dy, dx)
    expected = rstd * (d - d.mean() - exact * (d * exact).mean())
    assert_near(dx, expected, TOLERANCES[dtype] * max(1, rstd))
    y = x.copy()
    normalize(y, y)
    normalize_backward(xhat, rstd, gain, dy, dy)
    assert y.tobytes() == xhat.tobytes() and dy.tobytes() == dx.tobytes()


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_blend(isa, dtype, n):
    rng = np.random.default_rng(n)
    a, b = rng.standard_normal((2, n)).astype(dtype)
    mask = rng.integers(0, 2, n).astype(dtype)
    y = np.empty_like(a)
    blend(a, b, y, 0.25, mask)
    assert np.array_equal(y, np.where(mask == 1, a, b))
    blend(a, b, y, 0.25, None)
    assert_near(y, 0.25 * a + 0.75 * b, TOLERANCES[dtype])
    blend(a, b, a, 0.25, None)
    assert np.array_equal(a, y)


FULL = 0xFFFFFFFF


def philox(counters, key):
    """Return the blocks (n, 4) of Philox 4x32-10 at counters (n, 4)."""
    low, shift = np.uint64(FULL), np.uint64(32)
    c = np.array(counters, np.uint64).T
    for r in range(10):
        keys = [np.uint64((key[0] + r * 0x9E3779B9) & FULL), np.uint64((key[1] + r * 0xBB67AE85) & FULL)]
        p, q = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [q >> shift ^ c[1] ^ keys[0], q & low, p >> shift ^ c[3] ^ keys[1], p & low]
    return np.stack(c, axis=1)


def philox_words(n, key, counter):
    """Return the first n words of the blocks (0, *counter), (1, *counter), ..."""
    return philox([(block, *counter) for block in range(-(-n // 4))], key).ravel()[:n]


def words_of(n, key, counter, dtype):
    """Return the kernel's words, found bit by bit by their thresholds."""
    key, counter = np.array(key, np.uint32), np.array(counter, np.uint32)
    words = np.zeros(n, np.uint64)
    below = np.empty(n, dtype)
    for place in range(n):
        for bit in range(31, -1, -1):
            draw_mask(key, counter, int(words[place]) | 1 << bit, 1, 0, below)
            words[place] |= np.uint64(0 if below[place] else 1 << bit)
    return words.astype(np.uint32)


ANSWERS = [  # of Random123: counter, key, words
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([FULL] * 4, [FULL] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), ANSWERS)
def test_philox_in_numpy_gives_the_known_answers(counter, key, words):
    assert philox([counter], key).tolist() == [words]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("counter", "key"), [((0, 0, 0), (0, 0)), ((FULL,) * 3, (FULL,) * 2), ((3, 4, 5), (1, 2))])
def test_words_are_those_of_philox(isa, dtype, counter, key):
    assert np.array_equal(words_of(37, key, counter, dtype), philox_words(37, key, counter))


@pytest.mark.parametrize(("seed", "update"), [(0, 0), (5, 1), (2**40 + 3, 2**33 + 6), (2**64 - 1, 2**64 - 1)])
def test_the_masks_of_an_update_are_the_oracles(seed, update):
    network = LSTMNetwork(2, 5, 1, dtype="float64", seed=0, recurrent_dropout=0.5)
    X, Y = RNG.standard_normal((3, 4, 2)), RNG.standard_normal((3, 1))
    runner = PassRunner(network._setup("mse", None, None), X, Y, dropout_seed=seed)
    runner.loop.updates = update
    runner.gradients(0)
    _, expected = to_reference(network).gradient(X, Y, dropout_seed=seed, update=update)
    assert_near(runner.gradient, expected, 1e-12)


@pytest.mark.parametrize("n", [*LENGTHS, 4099])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_masks_and_dropout(isa, dtype, n):
    key, counter = np.array([7, 2**31 + 1], np.uint32), np.array([1, 2**31, 8], np.uint32)
    below = philox_words(n, key.tolist(), counter.tolist()) < 3 << 30
    x = np.linspace(1, 2, n).astype(dtype)
    y = np.full(n + 1, 7, dtype)
    draw_mask(key, counter, 3 << 30, -1, 4, y[:-1])
    assert np.array_equal(y[:-1], np.where(below, -1, 4)) and y[-1] == 7
    dropout(key, counter, 3 << 30, 4, x, y[:-1])
    assert np.array_equal(y[:-1], np.where(below, 0, 4 * x)) and y[-1] == 7
    dropout(key, counter, 3 << 30, 4, x, x)
    assert np.array_equal(x, y[:-1])


def test_no_word_is_below_a_threshold_of_zero(isa):
    y = np.empty(1000)
    draw_mask(np.zeros(2, np.uint32), np.zeros(3, np.uint32), 0, 0, 1, y)
    assert y.all()


def test_bits_of_cells_with_options_are_those_of_every_set(assert_same_on_every_fma_isa):
    def results():
        for dtype in TOLERANCES:
            for step in STEPS.values():
                for hidden_dim in (5, 67):
                    drawn = step.draw(hidden_dim, dtype)
                    gates, C, m = step.forward(*drawn)
                    yield from (gates, C, m)
                    yield from step.backward(gates, drawn[1], drawn[2], m, C, *drawn[3:])
            rng = np.random.default_rng(0)
            for n in (3, 70, 9001):
                x, gain, dy, y = rng.standard_normal((4, n)).astype(dtype)
                yield np.array(normalize(x, y))
                yield y
                normalize_backward(y, 1.5, gain, dy, dy)
                yield dy
                blend(x, dy, y, 0.3, None)
                yield y
                dropout(np.zeros(2, np.uint32), np.zeros(3, np.uint32), 1 << 31, 1.7, x, x)
                yield x

    assert_same_on_every_fma_isa(results)


def test_a_step_without_options_is_the_cell(isa):
    """The bits of the cell that the passes compute."""
    hidden_dim, step = 37, Step()
    z, C_prev, *others = step.draw(hidden_dim, "float32")
    cell = LSTMCell(1, hidden_dim, dtype="float32")
    for name, b in zip("ifCo", z, strict=True):
        getattr(cell, f"W_{name}")[...] = 0
        getattr(cell, f"b_{name}")[...] = b[:, None]
    h, C = cell.forward(np.zeros(1), np.zeros((hidden_dim, 1)), C_prev[:, None])
    _, ours, m = step.forward(z, C_prev, *others)
    assert ours.tobytes() == C.tobytes() and m.tobytes() == h.tobytes()
