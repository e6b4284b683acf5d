"""What the passes do with memory: how much stack they need, and whether they stay within their arrays."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lstm_ext

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


def run_python(code, *arguments):
    """Run code in a Python of its own, which may crash."""
    path = {"PYTHONPATH": str(Path(lstm_ext.__file__).parents[1])}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=os.environ | path, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' calls may need more stack themselves")
@pytest.mark.parametrize(("stack_size", "depth"), [(131072, 18), (65536, 5)])
def test_a_small_stack_is_enough(stack_size, depth):
    """Musl's threads have 128 KiB; Python itself stands some 24 callbacks there, and 10 in 64 KiB."""
    result = run_python(DEEP_CALLS, stack_size, depth)
    assert result.returncode == 0, (result.stdout, result.stderr)
