"""What bounds the memory of a call does: budgets, chunks of steps, and data that are left where they are."""

import tracemalloc

import numpy as np
import pytest

from lstm_ext import LSTM, LSTMNetwork, NonFiniteError, inference, layers, train
from lstm_ext.training.driver import PassRunner
from lstm_ext.training.memory import Memory, as_memory

LENGTHS = np.array([9, 1, 4, 9, 2, 5, 3])
FORWARDS = {
    "plain": {},
    "deep": {"num_layers": 3, "dropout": 0.4, "zoneout": (0.2, 0.1), "learn_initial_state": True},
    "projection": {"num_layers": 2, "proj_size": 4, "recurrent_dropout": 0.3, "layer_norm": True},
}
BACKWARDS = {
    "two ways": {"bidirectional": "concat", "learn_initial_state": True},
    "sum of deep ones": {"num_layers": 4, "bidirectional": "sum", "weight_dropout": 0.3, "peephole": True},
    "from the end": {"num_layers": 3, "go_backwards": True, "recurrent_dropout": 0.2},
}
READOUTS = ("last", "steps", "mean", "max")


def peak(call):
    """Return the most bytes that a call had allocated at a time."""
    call()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def padded(T=9, width=3, seed=0):
    X = np.random.default_rng(seed).standard_normal((7, T, width))
    X[np.arange(T) >= LENGTHS[:, None]] = np.nan
    return X


# --- budgets ---


def passes_bytes(steps=101, **how):
    """Return what the arrays of a training's passes take."""
    model = LSTMNetwork(3, 8, 2, dtype="float64", seed=0)
    X, Y = np.ones((2, steps, 3)), np.ones((2, 2))
    runner = PassRunner(model._setup("mse", None, None), X, Y, memory=Memory(**how))
    return runner.stack.bytes + runner.head.bytes


def test_a_budget_takes_the_largest_segment_that_fits():
    sizes = {k: passes_bytes(recompute_every=k) for k in range(1, 102)}
    assert sizes[101] == passes_bytes()
    assert sizes[10] < sizes[17] < sizes[50] < sizes[101] / 1.5
    for budget in [*sizes.values(), sizes[17] + 1, sizes[50] - 1, sizes[101] - 1]:
        largest = max(k for k, size in sizes.items() if size <= budget)
        assert passes_bytes(budget=budget) == sizes[largest] <= budget
    with pytest.raises(ValueError, match=f"need at least {min(sizes.values())}$"):
        passes_bytes(budget=min(sizes.values()) - 1)


def test_the_smallest_budget_may_be_that_of_all_steps():
    """States that begin segments take more than the activations of a few steps."""
    model = LSTMNetwork(3, 3, 2, readout="max", seed=0)
    data = model._setup("mse", None, None), np.ones((1, 5, 3)), np.ones((1, 2))
    whole = PassRunner(*data)
    needed = whole.stack.bytes + whole.head.bytes
    assert PassRunner(*data, memory=Memory(budget=needed)).stack.bytes == whole.stack.bytes
    with pytest.raises(ValueError, match=f"need at least {needed}$"):
        PassRunner(*data, memory=Memory(budget=needed - 1))


BUDGETS = {
    "64B": 64,
    "3 kB": 3000,
    "3KiB": 3 * 2**10,
    "256MB": 256_000_000,
    "1.5MiB": 3 * 2**19,
    "1GB": 10**9,
    "1.5GiB": 3 * 2**29,
    "2TB": 2 * 10**12,
    " 2 tib ": 2**41,
}


@pytest.mark.parametrize("text", BUDGETS)
def test_units_of_a_budget(text):
    assert as_memory(None, text) == Memory(budget=BUDGETS[text])


# --- inference runs chunks of steps ---


