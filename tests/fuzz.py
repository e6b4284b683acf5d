"""Random calls: each agrees with the oracle and with itself to the bit, or is refused and changes nothing.

    python tests/fuzz.py --seconds 60   # random cases, under whatever sanitizer the extensions are built with
    python tests/fuzz.py --seed 1234    # one case again

A case is a network with random options and random data for it. All of it follows from the seed. Cases run in a process
of their own, so that the seed of one that crashes or hangs is printed too.
"""

import argparse
import copy
import faulthandler
import os
import secrets
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from helpers import relative_error

import lstm_ext
from lstm_ext import LSTM, LSTMCell, LSTMNetwork, ModelFileError, NonFiniteError, _kernels, _threads, reference, threads

READOUTS = ("last", "steps", "mean", "max")
REFUSALS = (TypeError, ValueError, NonFiniteError, ModelFileError)
SECONDS_OF_A_CASE = 240  # under a sanitizer, on a busy machine
# Norm-wise. The tests measure the errors of rounding; this finds wrong numbers.
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
LOOSE_TOLERANCE = 1e-5
MAGNIFYING = {"layer_norm", "cell_activation"}  # divided by small deviations, or without a bound
# Where rounding can choose another branch or is magnified, float32 is compared with itself only.
ROUGH = {"layer_norm", "cell_clip", "gate_activation", "cell_activation"}


# --- drawing ---


