"""Training: against a plain NumPy loop, against PyTorch, bit for bit, interrupted, and on bad input."""

import contextlib
import functools
import io
import os
import pickle
import re
import signal
import sys
import threading

import numpy as np
import pytest
from helpers import import_torch, python_mse, relative_error, run_python

import lstm_ext
from lstm_ext import (
    LSTM,
    MSE,
    SGD,
    Adam,
    CrossEntropy,
    History,
    LSTMNetwork,
    NonFiniteError,
    _kernels,
    reference,
    train,
    train_lstm,
)
from lstm_ext.training import progress

LOSSES = [(loss, readout) for loss in ("mse", "cross_entropy") for readout in ("last", "steps")]
QUIET = {"verbose": False}
DROPS = {"dropout": 0.25, "recurrent_dropout": 0.5, "zoneout": 0.1, "weight_dropout": 0.25}


def data(N, T, I, O, loss="mse", readout="last", seed=0):
    rng = np.random.default_rng(seed)
    rows = (N,) if readout == "last" else (N, T)
    if loss == "cross_entropy":
        return rng.standard_normal((N, T, I)), rng.integers(0, O, rows)
    return rng.standard_normal((N, T, I)), rng.standard_normal((*rows, O))


def network(*sizes, readout="last", dtype="float64", seed=0):
    return LSTMNetwork(*sizes, readout=readout, dtype=dtype, seed=seed)


# --- a training loop in plain NumPy, on the oracle's gradients ---


def sgd_in_numpy(learning_rate, momentum):
    velocity = 0.0

    def update(p, g):
        nonlocal velocity
        velocity = momentum * velocity + g
        return p - learning_rate * velocity

    return update


def adam_in_numpy(learning_rate, beta1, beta2, epsilon):
    m = v = 0.0
    t = 0

    def update(p, g):
        nonlocal m, v, t
        t += 1
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        return p - learning_rate * m_hat / (np.sqrt(v_hat) + epsilon)

    return update


OPTIMIZERS = {
    "sgd": (lambda: SGD(0.3), lambda: sgd_in_numpy(0.3, 0)),
    "momentum": (lambda: SGD(0.1, 0.9), lambda: sgd_in_numpy(0.1, 0.9)),
    "adam": (lambda: Adam(0.02), lambda: adam_in_numpy(0.02, 0.9, 0.999, 1e-8)),
    "adam of other rates": (
        lambda: Adam(0.05, 0.5, 0.75, 1e-3),
        lambda: adam_in_numpy(0.05, 0.5, 0.75, 1e-3),
    ),
}


def train_in_numpy(model, X, Y, update, batch_size, epochs, clip_norm, seed, **how):
    """Train the oracle's network and return its losses and how many gradients were clipped."""
    rng, losses, clipped = np.random.default_rng(seed), [], 0
    for _ in range(epochs):
        order, total = rng.permutation(len(X)), 0.0
        for start in range(0, len(X), batch_size):
            part = order[start : start + batch_size]
            value, gradient = model.gradient(X[part], Y[part], **how)
            norm = np.linalg.norm(gradient)
            if clip_norm is not None and norm > clip_norm:
                gradient, clipped = gradient * clip_norm / norm, clipped + 1
            model.parameters = update(model.parameters, gradient)
            total += value * len(part)
        losses.append(total / len(X))
    return losses, clipped