@pytest.fixture
def in_chunks(monkeypatch):
    """Return a function that makes a call as it is, and then with chunks of few steps."""

    def both(call):
        whole = call()
        with monkeypatch.context() as patch:
            patch.setattr(layers, "INFERENCE_NUMBERS", 7 * 8 * 2)  # 2 steps of 7 sequences with 8 outputs
            return whole, call()

    return both


@pytest.mark.parametrize("output_dim", [2, None])
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("name", FORWARDS)
def test_predictions_in_chunks_have_the_bits_of_whole_ones(in_chunks, name, readout, output_dim):
    model = LSTMNetwork(3, 8, output_dim, readout=readout, seed=0, **FORWARDS[name])
    mask = np.random.default_rng(1).random((7, 9)) < 0.6
    mask[:, 4] = True
    ragged = [x[:length] for x, length in zip(padded(), LENGTHS, strict=True)]
    full = np.nan_to_num(padded())
    for X, how in ((padded(), {"lengths": LENGTHS}), (ragged, {}), (full, {}), (full, {"mask": mask})):
        whole, parts = in_chunks(lambda X=X, how=how: model.predict(X, **how))
        assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("name", FORWARDS)
def test_layers_in_chunks_have_the_bits_of_whole_ones(in_chunks, name, seed):
    layer = LSTM(3, 8, seed=0, **FORWARDS[name])
    given = layer.forward(np.ones((7, 2, 3)))[1]
    for X, how in ((padded(), {"lengths": LENGTHS}), (np.nan_to_num(padded()), {})):
        for states in ((), given):
            whole, parts = in_chunks(lambda X=X, how=how, s=states: layer.forward(X, *s, dropout_seed=seed, **how))
            for a, b in zip((whole[0], *whole[1]), (parts[0], *parts[1]), strict=True):
                assert np.array_equal(a, b)


def forms():
    """Return X in every form, with the other arguments: padded, ragged, whole, with masked steps."""
    mask = np.random.default_rng(1).random((7, 9)) < 0.6
    mask[:, 4] = True
    ragged, full = [x[:length] for x, length in zip(padded(), LENGTHS, strict=True)], np.nan_to_num(padded())
    return [(padded(), {"lengths": LENGTHS}), (ragged, {}), (full, {}), (full, {"mask": mask})]


@pytest.mark.parametrize("output_dim", [2, None])
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("name", [*FORWARDS, *BACKWARDS])
def test_predictions_within_a_budget_have_the_bits_of_whole_ones(name, readout, output_dim):
    """The smallest budget is what the error says; the others run some sequences and steps at a time."""
    options = FORWARDS.get(name, {}) | BACKWARDS.get(name, {})
    model = LSTMNetwork(3, 8, output_dim, readout=readout, seed=0, **options)
    for X, how in forms():
        whole = model.predict(X, **how)
        with pytest.raises(ValueError, match=r"^memory_budget is 1 bytes; a sequence of \d steps needs") as caught:
            model.predict(X, memory_budget=1, **how)
        needed = int(str(caught.value).split()[-1])
        with pytest.raises(ValueError, match=f"at least {needed}$"):
            model.predict(X, memory_budget=needed - 1, **how)
        for budget in (needed, needed + 3000, f"{needed + 7000}B"):
            parts = model.predict(X, memory_budget=budget, **how)
            assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize("N", [1, 3])