class Draw:
    """Random choices that follow from a seed."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def chance(self, probability):
        return bool(self.rng.random() < probability)

    def one_of(self, *values):
        return values[self.rng.integers(len(values))]

    def normal(self, *shape):
        return self.rng.standard_normal(shape)

    def laid_out(self, array):
        """Return the same numbers with another layout, byte order or alignment, or read-only."""
        match self.one_of("as it is", "read-only", "fortran", "strided", "reversed", "swapped", "unaligned"):
            case "read-only":
                array.setflags(write=False)
            case "fortran":
                return np.asfortranarray(array)
            case "strided":
                return np.repeat(np.repeat(array, 2, axis=0), 3, axis=-1)[::2, ..., ::3]
            case "reversed":
                return np.ascontiguousarray(array[::-1])[::-1]
            case "swapped":
                return array.astype(array.dtype.newbyteorder())
            case "unaligned":
                place = np.ndarray(array.shape, array.dtype, bytearray(array.nbytes + 1), 1)
                place[...] = array
                return place
        return array


def draw_sizes(draw):
    """Return N, T, I, H, O: usually small, else enough work that helpers share it, or many steps."""
    O = draw.one_of(1, 1, 2, 3, 13, 33)
    match draw.one_of("small", "small", "wide", "long"):
        case "wide":
            return draw.one_of(17, 33, 66, 197), draw.one_of(1, 2, 5), draw.one_of(1, 7, 35), draw.one_of(40, 65, 97), O
        case "long":
            return draw.one_of(1, 2, 5), draw.one_of(37, 61), draw.one_of(1, 3), draw.one_of(1, 5, 9), O
    sizes = draw.one_of(1, 2, 3, 7, 17, 34), draw.one_of(1, 2, 3, 7, 13)
    return *sizes, draw.one_of(1, 2, 3, 5, 17), draw.one_of(1, 2, 3, 5, 8, 13, 17, 33), O


def draw_options(draw, hidden_dim):
    """Return options that go together."""
    choices = {
        "num_layers": (2, 3),
        "bidirectional": ("concat", "sum"),
        "go_backwards": (True,),
        "proj_size": (1, hidden_dim // 2, hidden_dim - 1),
        "peephole": (True,),
        "layer_norm": (True,),
        "coupled_gates": (True,),
        "cell_clip": (0.1, 1.0),
        "use_bias": (False,),
        "gate_activation": ("hard_sigmoid",),
        "cell_activation": ("identity", "relu"),
        "learn_initial_state": (True,),
        "dropout": (0.3,),
        "recurrent_dropout": (0.3,),
        "zoneout": (0.2, (0.0, 0.3), (0.4, 0.0)),
        "weight_dropout": (0.3,),
    }
    density = draw.one_of(0.0, 0.1, 0.3, 0.6)
    options = {name: draw.one_of(*values) for name, values in choices.items() if draw.chance(density)}
    if "bidirectional" in options:
        options.pop("go_backwards", None)
    if "num_layers" not in options:
        options.pop("dropout", None)
    if not 0 < options.get("proj_size", 0) < hidden_dim:
        options.pop("proj_size", None)
    return options


class Case:
    """A network with random weights, its twin among the oracles, and data for both."""

    def __init__(self, seed):
        self.seed = seed
        self.draw = draw = Draw(seed)
        _kernels.use_isa(draw.one_of(*_kernels.available_isas()))
        self.N, self.T, I, H, O = draw_sizes(draw)
        self.options = draw_options(draw, H)
        self.dtype = draw.one_of("float32", "float64")
        self.readout = draw.one_of(*READOUTS)
        self.loss = draw.one_of(*sorted(reference.LOSSES))
        made = self.options | {"dtype": self.dtype, "readout": self.readout}
        self.network = LSTMNetwork(I, H, draw.one_of(O, O, None), seed=seed, **made)
        self.network.parameters += draw.rng.uniform(-0.1, 0.1, self.network.parameters.shape).astype(self.dtype)
        self.width = self.network.output_dim or self.network.architecture.features
        self.twin = reference.LSTMNetwork(I, H, self.network.output_dim, **made | {"dtype": "float64"})
        self.twin.parameters = self.network.parameters
        self.way = draw.one_of("whole", "lengths", "mask", "list")
        self.live = self._live()
        self.dropout_seed = draw.one_of(None, seed)
        self._draw_data(I)
        rough = ROUGH & self.options.keys() or self.readout == "max"
        self.comparable = self.dtype == "float64" or not rough
        self.tolerance = LOOSE_TOLERANCE if MAGNIFYING & self.options.keys() else TOLERANCE[self.dtype]
        self.may_diverge = "cell_activation" in self.options

    def _live(self):
        """Return which of the N x T steps are there."""
        if self.way == "whole":
            return np.ones((self.N, self.T), bool)
        if self.way == "mask":
            live = self.draw.rng.random((self.N, self.T)) < 0.6
            live[np.arange(self.N), self.draw.rng.integers(0, self.T, self.N)] = True
            return live
        lengths = self.draw.rng.integers(1, self.T + 1, self.N)
        lengths[self.draw.rng.integers(self.N)] = self.T
        return np.arange(self.T) < lengths[:, None]

    def _draw_data(self, input_dim):
        draw, live = self.draw, self.live
        source = draw.one_of(self.dtype, self.dtype, "float16", "float64", "int8")
        scale = 3 if source == "int8" else 1
        values = (scale * draw.normal(self.N, self.T, input_dim)).astype(source)
        self.clean = values.astype(self.dtype).astype("float64")
        if source != "int8":
            values[~live] = np.nan  # what is not there may be anything
        self.values = draw.laid_out(values)
        rows = live.shape if self.readout == "steps" else (self.N,)
        if self.loss == "cross_entropy":
            self.Y = draw.rng.integers(0, self.width, rows)
        else:
            self.Y = draw.normal(*rows, self.width).astype(self.dtype)

    def data(self, X, rows=slice(None)):
        """Return X and the arguments that say which of its steps are there."""
        X, live = X[rows], self.live[rows]
        if self.way == "list":
            return [x[:n] for x, n in zip(X, live.sum(axis=1), strict=True)], {}
        if self.way == "lengths":
            return X, {"lengths": live.sum(axis=1)}
        return X, {"mask": live} if self.way == "mask" else {}

    def targets(self):
        """Return Y as X is given."""
        if self.way == "list" and self.readout == "steps":
            return [y[:n] for y, n in zip(self.Y, self.live.sum(axis=1), strict=True)]
        return self.Y

    @property
    def readouts(self):
        """What `predict` can be asked for."""
        if self.network.output_dim is None:
            return READOUTS
        return ("last", "steps") if self.readout in ("last", "steps") else (self.readout,)

    @property
    def has_steps(self):
        return "steps" in self.readouts

    @property
    def runs_forwards(self):
        return not {"bidirectional", "go_backwards"} & self.options.keys()


# --- comparing ---


def bits(results):
    """Return the bytes of arrays, numbers, and lists and tuples of them."""
    if isinstance(results, list | tuple):
        return [bits(result) for result in results]
    return np.asarray(results).tobytes()


def assert_close(case, what, actual, expected):
    """Compare norm-wise with the oracle; lists are of one array for each sequence."""
    if not case.comparable:
        return
    if isinstance(actual, list):
        expected = [theirs[: len(ours)] for ours, theirs in zip(actual, expected, strict=True)]
        actual, expected = np.concatenate(actual), np.concatenate(expected)
    error = relative_error(np.asarray(actual, "float64"), expected)
    assert error <= case.tolerance, f"{what}: relative error {error}"


def assert_same(what, actual, expected):
    assert bits(actual) == bits(expected), f"{what}: other bits"


# --- calls that agree ---


def check_predict(case):
    X, given = case.data(case.values)
    asked = case.draw.one_of({}, {"readout": case.draw.one_of(*case.readouts)})
    first = case.network.predict(X, **given, **asked, num_threads=1)
    assert_close(case, "predict", first, case.twin.predict(case.data(case.clean)[0], **given, **asked))
    assert_same("predict with threads", case.network.predict(X, **given, **asked, num_threads=3), first)
    with ThreadPoolExecutor(2) as pool:
        for other in pool.map(lambda n: case.network.predict(X, **given, **asked, num_threads=n), (1, 2)):
            assert_same("predict by several callers", other, first)
    rows = np.sort(case.draw.rng.permutation(case.N)[: case.draw.one_of(1, 2, case.N)])
    X, given = case.data(case.values, rows)
    some = case.network.predict(X, **given, **asked)
    for n, y in zip(rows, some, strict=True):
        steps = min(len(y), len(first[n]))  # a list of equal lengths comes back as an array
        assert_same("predict of a part of the batch", y[:steps], first[n][:steps])


def check_budget(case):
    """Predict within random budgets, down to the smallest one; the error of a smaller one names it."""
    draw, (X, given) = case.draw, case.data(case.values)
    given = given | draw.one_of({}, {"readout": draw.one_of(*case.readouts)})
    first = case.network.predict(X, **given)
    try:
        case.network.predict(X, **given, memory_budget=draw.one_of(1, "1B", "0.1kB"))
    except ValueError as error:
        needed = int(str(error).rpartition(" ")[2])
    else:
        raise AssertionError("predict within nothing was not refused")
    refuse("predict with too little memory", lambda: case.network.predict(X, **given, memory_budget=needed - 1))
    for budget in (needed, int(needed * draw.rng.uniform(1, 20)), f"{needed * draw.rng.uniform(1, 500):.3f} B", "1GiB"):
        within = case.network.predict(X, **given, memory_budget=budget, num_threads=draw.one_of(1, 3))
        assert_same(f"predict within {budget}", within, first)


def check_evaluate(case):
    """One batch is the oracle's loss; any batches are a validation's, within any memory."""
    draw, (X, given) = case.draw, case.data(case.values)
    given = given | {"loss": case.loss}
    clean, _ = case.data(case.clean)
    expected, _ = case.twin.gradient(clean, case.targets(), **given)
    whole = case.network.evaluate(X, case.targets(), **given, batch_size=case.N)
    assert_close(case, "evaluate", np.asarray(whole), np.asarray(expected))
    how = given | {"batch_size": draw.one_of(1, 3, 1000) if case.N < 40 else draw.one_of(31, 1000)}
    first = case.network.evaluate(X, case.targets(), **how, num_threads=1)
    memory = draw.one_of({}, {"memory_budget": draw.one_of("1MB", "1GB")})
    try:
        again = case.network.evaluate(X, case.targets(), **how, **memory, num_threads=3)
    except ValueError as error:
        assert "memory_budget is 1000000 bytes" in str(error)  # noqa: PT017
    else:
        assert_same(f"evaluate with {memory}", again, first)
    trained = copy.deepcopy(case.network)
    data = {"X": X, "Y": case.targets()} | {name: given[name] for name in ("lengths", "mask") if name in given}
    still = {"epochs": 1, "optimizer": lstm_ext.SGD(0), "verbose": False, "seed": 0}
    try:
        history = lstm_ext.train(trained, X, case.targets(), **how, **still, validation_data=data)
    except NonFiniteError as error:
        assert case.may_diverge, error  # noqa: PT017
    else:
        assert_same("evaluate and validation", history.validation_loss, [first])


def check_gradient(case):
    X, given = case.data(case.values)
    arguments = given | {"loss": case.loss, "dropout_seed": case.dropout_seed}
    loss, gradient = case.network.gradient(X, case.targets(), **arguments, num_threads=1)
    clean, _ = case.data(case.clean)
    expected_loss, expected = case.twin.gradient(clean, case.targets(), **arguments)
    assert_close(case, "loss", loss, np.asarray(expected_loss))
    assert_close(case, "gradient", gradient, expected)
    memory = case.draw.one_of({}, {"recompute_every": case.draw.one_of(1, 2, 5, 100)}, {"memory_budget": "1MB"})
    try:
        again = case.network.gradient(X, case.targets(), **arguments, **memory, num_threads=3)
    except ValueError as error:
        assert "memory_budget is 1000000 bytes" in str(error)  # noqa: PT017
    else:
        assert_same(f"gradient with {memory}", again, (loss, gradient))


def check_train(case):
    """Check the bits of any training, and one step of SGD against the oracle's gradient."""
    draw, (X, given) = case.draw, case.data(case.values)
    how = given | {"loss": case.loss, "seed": case.seed, "verbose": False}
    chunked = case.runs_forwards and case.readout in ("last", "steps") and draw.chance(0.5)
    various = {
        "batch_size": draw.one_of(1, 3, case.N, 1000) if case.N < 40 else draw.one_of(31, 1000),
        "epochs": draw.one_of(1, 2),
        "shuffle": draw.chance(0.5),
        "clip_norm": draw.one_of(None, 0.1),
        "tbptt": draw.one_of(1, 4, 1000) if chunked and case.T < 20 else None,
    }

    def train(optimizer, **arguments):
        network = copy.deepcopy(case.network)
        try:
            history = lstm_ext.train(network, X, case.targets(), optimizer=optimizer(), **how, **arguments)
        except NonFiniteError as error:
            assert case.may_diverge, error  # noqa: PT017
            return network.parameters, str(error)
        return network.parameters, history.loss

    optimizer = draw.one_of(lstm_ext.Adam, lstm_ext.SGD, lambda: lstm_ext.SGD(0.01, momentum=0.9))
    first = train(optimizer, **various, num_threads=1)
    memory = {"recompute_every": draw.one_of(None, 1, 4)}
    assert_same("train", train(optimizer, **various, **memory, num_threads=3), first)

    stepped, _ = train(lambda: lstm_ext.SGD(0.01), epochs=1, batch_size=case.N, shuffle=False)
    arguments = given | {"loss": case.loss}
    drops = {"dropout", "recurrent_dropout", "zoneout", "weight_dropout"} & case.options.keys()
    seed = case.seed if drops else None
    clean, _ = case.data(case.clean)
    _, gradient = case.twin.gradient(clean, case.targets(), **arguments, dropout_seed=seed)
    assert_close(case, "a step of SGD", stepped, case.twin.parameters - 0.01 * gradient)