@pytest.mark.parametrize(("loss", "readout"), LOSSES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clips", [False, True])
def test_training_agrees_with_numpy(rounding_isa, optimizer, clips, loss, readout):
    """21 updates, every seventh on a smaller batch."""
    X, Y = data(34, 5, 3, 4, loss, readout)
    ours, (compiled, plain) = network(3, 13, 4, readout=readout), OPTIMIZERS[optimizer]
    theirs = reference.LSTMNetwork(3, 13, 4, readout=readout, dtype="float64")
    theirs.parameters = start = ours.parameters.copy()
    common = {"batch_size": 5, "epochs": 3, "seed": 17, "loss": loss}
    common["clip_norm"] = {"last": 0.5, "steps": 0.25}[readout] if clips else None
    history = train(ours, X, Y, optimizer=compiled(), **common, **QUIET)
    losses, clipped = train_in_numpy(theirs, X, Y, plain(), **common)
    assert 0 < clipped < 21 if clips else not clipped
    assert relative_error(history.loss, losses) <= 1e-10
    assert relative_error(ours.parameters - start, theirs.parameters - start) <= 1e-10


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_float32_training_agrees_with_numpy(isa, optimizer):
    X, Y = data(17, 5, 3, 2)
    ours, (compiled, plain) = network(3, 13, 2, dtype="float32"), OPTIMIZERS[optimizer]
    theirs = reference.LSTMNetwork(3, 13, 2, dtype="float64")
    theirs.parameters = start = ours.parameters.copy()
    common = {"batch_size": 5, "epochs": 2, "seed": 17, "clip_norm": None}
    history = train(ours, X, Y, optimizer=compiled(), **common, **QUIET)
    losses, _ = train_in_numpy(theirs, X.astype("f4"), Y.astype("f4"), plain(), **common)
    assert relative_error(history.loss, losses) <= 1e-5
    assert relative_error(ours.parameters - start, theirs.parameters - start) <= 1e-3  # Adam divides


def test_names_stand_for_the_defaults():
    X, Y = data(13, 4, 3, 2)
    C = np.arange(13) % 2
    pairs = [
        ({"optimizer": "sgd"}, {"optimizer": SGD(0.01, 0.0)}, Y),
        ({"optimizer": "adam"}, {"optimizer": Adam(0.001, 0.9, 0.999, 1e-8)}, Y),
        ({}, {"optimizer": Adam(), "loss": MSE(), "batch_size": 32, "epochs": 10}, Y),
        ({"loss": "cross_entropy"}, {"loss": CrossEntropy()}, C),
    ]
    for short, long, targets in pairs:
        ours, theirs = network(3, 2, 2), network(3, 2, 2)
        train(ours, X, targets, seed=1, **short, **QUIET)
        train(theirs, X, targets, seed=1, **long, **QUIET)
        assert np.array_equal(ours.parameters, theirs.parameters)


# --- against PyTorch ---


@pytest.fixture(scope="module")
def torch():
    return import_torch()


class InTorch:
    """nn.LSTM and nn.Linear in float64 with a network's weights; the second bias stays zero."""

    def __init__(self, torch, model):
        self.torch, (I, H, O) = torch, model.sizes
        self.lstm = torch.nn.LSTM(I, H, batch_first=True, dtype=torch.float64)
        self.head = torch.nn.Linear(H, O, dtype=torch.float64)
        cell, gates = model.lstm_cell, "ifCo"  # in PyTorch's order
        W = np.concatenate([getattr(cell, f"W_{gate}") for gate in gates])
        b = np.concatenate([getattr(cell, f"b_{gate}")[:, 0] for gate in gates])
        with torch.no_grad():
            self.lstm.weight_hh_l0.copy_(torch.from_numpy(W[:, :H]))
            self.lstm.weight_ih_l0.copy_(torch.from_numpy(W[:, H:]))
            self.lstm.bias_ih_l0.copy_(torch.from_numpy(b))
            self.lstm.bias_hh_l0.zero_()
            self.head.weight.copy_(torch.from_numpy(model.W_y.copy()))
            self.head.bias.copy_(torch.from_numpy(model.b_y[:, 0].copy()))
        self.lstm.bias_hh_l0.requires_grad_(False)

    def trained(self):
        return [
            self.lstm.weight_hh_l0,
            self.lstm.weight_ih_l0,
            self.lstm.bias_ih_l0,
            *self.head.parameters(),
        ]

    def flat(self, gradient=False):
        """Return the parameters, or their gradients, in our layout."""
        arrays = [p.grad if gradient else p.detach() for p in self.trained()]
        W_h, W_x, b, W_y, b_y = (array.numpy() for array in arrays)
        W = np.concatenate((W_h, W_x), axis=1)
        return np.concatenate([array.ravel() for array in (W, b, W_y, b_y)])

    def loss(self, X, Y, loss, readout):
        X, Y = self.torch.from_numpy(X), self.torch.from_numpy(Y)
        outputs = self.head(self.lstm(X)[0])
        if readout == "last":
            outputs = outputs[:, -1]
        if loss == "mse":
            return self.torch.nn.functional.mse_loss(outputs, Y)
        logits = outputs.reshape(-1, outputs.shape[-1])
        return self.torch.nn.functional.cross_entropy(logits, Y.reshape(-1))


@pytest.mark.peers
@pytest.mark.parametrize(("loss", "readout"), LOSSES)
def test_gradients_agree_with_torch(isa, torch, loss, readout):
    X, Y = data(13, 17, 3, 4, loss, readout)
    ours = network(3, 34, 4, readout=readout)
    theirs = InTorch(torch, ours)
    value, gradient = ours.gradient(X, Y, loss=loss)
    expected = theirs.loss(X, Y, loss, readout)
    expected.backward()
    assert relative_error(value, expected.item()) <= 1e-12
    assert relative_error(gradient, theirs.flat(gradient=True)) <= 1e-12
    with torch.no_grad():
        outputs = theirs.head(theirs.lstm(torch.from_numpy(X))[0]).numpy()
    assert relative_error(ours.predict(X, readout="steps"), outputs) <= 1e-12


@pytest.mark.peers
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize(
    ("ours", "name", "theirs"),
    [
        (lambda: SGD(0.2), "SGD", {"lr": 0.2}),
        (lambda: SGD(0.1, 0.9), "SGD", {"lr": 0.1, "momentum": 0.9}),
        (lambda: Adam(0.01), "Adam", {"lr": 0.01}),
    ],
    ids=["sgd", "momentum", "adam"],
)
def test_training_agrees_with_torch(isa, torch, ours, name, theirs, loss):
    """30 steps on one batch."""
    X, Y = data(13, 7, 3, 4, loss, "steps")
    model = network(3, 17, 4, readout="steps")
    twin, start = InTorch(torch, model), model.parameters.copy()
    optimizer, losses = getattr(torch.optim, name)(twin.trained(), **theirs), []
    for _ in range(30):
        optimizer.zero_grad()
        value = twin.loss(X, Y, loss, "steps")
        value.backward()
        optimizer.step()
        losses.append(value.item())
    how = {"loss": loss, "batch_size": 13, "epochs": 30, "shuffle": False}
    history = train(model, X, Y, optimizer=ours(), **how, **QUIET)
    assert relative_error(history.loss, losses) <= 1e-9
    assert relative_error(model.parameters - start, twin.flat() - start) <= 1e-9


# --- losses and optimizers written in Python ---


class PythonSGD:
    def update(self, parameters, gradient):
        parameters -= 0.3 * gradient


@pytest.mark.parametrize("clip_norm", [None, 0.4])
@pytest.mark.parametrize("readout", ["last", "steps"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_python_parts_do_as_compiled_ones(dtype, readout, clip_norm):
    X, Y = data(17, 5, 3, 2, readout=readout)
    common = {"batch_size": 5, "epochs": 3, "seed": 3, "clip_norm": clip_norm}
    expected = network(3, 13, 2, readout=readout, dtype=dtype)
    start = expected.parameters.copy()
    history = train(expected, X, Y, optimizer=SGD(0.3), validation_data=(X[:7], Y[:7]), **common, **QUIET)
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    for loss, optimizer in ((python_mse, "sgd"), ("mse", PythonSGD()), (python_mse, PythonSGD())):
        actual = network(3, 13, 2, readout=readout, dtype=dtype)
        if optimizer == "sgd":
            optimizer = SGD(0.3)
        how = {"loss": loss, "optimizer": optimizer, "validation_data": (X[:7], Y[:7])}
        again = train(actual, X, Y, **how, **common, **QUIET)
        assert relative_error(actual.parameters - start, expected.parameters - start) <= tolerance
        assert relative_error(again.loss, history.loss) <= tolerance
        assert relative_error(again.validation_loss, history.validation_loss) <= tolerance
    value, gradient = expected.gradient(X, Y)
    twice = expected.gradient(X, Y, loss=python_mse)
    assert relative_error(twice[0], value) <= tolerance
    assert relative_error(twice[1], gradient) <= tolerance


def test_python_loss_sees_the_batch_and_owns_its_outputs():
    X, _ = data(5, 3, 2, 1)
    names = [f"sequence {n}" for n in range(5)]
    seen = []

    def loss(outputs, targets):
        seen.append((outputs.copy(), list(targets)))
        outputs[...] = 7
        return 0.0, np.zeros_like(outputs)

    model = network(2, 3, 1)
    train(model, X, names, loss=loss, batch_size=2, epochs=1, shuffle=False, **QUIET)
    assert [targets for _, targets in seen] == [names[:2], names[2:4], names[4:]]
    expected = model.predict(X)
    assert np.array_equal(np.concatenate([outputs for outputs, _ in seen]), expected)


def test_sequences_of_different_lengths():
    """One at a time, whichever their lengths, as the oracle does."""
    rng = np.random.default_rng(0)
    X = [rng.standard_normal((T, 3)) for T in (5, 1, 17, 2)]
    for readout in ("last", "steps"):
        Y = [rng.standard_normal((len(x), 2) if readout == "steps" else 2) for x in X]
        expected = reference.LSTMNetwork(3, 13, 2, readout=readout, dtype="float64")
        compiled, python = (network(3, 13, 2, readout=readout) for _ in range(2))
        expected.parameters = compiled.parameters
        common = {"batch_size": 1, "epochs": 2, "shuffle": False}
        history = train(compiled, X, Y, optimizer=SGD(0.1), **common, **QUIET)
        train(python, X, Y, optimizer=SGD(0.1), loss=python_mse, **common, **QUIET)
        losses = []
        for _ in range(2):
            for x, y in zip(X, Y, strict=True):
                value, gradient = expected.gradient(x[None], y[None])
                expected.parameters = expected.parameters - 0.1 * gradient
                losses.append(value)
        weights = [len(x) for x in X] if readout == "steps" else None
        assert relative_error(history.loss, np.average(np.reshape(losses, (2, 4)), 1, weights)) <= 1e-12
        for model in (compiled, python):
            assert relative_error(model.parameters, expected.parameters) <= 1e-12


# --- options, and batches of several lengths ---

OPTIONS = {
    "plain": {},
    "two ways": {"bidirectional": "concat"},
    "sum of two ways": {"bidirectional": "sum", "num_layers": 2, "dropout": 0.3},
    "deep": {"num_layers": 3, "dropout": 0.5, "zoneout": (0.2, 0.1)},
    "backwards": {"go_backwards": True, "num_layers": 2, "learn_initial_state": True},
    "projection": {"proj_size": 4, "peephole": True, "recurrent_dropout": 0.4},
    "norm": {"layer_norm": True, "coupled_gates": True, "bidirectional": "concat", "weight_dropout": 0.3},
    "clip": {"cell_clip": 0.3, "use_bias": False, "cell_activation": "relu", "gate_activation": "hard_sigmoid"},
}
HEADS = ("last", "steps", "mean", "max")
LENGTHS = np.array([6, 1, 4, 6, 2, 5, 3])


def pair(output_dim=2, seed=0, **options):
    """Return a network and the oracle's of the same weights."""
    ours = LSTMNetwork(3, 7, output_dim, dtype="float64", seed=seed, **options)
    ours.parameters += 0.1 * np.random.default_rng(seed).standard_normal(ours.parameters.shape)
    theirs = reference.LSTMNetwork(3, 7, output_dim, dtype="float64", **options)
    theirs.parameters = ours.parameters
    return ours, theirs


def ragged(readout, output_dim=2, loss="mse", seed=0):
    """Return padded data whose padding is not to be looked at, and the lengths."""
    X, Y = data(7, 6, 3, output_dim, loss, "steps" if readout == "steps" else "last", seed)
    padding = np.arange(6) >= LENGTHS[:, None]
    X[padding] = np.nan
    if readout == "steps":
        Y[padding] = -1 if loss == "cross_entropy" else np.nan
    return X, Y, LENGTHS


def unpadded(array):
    return [row[:length] for row, length in zip(array, LENGTHS, strict=True)]


def padded(X, Y):
    """For the oracle, which looks at padding."""
    return np.nan_to_num(X), np.nan_to_num(Y)


def gaps():
    mask = np.random.default_rng(3).random((7, 6)) < 0.6
    mask[np.arange(7), np.arange(7) % 6] = True
    return mask


WAYS = {"full": {}, "lengths": {"lengths": LENGTHS}, "mask": {"mask": gaps()}}


@functools.cache  # once for all sets
def expected_by_way(name, readout, output_dim):
    """Return the oracle's predictions by way, and its (loss, gradient) by way and seed."""
    ours, theirs = pair(output_dim, readout=readout, **OPTIONS[name])
    X, Y = padded(*ragged(readout, output_dim or ours.architecture.features)[:2])
    predictions = {way: theirs.predict(X, **how) for way, how in WAYS.items()}
    gradients = {
        (way, seed): theirs.gradient(X, Y, dropout_seed=seed, **how)
        for way, how in WAYS.items()
        for seed in (None, 5, 2**63 + 1)
    }
    return predictions, gradients


@pytest.mark.parametrize("output_dim", [2, None])
@pytest.mark.parametrize("readout", HEADS)
@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_of_all_options_agree_with_the_oracle(rounding_isa, name, readout, output_dim):
    predictions, gradients = expected_by_way(name, readout, output_dim)
    ours, _ = pair(output_dim, readout=readout, **OPTIONS[name])
    X, Y, _ = ragged(readout, output_dim or ours.architecture.features)
    data_of = {way: (X, Y) if way == "lengths" else padded(X, Y) for way in WAYS}
    for way, expected in predictions.items():
        assert relative_error(ours.predict(data_of[way][0], **WAYS[way]), expected) <= 1e-12
    for (way, seed), (expected, expected_gradient) in gradients.items():
        value, gradient = ours.gradient(*data_of[way], dropout_seed=seed, **WAYS[way])
        assert relative_error(value, expected) <= 1e-12
        assert relative_error(gradient, expected_gradient) <= 1e-12


def test_equal_largest_share_nothing(isa):
    """The gradient of a maximum is that of the first step which has it."""
    options = {"cell_activation": "relu", "learn_initial_state": True}
    model = LSTMNetwork(1, 2, None, readout="max", dtype="float64", seed=0, **options)
    weights = model.named_parameters()
    for name, value in {"W_C": 0, "W_f": 0, "W_o": 0, "b_f": 60, "C_0": [[1], [2]]}.items():
        weights[name][:] = value  # the forget gate is 1, so C and h stay
    X, Y = np.zeros((1, 4, 1)), np.zeros((1, 2))
    steps = model.predict(X, readout="steps")[0]
    assert np.array_equal(steps, np.repeat(steps[:1], 4, axis=0))
    assert steps.all()
    gradient = model.gradient(X, Y)[1]
    expected = lstm_ext.to_reference(model).gradient(X, Y)[1]
    assert relative_error(gradient, expected) <= 1e-14


@pytest.mark.parametrize("readout", HEADS)
def test_float32_gradients_of_ragged_batches_agree_with_the_oracle(isa, readout):
    ours, theirs = pair(readout=readout, num_layers=2, bidirectional="concat", dropout=0.3)
    single = LSTMNetwork(3, 7, 2, readout=readout, num_layers=2, bidirectional="concat", dropout=0.3)
    single.parameters = ours.parameters.astype("f4")
    theirs.parameters = single.parameters
    X, Y, lengths = ragged(readout)
    how = {"lengths": lengths, "dropout_seed": 1}
    value, gradient = single.gradient(X.astype("f4"), Y.astype("f4"), **how)
    expected = theirs.gradient(*padded(X.astype("f4"), Y.astype("f4")), **how)
    assert relative_error(value, expected[0]) <= 5e-6
    assert relative_error(gradient, expected[1]) <= 2e-5


@pytest.mark.parametrize("loss", ["mse", "cross_entropy", python_mse])
@pytest.mark.parametrize("readout", HEADS)
def test_forms_of_ragged_data_are_equal(readout, loss):
    """A list, lengths and a mask; Y padded or a list; whatever the padding holds."""
    X, Y, lengths = ragged(readout, loss=loss if isinstance(loss, str) else "mse")
    model, _ = pair(readout=readout, num_layers=2)
    mask, common = np.arange(6) < lengths[:, None], {"loss": loss}
    targets = unpadded(Y) if readout == "steps" else Y
    value, gradient = model.gradient(unpadded(X), targets, **common)
    for given, how in ((Y, {"lengths": lengths}), (targets, {"lengths": lengths}), (Y, {"mask": mask})):
        again = model.gradient(X, given, **how, **common)
        assert again[0] == value
        assert np.array_equal(again[1], gradient)
    if not callable(loss):
        return
    compiled = model.gradient(X, Y, lengths=lengths)
    assert relative_error(value, compiled[0]) <= 1e-12
    assert relative_error(gradient, compiled[1]) <= 1e-12


def test_predictions_of_ragged_data():
    model, _ = pair()
    X, _, lengths = ragged("steps")
    alone = [model.predict(x[None], readout="steps")[0] for x in unpadded(X)]
    steps = model.predict(X, readout="steps", lengths=lengths)
    for y, row, listed in zip(alone, steps, model.predict(unpadded(X), readout="steps"), strict=True):
        assert np.array_equal(row[: len(y)], y)
        assert not row[len(y) :].any()
        assert np.array_equal(listed, y)
    last = model.predict(X, lengths=lengths)
    assert np.array_equal(last, [y[-1] for y in alone])
    many = 100 * unpadded(X)  # several batches
    assert np.array_equal(model.predict(many), np.tile(last, (100, 1)))


@pytest.mark.parametrize("readout", HEADS)
@pytest.mark.parametrize("name", ["plain", "sum of two ways", "deep"])
def test_training_on_ragged_batches_agrees_with_the_oracle(isa, name, readout):
    """Shuffled, with masks of dropout of every update."""
    ours, theirs = pair(readout=readout, **OPTIONS[name])
    start = ours.parameters.copy()
    X, Y, lengths = ragged(readout)
    full, seed = padded(X, Y), 2**40 + 3
    how = {"batch_size": 3, "epochs": 2, "seed": seed, "clip_norm": 0.5}
    history = train(ours, X, Y, lengths=lengths, optimizer=SGD(0.3), **how, **QUIET)
    rng, update = np.random.default_rng(seed), 0
    for epoch in range(2):
        order, losses, weights = rng.permutation(7), [], []
        for begin in range(0, 7, 3):
            part = order[begin : begin + 3]
            masks = {"dropout_seed": seed, "update": update}
            value, gradient = theirs.gradient(full[0][part], full[1][part], lengths=lengths[part], **masks)
            gradient *= min(1, 0.5 / np.linalg.norm(gradient))
            theirs.parameters = theirs.parameters - 0.3 * gradient
            losses.append(value)
            weights.append(lengths[part].sum() if readout == "steps" else len(part))
            update += 1
        assert relative_error(history.loss[epoch], np.average(losses, weights=weights)) <= 1e-12
    assert relative_error(ours.parameters - start, theirs.parameters - start) <= 1e-11


def test_a_python_loss_sees_ragged_batches_as_they_were_drawn():
    seen = []

    def loss(outputs, targets):
        seen.extend(zip([y.copy() for y in outputs], targets, strict=True))
        for y in outputs:
            y[...] = 7
        return 0.0, [np.zeros_like(y) for y in outputs]

    model, _ = pair(readout="steps")
    X, Y, _ = ragged("steps")
    how = {"loss": loss, "batch_size": 4, "epochs": 1, "seed": 2}
    train(model, unpadded(X), unpadded(Y), **how, **QUIET)
    order = np.random.default_rng(2).permutation(7)
    expected = model.predict(unpadded(X))
    assert len(seen) == 7
    for n, (outputs, targets) in zip(order, seen, strict=True):
        assert np.array_equal(outputs, expected[n])
        assert np.array_equal(targets, unpadded(Y)[n])


@pytest.mark.parametrize("gradient", [[np.zeros((1, 2))], 7 * [np.zeros((1, 2))], None])
def test_a_gradient_of_another_form_is_refused(gradient):
    model, _ = pair(readout="steps")
    X, Y, lengths = ragged("steps")
    with pytest.raises((TypeError, ValueError), match="the loss's gradient"):
        model.gradient(X, Y, lengths=lengths, loss=lambda outputs, targets: (0.0, gradient))


@pytest.mark.parametrize("name", ["plain", "sum of two ways", "deep"])
@pytest.mark.parametrize("readout", HEADS)
def test_no_update_no_change_of_the_loss(name, readout):
    """What an epoch reports is then the mean over all that has a target, whatever the batches."""
    X, Y, lengths = ragged(readout)
    options = {**OPTIONS[name], "readout": readout, "dropout": 0.0, "zoneout": 0.0}
    expected = pair(**options)[0].gradient(X, Y, lengths=lengths)[0]
    chunks = [{}] if name == "sum of two ways" or readout in ("mean", "max") else [{}, {"tbptt": 2}, {"tbptt": 1}]
    for how in chunks:
        for batch_size in (1, 3, 7):
            model = pair(**options)[0]
            common = {"lengths": lengths, "optimizer": SGD(0.0), "batch_size": batch_size}
            history = train(model, X, Y, epochs=1, seed=0, **common, **how, **QUIET)
            assert relative_error(history.loss, [expected]) <= 1e-12


# --- truncated backpropagation ---


def train_in_chunks(model, layer, X, Y, lengths, k, rate, epochs, batch_size, readout, at_chunk=None):
    """Train the oracle's network by SGD, in chunks of k steps; return the losses of all chunks and their weights.

    Its layer has no head. at_chunk(since, places, update) is called before each chunk, with the numbers in the batch
    of the sequences that go on, and returns the seed of its masks.
    """
    shape = layer.forward(X)[1][0].shape
    count = layer.parameters.size
    found, update = [], 0
    for _ in range(epochs):
        for begin in range(0, len(X), batch_size):
            part = np.arange(begin, min(begin + batch_size, len(X)))
            h, C = np.zeros((2, *shape))
            for since in range(0, lengths[part].max(), k):
                alive = part[lengths[part] > since]
                rest = lengths[alive] - since
                ends = np.minimum(rest, k)
                layer.parameters = model.parameters[:count]
                x = X[alive, since : since + k]
                seed = None if at_chunk is None else at_chunk(since, alive - begin, update)
                H, (h[..., alive, :], C[..., alive, :]), tape = layer.forward(
                    x,
                    h[..., alive, :],
                    C[..., alive, :],
                    lengths=np.minimum(ends, x.shape[1]),
                    dropout_seed=seed,
                    return_tape=True,
                )
                rows = np.arange(x.shape[1]) < ends[:, None]
                if readout == "last":
                    rows &= np.arange(since, since + x.shape[1]) == lengths[alive][:, None] - 1
                if not rows.any():
                    continue
                goal = Y[alive, since : since + k][rows] if readout == "steps" else Y[alive][rest <= k]
                error = H[rows] @ model.W_y.T + model.b_y.T - goal
                dy = 2 * error / error.size
                dH = np.zeros_like(H)
                dH[rows] = dy @ model.W_y
                gradient = [layer.backward(tape, dH).parameters, (dy.T @ H[rows]).ravel(), dy.sum(axis=0)]
                found.append((np.mean(error**2), rows.sum()))
                model.parameters = model.parameters - rate * np.concatenate(gradient)
                update += 1
    return found


def assert_chunks_agree(options, readout, k, batch_size, *, lengths=LENGTHS, seed=None, at_chunk=None):
    """Train a network and the oracle's for two epochs, and compare losses and parameters."""
    ours, theirs = pair(readout=readout, **options)
    start = ours.parameters.copy()
    X, Y, _ = ragged(readout)
    full = padded(X, Y)
    given = (X, Y) if lengths is LENGTHS else full
    how = {"batch_size": batch_size, "epochs": 2, "shuffle": False, "seed": seed}
    history = train(ours, *given, lengths=lengths, tbptt=k, optimizer=SGD(0.2), **how, **QUIET)
    layer = reference.LSTM(3, 7, dtype="float64", **options)
    found = train_in_chunks(theirs, layer, *full, lengths, k, 0.2, 2, batch_size, readout, at_chunk)
    assert relative_error(ours.parameters - start, theirs.parameters - start) <= 1e-11
    losses, weights = np.transpose(found).reshape(2, 2, -1)
    assert relative_error(history.loss, np.average(losses, 1, weights)) <= 1e-12


@pytest.mark.parametrize("batch_size", [1, 3, 7])
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("readout", ["last", "steps"])
def test_truncated_backpropagation_agrees_with_the_oracle(readout, k, batch_size):
    assert_chunks_agree({}, readout, k, batch_size)


@pytest.mark.parametrize("lengths", [LENGTHS, np.full(7, 6)], ids=["ragged", "equal"])
@pytest.mark.parametrize("readout", ["last", "steps"])
@pytest.mark.parametrize(
    "options",
    [{"num_layers": 2, "dropout": 0.4}, {"recurrent_dropout": 0.4}, {"zoneout": (0.3, 0.2)}, {"weight_dropout": 0.4}],
    ids=lambda options: list(options)[-1],
)
def test_masks_of_chunks_are_those_of_their_steps(monkeypatch, options, readout, lengths):
    """A mask is a function of the step in the sequence and of the sequence's number in the batch, chunks or not."""
    now, seed = {}, 2**35 + 1
    drawn = reference.cell.Key.dropped

    def dropped(_, p, kind, cell, j, n, t):
        if kind in (0, 2, 3):  # those of every step
            t = t + now["since"]
        return drawn(now["key"], p, kind, cell, j, n if kind == 4 else now["places"][n], t)

    def at_chunk(since, places, update):
        now.update(since=since, places=places, key=reference.cell.Key.of(seed, update))
        return seed

    monkeypatch.setattr(reference.cell.Key, "dropped", dropped)
    assert_chunks_agree(options, readout, 2, 4, lengths=lengths, seed=seed, at_chunk=at_chunk)


@pytest.mark.parametrize("loss", ["mse", python_mse])
@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("readout", ["last", "steps"])
def test_a_python_loss_sees_chunks(readout, k, loss):
    """Sequences of one length, so that python_mse takes what it gets."""
    X, Y = data(5, 5, 3, 2, readout=readout)
    models = [pair(readout=readout)[0] for _ in range(2)]
    how = {"tbptt": k, "batch_size": 3, "epochs": 2, "seed": 0, **QUIET}
    for model, part in zip(models, (loss, "mse"), strict=True):
        train(model, X, Y, loss=part, optimizer=PythonSGD() if part is python_mse else SGD(0.3), **how)
    assert relative_error(models[0].parameters, models[1].parameters) <= 1e-12


@pytest.mark.parametrize("name", ["plain", "deep", "projection"])
@pytest.mark.parametrize("readout", ["last", "steps"])
def test_one_chunk_has_the_bits_of_none(name, readout):
    X, Y, lengths = ragged(readout)
    results = []
    for k in (None, 6, 100, 2**64):
        model = pair(readout=readout, **OPTIONS[name])[0]
        how = {"lengths": lengths, "batch_size": 3, "epochs": 2, "seed": 1}
        history = train(model, X, Y, tbptt=k, **how, **QUIET)
        results.append((model.parameters.tobytes(), history.loss))
    assert all(result == results[0] for result in results)


# --- memory, threads, order ---


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("readout", HEADS)
@pytest.mark.parametrize("name", OPTIONS)
def test_checkpoints_keep_the_bits(name, readout, dtype):
    model = LSTMNetwork(3, 7, 2, readout=readout, dtype=dtype, seed=0, **OPTIONS[name])
    X, Y, lengths = ragged(readout)
    for how in ({"lengths": lengths}, {"mask": gaps()}):
        given = (X, Y) if "lengths" in how else padded(X, Y)
        how = {**how, "dropout_seed": 3}
        value, gradient = model.gradient(*given, **how)
        for k in (1, 2, 4, 6, 9, 2**64):
            again = model.gradient(*given, recompute_every=k, **how)
            assert again[0] == value
            assert np.array_equal(again[1], gradient)


@pytest.mark.parametrize("name", ["plain", "deep", "projection"])
def test_checkpoints_within_chunks_keep_the_bits(name):
    X, Y, lengths = ragged("steps")
    results = []
    for k in (None, 1, 2, 3):
        model = pair(readout="steps", learn_initial_state=True, **OPTIONS[name])[0]
        how = {"lengths": lengths, "tbptt": 4, "batch_size": 3, "epochs": 2, "seed": 1}
        history = train(model, X, Y, recompute_every=k, **how, **QUIET)
        results.append((model.parameters.tobytes(), history.loss))
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("readout", ["last", "steps"])
def test_a_memory_budget_keeps_the_bits(readout):
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((2, 300, 3)), rng.standard_normal((2, 300, 2) if readout == "steps" else (2, 2))
    model = LSTMNetwork(3, 16, 2, readout=readout, seed=0)
    value, gradient = model.gradient(X, Y)
    with pytest.raises(ValueError, match=r"memory_budget is 1000 bytes; .* need at least (\d+)") as caught:
        model.gradient(X, Y, memory_budget="1kB")
    least = int(re.search(r"at least (\d+)", str(caught.value))[1])
    with pytest.raises(ValueError, match="memory_budget"):
        model.gradient(X, Y, memory_budget=least - 1)
    for budget in (least, 2 * least, "10MB", "0.5GiB", "9" * 400 + "B"):
        found = model.gradient(X, Y, memory_budget=budget)
        assert found[0] == value
        assert np.array_equal(found[1], gradient)


def test_a_memory_budget_is_for_the_outputs_as_well():
    X, Y = np.ones((2, 300, 3)), np.ones((2, 300, 50))
    model = LSTMNetwork(3, 4, 50, readout="steps", seed=0)
    outputs = 2 * Y.size * 4  # and their gradient
    with pytest.raises(ValueError, match=f"memory_budget is {outputs} bytes; .* need at least"):
        model.gradient(X, Y, memory_budget=outputs)


@pytest.mark.parametrize("name", OPTIONS)
def test_ragged_training_has_the_same_bits_for_any_number_of_threads(name):
    rng = np.random.default_rng(0)
    X = [rng.standard_normal((T, 3)) for T in rng.integers(5, 40, 50)]
    Y = [rng.standard_normal((len(x), 2)) for x in X]
    results = []
    for threads in (1, 2, 3, 4):
        model = LSTMNetwork(3, 34, 2, readout="steps", seed=0, **OPTIONS[name])
        how = {"batch_size": 25, "epochs": 1, "seed": 1, "num_threads": threads}
        history = train(model, X, Y, **how, **QUIET)
        results.append((model.parameters.tobytes(), history.loss))
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("readout", HEADS)
def test_rows_may_come_in_any_order(readout):
    """Sequences of different lengths are summed in the order of their lengths."""
    lengths = np.array([3, 1, 6, 2, 5, 4])
    X, Y = data(6, 6, 3, 2, readout="steps" if readout == "steps" else "last")
    model = pair(readout=readout, bidirectional="concat")[0]
    order = np.argsort(-lengths)
    value, gradient = model.gradient(X, Y, lengths=lengths)
    again = model.gradient(X[order], Y[order], lengths=lengths[order])
    assert again[0] == value
    assert np.array_equal(again[1], gradient)


@pytest.mark.parametrize("name", ["two ways", "deep", "norm"])
def test_ragged_bits_are_those_of_every_set(name, assert_same_on_every_fma_isa):
    def results():
        for readout in HEADS:
            X, Y, lengths = ragged(readout)
            model = LSTMNetwork(3, 7, 2, readout=readout, seed=0, **OPTIONS[name])
            yield model.predict(X, lengths=lengths)
            train(model, X, Y, lengths=lengths, batch_size=3, epochs=2, seed=1, **QUIET)
            yield model.parameters

    assert_same_on_every_fma_isa(results)


# --- bits ---


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_seed_same_bits(isa, dtype):
    X, Y = data(17, 5, 3, 2)
    bits = []
    for seed in (1, 1, 2):
        model = network(3, 13, 2, dtype=dtype)
        history = train(model, X, Y, batch_size=5, epochs=3, seed=seed, **QUIET)
        bits.append((model.parameters.tobytes(), tuple(history.loss)))
    assert bits[0] == bits[1] != bits[2]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("loss", "readout"), LOSSES)
def test_bits_are_those_of_every_set(dtype, loss, readout, assert_same_on_every_fma_isa):
    X, Y = data(34, 17, 3, 5, loss, readout)
    common = {"loss": loss, "batch_size": 13, "epochs": 3, "seed": 1}

    def results():
        for optimizer in (SGD(0.1), SGD(0.1, 0.9), Adam(0.01)):
            model = network(3, 34, 5, readout=readout, dtype=dtype)
            history = train(model, X, Y, optimizer=optimizer, clip_norm=0.5, **common, **QUIET)
            yield from (model.parameters, np.array(history.loss))

    assert_same_on_every_fma_isa(results)


def test_batches_are_those_of_the_permutation():
    """`seed` draws one permutation for each epoch; without shuffling the order is that of X."""
    seen = []

    def loss(outputs, targets):
        seen.extend(targets.tolist())
        return 0.0, np.zeros_like(outputs)

    X, _ = data(13, 2, 1, 1)
    for seed, shuffle in ((7, True), (None, False)):
        seen.clear()
        how = {"batch_size": 5, "epochs": 2, "seed": seed, "shuffle": shuffle}
        train(network(1, 2, 1), X, np.arange(13), loss=loss, **how, **QUIET)
        rng = np.random.default_rng(7)
        orders = [rng.permutation(13) if shuffle else np.arange(13) for _ in range(2)]
        assert seen == np.concatenate(orders).tolist()


# --- the history, validation, callbacks, going on ---


def test_history_and_validation():
    X, Y = data(17, 5, 3, 2)
    C = np.arange(17) % 2
    model = network(3, 13, 2)
    recomputed = []

    def callback(trained, history):
        assert trained is model
        assert isinstance(history, History)
        recomputed.append(np.mean((model.predict(X[10:]) - Y[10:]) ** 2))
        assert len(history.loss) == len(history.validation_loss) == len(recomputed)

    how = {"batch_size": 4, "epochs": 5, "callbacks": iter([callback])}
    history = train(model, X[:10], Y[:10], validation_data=(X[10:], Y[10:]), **how, **QUIET)
    assert len(history.loss) == len(history.seconds) == 5
    assert all(seconds > 0 for seconds in history.seconds)
    assert relative_error(history.validation_loss, recomputed) <= 1e-12
    assert history.loss[-1] < history.loss[0]

    def entropy(trained, history):
        logits = model.predict(X[10:])
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        recomputed.append(-np.mean(np.log(p[np.arange(7), C[10:]])))

    recomputed.clear()
    how = {"batch_size": 4, "epochs": 2, "callbacks": [entropy], "loss": "cross_entropy"}
    history = train(model, X[:10], C[:10], validation_data=(X[10:], C[10:]), **how, **QUIET)
    assert relative_error(history.validation_loss, recomputed) <= 1e-12
    assert train(model, X, Y, epochs=1, **QUIET).validation_loss == []


@pytest.mark.parametrize("readout", HEADS)
def test_validation_data_may_be_padded(readout):
    X, Y, lengths = ragged(readout)
    losses = []
    for validation in ({"lengths": lengths}, {"mask": np.arange(X.shape[1]) < lengths[:, None]}):
        model = network(3, 13, 2, readout=readout)
        how = {"lengths": lengths, "epochs": 2, "validation_data": {"X": X, "Y": Y, **validation}}
        losses.append(train(model, X, Y, **how, **QUIET).validation_loss)
    expected = model.gradient(X, Y, lengths=lengths)[0]
    assert relative_error(losses[0][-1:], [expected]) <= 1e-12
    assert losses[0] == losses[1]


def test_nothing_is_dropped_in_validation():
    X, Y = data(7, 5, 3, 2)
    model = LSTMNetwork(3, 13, 2, num_layers=2, dtype="float64", seed=0, **DROPS)
    losses = []

    def callback(model, history):
        losses.append(model.gradient(X, Y)[0])

    history = train(model, X, Y, epochs=2, batch_size=3, validation_data=(X, Y), callbacks=[callback], **QUIET)
    assert relative_error(history.validation_loss, losses) <= 1e-14
    assert relative_error(history.loss, losses) > 1e-3  # masks matter


def test_masks_differ_from_call_to_call_without_a_seed():
    X, Y = data(7, 5, 3, 2)
    results = []
    for seed in (None, None, 0, 0):
        model = LSTMNetwork(3, 13, 2, num_layers=2, seed=0, **DROPS)
        train(model, X, Y, epochs=1, batch_size=7, shuffle=False, seed=seed, **QUIET)
        results.append(model.parameters)
    assert not np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])
    assert np.array_equal(results[2], results[3])


