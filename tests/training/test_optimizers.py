"""Optimizers: settings that are assigned, state that is kept, updates that fail."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lstm_ext import SGD, Adam, LSTMNetwork, NonFiniteError, _kernels, reference, train

N = 5000  # more than one block
MAKERS = {"sgd": lambda: SGD(0.1), "momentum": lambda: SGD(0.1, 0.9), "adam": lambda: Adam(0.01)}


def vectors(count=2, dtype="float64", seed=0):
    return np.random.default_rng(seed).standard_normal((count, N)).astype(dtype)


def updated(optimizer, parameters, gradients):
    result = parameters.copy()
    for gradient in gradients:
        optimizer.update(result, gradient)
    return result


def everything(optimizer):
    """Return the settings and the bits of the state."""
    state = optimizer.moments, getattr(optimizer, "powers", None)
    return repr(optimizer), *(None if array is None else array.tobytes() for array in state)


def settings(optimizer):
    return {field.name: getattr(optimizer, field.name) for field in optimizer._fields}


def test_an_update_has_one_value_of_each_setting():
    """Also while another thread assigns new ones."""
    optimizer, gradient, ended = SGD(1.0), np.ones(2_000_000, "f4"), threading.Event()

    def assign():
        while not ended.is_set():
            optimizer.learning_rate = 0
            optimizer.learning_rate = 1

    with ThreadPoolExecutor(1) as pool:
        pool.submit(assign)
        try:
            for _ in range(50):
                parameters = np.ones_like(gradient)
                optimizer.update(parameters, gradient)
                assert np.ptp(parameters) == 0
        finally:
            ended.set()


def test_every_optimizer_is_tested():
    assert {make().name for make, _ in CHANGES.values()} == {*_kernels.OPTIMIZERS} == {*reference.OPTIMIZERS}


# --- settings ---


CHANGES = {
    "sgd": (
        SGD,
        [{}, {"learning_rate": 0.0}, {"learning_rate": 0.5}, {"momentum": 0.5}, {}, {"momentum": 0}],
    ),
    "momentum": (lambda: SGD(0.1, 0.9), [{}, {"momentum": 0.0}, {"momentum": np.float32(0.25)}, {}]),
    "adam": (
        lambda: Adam(0.1),
        [
            {},
            {"learning_rate": 0.0},
            {"learning_rate": 2, "beta1": 0.5},
            {"beta2": 0.9},
            {"epsilon": 0.5},
            {"beta1": 0},
        ],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_next_update_uses_what_is_assigned(name):
    make, changes = CHANGES[name]
    optimizer = make()
    actual, *gradients = vectors(1 + len(changes))
    expected, state = actual.copy(), ()
    for change, gradient in zip(changes, gradients, strict=True):
        for setting, value in change.items():
            setattr(optimizer, setting, value)
            assert getattr(optimizer, setting) == value
        optimizer.update(actual, gradient)
        expected, state = reference.OPTIMIZERS[optimizer.name](expected, gradient, state, **settings(optimizer))
        if name == "sgd" and optimizer.momentum == 0:
            state = ()  # no velocity is kept before the first momentum: it starts at zero
        assert np.allclose(actual, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("make", [lambda: SGD(0.1), lambda: Adam(0.1), lambda: SGD(0.1, 0.5)])
@pytest.mark.parametrize("loss", ["mse", lambda y, t: (np.mean((y - t) ** 2), 2 * (y - t) / y.size)])
def test_training_uses_what_a_callback_assigns_from_the_next_epoch_on(make, loss):
    X, Y = np.ones((6, 3, 2)), np.ones((6, 1))
    network, seen, optimizer = LSTMNetwork(2, 3, 1, seed=0), [], make()

    def callback(model, history):
        seen.append(model.parameters.copy())
        optimizer.learning_rate = [0.0, 0.2, 0.0][len(seen) - 1]

    train(network, X, Y, loss=loss, optimizer=optimizer, epochs=3, callbacks=[callback], batch_size=2, verbose=False)
    assert np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[1], seen[2])


def test_a_setting_of_a_callback_that_the_dtype_cannot_hold_is_refused():
    network, optimizer, seen = LSTMNetwork(2, 3, 1, seed=0), SGD(0.1), []

    def callback(model, history):
        seen.append(model.parameters.copy())
        optimizer.learning_rate = 1e39

    with pytest.raises(ValueError, match=r"^learning_rate is 1e\+39; float32 holds numbers up to 3.4e\+38"):
        train(network, np.ones((6, 3, 2)), np.ones((6, 1)), optimizer=optimizer, callbacks=[callback], verbose=False)
    assert np.array_equal(network.parameters, seen[-1])


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (Adam(1e39), r"learning_rate is 1e\+39; float32 holds numbers up to 3.4e\+38"),
        (Adam(epsilon=1e39), r"epsilon is 1e\+39; float32 holds"),
        (Adam(epsilon=1e-39), r"epsilon is 1e-39; expected at least 1.2e-38 in float32"),
    ],
)
def test_a_setting_that_float32_cannot_hold_is_named(optimizer, message):
    single, double = np.ones(3, "f4"), np.ones(3)
    for call in (lambda: optimizer.check(single), lambda: optimizer.update(single, double)):
        with pytest.raises(ValueError, match=f"^{message}"):
            call()
    assert single.tolist() == [1, 1, 1]
    optimizer.check(double)
    with pytest.raises(ValueError, match=r"^epsilon is 5e-324; expected at least 2.2e-308 in float64"):
        Adam(epsilon=5e-324).check(double)


@pytest.mark.parametrize(
    ("optimizer", "name", "value", "error"),
    [
        (SGD(), "learning_rate", -0.1, ValueError),
        (SGD(), "learning_rate", "0.1", TypeError),
        (SGD(), "momentum", 1.0, ValueError),
        (Adam(), "learning_rate", np.nan, ValueError),
        (Adam(), "beta1", 1, ValueError),
        (Adam(), "beta2", True, TypeError),
        (Adam(), "epsilon", 0.0, ValueError),
        (Adam(), "powers", [1.0], ValueError),
        (Adam(), "powers", [0.5, 1.5], ValueError),
        (Adam(), "moments", np.zeros((1, 3)), ValueError),
        (Adam(), "moments", np.zeros((2, 3), int), TypeError),
        (Adam(), "moments", [[0.0], [0.0]], TypeError),
        (Adam(), "moments", np.array([[0.0], [-1.0]]), ValueError),
        (Adam(), "moments", np.array([[np.inf], [1.0]]), ValueError),
        (SGD(), "moments", np.zeros((2, 3)), ValueError),
        (SGD(), "moments", np.zeros(1), ValueError),
        (SGD(), "moments", np.array(1.0), ValueError),
        (SGD(0.1, 0.9), "moments", np.zeros((2, 3)), ValueError),
        (SGD(), "moments", np.zeros((1, 3), ">f4"), TypeError),
    ],
)
def test_bad_assignments_are_named_and_change_nothing(optimizer, name, value, error):
    before = everything(optimizer)
    with pytest.raises(error, match=name):
        setattr(optimizer, name, value)
    assert everything(optimizer) == before


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_nothing_that_is_written_is_without_effect(make):
    """An unknown attribute is an error, and arrays are read-only."""
    optimizer = make()
    optimizer.update(np.ones(3), np.ones(3))
    for name in ("lr", "learning_rates", "weight_decay", *(["powers"] if isinstance(optimizer, SGD) else [])):
        with pytest.raises(AttributeError):
            setattr(optimizer, name, [0.3, 0.4])
    for array in (optimizer.moments, getattr(optimizer, "powers", optimizer.moments)):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_repr_shows_the_settings():
    assert repr(SGD(0.5)) == "SGD(learning_rate=0.5, momentum=0.0)"
    optimizer = Adam()
    optimizer.beta1 = 0.75
    assert repr(optimizer) == "Adam(learning_rate=0.001, beta1=0.75, beta2=0.999, epsilon=1e-08)"
    assert repr(eval(repr(optimizer))) == repr(optimizer)


# --- state ---


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_go_on_alone(make, duplicate):
    parameters, *gradients = vectors(5)
    expected = updated(make(), parameters, gradients)
    optimizer = make()
    middle = updated(optimizer, parameters, gradients[:2])
    other = duplicate(optimizer)
    optimizer.learning_rate = 0.7
    updated(optimizer, middle, gradients)
    assert np.array_equal(updated(other, middle, gradients[2:]), expected)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_state_can_be_put_into_another_optimizer(make):
    parameters, *gradients = vectors(5)
    first, second = make(), make()
    middle = updated(first, parameters, gradients[:2])
    second.moments = first.moments
    if isinstance(first, Adam):
        second.powers = first.powers
    assert np.array_equal(updated(second, middle, gradients[2:]), updated(first, middle, gradients[2:]))


@pytest.mark.parametrize("momenta", [(0.9, 0.0), (0.0, 0.9)])
def test_a_state_from_before_momentum_changed_can_be_put_into_another_optimizer(momenta):
    parameters, *gradients = vectors(4)
    first, second = SGD(0.1, momenta[0]), SGD(0.1, momenta[1])
    middle = updated(first, parameters, gradients[:1])
    first.momentum = momenta[1]
    second.moments = first.moments
    assert np.array_equal(updated(second, middle, gradients[1:]), updated(first, middle, gradients[1:]))


def test_a_subclass_may_have_attributes_and_runs_in_python():
    class Mine(Adam):
        def __init__(self):
            super().__init__(0.1)
            self.calls = 0

        def update(self, parameters, gradient):
            self.calls += 1
            super().update(parameters, gradient)

    optimizer = Mine()
    network, twin = (LSTMNetwork(2, 3, 1, seed=0) for _ in range(2))
    for model, one in ((network, optimizer), (twin, Adam(0.1))):
        train(model, np.ones((6, 3, 2)), np.ones((6, 1)), optimizer=one, epochs=2, batch_size=3, verbose=False)
    assert optimizer.calls == 4
    assert repr(optimizer).startswith("Mine(learning_rate=0.1, ")
    assert np.array_equal(network.parameters, twin.parameters)


@pytest.mark.parametrize("make", [lambda: SGD(0.1, 0.9), lambda: Adam(0.01)])
@pytest.mark.parametrize("call", ["update", "check"])
def test_a_state_of_another_dtype_or_size_is_refused(make, call):
    optimizer = make()
    optimizer.update(np.ones(7), np.ones(7))
    before = everything(optimizer)
    for parameters in (np.ones(7, "f4"), np.ones(8)):
        arguments = (parameters, np.ones_like(parameters)) if call == "update" else (parameters,)
        with pytest.raises(ValueError, match=r"^optimizer holds the state of 7 float64 parameters; expected"):
            getattr(optimizer, call)(*arguments)
    assert everything(optimizer) == before


def test_an_optimizer_that_keeps_nothing_serves_any_network():
    optimizer = SGD(0.1)
    for dtype, n in (("f8", 7), ("f4", 7), ("f4", 5)):
        parameters = np.ones(n, dtype)
        optimizer.update(parameters, np.ones(n, dtype))
        np.testing.assert_array_equal(parameters, np.full(n, 1, dtype) - np.array(0.1, dtype))
        network = LSTMNetwork(3, n, 1, dtype=dtype, seed=0)
        train(network, np.ones((4, 5, 3)), np.ones((4, 1)), optimizer=optimizer, epochs=1, verbose=False)


# --- updates that fail ---

GOOD = np.ones(6)
READ_ONLY = np.ones(6)
READ_ONLY.flags.writeable = False
UNALIGNED = np.ones(49, np.uint8)[1:].view("f8")
BAD_PARAMETERS = {
    "list": ([1.0, 2.0], TypeError),
    "None": (None, TypeError),
    "memoryview": (memoryview(GOOD), TypeError),
    "int": (np.ones(6, int), TypeError),
    "complex": (np.ones(6, complex), TypeError),
    "big endian": (np.ones(6, ">f8"), TypeError),
    "longdouble": (np.ones(6, np.longdouble), TypeError),
    "masked": (np.ma.masked_equal(np.ones(6), 2), TypeError),
    "two axes": (np.ones((2, 3)), ValueError),
    "scalar": (np.array(1.0), ValueError),
    "empty": (np.ones(0), ValueError),
    "strided": (np.ones(12)[::2], ValueError),
    "read-only": (READ_ONLY, ValueError),
    "unaligned": (UNALIGNED, ValueError),
}
BAD_GRADIENTS = {
    "None": (None, TypeError),
    "complex": (np.ones(6, complex), TypeError),
    "text": ("gradient", TypeError),
    "short": (np.ones(5), ValueError),
    "two axes": (np.ones((6, 1)), ValueError),
    "NaN": (np.array([1, 1, np.nan, 1, 1, 1]), ValueError),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("used", [False, True])
def test_bad_arguments_are_named_and_change_nothing(make, used):
    optimizer = make()
    if used:
        optimizer.update(np.ones(6), np.ones(6))
    before = everything(optimizer)
    for value, error in BAD_PARAMETERS.values():
        for call, arguments in (("update", (value, GOOD)), ("check", (value,))):
            with pytest.raises(error, match=r"^parameters "):
                getattr(optimizer, call)(*arguments)
    for value, error in BAD_GRADIENTS.values():
        parameters = np.ones(6)
        with pytest.raises(error, match=r"^gradient"):
            optimizer.update(parameters, value)
        assert np.array_equal(parameters, np.ones(6))
    assert everything(optimizer) == before
    optimizer.update(np.ones(6), GOOD)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_parameters_and_gradient_may_overlap(make):
    """The gradient is the parameters themselves, or a part of the same memory one element off."""
    memory = vectors(1)[0]
    for part in (slice(1, -1), slice(0, -2), slice(2, None)):
        expected = updated(make(), memory[1:-1].copy(), [memory[part].copy()])
        shared = memory.copy()
        make().update(shared[1:-1], shared[part])
        assert np.array_equal(shared[1:-1], expected)


BIG = np.float32(3e38)
OVERFLOWS = {
    "step": (lambda: SGD(3e38), np.ones(N, "f4"), np.full(N, 2, "f4")),
    "parameter": (lambda: SGD(1.0), np.full(N, -BIG), np.full(N, BIG)),
    "momentum": (lambda: SGD(0.1, 0.9), np.ones(N, "f4"), np.full(N, BIG)),
    "square": (lambda: Adam(), np.ones(N, "f4"), np.full(N, 1e22, "f4")),
    "rate": (lambda: Adam(1e38, 0.0, 0.0), np.full(N, -BIG), np.full(N, 2, "f4")),
    "float64": (lambda: SGD(1e308), np.ones(N), np.full(N, 10.0)),
    "a single one": (lambda: SGD(1e30, 0.5), np.ones(N, "f4"), np.eye(1, N, N - 1, dtype="f4")[0] * 1e15),
    "a single square": (lambda: Adam(), np.ones(N, "f4"), np.eye(1, N, N - 1, dtype="f4")[0] * 1e22),
}


@pytest.mark.parametrize("name", OVERFLOWS)
def test_an_update_that_overflows_changes_nothing(name):
    make, parameters, gradient = OVERFLOWS[name]
    small = np.where(np.arange(N) % 2, 0, 1e-30).astype(gradient.dtype)
    optimizer, twin = make(), make()
    before = parameters.copy()
    if name == "momentum":  # the second such gradient is too much
        for one in (optimizer, twin):
            one.update(parameters.copy(), gradient)
    state = everything(optimizer)
    with pytest.raises(NonFiniteError, match="not finite"):
        optimizer.update(parameters, gradient)
    assert np.array_equal(parameters, before)
    assert everything(optimizer) == state
    optimizer.update(parameters, small)
    twin.update(before, small)
    assert np.array_equal(parameters, before)
    assert everything(optimizer) == everything(twin)


def test_parameters_changed_by_others_are_looked_at_again():
    """Between two updates, and between two epochs."""
    optimizer, parameters = SGD(1e36), np.ones(3, "f4")
    optimizer.update(parameters, np.ones(3))
    parameters[1] = -3.4e38
    with pytest.raises(NonFiniteError):
        optimizer.update(parameters, np.ones(3))
    network = LSTMNetwork(2, 3, 1, seed=0)

    def callback(model, history):
        model.b_y[...] = -np.finfo(np.float32).max

    how = {"loss": lambda y, t: (0.0, np.ones_like(y)), "optimizer": SGD(1e33), "batch_size": 4, "verbose": False}
    with pytest.raises(NonFiniteError, match="in epoch 2 of 3, batch 1 of 1"):
        train(network, np.zeros((4, 3, 2)), np.ones((4, 1)), epochs=3, callbacks=[callback], **how)


def test_what_is_large_need_not_be_the_gradient():
    """The step size of an Adam that begins, and an old velocity."""
    with pytest.raises(NonFiniteError):
        Adam(1e38).update(np.ones(3, "f4"), np.zeros(3))
    optimizer, parameters = SGD(0.0, 0.9), np.ones(3, "f4")
    optimizer.update(parameters, np.full(3, 1e36))
    optimizer.learning_rate = 400
    with pytest.raises(NonFiniteError):
        optimizer.update(parameters, np.zeros(3))
    assert parameters.tolist() == [1, 1, 1]