def check_layer(case):
    draw, architecture = case.draw, case.network.architecture
    layer = LSTM(*case.network.sizes[:2], dtype=case.dtype, **case.options)
    layer.parameters = case.network.parameters[: len(layer.parameters)]
    cells, R, H = len(architecture.cells), architecture.state_dim, layer.hidden_dim
    shape = (case.N,) if cells == 1 else (cells, case.N)
    states = [draw.one_of(None, draw.normal(*shape, width).astype(case.dtype)) for width in (R, H)]
    dH = draw.laid_out(draw.normal(case.N, case.T, architecture.features).astype(case.dtype))
    dlast = [draw.normal(*shape, width).astype(case.dtype) for width in (R, H)]

    def run(layer, X, given, **threads):
        H, last, tape = layer.forward(X, *states, **given, dropout_seed=case.dropout_seed, return_tape=True, **threads)
        return [H, *last, *layer.backward(tape, dH, *dlast, **threads)]

    X, given = case.data(case.values)
    first = run(layer, X, given, num_threads=1)
    assert_same("the layer with threads", run(layer, X, given, num_threads=3), first)
    twin = reference.LSTM(*layer.sizes, dtype="float64", **case.options)
    twin.parameters = layer.parameters
    expected = run(twin, *case.data(case.clean))
    for name, *pair in zip(("H", "h", "C", "dX", "dh0", "dC0", "parameters"), first, expected, strict=True):
        assert_close(case, f"the layer's {name}", *pair)


