"""What users can do to the arrays, attributes and arguments of the public interface without harm."""

import copy
import pickle
import weakref

import numpy as np
import pytest

import lstm_ext
from lstm_ext import LSTM, LSTMCell, LSTMNetwork, reference

SIZES = {LSTMCell: (2, 3), LSTM: (2, 3), LSTMNetwork: (2, 3, 2)}  # an even number of parameters each
KINDS = list(SIZES)


def made(kind):
    return kind(*SIZES[kind], seed=0)


# --- arrays that users hold ---

HELD = {
    "parameters": lambda model: model.parameters,
    "base of parameters": lambda model: model.parameters.base,
    "named_parameters": lambda model: model.named_parameters()["W_i"],
    "W_f": lambda model: model.W_f if isinstance(model, LSTMCell) else model.lstm_cell.W_f,
    "b_f": lambda model: model.b_f if isinstance(model, LSTMCell) else model.lstm_cell.b_f,
    "W_y": lambda model: getattr(model, "W_y", model.parameters),
    "lstm_cell.parameters": lambda model: getattr(model, "lstm_cell", model).parameters,
}


def double(array):
    """Take pairs of float32 for float64: the vector is then half as long."""
    array.shape = (-1,)
    array.dtype = "f8" if array.size % 2 == 0 else "f2"


CHANGES = {
    "dtype": double,
    "shape": lambda array: setattr(array, "shape", (1, -1, 1)),
    "strides": lambda array: setattr(array, "strides", (0,) * array.ndim),
    "flags": lambda array: array.setflags(write=False),
    "size": lambda array: array.resize(1),
}


def results(model):
    """Return all that a model is and computes, after writing to it."""
    model.parameters[-1] += 1
    state = [*model.named_parameters().values(), model.parameters]
    if isinstance(model, LSTMCell):
        return [*state, *model.forward(np.ones(2), np.ones(3), np.ones(3))]
    X = np.linspace(-1, 1, 20).reshape(2, 5, 2)
    if isinstance(model, LSTM):
        H, last, tape = model.forward(X, return_tape=True)
        return [*state, H, *last, *model.backward(tape, H)]
    loss, gradient = model.gradient(X, np.ones((2, 2)))
    y, streams = model.step(X[:, 0], model.initial_state(2))
    return [*state, np.array(loss), gradient, model.predict(X, readout="steps"), y, streams.h]


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")  # of newer NumPys
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_users_are_their_own(kind, change):
    expected = results(made(kind))
    for hold in HELD.values():
        model = made(kind)
        array = hold(model)
        try:
            CHANGES[change](array)
        except ValueError:
            assert change == "size"  # NumPy refuses to: others refer to the array
        for ours, theirs in zip(results(model), expected, strict=True):
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_users_are_views(kind):
    model = made(kind)
    for k, view in enumerate((*model.named_parameters().values(), HELD["W_f"](model), HELD["W_y"](model))):
        view.flat[0] = 100 + k
        assert 100 + k in model.parameters
    first = model.parameters
    first[0] = -7
    assert model.parameters[0] == model.named_parameters()["W_i"][0, 0] == -7
    named = model.named_parameters()
    named.clear()
    assert model.named_parameters()


def test_an_optimizer_in_python_gets_views_too():
    class Careless:
        def update(self, parameters, gradient):
            parameters -= 0.1 * gradient
            for array in (parameters, gradient):
                array.setflags(write=False)
                array.dtype = "f8"

    X, Y = np.ones((4, 3, 2)), np.ones((4, 2))
    networks = [made(LSTMNetwork) for _ in range(2)]
    lstm_ext.train(networks[0], X, Y, optimizer=Careless(), batch_size=2, epochs=2, shuffle=False)
    lstm_ext.train(networks[1], X, Y, optimizer=lstm_ext.SGD(0.1), batch_size=2, epochs=2, shuffle=False)
    assert np.allclose(networks[0].parameters, networks[1].parameters, atol=1e-6)


def test_a_tape_shows_no_array():
    layer = made(LSTM)
    *_, tape = layer.forward(np.ones((2, 5, 2)), return_tape=True)
    for name in ("parameters", "sequences", "stack", "batch"):
        assert not hasattr(tape, name)
    with pytest.raises(AttributeError):
        tape.architecture = None
    with pytest.raises(AttributeError):
        tape.parameters = None
    twin = layer.forward(np.ones((2, 5, 2)), return_tape=True)[2]
    assert (tape == tape, tape == twin, len({tape, twin})) == (True, False, 2)


# --- attributes ---


