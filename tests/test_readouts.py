"""The network knows its readout: every entry point uses it, and no copy, file or twin of the network loses it."""

import copy
import pickle

import numpy as np
import pytest
from helpers import assert_close, python_mse

import lstm_ext
from lstm_ext import LSTMNetwork, from_reference, reference, to_reference, train
from lstm_ext._heads import POOLED, READOUTS

LENGTHS = np.array([6, 1, 4, 2, 5])
rng = np.random.default_rng(0)
X, OF_STEPS = rng.standard_normal((5, 6, 3)), rng.standard_normal((5, 6, 2))
# how a network with a readout and a head may be read otherwise
OTHERS = {"last": ("steps",), "steps": ("last",), "mean": (), "max": ()}


def made(readout, output_dim=2, **options):
    return LSTMNetwork(3, 7, output_dim, readout=readout, dtype="float64", seed=1, **options)


def targets(readout):
    return OF_STEPS if readout == "steps" else OF_STEPS[:, 0]


def test_the_oracle_has_the_same_readouts():
    assert reference.READOUTS == tuple(READOUTS) == tuple(OTHERS)
    assert tuple(reference.POOLS) == POOLED == tuple(readout for readout, others in OTHERS.items() if not others)


@pytest.mark.parametrize("how", [{}, {"lengths": LENGTHS}], ids=["whole", "lengths"])
@pytest.mark.parametrize("output_dim", [2, None])
@pytest.mark.parametrize("readout", OTHERS)
def test_every_call_uses_the_readout_of_the_network(readout, output_dim, how):
    ours = made(readout, output_dim)
    theirs, Y = to_reference(ours), rng.standard_normal((5, 6, output_dim or 7))
    Y = Y if readout == "steps" else Y[:, 0]
    assert_close(ours.predict(X, **how), theirs.predict(X, **how))
    value, gradient = theirs.gradient(X, Y, **how)
    for loss in ("mse", python_mse):
        for found, expected in zip(ours.gradient(X, Y, loss=loss, **how), (value, gradient), strict=True):
            assert_close(found, expected)
    start, validation = ours.parameters.copy(), {"X": X, "Y": Y, **how}
    options = {"optimizer": lstm_ext.SGD(0.1), "batch_size": 5, "epochs": 1, "shuffle": False, "verbose": False}
    history = train(ours, X, Y, validation_data=validation, **options, **how)
    assert_close(ours.parameters, start - 0.1 * gradient)
    assert_close(history.loss, [value])
    theirs.parameters = ours.parameters
    assert_close(history.validation_loss, [theirs.gradient(X, Y, **how)[0]])


@pytest.mark.parametrize("readout", OTHERS)
def test_a_trained_network_predicts_as_it_was_trained(readout, tmp_path):
    network = made(readout)
    train(network, X, targets(readout), epochs=2, verbose=False, seed=0)
    expected = to_reference(network).predict(X)
    assert_close(network.predict(X), expected)
    network.save(tmp_path / "model")
    twins = {
        "file": lstm_ext.load(tmp_path / "model"),
        "pickle": pickle.loads(pickle.dumps(network)),
        "copy": copy.copy(network),
        "deepcopy": copy.deepcopy(network),
        "reference": from_reference(to_reference(network)),
    }
    for name, twin in twins.items():
        assert twin.readout == readout, name
        assert twin.architecture == network.architecture, name
        assert np.array_equal(twin.predict(X), network.predict(X)), name
    assert eval(repr(network)).readout == network.architecture.readout == readout
    assert (f"readout={readout!r}" in network.summary()) == (readout != "last")
    with pytest.raises(AttributeError):
        network.readout = "last"


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": "concat"}], ids=["plain", "two ways"])
@pytest.mark.parametrize("asked", OTHERS)
@pytest.mark.parametrize("readout", OTHERS)
def test_another_readout_is_given_where_the_head_takes_it(readout, asked, options):
    """A network without a head has outputs of every kind."""
    for output_dim in (2, None):
        network = made(readout, output_dim, **options)
        if asked in (readout, *OTHERS[readout]) or output_dim is None:
            other = made(asked, output_dim, **options)
            assert np.array_equal(network.predict(X, readout=asked), other.predict(X))
            listed = [x[:length] for x, length in zip(X, LENGTHS, strict=True)]
            pairs = zip(network.predict(listed, readout=asked), other.predict(listed), strict=True)
            assert all(np.array_equal(ours, theirs) for ours, theirs in pairs)
            assert_close(network.predict(X, readout=asked), to_reference(network).predict(X, readout=asked))
        else:
            takes = repr(readout) if readout in POOLED else "'last' or 'steps'"
            with pytest.raises(ValueError, match=f"^readout is '{asked}'; expected {takes}: .*'{readout}'"):
                network.predict(X, readout=asked)


@pytest.mark.parametrize("output_dim", [2, None])
@pytest.mark.parametrize("readout", OTHERS)
def test_forward_and_step_are_of_heads_for_single_steps(readout, output_dim):
    network, plain = made(readout, output_dim), made("last", output_dim)
    theirs = plain.initial_state(5)
    if readout in POOLED and output_dim is not None:
        for call in (
            lambda: network.forward(X[0]),
            lambda: network.initial_state(5),
            lambda: network.step(X[:, 0], theirs),
        ):
            with pytest.raises(ValueError, match=rf"readout='{readout}'.* has a head for pooled outputs; expected"):
                call()
        assert theirs.steps == 0
        return
    assert_close(np.hstack(network.forward(X[0])), np.hstack(to_reference(plain).forward(X[0])))
    ours = network.initial_state(5)
    for t in range(6):  # a state does not know the readout
        network.step(X[:, t], theirs)
        y, _ = plain.step(X[:, t], ours)
    assert np.array_equal(y, plain.predict(X))
    assert np.array_equal(ours.h, theirs.h)


def test_target_is_not_an_argument_any_more():
    network, Y = made("last"), targets("last")
    calls = {
        "LSTMNetwork": lambda: LSTMNetwork(3, 7, 2, target="mean"),
        "train": lambda: train(network, X, Y, target="mean", verbose=False),
        "predict": lambda: network.predict(X, target="mean"),
        "gradient": lambda: network.gradient(X, Y, target="mean"),
    }
    before = network.parameters.copy()
    for name, call in calls.items():
        with pytest.raises(TypeError, match=r"^target is not an argument; .*readout"):
            call()
        assert np.array_equal(network.parameters, before), name


def test_a_readout_is_kept_as_a_plain_string():
    network = LSTMNetwork(2, 3, 1, readout=np.str_("steps"))
    assert type(network.readout) is str
    assert "readout='steps'" in repr(network)
