"""Threads: the same bits for any number, forks, several callers, signals, and how many there are by default."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import lstm_ext
from lstm_ext import reference, threads

THREADS = (2, 3, 4, 8)
# Sequences in a batch, steps, input, hidden and output widths: rows cut among the threads, units cut (few rows, or many
# weights), one row alone, a wide head, and work that stays on one thread.
SHAPES = (
    (33, 21, 7, 100, 2),
    (13, 5, 17, 250, 3),
    (1, 9, 5, 500, 1),
    (7, 3, 300, 40, 700),
    (4, 6, 3, 5, 2),
)
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")


@pytest.fixture(autouse=True)
def many_cpus(monkeypatch):
    """Let eight threads run, however many CPUs there are."""
    lstm_ext.get_num_threads()
    monkeypatch.setattr(threads, "_available", 8)
    monkeypatch.setattr(threads, "_default", 3)
    monkeypatch.setattr(threads, "_chosen", None)


def data(batch, steps, input_dim, output_dim, dtype="float32", batches=1):
    rng = np.random.default_rng(3)
    X = rng.standard_normal((batch * batches, steps, input_dim)).astype(dtype)
    return X, rng.standard_normal((batch * batches, steps, output_dim)).astype(dtype)


def results(shape, dtype, num_threads):
    """Return everything that is computed with threads, as arrays."""
    batch, steps, input_dim, hidden_dim, output_dim = shape
    X, Y = data(batch, steps, input_dim, output_dim, dtype, batches=2)
    network = lstm_ext.LSTMNetwork(input_dim, hidden_dim, output_dim, dtype=dtype, seed=1)
    arrays = [network.predict(X, target="steps", num_threads=num_threads)]
    loss, gradient = network.gradient(X, Y, target="steps", num_threads=num_threads)
    for optimizer in (lstm_ext.Adam(), lstm_ext.SGD(momentum=0.5)):
        history = lstm_ext.train(
            network,
            X,
            Y,
            target="steps",
            batch_size=batch,
            epochs=2,
            clip_norm=0.1,
            optimizer=optimizer,
            validation_data=(X, Y),
            seed=2,
            num_threads=num_threads,
        )
        arrays += [np.array(history.loss + history.validation_loss), network.parameters.copy()]
    layer = lstm_ext.LSTM(input_dim, hidden_dim, dtype=dtype, seed=4)
    H, state, tape = layer.forward(X, return_tape=True, num_threads=num_threads)
    alone, _ = layer.forward(X, num_threads=num_threads)
    gradients = layer.backward(tape, H, *state, num_threads=num_threads)
    streams = network.initial_state(batch, num_threads=num_threads)
    arrays += [network.step(X[:batch, t], streams)[0] for t in range(steps)]
    return [*arrays, np.array(loss), gradient, H, *state, alone, *gradients]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_number_of_threads_gives_the_same_bits(shape, dtype, isa):
    expected = results(shape, dtype, 1)
    for num_threads in THREADS:
        for k, (array, right) in enumerate(zip(results(shape, dtype, num_threads), expected, strict=True)):
            assert array.tobytes() == right.tobytes(), f"result {k} differs with {num_threads} threads"


def test_threads_are_used_where_there_is_work():
    results(SHAPES[0], "float32", 4)
    names = {thread.name for thread in threading.enumerate()}
    assert {"lstm_ext-1", "lstm_ext-2", "lstm_ext-3"} <= names


def run_python(code, **environment):
    """Return what another Python prints."""
    path = {"PYTHONPATH": str(Path(lstm_ext.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | path | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.split()


BIG = """
import threading, numpy as np, lstm_ext
from lstm_ext import reference, threads
lstm_ext.get_num_threads()
threads._available = 8
X = np.ones((64, 30, 8), "f4")
network = lstm_ext.LSTMNetwork(8, 100, 1, seed=0)
"""


def test_small_work_starts_no_thread_and_helpers_do_not_keep_a_process_alive():
    code = BIG + "network.predict(X[:1, :5], num_threads=8); print(threading.active_count())"
    assert run_python(code + "; network.predict(X, num_threads=3); print(threading.active_count())") == ["1", "3"]


def test_idle_helpers_use_no_cpu():
    results(SHAPES[0], "float32", 8)
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1


# --- several callers ---


def test_several_threads_use_one_network_and_train_others():
    X, Y = data(40, 20, 5, 2)
    network = lstm_ext.LSTMNetwork(5, 64, 2, seed=0)

    def work(seed):
        if seed % 2:
            return network.predict(X, num_threads=4)
        other = lstm_ext.LSTMNetwork(5, 64, 2, seed=seed)
        lstm_ext.train(other, X, Y[:, -1], batch_size=20, epochs=2, seed=seed, num_threads=4)
        return other.parameters

    expected = [work(seed).tobytes() for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert [array.tobytes() for array in pool.map(work, range(8))] == expected


def test_a_network_that_is_being_trained_is_not_trained_by_another_thread():
    X, Y = data(4, 3, 2, 1)
    network = lstm_ext.LSTMNetwork(2, 3, 1, seed=0)
    inside, done = threading.Event(), threading.Event()

    def wait(*_):
        inside.set()
        done.wait(60)

    thread = threading.Thread(target=lstm_ext.train, args=(network, X, Y[:, -1]), kwargs={"callbacks": [wait]})
    thread.start()
    try:
        assert inside.wait(60)
        before = network.parameters.copy()
        with pytest.raises(RuntimeError, match="network is being trained by another call"):
            lstm_ext.train(network, X, Y[:, -1], epochs=1)
        assert np.array_equal(network.parameters, before)
        lstm_ext.train(lstm_ext.LSTMNetwork(2, 3, 1, seed=0), X, Y[:, -1], epochs=1)
        network.predict(X)
    finally:
        done.set()
        thread.join()
    lstm_ext.train(network, X, Y[:, -1], epochs=1)


# --- forks ---


@forks
def test_a_forked_child_computes():
    expected = results(SHAPES[0], "float32", 4)[0]
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        + BIG
        + (
            "import os\n"
            "X = X * np.linspace(-1, 1, 30, dtype='f4')[:, None]\n"
            "right = network.predict(X, num_threads=4)\n"
            "children = [os.fork()]\n"
            "same = np.array_equal(network.predict(X, num_threads=4), right)\n"
            "children and children[0] == 0 and os._exit(0 if same else 1)\n"
            "print(same, os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]))\n"
        )
    )
    assert expected.size and run_python(code) == ["True", "0"]


POOL_X, _ = data(33, 21, 7, 2)
POOL_NETWORK = lstm_ext.LSTMNetwork(7, 100, 2, seed=0)


def _predict(size):
    return POOL_NETWORK.predict(POOL_X[:size], num_threads=2)  # NumPy's BLAS does not survive a fork while it works


@forks
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_pool_of_forked_processes_computes_while_others_do():
    sizes = range(30, 34)
    expected = [_predict(size).tobytes() for size in sizes]
    stop = threading.Event()

    def keep_busy():
        while not stop.is_set():
            _predict(33)

    thread = threading.Thread(target=keep_busy)
    thread.start()
    try:
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert [array.tobytes() for array in pool.map_async(_predict, sizes).get(60)] == expected
    finally:
        stop.set()
        thread.join()


@forks
def test_a_child_forked_by_a_signal_handler_in_the_middle_of_a_call_says_so():
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        + BIG
        + (
            "import os, signal\n"
            "network = lstm_ext.LSTMNetwork(64, 256, 1, seed=0)\n"
            "X = np.ones((64, 800, 64), 'f4')\n"
            "right, children = network.predict(X, num_threads=1), []\n"
            "network.predict(X, num_threads=4)\n"  # a child of a fork amid Thread.start would wait for that thread
            "signal.signal(signal.SIGALRM, lambda *_: children or children.append(os.fork()))\n"
            "signal.setitimer(signal.ITIMER_REAL, 0.02)\n"
            "try:\n"
            "    while not children: result = network.predict(X, num_threads=4)\n"
            "except RuntimeError as error:\n"
            "    os._exit(7 if 'forked in the middle' in str(error) and not children[0] else 1)\n"
            "if not children[0]: os._exit(7)\n"  # forked outside of a shared loop: the child may go on
            "print(np.array_equal(result, right), os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]))\n"
        )
    )
    assert run_python(code) == ["True", "7"]


def test_a_process_ends_while_a_daemon_thread_computes():
    code = BIG + (
        "import time\n"
        "X = np.ones((64, 3000, 8), 'f4')\n"
        "threading.Thread(target=lambda: [network.predict(X, num_threads=4) for _ in range(99)], daemon=True).start()\n"
        "time.sleep(0.3)\n"
    )
    assert run_python(code) == []


# --- signals ---


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends a process on Windows")
def test_ctrl_c_ends_a_shared_loop_and_the_next_call_works():
    X, _ = data(64, 2000, 64, 1)
    network = lstm_ext.LSTMNetwork(64, 512, 1, seed=0)
    expected = network.predict(X[:, :20], num_threads=4)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            network.predict(X, num_threads=4)
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)
    assert np.array_equal(network.predict(X[:, :20], num_threads=4), expected)


# --- how many ---


def test_set_num_threads():
    assert lstm_ext.get_num_threads() == 3
    lstm_ext.set_num_threads(2)
    assert lstm_ext.get_num_threads() == 2
    lstm_ext.set_num_threads(100)
    assert lstm_ext.get_num_threads() == 8
    lstm_ext.set_num_threads(None)
    assert lstm_ext.get_num_threads() == 3


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (0, ValueError, "num_threads is 0; expected at least 1"),
        (-1, ValueError, "num_threads is -1; expected at least 1"),
        (1.5, TypeError, r"num_threads is 1\.5; expected an integer"),
        (True, TypeError, "num_threads is True; expected an integer"),
        ("2", TypeError, "num_threads is '2'; expected an integer"),
    ],
)
def test_a_bad_number_of_threads_is_refused(value, error, match):
    X, Y = data(3, 2, 2, 1)
    network, layer = lstm_ext.LSTMNetwork(2, 3, 1, seed=0), lstm_ext.LSTM(2, 3, seed=0)
    before, drawn = network.parameters.copy(), np.random.get_state()[2]
    _, _, tape = layer.forward(X, return_tape=True)
    calls = [
        lambda: lstm_ext.set_num_threads(value),
        lambda: network.predict(X, num_threads=value),
        lambda: network.gradient(X, Y[:, -1], num_threads=value),
        lambda: lstm_ext.train(network, X, Y[:, -1], num_threads=value),
        lambda: layer.forward(X, num_threads=value),
        lambda: layer.backward(tape, num_threads=value),
        lambda: network.initial_state(num_threads=value),
        lambda: network.forward(X[0], num_threads=value),
        lambda: lstm_ext.train_lstm(X, Y[:, -1], 2, 3, 1, num_threads=value),
    ]
    for call in calls:
        with pytest.raises(error, match=match):
            call()
    assert lstm_ext.get_num_threads() == 3
    assert np.array_equal(network.parameters, before)
    assert np.random.get_state()[2] == drawn


HOW_MANY = "import lstm_ext; print(lstm_ext.get_num_threads(), lstm_ext.threads.available_cpus())"


def test_the_default_is_what_the_environment_allows():
    (count, cpus), (one, _) = run_python(HOW_MANY, OMP_NUM_THREADS=""), run_python(HOW_MANY, OMP_NUM_THREADS="1,4")
    assert count == cpus
    assert one == "1"
    assert run_python(HOW_MANY, OMP_NUM_THREADS="1000") == [cpus, cpus]
    assert run_python(HOW_MANY, OMP_NUM_THREADS="many") == [cpus, cpus]
    assert run_python("import multiprocessing as m; m.current_process().daemon = True; " + HOW_MANY)[0] == "1"
    named = "import multiprocessing as m; m.current_process().name = 'LokyProcess-3'; "
    assert run_python(named + HOW_MANY)[0] == "1"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_the_default_follows_affinity():
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
    assert run_python(code + HOW_MANY) == ["1", "1"]


@pytest.mark.parametrize(
    ("files", "groups", "expected"),
    [
        ({"cpu.max": "max 100000"}, "0::/", 64),
        ({"cpu.max": "150000 100000"}, "0::/", 2),
        ({"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b", 3),
        ({"cpu/c/cpu.cfs_quota_us": "100000", "cpu/c/cpu.cfs_period_us": "100000"}, "5:cpu,cpuacct:/c\n4:pids:/", 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "5:cpu:/", 64),
    ],
)
def test_the_default_follows_a_cgroups_quota(files, groups, expected, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(threads, "_CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(threads, "_own_groups", lambda: groups)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(100), raising=False)
    assert threads.available_cpus() == expected


def test_the_oracle_takes_the_same_arguments():
    X, Y = data(3, 2, 2, 1)
    for module in (lstm_ext, reference):
        network, layer = module.LSTMNetwork(2, 3, 1, seed=0), module.LSTM(2, 3, seed=0)
        network.forward(X[0], num_threads=2)
        network.predict(X, num_threads=2)
        network.gradient(X, Y[:, -1], num_threads=2)
        layer.backward(layer.forward(X, return_tape=True, num_threads=2)[2], num_threads=2)
        module.train_lstm(X, Y[:, -1], 2, 3, 1, epochs=1, num_threads=2)


def test_training_ends_for_others_however_it_ends():
    X, Y = data(4, 3, 2, 1)
    network = lstm_ext.LSTMNetwork(2, 3, 1, seed=0)

    def fail(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lstm_ext.train(network, X, Y[:, -1], epochs=1, callbacks=[fail])
    with pytest.raises(ValueError, match="epochs is 0"):
        lstm_ext.train(network, X, Y[:, -1], epochs=0)
    lstm_ext.train(network, X, Y[:, -1], epochs=1)
