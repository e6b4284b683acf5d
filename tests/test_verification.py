"""`verify`: what it runs, the errors it raises, and that it does not affect other threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lstm_ext import LSTM, LSTMNetwork, VerificationError, _inference, _kernels, layers, sigmoid, train
from lstm_ext import verification as module
from lstm_ext.training import driver

ISAS = _kernels.available_isas()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Verify one shape and one option."""
    monkeypatch.setattr(module, "_SHAPES", ((20, 3, 2, 5, 3),))
    monkeypatch.setattr(module, "_option_sets", lambda: ({"peephole": True},))


def watch(monkeypatch, look):
    """Call ``look()`` in the midst of every instruction set and dtype of `verify`."""
    pairs = module._pairs

    def watched(*arguments):
        for n, pair in enumerate(pairs(*arguments)):
            if n == 5:
                look()
            yield pair

    monkeypatch.setattr(module, "_pairs", watched)


def everything():
    """Return the bits of every kind of call."""
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((20, 7, 3)), rng.standard_normal((20, 2))
    network, layer = LSTMNetwork(3, 13, 2, seed=0), LSTM(3, 13, seed=0, peephole=True)
    loss, gradient = network.gradient(X, Y)
    y, state = network.step(X[:, 0], network.initial_state(20))
    H, _, tape = layer.forward(X, return_tape=True)
    results = [sigmoid(X), network.predict(X), np.array(loss), gradient, y, state.h, H, *layer.backward(tape, H)]
    train(network, X, Y, epochs=2, seed=0, verbose=False)
    return [array.tobytes() for array in (*results, network.parameters)]


def test_calls_in_other_threads_keep_their_bits(monkeypatch, capsys):
    expected, chosen, seen = everything(), _kernels.isa(), []
    with ThreadPoolExecutor(1) as other:
        watch(monkeypatch, lambda: seen.append((other.submit(everything).result(), everything(), _kernels.isa())))
        module.verify()
    assert len(seen) == 2 * len(ISAS)
    for there, here, isa in seen:
        assert there == here == expected
        assert isa == chosen


def test_two_at_once_leave_the_set_as_it_was(monkeypatch, capsys):
    """The second begins while the first is at its last set, and ends after it."""
    chosen, second_began, first_ended, looks = _kernels.isa(), threading.Event(), threading.Event(), []
    second = threading.Thread(target=module.verify)

    def look():
        looks.append(threading.current_thread())
        if looks[-1] is second:
            second_began.set()
            assert first_ended.wait(20)
        elif len(looks) == 2 * len(ISAS):
            second.start()
            assert second_began.wait(20)

    watch(monkeypatch, look)
    module.verify()
    first_ended.set()
    second.join()
    assert len(looks) == 4 * len(ISAS)
    assert _kernels.isa() == chosen


def test_every_set_is_run(monkeypatch, capsys):
    """Layers, training loop and inference all run on the set that they are given."""
    used = {"infer": set(), "layers": set(), "loop": set()}

    def record(place, name, function):
        def recorded(isa, *arguments, **options):
            used[name].add(isa)
            return function(isa, *arguments, **options)

        monkeypatch.setattr(place, function.__name__, recorded)

    record(_inference, "infer", _inference.infer)
    record(layers._stack, "layers", layers._stack.LayerStack)
    record(driver, "loop", driver.LayerStack)
    rows = module.verify()
    assert [(row.isa, row.dtype) for row in rows] == [(isa, dtype) for isa in ISAS for dtype in ("float32", "float64")]
    assert set(map(frozenset, used.values())) == {frozenset(map(_kernels.isa_index, ISAS))}


@pytest.mark.parametrize(("error", "wrong"), [(1e-6, ["float64"]), (1e-4, ["float32", "float64"])])
def test_a_small_error_disagrees(monkeypatch, capsys, error, wrong):
    infer = _inference.infer
    monkeypatch.setattr(_inference, "infer", lambda *arguments: (1 + error) * infer(*arguments))
    names = ", ".join(f"{isa} {dtype}" for isa in ISAS for dtype in wrong)
    with pytest.raises(VerificationError, match=f"disagree for {names}; please"):
        module.verify()
    verdicts = [line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]]
    assert verdicts.count("DISAGREES") == len(wrong) * len(ISAS)


@pytest.mark.parametrize(("error", "wrong"), [(1e-6, ["float64"]), (1e-4, ["float32", "float64"])])
def test_a_small_error_of_a_gradient_disagrees(monkeypatch, capsys, error, wrong):
    backward = layers.backward

    def scaled(*arguments, **options):
        return tuple((1 + error) * gradient for gradient in backward(*arguments, **options))

    monkeypatch.setattr(layers, "backward", scaled)
    names = ", ".join(f"{isa} {dtype}" for isa in ISAS for dtype in wrong)
    with pytest.raises(VerificationError, match=f"disagree for {names}; please"):
        module.verify()