def check_cell(case):
    cell = LSTMCell(*case.network.sizes[:2], dtype=case.dtype, seed=case.seed)
    twin = reference.LSTMCell(*cell.sizes, dtype="float64")
    twin.parameters = cell.parameters
    widths = (cell.input_dim, *[cell.hidden_dim] * 4)
    arguments = [case.draw.laid_out(case.draw.normal(width, 1).astype(case.dtype)) for width in widths]
    results = [(*model.forward(*arguments[:3]), *model.backward(*arguments)) for model in (cell, twin)]
    for actual, expected in zip(*results, strict=True):
        np.testing.assert_allclose(actual, expected, atol=TOLERANCE[case.dtype])


def check_step(case):
    """Advance streams; their outputs are those of a whole sequence."""
    if not (case.runs_forwards and case.has_steps):
        return
    network, X = case.network, case.clean.astype(case.dtype)
    whole = network.predict(X, readout="steps")
    state = network.initial_state(case.N, num_threads=case.draw.one_of(1, 3))
    for t in range(case.T):
        out = case.draw.one_of(None, np.empty((case.N, case.width), case.dtype))
        y, _ = network.step(case.draw.laid_out(X[:, t].copy()), state, out=out)
        assert out is None or y is out
        assert_same(f"step {t}", y, np.ascontiguousarray(whole[:, t]))