def test_an_optimizer_in_python_sees_the_masks_of_every_update():
    X, Y = data(7, 5, 3, 2)
    models = [LSTMNetwork(3, 13, 2, num_layers=2, dtype="float64", seed=0, **DROPS) for _ in range(2)]
    for model, optimizer in zip(models, (SGD(0.3), PythonSGD()), strict=True):
        train(model, X, Y, optimizer=optimizer, epochs=2, batch_size=3, seed=1, **QUIET)
    assert relative_error(models[0].parameters, models[1].parameters) <= 1e-14


def test_validation_changes_nothing():
    X, Y = data(17, 5, 3, 2)
    models = network(3, 13, 2), network(3, 13, 2)
    for model, validation in zip(models, (None, (10 * X, Y)), strict=True):
        train(model, X, Y, batch_size=4, epochs=3, seed=0, validation_data=validation, **QUIET)
    assert np.array_equal(models[0].parameters, models[1].parameters)


def test_the_loss_of_an_epoch_is_the_mean_over_its_sequences():
    X, Y = data(17, 5, 3, 2)
    model = network(3, 13, 2)
    history = train(model, X, Y, batch_size=5, epochs=1, optimizer=SGD(0.0), **QUIET)
    assert relative_error(history.loss[0], np.mean((model.predict(X) - Y) ** 2)) <= 1e-12