@pytest.mark.parametrize("kind", [*KINDS, reference.LSTMCell, reference.LSTM, reference.LSTMNetwork])
@pytest.mark.parametrize("name", ["paramters", "hidden_dim", "input_dim", "dtype", "W_g", "options_", "_hidden"])
def test_an_attribute_that_would_have_no_effect_cannot_be_set(kind, name):
    model = kind(*(2, 3, 2)[: 3 if "Network" in kind.__name__ else 2])
    with pytest.raises(AttributeError, match=name):
        setattr(model, name, 7)
    assert getattr(model, name, None) != 7


@pytest.mark.parametrize("kind", [LSTM, LSTMNetwork, reference.LSTM, reference.LSTMNetwork])
def test_what_a_network_is_cannot_be_set(kind):
    model = kind(*(2, 3, 2)[: 3 if "Network" in kind.__name__ else 2], num_layers=2)
    for name in ("options", "lstm_cell", "output_dim", "W_g"):
        with pytest.raises(AttributeError, match=name):
            setattr(model, name, 7)


@pytest.mark.parametrize("kind", KINDS)
def test_weak_references(kind):
    model = made(kind)
    reference_to = weakref.ref(model)
    assert reference_to() is model
    del model
    assert reference_to() is None


class Labelled(LSTMNetwork):
    """With an attribute, a property and a method of its own."""

    def __init__(self, label):
        super().__init__(2, 3, 1, seed=0)
        self.label = label

    def predict_positive(self, X):
        return self.predict(X) > 0


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_subclass_keeps_its_attributes(copied):
    network = Labelled(["a"])
    network.extra = {"b": 2}
    twin = copied(network)
    assert type(twin) is Labelled
    assert vars(twin) == vars(network) == {"label": ["a"], "extra": {"b": 2}}
    assert np.array_equal(twin.parameters, network.parameters)
    assert not np.shares_memory(twin.parameters, network.parameters)
    assert (twin.label is network.label) == (copied is copy.copy)
    assert twin.predict_positive(np.ones((1, 2, 2))).shape == (1, 1)


# --- odd values for every argument ---


class Raises:
    """Has no array, no length, no truth and no repr."""

    def fail(self, *_, **__):
        raise RuntimeError("not today")

    __array__ = __len__ = __bool__ = __repr__ = __getitem__ = fail


ENDLESS: list = []
ENDLESS.append(ENDLESS)