def check_file(case):
    """Save and load to the bit; a damaged file is refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model")
        case.network.save(path, details={"seed": case.seed})
        loaded = lstm_ext.load(path)
        assert loaded.architecture == case.network.architecture
        assert_same("load", loaded.parameters, case.network.parameters)
        contents = bytearray(path.read_bytes())
        place = int(case.draw.rng.integers(len(contents)))
        if case.draw.chance(0.5):
            contents[place] ^= 1 << int(case.draw.rng.integers(8))
        else:
            del contents[place:]
        path.write_bytes(contents)
        refuse(f"load with damage at {place}", lambda: lstm_ext.load(path))


# --- calls that are refused ---

WRONG_COUNTS = (0, -1, 1.5, "3", True, np.nan)
WRONG = {
    "num_threads": WRONG_COUNTS,
    "batch_size": WRONG_COUNTS,
    "epochs": WRONG_COUNTS,
    "tbptt": WRONG_COUNTS,
    "recompute_every": WRONG_COUNTS,
    "memory_budget": (*WRONG_COUNTS, 1, "1 parsec", "-3MB"),
    "clip_norm": (0, -1.0, np.nan, np.inf, "1"),
    "readout": ("first", 3, ["last"]),
    "loss": ("mean", 3, None, lstm_ext.MSE),
    "optimizer": ("adamant", 3, None, lstm_ext.Adam),
    "shuffle": (1, "yes", None),
    "verbose": (1, None),
    "seed": (-1, 0.5, "1"),
    "dropout_seed": (-1, 2**64, 0.5, "1"),
    "return_tape": (1, None),
    "mask": (np.ones((1, 1, 1), bool), "x", [[1.5]]),
    "lengths": (np.full(3, 1.5), [], 2**62, -1, "x"),
    "validation_data": (3, (1,), {"X": 1}),
    "callbacks": (3, [3]),
}
EVERYWHERE = ("num_threads", "mask", "lengths")
ACCEPTED = {
    "predict": (*EVERYWHERE, "readout", "memory_budget"),
    "evaluate": (*EVERYWHERE, "loss", "batch_size", "memory_budget"),
    "gradient": (*EVERYWHERE, "loss", "dropout_seed", "recompute_every", "memory_budget"),
    "train": [name for name in WRONG if name not in ("readout", "dropout_seed", "return_tape")],
    "forward": (*EVERYWHERE, "dropout_seed", "return_tape"),
}


def refuse(what, call):
    """Make a call that must raise a documented error which says something."""
    try:
        call()
    except REFUSALS as error:
        assert str(error), f"{what}: {error!r} says nothing"  # noqa: PT017
    else:
        raise AssertionError(f"{what} was not refused")


def spoiled(draw, array, live=None):
    """Return an array that must be refused, and how it was spoiled."""
    array = np.array(array)
    numbers = array.dtype.kind == "f"
    kinds = ["axis", "rows", "empty", "text", "complex", *["last axis", "NaN", "Inf"] * numbers]
    match kind := draw.one_of(*kinds):
        case "axis":
            return draw.one_of(array[None, None], array[0, ..., 0] if array.ndim > 1 else array[0]), kind
        case "rows":
            return np.concatenate([array, array]), kind
        case "empty":
            return array[:0], kind
        case "text":
            return array.astype(str), kind
        case "complex":
            return array + 1j, kind
        case "last axis":
            return np.concatenate([array, array], axis=-1), kind
    places = np.argwhere(np.ones(array.shape[:-1]) if live is None else live)
    array[tuple(places[draw.rng.integers(len(places))])] = np.nan if kind == "NaN" else draw.one_of(-np.inf, np.inf)
    return array, kind


def check_refusals(case):
    draw, network = case.draw, case.network
    layer = LSTM(*network.sizes[:2], dtype=case.dtype, **case.options)
    X, given = case.data(case.clean)
    Y, training = case.targets(), given | {"loss": case.loss, "epochs": 1, "verbose": False}
    calls = {
        "predict": lambda X, Y, **wrong: network.predict(X, **given | wrong),
        "evaluate": lambda X, Y, **wrong: network.evaluate(X, Y, **given | {"loss": case.loss} | wrong),
        "gradient": lambda X, Y, **wrong: network.gradient(X, Y, **given | {"loss": case.loss} | wrong),
        "train": lambda X, Y, **wrong: lstm_ext.train(network, X, Y, **training | wrong),
        "forward": lambda X, Y, **wrong: layer.forward(X, **given | wrong),
    }
    for name, call in calls.items():
        for argument in draw.rng.permutation(ACCEPTED[name])[:4]:
            value = draw.one_of(*WRONG[argument])
            refuse(f"{name} with {argument}={value!r}", lambda c=call, a=argument, v=value: c(X, Y, **{a: v}))
        if case.way != "list":
            wrong, kind = spoiled(draw, case.clean, case.live)
            if kind != "rows" or given or name in ("evaluate", "gradient", "train"):
                refuse(f"{name} with X spoiled: {kind}", lambda c=call, x=wrong: c(x, Y))
    for readout in READOUTS:
        if readout not in case.readouts:
            refuse(f"predict with readout={readout!r}", lambda r=readout: network.predict(X, **given, readout=r))
    if case.way == "whole":
        wrong, kind = spoiled(draw, case.Y)
        refuse(f"train with Y spoiled: {kind}", lambda: calls["train"](X, wrong))


def check_refused_steps(case):
    network = case.network
    if not (case.runs_forwards and case.has_steps):
        refuse("initial_state of a network without single steps", network.initial_state)
        return
    state = network.initial_state(case.N)
    x = case.clean[:, 0].astype(case.dtype)
    network.step(x, state)
    before = bits([state.h, state.C])
    wrong, kind = spoiled(case.draw, x)
    refuse(f"step with x spoiled: {kind}", lambda: network.step(wrong, state))
    shape = (case.N, case.width)
    outs = [
        np.empty((case.N, case.width + 1), case.dtype),
        np.empty(shape, "int32"),
        np.empty((*shape, 2), case.dtype)[..., 0],
        np.ndarray(shape, case.dtype, bytearray(8 * case.N * case.width + 1), 1),
        np.broadcast_to(np.zeros((), case.dtype), shape),
    ]
    for k, out in enumerate(outs):
        if k != 2 or case.N * case.width > 1:
            refuse(f"step with out {k}", lambda out=out: network.step(x, state, out=out))
    other = LSTMNetwork(network.input_dim, network.hidden_dim + 1, 1, dtype=case.dtype)
    refuse("step with the state of another network", lambda: other.step(x, state))
    for batch in (0, -1, 2**62, 1.5, None):
        refuse(f"initial_state({batch})", lambda batch=batch: network.initial_state(batch))
    assert bits([state.h, state.C]) == before, "a refused step changed the state"


def check_refused_weights(case):
    """Weights that are not finite give outputs that are not, but neither a training nor a file."""
    network, (X, given) = copy.deepcopy(case.network), case.data(case.values)
    place = case.draw.rng.integers(len(network.parameters))
    network.parameters[place] = case.draw.one_of(np.nan, np.inf, -np.inf)
    before = bits(network.parameters)
    with np.errstate(all="ignore"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            outputs = network.predict(X, **given)
        is_finite = all(np.isfinite(y).all() for y in outputs)
        assert [warning.category for warning in caught] == ([] if is_finite else [RuntimeWarning])
        training = given | {"loss": case.loss, "epochs": 1, "verbose": False}
        refuse("train with weights not finite", lambda: lstm_ext.train(network, X, case.targets(), **training))
        with tempfile.TemporaryDirectory() as folder:
            refuse("save with weights not finite", lambda: network.save(Path(folder, "model")))
    assert bits(network.parameters) == before, "a refused training changed the weights"


CHECKS = (
    check_predict,
    check_budget,
    check_evaluate,
    check_gradient,
    check_train,
    check_layer,
    check_cell,
    check_step,
    check_file,
    check_refusals,
    check_refused_steps,
    check_refused_weights,
)


# --- running ---


def run_case(seed):
    """Run about half of the checks on one case; none of them changes the network or its data."""
    case = Case(seed)
    chosen = [check for check in CHECKS if case.draw.chance(0.5)]
    arrays = [case.network.parameters, case.values, case.Y, case.live]
    before = bits(arrays)
    for check in chosen:
        check(case)
        assert bits(arrays) == before, f"{check.__name__} changed the weights or the data"


def run_cases(first, seconds):
    """Run cases from a seed on, one at least; print each seed before its case."""
    warnings.simplefilter("error")
    lstm_ext.get_num_threads()
    threads._available = 8  # the threads that calls may ask for, whatever this machine has
    _threads._adjust(rests=False)
    ends = time.monotonic() + seconds
    for seed in range(first, sys.maxsize):
        print(seed, flush=True)
        faulthandler.dump_traceback_later(SECONDS_OF_A_CASE, exit=True)
        run_case(seed)
        if time.monotonic() >= ends:
            break


def main():
    parser = argparse.ArgumentParser(description="Random calls against the oracle.")
    parser.add_argument("--seconds", type=float, default=0, help="how long to run; by default one case")
    parser.add_argument("--seed", type=int, default=None, help="of the first case; random by default")
    parser.add_argument("--here", action="store_true", help="run in this process, for a debugger")
    arguments = parser.parse_args()
    first = secrets.randbits(32) if arguments.seed is None else arguments.seed
    if arguments.here:
        return run_cases(first, arguments.seconds)
    command = [sys.executable, __file__, "--here", "--seed", str(first), "--seconds", str(arguments.seconds)]
    environment = {"OPENBLAS_NUM_THREADS": "1"} | os.environ
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        seed = first
        for line in child.stdout:
            seed = int(line)
    if child.returncode:
        sys.exit(f"case {seed} fails, with exit status {child.returncode}: python tests/fuzz.py --seed {seed}")
    print(f"{seed - first + 1} cases hold, from seed {first} on")


if __name__ == "__main__":
    main()
