"""What the passes do with memory: how much stack they need, and whether they stay within their arrays."""

import sys

import numpy as np
import pytest
from helpers import run_python

from lstm_ext import LSTM, LSTMNetwork, _heads, _kernels, _stack, train
from lstm_ext._products import aligned_empty
from lstm_ext.training import driver

DEEP_CALLS = """
import sys, threading, numpy as np
from lstm_ext import LSTM, LSTMNetwork, train
stack_size, depth = map(int, sys.argv[1:])
X, Y = np.ones((200, 6, 3), "f4"), np.zeros((200, 1), "f4")
network, layer = LSTMNetwork(3, 5, 1, seed=0), LSTM(3, 5, seed=0)
state = network.initial_state(200)
CALLS = {
    "predict": lambda: network.predict(X),
    "train": lambda: train(network, X, Y, epochs=1, verbose=False),
    "gradient": lambda: network.gradient(X, Y),
    "step": lambda: network.step(X[:, 0], state),
    "backward": lambda: layer.backward(layer.forward(X, return_tape=True)[2], dh_T=np.ones((200, 5))),
}
threading.stack_size(stack_size)
def nest(call, depth):  # a callback of C code takes some 4 KB of stack
    return call() if depth == 0 else sorted([0], key=lambda _: (nest(call, depth - 1), 0)[1])
for name, call in CALLS.items():
    print(name, flush=True)
    call()
    thread = threading.Thread(target=nest, args=(call, depth))
    thread.start()
    thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' calls may need more stack themselves")
@pytest.mark.parametrize(("stack_size", "depth"), [(131072, 18), (65536, 5)])
def test_a_small_stack_is_enough(stack_size, depth):
    """Musl's threads have 128 KiB; Python itself stands some 24 callbacks there, and 10 in 64 KiB."""
    result = run_python("-c", DEEP_CALLS, stack_size, depth)
    assert result.returncode == 0, (result.stdout, result.stderr)


# --- arrays ---

# Of the layers, so that every array of the arena is there.
OPTIONS = {
    "plain": {},
    "two ways": {"num_layers": 2, "bidirectional": "concat", "learn_initial_state": True},
    "backwards": {"go_backwards": True, "peephole": True, "proj_size": 3, "zoneout": (0.2, 0.1)},
    "norm": {"num_layers": 2, "layer_norm": True, "coupled_gates": True, "dropout": 0.3, "recurrent_dropout": 0.2},
    "sum": {"bidirectional": "sum", "weight_dropout": 0.3, "cell_clip": 0.5},
}
# N, T, I, H: with the batch in the lanes, where forward or backward needs the most scratch, and not; a row and more
# beyond what one product of weight gradients takes
SHAPES = [(20, 19, 3, 5), (16, 6, 1, 21), (7, 60, 2, 13), (1, 257, 2, 13), (5, 6, 17, 34)]


@pytest.fixture
def poisoned(monkeypatch):
    """Fill every work array with NaN at first; return a check that nothing was written behind one."""
    arenas, arrays, stack = [], [], _stack.LayerStack

    def poison(shape, dtype):
        array = aligned_empty(shape, dtype)
        array.view(np.uint8)[:] = 0xFF  # a NaN of either type
        arrays.append(array)
        return array

    def recorded(*arguments, **options):
        gaps = []
        made = stack(*arguments, **options, gaps=gaps)
        if not options.get("measure"):
            arenas.append((arrays.pop(), gaps))
        return made

    def check():
        for arena, gaps in arenas:
            assert len(gaps) > 5
            for k, (begin, end) in enumerate(gaps):
                assert end - begin >= 256
                assert (arena[begin:end] == 0xFF).all(), f"written past array {k} of {len(gaps)}"
        for k, array in enumerate(arrays):
            assert (array.view(np.uint8)[-256:] == 0xFF).all(), f"written past array {k} of the head"
        return len(arenas), len(arrays)

    for module in (_stack, _heads):
        monkeypatch.setattr(module, "aligned_empty", poison)
    for module in (_stack, driver):
        monkeypatch.setattr(module, "LayerStack", recorded)
    return check


def data(shape, dtype, ragged):
    rng = np.random.default_rng(shape)
    N, T, I, _ = shape
    X = rng.standard_normal((N, T, I)).astype(dtype)
    return [x[: max(1, T - n % T)] for n, x in enumerate(X)] if ragged else X


@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_layers_write_no_further_than_their_arrays(name, shape, ragged, isa, poisoned):
    """And read nothing that they did not write: it would be NaN."""
    for dtype in ("float32", "float64"):
        layer = LSTM(*shape[2:], dtype=dtype, seed=0, **OPTIONS[name])
        for seed in (None, 1):
            H, _, tape = layer.forward(data(shape, dtype, ragged), dropout_seed=seed, return_tape=True)
            results = layer.backward(tape, np.ones_like(H))
            assert all(np.isfinite(array).all() for array in (H, *results))
    assert poisoned() == (4, 0)