def test_callbacks_stop_training():
    X, Y = data(5, 3, 2, 1)
    calls = []

    def second(model, history):
        calls.append("second")
        return len(history.loss) == 2

    def after(model, history):
        calls.append("after")

    history = train(network(2, 3, 1), X, Y, epochs=9, callbacks=[second, after], **QUIET)
    assert len(history.loss) == 2
    assert calls == ["second", "after"] * 2  # every callback sees every epoch


@pytest.mark.parametrize("answer", [True, np.True_, np.array([True])[0]])
def test_true_of_any_kind_stops_training(answer):
    history = train(MODEL, X, Y, optimizer=SGD(0.0), epochs=9, callbacks=[lambda *_: answer, lambda *_: None], **QUIET)
    assert len(history.loss) == 1


@pytest.mark.parametrize("answer", [None, False, np.False_])
def test_what_goes_on(answer):
    assert len(train(MODEL, X, Y, optimizer=SGD(0.0), epochs=3, callbacks=[lambda *_: answer], **QUIET).loss) == 3


@pytest.mark.parametrize("answer", [1, 0, "stop", 0.0, np.array([True]), np.int64(1), 10**5 * "x"])
def test_other_answers_of_callbacks_are_named(answer):
    calls = []
    callbacks = [lambda *_: True, lambda *_: answer, lambda *_: calls.append("called")]
    with pytest.raises(
        TypeError, match=r"^callbacks\[1\] returned (?s:.{1,90}); expected True to stop, or None or False"
    ):
        train(MODEL, X, Y, optimizer=SGD(0.0), epochs=9, callbacks=callbacks, **QUIET)
    assert calls == ["called"]


def test_labels_changed_in_a_callback_are_not_believed():
    """They were checked when training began; in another process, for a wrong index would end it."""
    code = """
import numpy as np
from lstm_ext import LSTMNetwork, train
labels = np.arange(5) % 4
def callback(network, history):
    labels[:] = 10**9
how = {"loss": "cross_entropy", "epochs": 3, "verbose": False, "seed": 0}
changed, alone = LSTMNetwork(2, 3, 4, seed=0), LSTMNetwork(2, 3, 4, seed=0)
train(alone, np.ones((5, 3, 2)), labels, **how)
train(changed, np.ones((5, 3, 2)), labels, callbacks=[callback], **how)
assert labels[0] == 10**9
assert np.array_equal(changed.parameters, alone.parameters)
"""
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr


def test_an_exception_in_a_callback_keeps_the_epoch():
    X, Y = data(5, 3, 2, 1)
    expected, actual = network(2, 3, 1), network(2, 3, 1)
    train(expected, X, Y, epochs=2, seed=0, **QUIET)

    def callback(model, history):
        if len(history.loss) == 2:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        train(actual, X, Y, epochs=9, seed=0, callbacks=[callback], **QUIET)
    assert np.array_equal(actual.parameters, expected.parameters)


# --- progress ---


class Terminal(io.StringIO):
    def isatty(self):
        return True


class FakeBar:
    """Stands for tqdm, and notes what it shows."""

    def __init__(self, total, unit):
        self.total, self.unit, self.done, self.texts, self.closed = total, unit, 0, [], False
        self.bars.append(self)

    def update(self, n):
        assert not self.closed
        self.done += n

    def set_postfix_str(self, text, refresh):
        self.texts.append((self.done, text))

    def close(self):
        self.closed = True


def record_bars(monkeypatch):
    """Let stderr be a terminal with a bar, and return the bars."""
    monkeypatch.setattr(FakeBar, "bars", [], raising=False)
    monkeypatch.setattr(progress, "_tqdm", lambda: FakeBar)
    monkeypatch.setattr(sys, "stderr", Terminal())
    return FakeBar.bars


def shown(history, epoch):
    validation = f", validation loss {history.validation_loss[epoch]:#.4g}" if history.validation_loss else ""
    return f"loss {history.loss[epoch]:#.4g}{validation}"


@pytest.mark.parametrize("how", [{}, {"tbptt": 2}, {"loss": python_mse}])
def test_a_bar_counts_batches_and_shows_the_losses(monkeypatch, how):
    (X, Y), bars = data(17, 5, 3, 2), record_bars(monkeypatch)
    history = train(network(3, 5, 2), X, Y, batch_size=5, epochs=3, validation_data=(X, Y), **how)
    assert [(bar.total, bar.unit, bar.done, bar.closed) for bar in bars] == [(12, "batch", 12, True)]
    assert bars[0].texts == [(4 * (epoch + 1), shown(history, epoch)) for epoch in range(3)]
    assert sys.stderr.getvalue() == ""
    with pytest.raises(RuntimeError, match="stop here"):
        train(network(3, 5, 2), X, Y, batch_size=5, epochs=3, callbacks=[Raising("stop here")])
    assert (bars[1].done, bars[1].closed) == (4, True)
    train(network(3, 5, 2), X, Y, verbose=False)
    assert len(bars) == 2