@pytest.mark.parametrize("name", FORWARDS)
def test_the_smallest_budget_does_not_depend_on_how_few_steps_there_are(name, N):
    """Where carrying the states would take more than running all steps at a time."""
    for readout in READOUTS:
        model = LSTMNetwork(3, 8, 2, readout=readout, seed=0, **FORWARDS[name])
        for steps in (2, 3, 4):
            X = np.ones((N, steps, 3))
            with pytest.raises(ValueError, match="needs at least") as caught:
                model.predict(X, memory_budget=1)
            needed = int(str(caught.value).split()[-1])
            assert np.array_equal(model.predict(X, memory_budget=needed), model.predict(X))
            with pytest.raises(ValueError, match=f"at least {needed}$"):
                model.predict(X, memory_budget=needed - 1)


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("name", [*FORWARDS, *BACKWARDS])
def test_layers_one_sequence_at_a_time_have_the_bits_of_whole_ones(monkeypatch, name, seed):
    layer = LSTM(3, 8, seed=0, **FORWARDS.get(name, {}), **BACKWARDS.get(name, {}))
    given = layer.forward(np.ones((7, 2, 3)))[1]
    for X, how in forms():
        for states in ((), given):
            how |= {"dropout_seed": seed}
            H, last = layer.forward(X, *states, **how)
            with monkeypatch.context() as patch:
                patch.setattr(inference, "WORK_BYTES", 0)
                parts, last_of_parts = layer.forward(X, *states, **how)
            assert np.array_equal(H, parts)
            assert all(np.array_equal(a, b) for a, b in zip(last, last_of_parts, strict=True))
            tape = layer.forward(X, *states, **how, return_tape=True)
            assert np.array_equal(tape[0], parts)


@pytest.mark.parametrize("readout", ["last", "mean", "max"])
def test_validation_in_chunks_has_the_bits_of_whole_ones(in_chunks, readout):
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((7, 9, 3)), rng.standard_normal((7, 2))

    def losses():
        model = LSTMNetwork(3, 8, 2, readout=readout, num_layers=2, seed=0)
        how = {"epochs": 2, "batch_size": 3, "seed": 0, "verbose": False}
        return train(model, X, Y, validation_data=(X, Y), **how).validation_loss

    whole, parts = in_chunks(losses)
    assert whole == parts


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(layers, "INFERENCE_NUMBERS", 2**13)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"peephole": True}], ids=str)
@pytest.mark.parametrize("readout", ["last", "mean", "max"])
def test_predictions_take_no_memory_for_their_steps(small_chunks, readout, options):
    model = LSTMNetwork(2, 8, 1, readout=readout, seed=0, **options)
    X = np.ones((1, 20_000, 2), np.float32)
    assert peak(lambda: model.predict(X)) < peak(lambda: model.predict(X[:, :5000])) + 5000


def test_outputs_of_every_step_are_allocated_once(small_chunks):
    model, layer = LSTMNetwork(1, 4, 8, readout="steps", num_layers=2), LSTM(1, 8, num_layers=3)
    X = np.ones((1, 30_000, 1), np.float32)
    for call in (lambda: model.predict(X), lambda: layer.forward(X)):
        assert peak(call) < 1.3 * X.size * 8 * 4


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("name", BACKWARDS)
def test_memory_does_not_grow_with_the_sequences(monkeypatch, name, masked):
    """Where all steps are kept, fewer sequences run side by side: beyond inputs and outputs the memory is bounded."""
    monkeypatch.setattr(inference, "WORK_BYTES", 2**20)
    layer = LSTM(2, 8, seed=0, **BACKWARDS[name])
    X = np.ones((100, 200, 2), np.float32)
    mask = np.ones((100, 200), bool)
    mask[:, ::3] = not masked
    calls = [lambda n: layer.forward(X[:n], mask=mask[:n])[0]]
    for readout in READOUTS:
        model = LSTMNetwork(2, 8, 1, readout=readout, seed=0, **BACKWARDS[name])
        for how in ({}, {"memory_budget": 2**20}):
            calls.append(lambda n, model=model, how=how: model.predict(X[:n], mask=mask[:n], **how))
    for call in calls:
        given = 2 * X.nbytes + 3 * mask.nbytes if masked else 2 * mask.nbytes  # copies of what is live
        outputs = call(100).nbytes
        assert peak(lambda call=call: call(100)) < outputs + given + 2**20 + 250_000


# --- data of files stay in them ---