@pytest.mark.parametrize("memory", [{}, {"recompute_every": 4}, {"tbptt": 7}], ids=str)
@pytest.mark.parametrize("readout", ["last", "steps", "mean", "max"])
def test_training_writes_no_further_than_its_arrays(readout, memory, poisoned):
    for name, shape in zip(OPTIONS, SHAPES, strict=True):
        if "tbptt" in memory and (readout in ("mean", "max") or name not in ("plain", "norm")):
            continue
        network = LSTMNetwork(*shape[2:], 3, readout=readout, seed=0, **OPTIONS[name])
        X = data(shape, "float32", ragged=True)
        Y = [np.zeros((len(x), 3), "f4") for x in X] if readout == "steps" else np.zeros((len(X), 3), "f4")
        history = train(network, X, Y, batch_size=7, epochs=2, verbose=False, **memory)
        assert np.isfinite(history.loss).all()
        assert np.isfinite(network.parameters).all()
    poisoned()


@pytest.mark.parametrize("readout", ["last", "steps", "mean", "max"])
def test_predictions_read_nothing_that_they_did_not_write(readout, poisoned):
    """With chunks of steps, and few sequences side by side, which the smallest budget needs."""
    for name, shape in zip(OPTIONS, SHAPES, strict=True):
        for output_dim in (3, None):
            network = LSTMNetwork(*shape[2:], output_dim, readout=readout, seed=0, **OPTIONS[name])
            for X in (data(shape, "float32", ragged=True), data(shape, "float32", ragged=False)):
                with pytest.raises(ValueError, match="needs at least") as caught:
                    network.predict(X, memory_budget=1)
                for budget in (None, int(str(caught.value).split()[-1])):
                    network.predict(X, memory_budget=budget)  # would warn of NaN
    poisoned()


GUARDED = """
import ctypes, mmap, sys, numpy as np
from lstm_ext import LSTMNetwork, _kernels
from lstm_ext.training.driver import PassRunner
from lstm_ext.sequences import Sequences
PAGE, libc = mmap.PAGESIZE, ctypes.CDLL(None, use_errno=True)
def guarded(array, at_end):
    # a copy between two pages that nobody may touch, at the end of its own pages or at their beginning
    size = -(-array.nbytes // PAGE) * PAGE
    memory = mmap.mmap(-1, size + 2 * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    begin = PAGE + (size - array.nbytes if at_end else 0)
    copy = np.frombuffer(memory, array.dtype, array.size, begin).reshape(array.shape)
    copy[:] = array
    for page in (address, address + PAGE + size):
        assert libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0) == 0, ctypes.get_errno()
    return copy
rng = np.random.default_rng(0)
OPTIONS = [{}, {"go_backwards": True}, {"bidirectional": "concat", "num_layers": 2}, {"peephole": True}]
LENGTHS = [2, 6, 7, 7, 1, 4, 1]  # the first and the last end early
for dtype in ("float32", "float64"):
    for at_end in (False, True):
        for options in OPTIONS:
            for N, T, I, H in ((7, 7, 3, 13), (7, 7, 2, 5), (20, 7, 3, 5)):
                network = LSTMNetwork(I, H, 3, dtype=dtype, seed=0, **options)
                network._use(network.architecture, guarded(network.parameters, at_end))
                X = rng.standard_normal((N, T, I)).astype(dtype)
                sequences = [Sequences(X, I, X.dtype)]
                if N == len(LENGTHS):
                    sequences.append(Sequences([x[:n] for x, n in zip(X, LENGTHS)], I, X.dtype))
                for isa in map(_kernels.isa_index, _kernels.available_isas()):
                    network._isa = isa
                    network.predict(guarded(X, at_end), readout="steps")
                    if options in (OPTIONS[0], OPTIONS[-1]):
                        network.step(guarded(X[:, 0], at_end), network.initial_state(N))
                    for given in sequences:
                        given.rows = guarded(given.rows, at_end)
                        Y = guarded(np.zeros((N, 3), dtype), at_end)
                        runner = PassRunner(network._setup("mse", None, None), given, Y)
                        runner.gradients(0)
print("ended")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="pages are guarded by Linux's mprotect")
def test_nothing_is_read_outside_of_what_is_given():
    result = run_python("-c", GUARDED)
    assert result.stdout == "ended\n", (result.returncode, result.stderr)


@pytest.mark.parametrize("sizes", [(2**62, 1), (1, 2**62), (2**31, 2**31), (2**40, 2**20)])
def test_arrays_that_cannot_be_addressed_are_refused(sizes):
    architecture = LSTM(3, 5).architecture
    for measure in (False, True):
        with pytest.raises(ValueError, match="a work array would have"):
            _stack.LayerStack(_kernels.current(), architecture, np.dtype("f4"), *sizes, keep=True, measure=measure)


HIGH_WATER = """
import numpy as np
from lstm_ext import LSTM, LSTMNetwork
def most():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
X = np.ones((8, 10_000, 2), np.float32)
networks = [LSTMNetwork(2, 128, 1, readout=readout, bidirectional="concat") for readout in ("steps", "max")]
layer = LSTM(2, 128, num_layers=2, bidirectional="concat", seed=0)
networks[0].predict(X[:, :3])
before = most()
for network in networks:
    network.predict(X)
print(most() - before)
H = layer.forward(X[:3])[0]
print(most() - before - H.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the high-water mark")
def test_long_sequences_in_two_directions_take_less_than_100_megabytes():
    """For T = 10,000 and F = 256; side by side the eight would take 82 MB, and the layers' three 31 in each layer."""
    used = [int(line) for line in run_python("-c", HIGH_WATER).stdout.split()]
    assert 30e6 < used[0] < 75e6
    assert used[1] < 75e6