def test_tqdm_takes_what_it_is_given(monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    X, Y = data(17, 5, 3, 2)
    history = train(network(3, 5, 2), X, Y, batch_size=5, epochs=3)
    last = re.split("[\r\n]+", sys.stderr.getvalue().strip())[-1]
    assert "12/12" in last
    assert shown(history, -1) in last


class Raising:
    def __init__(self, message):
        self.message = message

    def __call__(self, *_):
        raise RuntimeError(self.message)


@pytest.mark.parametrize("terminal", [False, True])
def test_lines_tell_the_losses_at_most_once_a_second_and_the_last(terminal, monkeypatch, capsys):
    """Without a terminal, or without tqdm; each epoch takes 0.4 seconds here."""
    clock = iter(0.4 * k for k in range(100))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    if terminal:
        monkeypatch.setattr(progress, "_tqdm", lambda: None)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    X, Y = data(7, 5, 3, 2)
    for how in ({}, {"validation_data": (X, Y)}):
        history = train(network(3, 5, 2), X, Y, epochs=9, callbacks=[lambda _, h: len(h.loss) == 8], **how)
        out, err = capsys.readouterr()
        lines = err.splitlines()
        numbers = [int(re.match(r"epoch (\d+)/9: ", line)[1]) for line in lines]
        assert numbers[0] == 1
        assert numbers[-1] == 8
        assert 2 < len(numbers) < 8
        assert lines == [f"epoch {n}/9: {shown(history, n - 1)}" for n in numbers]
        assert out == ""


class Dead:
    """A standard error that can no longer be written to, on a terminal or not; or whose owner has no isatty."""

    def __init__(self, terminal):
        if terminal is not None:
            self.isatty = lambda: terminal

    def write(self, *_):
        raise BrokenPipeError

    flush = write


@pytest.mark.parametrize("terminal", [None, False, True])
def test_an_error_stream_that_fails_ends_no_training(terminal, monkeypatch):
    model = network(3, 5, 2)
    monkeypatch.setattr(sys, "stderr", Dead(terminal))
    assert len(train(model, *data(7, 5, 3, 2), epochs=3).loss) == 3
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    assert len(train(model, *data(7, 5, 3, 2), epochs=3).loss) == 3


def test_not_verbose_is_silent(capsys):
    train(network(3, 5, 2), *data(7, 5, 3, 2), epochs=2, **QUIET)
    assert capsys.readouterr() == ("", "")


# --- going on ---


@pytest.mark.parametrize("make", [lambda: SGD(0.1), lambda: SGD(0.1, 0.9), lambda: Adam(0.01)])
def test_an_optimizer_goes_on(isa, make):
    X, Y = data(17, 5, 3, 2)
    models, optimizer = (network(3, 13, 2), network(3, 13, 2)), make()
    common = {"batch_size": 5, "shuffle": False}
    train(models[0], X, Y, optimizer=make(), epochs=2, **common, **QUIET)
    for _ in range(2):
        train(models[1], X, Y, optimizer=optimizer, epochs=1, **common, **QUIET)
    assert np.array_equal(models[0].parameters, models[1].parameters)


# --- losses and gradients that are not finite ---


def replay(updates, X, Y, make, batch_size, **how):
    """Return the parameters after so many updates of an unshuffled training."""
    model, optimizer, batches = network(3, 13, 2), make(), -(-len(X) // batch_size)
    for k in range(updates):
        part = slice(k % batches * batch_size, (k % batches + 1) * batch_size)
        once = {"optimizer": optimizer, "epochs": 1, "shuffle": False, "batch_size": batch_size}
        train(model, X[part], Y[part], **once, **how, **QUIET)
    return model.parameters


@pytest.mark.parametrize("make", [lambda: SGD(0.1, 0.9), lambda: Adam(0.01)])
def test_a_loss_that_is_not_finite_stops_training(isa, make):
    X, Y = data(17, 5, 3, 2)
    Y[11] = 1e200
    expected = replay(2, X, Y, make, 5)
    model, optimizer = network(3, 13, 2), make()
    common = {"batch_size": 5, "shuffle": False, "optimizer": optimizer}
    message = "^the loss is inf in epoch 1 of 3, batch 3 of 4"
    with pytest.raises(NonFiniteError, match=message):
        train(model, X, Y, epochs=3, **common, **QUIET)
    assert np.array_equal(model.parameters, expected)
    train(model, X[:5], Y[:5], epochs=1, **common, **QUIET)  # the optimizer is as it was, too
    order = np.r_[0:10, 0:5]
    assert np.array_equal(model.parameters, replay(3, X[order], Y[order], make, 5))


def test_a_gradient_that_is_not_finite_stops_training(isa):
    X, Y = data(5, 4, 3, 1)
    Y[2] = -3e38  # the squared error is summed in double; its gradient overflows float32
    model, expected = (network(3, 13, 1, dtype="float32") for _ in range(2))
    common = {"batch_size": 1, "optimizer": SGD(0.1), "shuffle": False}
    train(expected, X[:2], Y[:2], epochs=1, **common, **QUIET)
    message = "^the gradient's norm is (inf|nan) in epoch 1 of 3, batch 3 of 5"
    with pytest.raises(NonFiniteError, match=message):
        train(model, X, Y, epochs=3, **common, **QUIET)
    assert np.array_equal(model.parameters, expected.parameters)


def test_a_learning_rate_that_is_too_large_stops_training(isa):
    X, Y = data(17, 5, 3, 2)
    model = network(3, 13, 2)
    common = {"batch_size": 5, "epochs": 3, "shuffle": False, "optimizer": SGD(1e155)}
    message = r"is (inf|nan) in epoch (\d) of 3, batch (\d) of 4"
    with pytest.raises(NonFiniteError, match=message) as caught:
        train(model, X, Y, **common, **QUIET)
    _, epoch, batch = re.search(message, str(caught.value)).groups()
    updates = 4 * (int(epoch) - 1) + int(batch) - 1
    assert updates > 0
    assert np.array_equal(model.parameters, replay(updates, X, Y, lambda: SGD(1e155), 5))
    assert np.isfinite(model.parameters).all()


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_python_loss_that_is_not_finite_stops_training(what, value):
    X, Y = data(17, 5, 3, 2)
    calls = []

    def loss(outputs, targets):
        calls.append(None)
        result, gradient = python_mse(outputs, targets)
        if len(calls) == 7:
            return (value, gradient) if what == "loss" else (result, np.full_like(gradient, value))
        return result, gradient

    model = network(3, 13, 2)
    common = {"batch_size": 5, "epochs": 3, "shuffle": False, "optimizer": SGD(0.1, 0.9)}
    with pytest.raises(NonFiniteError, match=f"{what}.* in epoch 2 of 3, batch 3 of 4"):
        train(model, X, Y, loss=loss, **common, **QUIET)
    expected = replay(6, X, Y, lambda: SGD(0.1, 0.9), 5, loss=python_mse)
    assert np.array_equal(model.parameters, expected)


def test_a_validation_loss_that_is_not_finite_is_told():
    X, Y = data(5, 3, 3, 2)
    with pytest.raises(NonFiniteError, match=r"inf.* epoch 1 of 3"):
        train(network(3, 13, 2), X, Y, epochs=3, validation_data=(X, np.full((5, 2), 1e300)))


# --- the article's program ---


def printed_losses(capsys):
    return losses_in(capsys.readouterr().out)


def losses_in(output):
    lines = output.splitlines()
    pattern = rf"Epoch (\d+)/{len(lines)}, Loss: (\S+)"
    found = [re.fullmatch(pattern, line) for line in lines]
    assert [int(match[1]) for match in found] == list(range(1, len(lines) + 1))
    return [float(match[2]) for match in found]


def articles_program(function, targets, epochs):
    np.random.seed(0)
    X, Y = np.random.randn(100, 10, 3), targets(100, 1)
    return function(X, Y, 3, 5, 1, learning_rate=0.01, epochs=epochs)


@pytest.fixture(scope="module", params=[np.random.rand, np.random.randn], ids=["rand", "randn"])
def articles_oracle(request):
    """Return the program's targets, and what the oracle prints and makes of them in any number of epochs, once each."""

    @functools.cache
    def trained(epochs):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            model = articles_program(reference.train_lstm, request.param, epochs)
        return losses_in(output.getvalue()), model.parameters

    return request.param, trained


@pytest.mark.parametrize("epochs", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_the_articles_program_prints_the_oracles_losses(isa, capsys, articles_oracle, epochs):
    """To 10 digits; with normal targets for 30 epochs, after which the training itself is chaotic.

    (The oracle's own losses change by 1e-7 by epoch 40, and by a tenth by 60, if its first weights change by one ULP.)
    """
    targets, oracle = articles_oracle
    if epochs == 100 and targets is np.random.randn:
        epochs = 30
    model = articles_program(train_lstm, targets, epochs)
    losses, (expected, parameters) = printed_losses(capsys), oracle(epochs)
    assert len(losses) == epochs
    assert np.allclose(losses, expected, rtol=1e-10, atol=0)
    assert relative_error(model.parameters, parameters) <= 1e-10
    assert model.dtype == np.float64
    assert model.sizes == (3, 5, 1)
    assert losses[-1] < losses[0]


def test_train_lstm_takes_what_the_article_takes(capsys):
    """Lists of different lengths, columns and 1-D targets, in any mixture."""
    rng = np.random.default_rng(0)
    X = [rng.standard_normal((T, 2)) for T in (3, 1, 5, 2)]
    Y = rng.standard_normal((4, 2))
    mixed = [y if n % 2 else y.reshape(2, 1) for n, y in enumerate(Y)]
    results = []
    for function, targets in (
        (reference.train_lstm, Y),
        (train_lstm, Y),
        (train_lstm, Y[:, :, None]),
        (train_lstm, list(Y)),
        (train_lstm, [y.reshape(2, 1) for y in Y]),
        (train_lstm, Y.tolist()),
        (train_lstm, mixed),
    ):
        np.random.seed(1)
        model = function(X, targets, 2, 3, 2, epochs=3)
        results.append((model.parameters, printed_losses(capsys)))
    for parameters, losses in results[1:]:
        assert relative_error(parameters, results[0][0]) <= 1e-12
        assert relative_error(losses, results[0][1]) <= 1e-12
        assert np.array_equal(parameters, results[1][0])


# --- Ctrl-C ---


class Interrupted:
    """Send SIGINT to this process after some seconds, and expect KeyboardInterrupt."""

    def __init__(self, seconds):
        self.timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))

    def __enter__(self):
        self.before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.timer.start()

    def __exit__(self, kind, *_):
        self.timer.cancel()
        self.timer.join()
        signal.signal(signal.SIGINT, self.before)
        assert kind is KeyboardInterrupt
        return True


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("kind", ["compiled", "Python"])
def test_interrupted_at_a_step_boundary(kind):
    """The parameters are those of one of the updates of a replay, batch by batch."""
    X, Y = data(1300, 7, 3, 2)
    how = {"loss": python_mse} if kind == "Python" else {}
    model, optimizer = network(3, 34, 2), SGD(0.01, 0.9)
    start = model.parameters.copy()
    common = {"batch_size": 13, "shuffle": False, **how, **QUIET}
    seconds = min(train(network(3, 34, 2), X, Y, epochs=3, **common).seconds)
    with Interrupted(3.5 * seconds):
        train(model, X, Y, optimizer=optimizer, epochs=10**6, **common)
    assert np.isfinite(model.parameters).all()
    assert not np.array_equal(model.parameters, start)
    again, optimizer = network(3, 34, 2), SGD(0.01, 0.9)
    for k in range(10_000):
        part = slice(13 * (k % 100), 13 * (k % 100 + 1))
        train(again, X[part], Y[part], optimizer=optimizer, epochs=1, **common)
        if np.array_equal(again.parameters, model.parameters):
            break
    else:
        pytest.fail("the parameters are not those of a step boundary")


@pytest.mark.parametrize("call", ["train", "forward", "backward"])
def test_interrupted_in_the_middle_of_a_long_pass(in_the_midst, call):
    """The passes of one update, or a pass alone, are one call of compiled code."""
    X, layer = np.ones((64, 40, 8)), LSTM(8, 128, dtype="float64", seed=0)
    *_, tape = layer.forward(X, return_tape=True)
    model = network(8, 128, 2)
    start = model.parameters.copy()

    def train_once():
        model.parameters[...] = start
        train(model, X, np.ones((64, 2)), batch_size=64, epochs=1, **QUIET)

    calls = {"train": train_once, "forward": lambda: layer.forward(X), "backward": lambda: layer.backward(tape)}
    with pytest.raises(KeyboardInterrupt):
        in_the_midst(calls[call], ctrl_c)
    if call == "train":
        assert np.array_equal(model.parameters, start)


def test_train_lstm_can_be_interrupted(capsys):
    X, Y = data(1000, 10, 3, 1)
    with Interrupted(0.2):
        train_lstm(X, Y, 3, 5, 1, epochs=10**6)


# --- bad input: the exception names the argument, and nothing has changed ---

MODEL, USED, OTHERS = network(2, 3, 4), Adam(), Adam()
X, Y = np.ones((5, 3, 2)), np.ones((5, 4))
train(MODEL, X, Y, optimizer=USED, epochs=1, **QUIET)
train(network(2, 5, 4), X, Y, optimizer=OTHERS, epochs=1, **QUIET)
CLASSES = np.arange(5) % 4
BY_READOUT = {  # views of MODEL
    readout: LSTMNetwork._from_parameters(MODEL._parameters, MODEL.architecture.with_readout(readout))
    for readout in HEADS
}


def with_value(array, index, value):
    array = array.astype(float)
    array[index] = value
    return array


ENTROPY = {"loss": "cross_entropy"}
STEPS = {"readout": "steps"}
BAD_TRAINING = {
    "X and Y": ((X, Y[:4]), {}, ValueError, r"Y has shape \(4, 4\); expected \(5, 4\)"),
    "X and Y, steps": ((X, np.ones((4, 3, 4))), STEPS, ValueError, r"Y has shape \(4, 3, 4\)"),
    "last for steps": ((X, Y), STEPS, ValueError, r"Y has shape \(5, 4\); expected \(5, 3, 4\)"),
    "steps for last": ((X, np.ones((5, 3, 4))), {}, ValueError, r"Y has shape \(5, 3, 4\)"),
    "1-D Y": ((X, np.ones(5)), {}, ValueError, r"Y has shape \(5,\); expected \(5, 4\)"),
    "width of X": ((X[..., :1], Y), {}, ValueError, r"X has shape .*; expected \(N, T, 2\)"),
    "rank of X": ((X[0], Y), {}, ValueError, r"X has shape \(3, 2\); expected \(N, T, 2\)"),
    "no data": (([], []), {}, ValueError, r"X has shape \(0,\)"),
    "no steps": ((X[:, :0], Y), {}, ValueError, r"X has shape \(5, 0, 2\)"),
    "None": ((None, Y), {}, TypeError, "X has dtype object"),
    "Y None": ((X, None), {}, TypeError, "Y has dtype object"),
    "Y None, Python": ((X, None), {"loss": python_mse}, TypeError, "Y is None"),
    "no gradient, Python": (
        ([X[0], X[0, :2]], [0, 0]),
        {"loss": lambda outputs, targets: (0.0, None), **STEPS},
        TypeError,
        "the loss's gradient is None; expected a sequence of length 2, one entry for each sequence of X$",
    ),
    "few Y, Python": ((X, Y[:4]), {"loss": python_mse}, ValueError, "Y has length 4; expected 5"),
    "NaN in X": ((with_value(X, (4, 1, 0), np.nan), Y), {}, ValueError, r"X\[4, 1, 0\] is nan"),
    "Inf in X": ((with_value(X, (0, 2, 1), np.inf), Y), {}, ValueError, r"X\[0, 2, 1\] is inf"),
    "NaN in Y": ((X, with_value(Y, (3, 2), np.nan)), {}, ValueError, r"Y\[3, 2\] is nan"),
    "Inf in Y": ((X, with_value(Y, (3, 2), -np.inf)), {}, ValueError, r"Y\[3, 2\] is -inf"),
    "complex X": ((X + 0j, Y), {}, TypeError, "X has dtype complex128; expected real numbers"),
    "strings": ((X, Y.astype(str)), {}, TypeError, "Y has dtype <U32; expected real numbers"),
    "ragged Y": (
        ([X[0], X[0, :2]], [np.ones((3, 4)), np.ones((3, 4))]),
        {"batch_size": 1, **STEPS},
        ValueError,
        r"Y\[1\] has shape \(3, 4\); expected \(2, 4\)",
    ),
    "few ragged Y": (
        ([X[0], X[0, :2]], [np.ones((3, 4))]),
        {"batch_size": 1, **STEPS},
        ValueError,
        "Y has length 1; expected 2",
    ),
    "zero length": ((X, Y), {"lengths": [3, 0, 1, 1, 1]}, ValueError, r"lengths\[1\] is 0; expected from 1 to 3"),
    "negative length": ((X, Y), {"lengths": [3, 1, 1, 1, -1]}, ValueError, r"lengths\[4\] is -1"),
    "long length": ((X, Y), {"lengths": [3, 1, 1, 4, 1]}, ValueError, r"lengths\[3\] is 4; expected from 1 to 3"),
    "float lengths": ((X, Y), {"lengths": np.ones(5)}, TypeError, "lengths has dtype float64; expected integers"),
    "few lengths": ((X, Y), {"lengths": [1, 1]}, ValueError, r"lengths has shape \(2,\); expected \(5,\)"),
    "lengths of a list": ((list(X), Y), {"lengths": [1] * 5}, ValueError, "lengths is given with a list"),
    "int mask": ((X, Y), {"mask": np.ones((5, 3), int)}, TypeError, "mask has dtype int64; expected bool"),
    "mask of another shape": ((X, Y), {"mask": np.ones((5, 2), bool)}, ValueError, "mask has shape"),
    "empty mask": (
        (X, Y),
        {"mask": np.arange(5)[:, None] + [0, 0, 0] > 0},
        ValueError,
        r"mask\[0\] is False everywhere",
    ),
    "lengths and mask": (
        (X, Y),
        {"mask": np.ones((5, 3), bool), "lengths": [1] * 5},
        ValueError,
        "lengths and mask are both given",
    ),
    "zero tbptt": ((X, Y), {"tbptt": 0}, ValueError, "tbptt is 0; expected at least 1"),
    "float tbptt": ((X, Y), {"tbptt": 2.0}, TypeError, "tbptt is 2.0; expected an integer"),
    "tbptt of means": (
        (X, Y),
        {"tbptt": 2, "readout": "mean"},
        ValueError,
        "tbptt is 2 and the network has readout='mean'",
    ),
    "zero checkpoint": ((X, Y), {"recompute_every": 0}, ValueError, "recompute_every is 0"),
    "budget": ((X, Y), {"memory_budget": "much"}, ValueError, "memory_budget is 'much'; expected bytes"),
    "zero budget": ((X, Y), {"memory_budget": "0MB"}, ValueError, "memory_budget is 0; expected at least 1"),
    "small budget": ((X, Y), {"memory_budget": 10}, ValueError, "memory_budget is 10 bytes; .* need at least"),
    "budget and checkpoints": (
        (X, Y),
        {"memory_budget": 10, "recompute_every": 1},
        ValueError,
        "recompute_every and memory_budget are both given",
    ),
    "label too large": ((X, CLASSES + 1), ENTROPY, ValueError, r"Y\[3\] is 4; expected a class"),
    "label negative": ((X, CLASSES - 1), ENTROPY, ValueError, r"Y\[0\] is -1; expected a class"),
    "float labels": ((X, CLASSES / 1), ENTROPY, TypeError, "Y has dtype float64; expected integer"),
    "labels of steps": ((X, CLASSES), {**ENTROPY, **STEPS}, ValueError, r"Y has shape \(5,\)"),
    "number of labels": ((X, CLASSES[:4]), ENTROPY, ValueError, r"Y has shape \(4,\)"),
    "classes without a loss": (
        (X, CLASSES),
        {},
        ValueError,
        r"Y has shape \(5,\); expected \(5, 4\), or loss='cross_entropy' for integer classes",
    ),
    "classes of steps without a loss": (
        (X, np.zeros((5, 3), np.uint8)),
        STEPS,
        ValueError,
        r"Y has shape \(5, 3\); expected \(5, 3, 4\), or loss='cross_entropy'",
    ),
    "shuffle": ((X, Y), {"shuffle": "no"}, TypeError, "shuffle is 'no'; expected True or False"),
    "shuffle 1": ((X, Y), {"shuffle": 1}, TypeError, "shuffle is 1; expected True or False"),
    "shuffle array": ((X, Y), {"shuffle": np.ones(3)}, TypeError, "shuffle is array"),
    "verbose": ((X, Y), {"verbose": 2}, TypeError, "verbose is 2; expected True or False"),
    "verbose None": ((X, Y), {"verbose": None}, TypeError, "verbose is None; expected True or False"),
    "memoryview of callbacks": (
        (X, Y),
        {"callbacks": memoryview(np.ones((2, 2)))},
        TypeError,
        "callbacks is <memory",
    ),
    "zero epochs": ((X, Y), {"epochs": 0}, ValueError, "epochs is 0; expected at least 1"),
    "float epochs": ((X, Y), {"epochs": 2.0}, TypeError, "epochs is 2.0; expected an integer"),
    "negative batch": ((X, Y), {"batch_size": -1}, ValueError, "batch_size is -1"),
    "zero batch": ((X, Y), {"batch_size": 0}, ValueError, "batch_size is 0; expected at least 1"),
    "batch None": ((X, Y), {"batch_size": None}, TypeError, "batch_size is None"),
    "float batch": ((X, Y), {"batch_size": 1.5}, TypeError, "batch_size is 1.5"),
    "seed bool": ((X, Y), {"seed": True}, TypeError, "seed is True; expected an integer or None"),
    "no gradient left": ((X, Y), {"clip_norm": 0}, ValueError, "clip_norm is 0.0; expected a finite number above 0"),
    "negative clip": ((X, Y), {"clip_norm": -1}, ValueError, "clip_norm is -1"),
    "clip NaN": ((X, Y), {"clip_norm": np.nan}, ValueError, "clip_norm is nan"),
    "clip string": ((X, Y), {"clip_norm": "1"}, TypeError, "clip_norm is '1'"),
    "loss": ((X, Y), {"loss": "unknown"}, ValueError, "loss is 'unknown'; expected one of 'mse'"),
    "loss None": ((X, Y), {"loss": None}, ValueError, "loss is None; expected one of 'mse'"),
    "loss class": ((X, Y), {"loss": MSE}, ValueError, "loss is <class"),
    "optimizer": ((X, Y), {"optimizer": "unknown"}, ValueError, "optimizer is 'unknown'; expected one"),
    "optimizer None": ((X, Y), {"optimizer": None}, ValueError, "optimizer is None; expected one"),
    "optimizer class": ((X, Y), {"optimizer": Adam}, ValueError, "optimizer is <class"),
    "target": (
        (X, Y),
        {"target": "last"},
        TypeError,
        "target is not an argument; readout is an argument of LSTMNetwork",
    ),
    "another's optimizer": ((X, Y), {"optimizer": OTHERS}, ValueError, "optimizer holds the state"),
    "seed": ((X, Y), {"seed": -1}, ValueError, "seed is -1"),
    "string seed": ((X, Y), {"seed": "a"}, TypeError, "seed is 'a'"),
    "callbacks": ((X, Y), {"callbacks": 5}, TypeError, "callbacks is 5"),
    "callback": ((X, Y), {"callbacks": [print, 5]}, TypeError, r"callbacks\[1\] is 5"),
    "validation": ((X, Y), {"validation_data": X}, TypeError, "validation_data is not a pair"),
    "validation view": ((X, Y), {"validation_data": memoryview(Y)}, TypeError, "validation_data is not a pair"),
    "validation 5": ((X, Y), {"validation_data": 5}, TypeError, "validation_data is not a pair"),
    "validation keys": ((X, Y), {"validation_data": {"X": X}}, ValueError, "validation_data has the keys"),
    "validation key": (
        (X, Y),
        {"validation_data": {"X": X, "Y": Y, "length": [1] * 5}},
        ValueError,
        r"validation_data has the keys \['X', 'Y', 'length'\]; expected 'X', 'Y', and maybe",
    ),
    "validation lengths": (
        (X, Y),
        {"validation_data": {"X": X, "Y": Y, "lengths": [1, 1]}},
        ValueError,
        r"validation_data: lengths has shape \(2,\)",
    ),
    "validation X": (
        (X, Y),
        {"validation_data": (X[..., :1], Y)},
        ValueError,
        "validation_data: X has shape",
    ),
    "validation Y": (
        (X, Y),
        {"validation_data": (X, with_value(Y, (0, 1), np.nan))},
        ValueError,
        r"validation_data: Y\[0, 1\] is nan",
    ),
}


def snapshot():
    """Return the bits of all that a failed call must leave alone."""
    arrays = [MODEL.parameters, X, Y, np.random.get_state()[1]]
    for optimizer in (USED, OTHERS):
        arrays += [optimizer.moments, optimizer.powers]
    return [array.tobytes() for array in arrays], repr(USED), repr(OTHERS)


@pytest.mark.parametrize("name", BAD_TRAINING)
def test_bad_arguments_of_train_are_named(name, capsys):
    arguments, how, error, message = BAD_TRAINING[name]
    how, before = {"optimizer": USED, **how}, snapshot()
    model = BY_READOUT[how.pop("readout", "last")]
    with pytest.raises(error, match=f"(?s)^{message}"):
        train(model, *arguments, **how)
    assert snapshot() == before
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("options", [{"bidirectional": "concat"}, {"go_backwards": True}])
def test_chunks_are_of_networks_that_run_forwards(options):
    model = LSTMNetwork(2, 3, 4, seed=0, **options)
    before = model.parameters.copy()
    with pytest.raises(ValueError, match=f"tbptt is 2 and the network has {next(iter(options))}"):
        train(model, X, Y, tbptt=2, **QUIET)
    assert np.array_equal(model.parameters, before)


@pytest.mark.parametrize("verbose", [False, True])
def test_two_classes_need_two_outputs(verbose, capsys):
    with pytest.raises(
        ValueError, match=r"^Y\[1\] is 1 and the network has one output; .*: output_dim=2 for two classes"
    ):
        train(network(2, 3, 1), X, np.arange(5) % 2, loss="cross_entropy", verbose=verbose)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("readout", HEADS)
def test_a_single_output_needs_no_axis(readout):
    """Y of shape (N,), or (N, T) or a list of (T_n,) for every step; for validation too."""
    X, Y, lengths = ragged(readout)
    Y, how = Y[..., :1], {"epochs": 2, "seed": 0, "optimizer": SGD(0.1), **QUIET}
    if readout == "steps":
        pairs = [(X, Y, lengths), (X, Y[..., 0], lengths), (unpadded(X), [y[:, 0] for y in unpadded(Y)], None)]
    else:
        pairs = [(X, Y, lengths), (X, Y[:, 0], lengths), (X, Y[:, 0].tolist(), lengths)]
    results = []
    for inputs, targets, lengths in pairs:
        model = network(3, 5, 1, readout=readout)
        validation = {"X": inputs, "Y": targets, **({} if lengths is None else {"lengths": lengths})}
        history = train(model, inputs, targets, lengths=lengths, validation_data=validation, **how)
        results.append((model.parameters.tobytes(), history.loss, history.validation_loss))
    assert results[0] == results[1] == results[2]


def test_the_articles_targets_may_be_a_vector_of_single_numbers(capsys):
    X, Y = data(4, 3, 2, 1)
    for targets in (Y, Y[:, 0], memoryview(Y)):
        np.random.seed(0)
        train_lstm(X, targets, 2, 3, 1, epochs=2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == lines[2:4] == lines[4:]


def test_training_takes_a_network_only():
    with pytest.raises(TypeError, match=r"(?s)^network is .*; expected an LSTMNetwork"):
        train(MODEL.lstm_cell, X, Y)


def test_a_new_optimizer_stays_new_after_an_error():
    optimizer = Adam()
    with pytest.raises(ValueError, match=r"^Y"):
        train(MODEL, X, Y[:4], optimizer=optimizer)
    assert optimizer.moments is None
    assert optimizer.powers.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SGD(-0.1), ValueError, "learning_rate is -0.1; expected a finite number of at"),
        (lambda: SGD(np.nan), ValueError, "learning_rate is nan"),
        (lambda: SGD(np.inf), ValueError, "learning_rate is inf"),
        (lambda: SGD("0.1"), TypeError, "learning_rate is '0.1'; expected a number"),
        (lambda: SGD(None), TypeError, "learning_rate is None"),
        (lambda: SGD(0.1j), TypeError, "learning_rate is 0.1j"),
        (lambda: SGD([0.1, 0.2]), TypeError, "learning_rate is"),
        (lambda: SGD(0.1, 1), ValueError, "momentum is 1.0; expected .* below 1"),
        (lambda: SGD(0.1, -0.5), ValueError, "momentum is -0.5"),
        (lambda: SGD(0.1, "0.5"), TypeError, "momentum is '0.5'; expected a number"),
        (lambda: Adam(-1), ValueError, "learning_rate is -1"),
        (lambda: Adam(beta1=1), ValueError, "beta1 is 1.0; expected .* below 1"),
        (lambda: Adam(beta2=-0.1), ValueError, "beta2 is -0.1"),
        (lambda: Adam(epsilon=-1e-8), ValueError, "epsilon is -1e-08"),
        (lambda: Adam(epsilon=0.0), ValueError, "epsilon is 0.0; expected a finite number above 0"),
    ],
)
def test_bad_settings_of_optimizers_are_named(make, error, message):
    with pytest.raises(error, match=f"^{message}"):
        make()