@pytest.fixture
def mapped(tmp_path):
    """Return a function that puts an array into a file, and returns it mapped."""

    def write(name, array):
        np.save(tmp_path / f"{name}.npy", array)
        return np.load(tmp_path / f"{name}.npy", mmap_mode="r")

    return write


def small_data(readout, dtype="float32"):
    rng = np.random.default_rng(0)
    Y = rng.standard_normal((7, 9, 2) if readout == "steps" else (7, 2))
    return rng.standard_normal((7, 9, 3)).astype(dtype), Y.astype(dtype)


HOW = {"batch_size": 2, "shuffle": False, "seed": 0, "verbose": False}


@pytest.mark.parametrize("how", [{}, {"lengths": LENGTHS}, {"tbptt": 4}], ids=str)
@pytest.mark.parametrize("readout", ["last", "steps"])
def test_training_on_files_is_training_on_arrays(mapped, readout, how):
    X, Y = small_data(readout)
    models = [LSTMNetwork(3, 8, 2, readout=readout, seed=0) for _ in range(3)]
    files = mapped("X", X), mapped("Y", Y)
    views = tuple(np.asarray(file)[:] for file in files)
    for model, data in zip(models, ((X, Y), files, views), strict=True):
        train(model, *data, epochs=2, **how, **HOW)
        assert np.array_equal(model.parameters, models[0].parameters)


@pytest.mark.parametrize("bad", ["X", "Y"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("how", [{}, {"lengths": LENGTHS}, {"tbptt": 4}], ids=str)
@pytest.mark.parametrize("readout", ["last", "steps"])
def test_files_are_checked_batch_by_batch(mapped, readout, how, value, bad):
    """The network is then as after the last update, and the error names the place."""
    arrays = dict(zip("XY", small_data(readout), strict=True))
    place = (5, 1) if bad == "Y" and readout == "last" else (5, 3, 1)
    arrays[bad][place] = value
    ours, theirs = (LSTMNetwork(3, 8, 2, readout=readout, seed=0) for _ in range(2))
    named = rf"^{bad}\[{', '.join(map(str, place))}\] is {value}; expected finite numbers$"
    with pytest.raises(ValueError, match=named):
        train(theirs, arrays["X"], arrays["Y"], **how, **HOW)
    assert np.array_equal(theirs.parameters, ours.parameters)  # arrays are checked before the first update
    with pytest.raises(ValueError, match=named):
        train(ours, mapped("X", arrays["X"]), mapped("Y", arrays["Y"]), **how, **HOW)
    before = {key: given[:4] if key == "lengths" else given for key, given in how.items()}
    train(theirs, arrays["X"][:4], arrays["Y"][:4], epochs=1, **before, **HOW)
    assert np.array_equal(ours.parameters, theirs.parameters)


@pytest.mark.parametrize("bad", ["X", "Y"])
def test_files_are_checked_in_the_first_epoch_alone(mapped, bad):
    """A NaN that comes later is found by the loss, not by the check, which would name the element."""
    files = {name: mapped(name, array) for name, array in zip("XY", small_data("steps"), strict=True)}
    epochs = []

    def spoil(model, history):
        epochs.append(len(history.loss))
        np.load(files[bad].filename, mmap_mode="r+")[5, 3, 1] = np.nan

    with pytest.raises(NonFiniteError, match=r"^the loss is nan in epoch 2 of 2, batch 3 of 4"):
        train(LSTMNetwork(3, 8, 2, readout="steps"), files["X"], files["Y"], epochs=2, callbacks=[spoil], **HOW)
    assert epochs == [1]


@pytest.mark.parametrize("bad", ["X", "Y"])
def test_validation_data_of_files_are_checked(mapped, bad):
    arrays = dict(zip("XY", small_data("steps"), strict=True))
    clean = {key: array.copy() for key, array in arrays.items()}
    arrays[bad][6, 8, 0] = np.nan
    data = mapped("X", arrays["X"]), mapped("Y", arrays["Y"])
    with pytest.raises(ValueError, match=rf"^validation_data: {bad}\[6, 8, 0\] is nan; expected finite"):
        train(LSTMNetwork(3, 8, 2, readout="steps"), clean["X"], clean["Y"], validation_data=data, **HOW)
    history = train(
        LSTMNetwork(3, 8, 2, readout="steps"),
        clean["X"],
        clean["Y"],
        validation_data={"X": data[0], "Y": data[1], "lengths": np.full(7, 8)},
        **HOW,
    )
    assert np.isfinite(history.validation_loss).all()


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}], ids=str)
@pytest.mark.parametrize("readout", READOUTS)
def test_predictions_and_gradients_of_files(mapped, readout, options):
    X, Y = small_data(readout)
    model = LSTMNetwork(3, 8, 2, readout=readout, seed=0, **options)
    file = mapped("X", X)
    for how in ({}, {"lengths": LENGTHS}):
        assert np.array_equal(model.predict(file, **how), model.predict(X, **how))
        _, gradient = model.gradient(file, mapped("Y", Y), **how)
        assert np.array_equal(gradient, model.gradient(X, Y, **how)[1])
    X[3, 2, 0] = np.inf
    file = mapped("again", X)
    for how in ({}, {"lengths": LENGTHS}):
        with pytest.raises(ValueError, match=r"^X\[3, 2, 0\] is inf; expected finite numbers") as first:
            model.predict(file, **how)
        for call in (model.gradient, lambda *given, **how: train(model, *given, **how, **HOW)):
            with pytest.raises(ValueError, match=str(first.value).replace("[", r"\[")):
                call(file, Y, **how)
    with pytest.raises(ValueError, match=r"^X\[3, 2, 0\] is inf"):
        LSTM(3, 8).forward(file)