ODD_VALUES = {
    **{str(value): value for value in (None, True, 0, -1, 1.5, 1j, 2**63, 10**30, float("nan"), -np.inf, ..., int)},
    **{repr(value): value for value in ("", "no", b"ab", (), [], {}, {"a": 1}, {1}, range(3), np.True_, np.int64(2))},
    "digits": -(10**5000),
    "long string": "x" * 10**5,
    "long list": list(range(10**4)),
    "ragged": [[[1, 2], [3]], [[1, 2], [3, 4]]],
    "endless": ENDLESS,
    "function": lambda: None,
    "bytearray": bytearray(8),
    "memoryview": memoryview(np.ones((2, 3))),
    "raises": Raises(),
    "date": np.datetime64("NaT"),
    "objects": np.array([None, 1], object),
    "complex array": np.ones((2, 5, 2), complex),
    "long double": np.full((2, 5, 2), np.longdouble("1e400") if np.finfo(np.longdouble).max > 1e308 else np.inf),
    "big-endian": np.full((2, 5, 2), np.nan, ">f4"),
    "structured": np.zeros(3, [("a", "f4")]),
    "0-d": np.array(7),
    "empty": np.zeros((0, 5, 2)),
    "masked": np.ma.masked_all((2, 5, 2)),
    "unsigned": np.full((2, 5, 2), 2**64 - 1, np.uint64),
    "strings": np.array(["a", "b"]),
    "booleans": np.zeros((2, 5), bool),
}
X, COLUMN = np.ones((2, 5, 2), "f4"), np.ones((3, 1))
CELL, LAYER, NETWORK = made(LSTMCell), made(LSTM), made(LSTMNetwork)
OF_STEPS = LSTMNetwork(2, 3, 2, readout="steps", seed=0)
LAYERS = LSTMNetwork(2, 3, 2, num_layers=2, bidirectional="concat", seed=0)
*_, TAPE = LAYER.forward(X, return_tape=True)
STATE = NETWORK.initial_state(2)
DEFAULTS = {name: getattr(lstm_ext.Options(), name) for name in lstm_ext.options.OptionArguments.__annotations__}
MODEL = {"input_dim": 2, "hidden_dim": 3, "dtype": "f4", "init": "glorot", "seed": 0}
OF_X = {"X": X, "lengths": [5, 2], "mask": None, "num_threads": 1}
MEMORY = {"dropout_seed": None, "recompute_every": None, "memory_budget": None}
CALLS = {
    "LSTMCell": (LSTMCell, MODEL),
    "LSTM": (LSTM, MODEL | DEFAULTS),
    "LSTMNetwork": (LSTMNetwork, MODEL | {"output_dim": 2, "readout": "mean"} | DEFAULTS),
    "Options": (lstm_ext.Options, DEFAULTS),
    "parameter_layout": (lstm_ext.parameter_layout, {"input_dim": 2, "hidden_dim": 3, "output_dim": 2} | DEFAULTS),
    "LSTMCell.forward": (CELL.forward, {"x_t": X[0, 0], "h_prev": COLUMN, "C_prev": COLUMN}),
    "LSTMCell.backward": (
        CELL.backward,
        {"x_t": X[0, 0], "h_prev": COLUMN, "C_prev": COLUMN, "dh_t": COLUMN, "dC_t": COLUMN},
    ),
    "LSTM.forward": (
        LAYER.forward,
        {"X": X, "h0": None, "C0": None, "lengths": [5, 2], "mask": None, "dropout_seed": 1}
        | {"return_tape": True, "num_threads": 1},
    ),
    "LSTM.backward": (LAYER.backward, {"tape": TAPE, "dH": None, "dh_T": None, "dC_T": None, "num_threads": 1}),
    "LSTMNetwork.forward": (NETWORK.forward, {"X": X[0], "num_threads": 1}),
    "LSTMNetwork.predict": (NETWORK.predict, OF_X | {"readout": "steps"}),
    "LSTMNetwork.predict of layers": (LAYERS.predict, OF_X | {"readout": "steps", "lengths": None}),
    "LSTMNetwork.gradient": (OF_STEPS.gradient, OF_X | {"Y": np.ones((2, 5, 2))} | MEMORY),
    "LSTMNetwork.gradient of classes": (
        NETWORK.gradient,
        {"X": X, "Y": [0, 1], "loss": "cross_entropy"} | MEMORY,
    ),
    "LSTMNetwork.initial_state": (NETWORK.initial_state, {"batch": 2, "num_threads": 1}),
    "LSTMNetwork.step": (NETWORK.step, {"x": X[:, 0], "state": STATE, "out": np.empty((2, 2), "f4")}),
    "parameters": (lambda parameters: setattr(made(LSTM), "parameters", parameters), {"parameters": LAYER.parameters}),
    "W_f": (lambda W_f: setattr(made(LSTMCell), "W_f", W_f), {"W_f": CELL.W_f}),
    "sigmoid": (lstm_ext.sigmoid, {"x": X}),
    "tanh": (lstm_ext.tanh, {"x": X}),
    "set_num_threads": (lstm_ext.set_num_threads, {"num_threads": None}),
    "to_reference": (lstm_ext.to_reference, {"network": NETWORK, "dtype": "float64"}),
    "from_reference": (lstm_ext.from_reference, {"oracle": lstm_ext.to_reference(NETWORK)}),
}
ARGUMENTS = [(name, argument) for name, (_, good) in CALLS.items() for argument in good if argument != "loss"]
# What names another argument, which excludes it: a list of sequences has no lengths; classes have no such Y
EXCLUDED = {("X", "lengths"), ("mask", "lengths"), ("lengths", "mask"), ("coupled_gates", "forget_bias")}


def snapshot():
    """Return the bits of all that a failed call must leave alone."""
    arrays = [CELL.parameters, LAYER.parameters, NETWORK.parameters, LAYERS.parameters, STATE.h, STATE.C]
    return [array.tobytes() for array in (*arrays, X, COLUMN)] + [np.random.get_state()[1].tobytes()]


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_an_odd_value_is_named(name, argument):
    """It is taken, or refused by one short line that names its argument, and nothing has changed."""
    call, good = CALLS[name]
    lstm_ext.set_num_threads(None)
    before, refused = snapshot(), 0
    for what, value in ODD_VALUES.items():
        try:
            call(**good | {argument: value})
        except (TypeError, ValueError) as error:
            message, refused = str(error), refused + 1
            assert any(word in message for word in names_of(argument)), (what, message)
            assert len(message) < 400 and "\n" not in message, (what, message)
        else:
            lstm_ext.set_num_threads(None)
            before = snapshot()  # a step changes its state
        assert snapshot() == before, what
    assert refused > len(ODD_VALUES) // 2


def names_of(argument):
    return [argument, *(other for one, other in EXCLUDED if one == argument)]
