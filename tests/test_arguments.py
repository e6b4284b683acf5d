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
    return [*state, np.array(loss), gradient, model.predict(X, target="steps"), y, streams.h]


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
    public = [name for name in dir(tape) if not name.startswith("_")]
    assert public == ["architecture"]
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