BAD_PROGRAMS = {
    "X and Y": ((X, Y[:4], 2, 3, 4), ValueError, r"Y has shape \(4, 4\); expected \(5, 4\)"),
    "width of X": ((X, Y, 3, 3, 4), ValueError, r"X has shape .*; expected \(N, T, 3\)"),
    "width of Y": ((X, Y, 2, 3, 3), ValueError, r"Y has shape \(5, 4\); expected \(5, 3\)"),
    "rows for columns": ((X, Y[:, None], 2, 3, 4), ValueError, "Y"),
    "ragged Y": ((X[:2], [np.ones(4), np.ones(3)], 2, 3, 4), ValueError, "Y"),
    "ragged X": (([X[0], X[0, :, :1]], Y[:2], 2, 3, 4), ValueError, r"X\[1\] has shape \(3, 1\)"),
    "no data": (([], [], 2, 3, 4), ValueError, r"X has shape \(0,\)"),
    "X a number": ((5, Y, 2, 3, 4), ValueError, r"X has shape \(\)"),
    "Y None": ((X, None, 2, 3, 4), TypeError, "Y "),
    "NaN in X": ((with_value(X, (4, 1, 0), np.nan), Y, 2, 3, 4), ValueError, r"X\[4, 1, 0\] is nan"),
    "NaN in Y": ((X, with_value(Y, (3, 2), np.nan), 2, 3, 4), ValueError, r"Y\[3, 2\] is nan"),
    "Inf in Y": ((X, with_value(Y, (3, 2), np.inf), 2, 3, 4), ValueError, r"Y\[3, 2\] is inf"),
    "complex Y": ((X, Y + 0j, 2, 3, 4), TypeError, "Y has dtype complex128"),
    "object X": ((X.astype(object), Y, 2, 3, 4), TypeError, "X has dtype object"),
    "negative size": ((X, Y, -2, 3, 4), ValueError, "input_dim is -2; expected at least 1"),
    "zero size": ((X, Y, 2, 0, 4), ValueError, "hidden_dim is 0; expected at least 1"),
    "float size": ((X, Y, 2, 3, 4.0), TypeError, "output_dim is 4.0; expected an integer"),
    "huge size": ((X, Y, 2, 2**40, 4), ValueError, "W for .*hidden_dim=1099511627776, .* would have"),
    "learning rate": ((X, Y, 2, 3, 4, -1), ValueError, "learning_rate is -1"),
    "learning rate NaN": ((X, Y, 2, 3, 4, np.nan), ValueError, "learning_rate is nan"),
    "learning rate string": ((X, Y, 2, 3, 4, "0.1"), TypeError, "learning_rate is '0.1'"),
    "epochs": ((X, Y, 2, 3, 4, 0.1, 0), ValueError, "epochs is 0; expected at least 1"),
    "float epochs": ((X, Y, 2, 3, 4, 0.1, 1.5), TypeError, "epochs is 1.5; expected an integer"),
    "learning rate True": ((X, Y, 2, 3, 4, True), TypeError, "learning_rate is True"),
    "Y a string": ((X, "lasts", 2, 3, 4), TypeError, "Y is 'lasts'; expected a sequence of length 5"),
    "Y a set": ((X, {1, 2, 3, 4, 5}, 2, 3, 4), TypeError, "Y is {1, 2, 3, 4, 5}; expected a sequence of length 5"),
    "memoryview of Y": ((X, memoryview(Y[:, :3].copy()), 2, 3, 4), ValueError, r"Y has shape \(5, 3\)"),
    "classes": ((X, CLASSES, 2, 3, 4), ValueError, r"Y has shape \(5,\); expected \(5, 4\)"),
}