@pytest.mark.parametrize("readout", ["last", "steps"])
def test_inputs_and_targets_may_be_in_place_or_not(readout):
    """Padding among the rows of X, of Y, of both, or of none of them."""
    X, Y = padded().astype(np.float32), small_data(readout)[1]
    model = LSTMNetwork(3, 8, 2, readout=readout, seed=0)
    for loss, goals in (("mse", Y), ("cross_entropy", (Y > 0)[..., 0].astype(int))):
        forms_of_Y = [goals, goals.astype("f8" if loss == "mse" else "i1"), list(goals)]
        if readout == "steps":
            forms_of_Y[2] = [y[:length] for y, length in zip(goals, LENGTHS, strict=True)]
        found = []
        for y in forms_of_Y:
            for x in (X, X.astype("f8")):
                found.append(model.gradient(x, y, lengths=LENGTHS, loss=loss))
            found.append(model.gradient([row[:n] for row, n in zip(X, LENGTHS, strict=True)], forms_of_Y[2], loss=loss))
        for value, gradient in found:
            assert value == found[0][0]
            assert np.array_equal(gradient, found[0][1])


@pytest.mark.parametrize("lengths", [None, np.full(40, 2400), np.arange(1, 41) * 60], ids=["whole", "equal", "ragged"])
@pytest.mark.parametrize("in_file", [False, True])
def test_data_that_need_no_conversion_are_not_copied(mapped, in_file, lengths):
    X, Y = np.ones((40, 2500, 8), np.float32), np.ones((40, 2500, 2), np.float32)
    if in_file:
        X, Y = mapped("X", X), mapped("Y", Y)
    model = LSTMNetwork(8, 2, 2, readout="steps", seed=0)
    how_long = {} if lengths is None else {"lengths": lengths}
    how = {"lengths": lengths, "batch_size": 1, "verbose": False, "epochs": 1}
    used = peak(lambda: train(model, X, Y, validation_data={"X": X, "Y": Y} | how_long, **how))
    assert used < 1_200_000 < X.nbytes
    used = peak(lambda: model.predict(X, readout="last", lengths=lengths))
    assert used < X.nbytes / 2