@pytest.mark.parametrize("name", BAD_PROGRAMS)
def test_bad_arguments_of_train_lstm_are_named(name, capsys):
    arguments, error, message = BAD_PROGRAMS[name]
    before = snapshot()
    with pytest.raises(error, match=f"(?s)^{message}"):
        train_lstm(*arguments)
    assert snapshot() == before
    assert capsys.readouterr() == ("", "")


# --- what a review found ---


def test_verify_in_another_thread_disturbs_nothing(capsys):
    """Arrays are packed for the set they were made under, whatever set is chosen meanwhile."""
    alone, beside = (LSTMNetwork(3, 13, 2, seed=0) for _ in range(2))
    X, Y = np.random.default_rng(0).standard_normal((40, 7, 3)), np.zeros((40, 2))
    how = {"epochs": 60, "batch_size": 7, "seed": 0, "verbose": False}
    train(alone, X, Y, **how)
    stop = threading.Event()

    def switch():
        while not stop.is_set():
            for isa in _kernels.available_isas():
                _kernels.use_isa(isa)

    chosen = _kernels.isa()
    thread = threading.Thread(target=switch)
    thread.start()
    try:
        for _ in range(20):
            beside.predict(X)
            beside.gradient(X, Y)
    finally:
        stop.set()
        thread.join()
        _kernels.use_isa(chosen)
    state = beside.initial_state(2)
    outputs = []
    for isa in _kernels.available_isas():
        _kernels.use_isa(isa)
        outputs.append(beside.step(X[:2, 0], state)[0])
    _kernels.use_isa(chosen)
    assert np.isfinite(outputs).all()
    train(beside, X, Y, **how)
    assert np.array_equal(alone.parameters, beside.parameters)


@pytest.mark.parametrize("isa_of_forward", _kernels.available_isas())
def test_a_tape_keeps_its_set(isa_of_forward):
    layer = LSTM(3, 13, seed=0)
    X = np.random.default_rng(0).standard_normal((5, 4, 3))
    chosen = _kernels.isa()
    try:
        _kernels.use_isa(isa_of_forward)
        *_, tape = layer.forward(X, return_tape=True)
        expected = layer.backward(tape, dh_T=np.ones((5, 13)))
        for isa in _kernels.available_isas():
            _kernels.use_isa(isa)
            for ours, theirs in zip(layer.backward(tape, dh_T=np.ones((5, 13))), expected, strict=True):
                assert np.array_equal(ours, theirs)
    finally:
        _kernels.use_isa(chosen)


class Exploding:
    """Writes to the parameters, then fails in one way or another."""

    def __init__(self, failure):
        self.failure = failure

    def update(self, parameters, gradient):
        parameters += 1
        if self.failure is np.nan:
            parameters[3] = np.nan
        elif self.failure is not None:
            raise self.failure


@pytest.mark.parametrize("loss", ["mse", python_mse])
@pytest.mark.parametrize("make", [lambda: SGD(1e37), lambda: SGD(1e37, 0.9), lambda: Adam()])
def test_an_update_that_overflows_is_not_made(isa, make, loss):
    """The second of three, with targets so large; parameters and optimizer are as the first left them."""
    X, Y = data(9, 4, 3, 1)
    Y[3:6] = 3e16
    how = {"loss": loss, "shuffle": False, "batch_size": 3, **QUIET}
    model, expected = (network(3, 5, 1, dtype="float32") for _ in range(2))
    optimizer, twin = make(), make()
    if optimizer.learning_rate < 1:  # the square of the gradient overflows
        Y[3:6] = 1e24
    else:
        Y[:3] = expected.predict(X[:3])  # no gradient yet
    train(expected, X[:3], Y[:3], optimizer=twin, epochs=1, **how)
    with pytest.raises(NonFiniteError, match=r"not finite in epoch 1 of 2, batch 2 of 3; training stopped before") as e:
        train(model, X, Y, optimizer=optimizer, epochs=2, **how)
    assert e.value.step == 1
    assert np.array_equal(model.parameters, expected.parameters)
    assert np.array_equal(optimizer.moments, twin.moments)
    assert np.array_equal(optimizer._powers, twin._powers)


@pytest.mark.parametrize("failure", [np.nan, ValueError(), KeyboardInterrupt()])
def test_an_update_in_python_is_whole_or_not_made(failure):
    X, Y = data(9, 4, 3, 1)
    model = network(3, 5, 1)
    optimizer, seen = Exploding(None), []

    def callback(model, history):
        seen.append(model.parameters.copy())
        optimizer.failure = failure

    error = NonFiniteError if failure is np.nan else type(failure)
    message = "not finite in epoch 2 of 3, batch 1 of 3" if failure is np.nan else None
    with pytest.raises(error, match=message):
        train(model, X, Y, optimizer=optimizer, batch_size=3, epochs=3, callbacks=[callback], **QUIET)
    assert np.array_equal(model.parameters, seen[0])


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize(("name", "index"), [("W_f_l1", (4, 2)), ("b_o", (1, 0)), ("W_y", (0, 3))])
def test_weights_that_are_not_finite_before_training_are_named(name, index, value):
    model = LSTMNetwork(3, 5, 1, num_layers=2, seed=0)
    model.named_parameters()[name][index] = value
    before = model.parameters.copy()
    with pytest.raises(ValueError, match=rf"^network has {value} in {name}\[{index[0]}, {index[1]}\]; expected finite"):
        train(model, *data(4, 3, 3, 1), **QUIET)
    assert np.array_equal(model.parameters, before, equal_nan=True)


@pytest.mark.parametrize("optimizer", [SGD(1e300), Adam(epsilon=1e-40)])
def test_settings_that_the_dtype_cannot_hold_are_refused(optimizer):
    network = LSTMNetwork(2, 3, 1, seed=0)
    with pytest.raises(ValueError, match=r"^(learning_rate|epsilon) is 1e.*float32"):
        train(network, np.ones((4, 3, 2)), np.ones((4, 1)), optimizer=optimizer, verbose=False)


def test_a_subclass_overrides():
    calls = []

    class Mine(Adam):
        def update(self, parameters, gradient):
            calls.append(1)
            super().update(parameters, gradient)

    ours, plain = (LSTMNetwork(2, 3, 1, seed=0) for _ in range(2))
    X, Y = np.random.default_rng(0).standard_normal((6, 3, 2)), np.ones((6, 1))
    train(ours, X, Y, optimizer=Mine(), epochs=2, batch_size=2, seed=0, verbose=False)
    train(plain, X, Y, optimizer=Adam(), epochs=2, batch_size=2, seed=0, verbose=False)
    assert len(calls) == 6
    assert np.array_equal(ours.parameters, plain.parameters)


def test_masked_data_are_refused():
    X = np.ma.masked_equal(np.array([[[1.0, -9999.0]]]), -9999.0)
    with pytest.raises(ValueError, match="X has masked"):
        LSTMNetwork(2, 3, 1, seed=0).predict(X)


@pytest.mark.parametrize("result", [1.0, (1.0,), None, ("a", "b")])
def test_a_loss_that_returns_something_else(result):
    with pytest.raises(TypeError, match="loss returned"):
        LSTMNetwork(2, 3, 1, seed=0).gradient(np.ones((1, 2, 2)), np.ones((1, 1)), loss=lambda outputs, targets: result)


def test_an_optimizer_that_returns_parameters_is_told():
    class Functional:
        def update(self, parameters, gradient):
            return parameters - gradient

    with pytest.raises(TypeError, match="in place"):
        train(LSTMNetwork(2, 3, 1, seed=0), np.ones((1, 2, 2)), np.ones((1, 1)), optimizer=Functional(), verbose=False)


def test_optimizer_moments_of_another_shape_are_refused():
    network, optimizer = LSTMNetwork(2, 3, 1, seed=0), Adam()
    optimizer.moments = np.zeros((2, network.parameters.size + 1), np.float32)
    before = network.parameters.copy()
    with pytest.raises(ValueError, match="optimizer holds the state of"):
        train(network, np.ones((1, 2, 2)), np.ones((1, 1)), optimizer=optimizer, verbose=False)
    assert np.array_equal(network.parameters, before)


def test_cross_entropy_of_nan_is_not_finite():
    network = LSTMNetwork(2, 3, 4, seed=0)
    network.b_y[2] = np.nan
    with pytest.raises(NonFiniteError, match="loss is nan"):
        network.gradient(np.ones((3, 2, 2)), np.zeros(3, int), loss="cross_entropy")


@pytest.mark.parametrize("sizes", [(64, 2, 3, 10000, 5), (3000, 40, 256, 3, 1)])
def test_interrupt_arrives_in_every_part_of_a_long_call(sizes, in_the_midst):
    """A wide head, and a batch so large that one step of it takes long."""
    N, I, H, O, T = sizes
    network, X = LSTMNetwork(I, H, O, readout="steps", seed=0), np.ones((N, T, I), np.float32)
    labels = np.zeros((N, T), int)
    with pytest.raises(KeyboardInterrupt):
        in_the_midst(lambda: network.gradient(X, labels, loss="cross_entropy"), ctrl_c)


def test_states_and_tapes_are_not_pickled():
    with pytest.raises(TypeError, match="packed for this process"):
        pickle.dumps(LSTMNetwork(2, 3, 1, seed=0).initial_state())
