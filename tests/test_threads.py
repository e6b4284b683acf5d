"""Threads: the same bits for any number, forks, several callers, signals, and how many there are by default."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from helpers import run_python

import lstm_ext
from lstm_ext import _kernels, _threads, reference, threads
from lstm_ext.training import loop, progress

THREADS = (2, 8)
# Sequences in a batch, steps, input, hidden and output widths: rows cut among the threads, units cut (few rows, or many
# weights), one row alone, a wide head, and work that stays on one thread.
SHAPES = (
    (33, 21, 7, 100, 2),
    (13, 5, 17, 250, 3),
    (1, 3, 5, 500, 1),
    (7, 3, 300, 40, 700),
    (4, 6, 3, 5, 2),
)
# How work is divided depends on the instruction set only by the number of its lanes.
CASES = [(name, SHAPES[0]) for name in _kernels.available_isas()] + [
    (_kernels.available_isas()[0], shape) for shape in SHAPES[1:]
]
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")


@pytest.fixture(autouse=True)
def many_cpus(monkeypatch):
    """Let eight threads run, however many CPUs there are."""
    lstm_ext.get_num_threads()
    monkeypatch.setattr(threads, "_available", 8)
    monkeypatch.setattr(threads, "_default", 3)
    monkeypatch.setattr(threads, "_chosen", None)


def helper_seconds():
    """Return the CPU time that the helpers have used so far."""
    helpers = (thread for thread in threading.enumerate() if thread.name.startswith("lstm_ext-"))
    return sum(time.clock_gettime(time.pthread_getcpuclockid(helper.ident)) for helper in helpers)


def shared(call, rounds=100):
    """Return what a call returns each time, until the helpers have done a good part of its work."""
    call()
    before, results = helper_seconds(), []
    while helper_seconds() - before < 0.02:
        assert len(results) < rounds, "the helpers do nothing"
        results.append(call())
    return results


clocks = pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="threads have no clocks here")


def data(batch, steps, input_dim, output_dim, dtype="float32", batches=1):
    rng = np.random.default_rng(3)
    X = rng.standard_normal((batch * batches, steps, input_dim)).astype(dtype)
    return X, rng.standard_normal((batch * batches, steps, output_dim)).astype(dtype)


def results(shape, dtype, num_threads):
    """Return everything that is computed with threads, as arrays."""
    batch, steps, input_dim, hidden_dim, output_dim = shape
    X, Y = data(batch, steps, input_dim, output_dim, dtype, batches=2)
    weights = {"dtype": dtype, "init": "pytorch", "seed": 1}  # quickly drawn
    network = lstm_ext.LSTMNetwork(input_dim, hidden_dim, output_dim, readout="steps", **weights)
    arrays = [network.predict(X, num_threads=num_threads)]
    loss, gradient = network.gradient(X, Y, num_threads=num_threads)
    for optimizer in (lstm_ext.Adam(), lstm_ext.SGD(momentum=0.5)):
        history = lstm_ext.train(
            network,
            X,
            Y,
            batch_size=batch,
            epochs=1,
            clip_norm=0.1,
            optimizer=optimizer,
            validation_data=(X, Y),
            seed=2,
            num_threads=num_threads,
        )
        arrays += [np.array(history.loss + history.validation_loss), network.parameters.copy()]
    layer = lstm_ext.LSTM(input_dim, hidden_dim, **weights)
    H, state, tape = layer.forward(X, return_tape=True, num_threads=num_threads)
    alone, _ = layer.forward(X, num_threads=num_threads)
    gradients = layer.backward(tape, H, *state, num_threads=num_threads)
    streams = network.initial_state(batch, num_threads=num_threads)
    arrays += [network.step(X[:batch, t], streams)[0] for t in range(steps)]
    return [*arrays, np.array(loss), gradient, H, *state, alone, *gradients]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("isa", "shape"), CASES, ids=str)
def test_any_number_of_threads_gives_the_same_bits(isa, shape, dtype, restored_isa):
    _kernels.use_isa(isa)
    expected = results(shape, dtype, 1)
    for num_threads in THREADS:
        for k, (array, right) in enumerate(zip(results(shape, dtype, num_threads), expected, strict=True)):
            assert array.tobytes() == right.tobytes(), f"result {k} differs with {num_threads} threads"


@clocks
def test_helpers_share_the_work():
    X, _ = data(64, 30, 8, 1)
    network = lstm_ext.LSTMNetwork(8, 100, 1, seed=0)
    expected = network.predict(X, num_threads=1)
    for result in shared(lambda: network.predict(X, num_threads=4)):
        assert result.tobytes() == expected.tobytes()


@clocks
def test_helpers_flush_denormals():
    network = lstm_ext.LSTMNetwork(5, 40, 700, seed=0)
    network.W_y[...] = 0
    network.b_y[...] = 1e-40
    X, _ = data(64, 20, 5, 1)
    for num_threads in (2, 4):
        for result in shared(lambda n=num_threads: network.predict(X, readout="steps", num_threads=n)):
            assert not result.any()


@pytest.mark.parametrize("lateness", [0, 100, 3000])
def test_every_index_of_a_loop_is_done_once(lateness):
    """Helpers that come late, even for the next loop, do nothing of another loop and nothing twice."""
    _threads._adjust(rests=False, lateness=lateness)
    try:
        for count in (2, 3, 9, 50):
            done = np.zeros((3000, count), np.intp)
            _threads._rehearse(8, done, 0)
            assert (done == 1).all()
    finally:
        _threads._adjust(rests=False)


def output_of(code, **environment):
    """Return the words that another Python prints."""
    done = run_python("-c", code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


BIG = """
import threading, numpy as np, lstm_ext
from lstm_ext import _threads, reference, threads
lstm_ext.get_num_threads()
threads._available = 8
_threads._adjust(rests=False, signal_seconds=0)
X = np.ones((64, 30, 8), "f4")
network = lstm_ext.LSTMNetwork(8, 100, 1, seed=0)
"""


def test_small_work_starts_no_thread_and_helpers_do_not_keep_a_process_alive():
    code = BIG + "network.predict(X[:1, :5], num_threads=8); print(threading.active_count())"
    assert output_of(code + "; network.predict(X, num_threads=3); print(threading.active_count())") == ["1", "3"]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_interrupt_while_a_helper_starts_leaves_later_calls_their_helpers(moment):
    code = BIG + (
        "start = threading.Thread.start\n"
        "def interrupted(thread):\n"
        "    threading.Thread.start = start\n"
        f"    {moment!r} == 'after' and start(thread)\n"
        "    raise KeyboardInterrupt\n"
        "threading.Thread.start = interrupted\n"
        "try: network.predict(X, num_threads=2)\n"
        "except KeyboardInterrupt: print('interrupted')\n"
        "network.predict(X, num_threads=2)\n"
        "print('lstm_ext-1' in [thread.name for thread in threading.enumerate()])\n"
    )
    assert output_of(code) == ["interrupted", "True"]


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


@contextmanager
def elsewhere(function):
    """Run ``function(wait)`` in another thread, which stays where it calls ``wait()`` until the block ends."""
    inside, done = threading.Event(), threading.Event()

    def wait(*_):
        inside.set()
        assert done.wait(60)

    thread = threading.Thread(target=function, args=(wait,))
    thread.start()
    try:
        assert inside.wait(60)
        yield
    finally:
        done.set()
        thread.join()


def test_a_network_that_is_being_trained_is_not_trained_by_another_thread():
    X, Y = data(4, 3, 2, 1)
    network = lstm_ext.LSTMNetwork(2, 3, 1, seed=0)
    with elsewhere(lambda wait: lstm_ext.train(network, X, Y[:, -1], callbacks=[wait])):
        before = network.parameters.copy()
        with pytest.raises(RuntimeError, match="network is being trained by another call"):
            lstm_ext.train(network, X, Y[:, -1], epochs=1)
        assert np.array_equal(network.parameters, before)
        lstm_ext.train(lstm_ext.LSTMNetwork(2, 3, 1, seed=0), X, Y[:, -1], epochs=1)
        network.predict(X)
    lstm_ext.train(network, X, Y[:, -1], epochs=1)


@pytest.mark.parametrize(("make", "large"), [(lambda: lstm_ext.SGD(1e30, 0.5), 1e15), (lstm_ext.Adam, 1e22)])
@pytest.mark.parametrize("place", [0, 500_000, -1])
def test_an_update_that_overflows_in_any_thread_changes_nothing(make, large, place):
    optimizer, before, gradient = make(), np.ones(1_000_003, np.float32), np.full(1_000_003, 1e-3, np.float32)
    optimizer.update(before, gradient)
    moments, powers, parameters = optimizer.moments.copy(), optimizer._powers.copy(), before.copy()
    gradient[place] = large
    with pytest.raises(lstm_ext.NonFiniteError, match=r"^the update leads to numbers that are not finite$"):
        optimizer.update(parameters, gradient)
    assert np.array_equal(parameters, before)
    assert np.array_equal(optimizer.moments, moments)
    assert np.array_equal(optimizer._powers, powers)


class PythonSGD:
    def update(self, parameters, gradient):
        parameters -= gradient


@pytest.mark.parametrize("make", [lstm_ext.Adam, PythonSGD])
def test_an_optimizer_in_use_serves_no_other_training(make):
    X, Y = data(4, 3, 2, 1)
    networks, optimizer = [lstm_ext.LSTMNetwork(2, 3, 1, seed=k) for k in range(2)], make()
    how, names = {"optimizer": optimizer, "epochs": 1}, ("powers", "moments") if make is lstm_ext.Adam else ()
    before = networks[1].parameters.copy()
    with elsewhere(lambda wait: lstm_ext.train(networks[0], X, Y[:, -1], callbacks=[wait], **how)):
        state = [getattr(optimizer, name).copy() for name in names]
        with pytest.raises(RuntimeError, match="optimizer is being used by another call"):
            lstm_ext.train(networks[1], X, Y[:, -1], **how)
        if make is lstm_ext.Adam:
            with pytest.raises(RuntimeError, match="optimizer is being used by another call"):
                optimizer.update(networks[1].parameters, np.ones_like(before))
        after = [getattr(optimizer, name) for name in names]
        assert all(map(np.array_equal, after, state))
        assert np.array_equal(networks[1].parameters, before)
    lstm_ext.train(networks[1], X, Y[:, -1], **how)
    assert not np.array_equal(networks[1].parameters, before)


def test_one_thread_at_a_time_updates_with_an_optimizer():
    class Waiting(lstm_ext.Adam):
        def check(self, parameters):
            self.wait()
            super().check(parameters)

    optimizer, gradient = Waiting(), np.ones(5)
    first, second = np.ones(5), np.ones(5)

    def update(wait):
        optimizer.wait = wait
        optimizer.update(first, gradient)

    with elsewhere(update), pytest.raises(RuntimeError, match="optimizer is being used by another call"):
        optimizer.update(second, gradient)
    assert np.array_equal(second, gradient)
    assert np.allclose(first, 1 - 0.001)
    optimizer.wait = lambda: None
    optimizer.update(second, gradient)


def test_a_training_may_use_its_optimizer_in_python():
    class Halving(lstm_ext.SGD):
        def update(self, parameters, gradient):
            super().update(parameters, gradient / 2)

    X, Y = data(4, 3, 2, 1)
    networks = [lstm_ext.LSTMNetwork(2, 3, 1, seed=0) for _ in range(2)]
    for network, optimizer in zip(networks, (Halving(0.5), lstm_ext.SGD(0.25)), strict=True):
        lstm_ext.train(network, X, Y[:, -1], epochs=2, shuffle=False, optimizer=optimizer)
    assert np.array_equal(networks[0].parameters, networks[1].parameters)


def test_an_interrupt_anywhere_ends_a_training_for_others():
    """It comes before each bytecode of `train` in turn, and its traceback is kept, as at a prompt."""
    X, Y = data(1, 1, 1, 1)
    network, optimizer = lstm_ext.LSTMNetwork(1, 1, 1, seed=0), lstm_ext.SGD()
    interrupts, moment, left = [], 0, 0

    def enter(frame, event, arg):
        if frame.f_code.co_filename not in (loop.__file__, progress.__file__):
            return None
        frame.f_trace_opcodes = True
        return step

    def step(frame, event, arg):
        nonlocal left
        left -= event == "opcode"
        if left < 0:
            raise KeyboardInterrupt
        return step

    before = sys.gettrace()
    try:
        while len(interrupts) == moment:
            left = moment
            moment += 1
            try:
                sys.settrace(enter)
                lstm_ext.train(network, X, Y[:, -1], optimizer=optimizer, epochs=1, callbacks=[print])
            except KeyboardInterrupt as interrupt:
                interrupts.append(interrupt)
    finally:
        sys.settrace(before)
    assert len(interrupts) > 100


def test_one_backward_pass_at_a_time_uses_a_tape():
    X, _ = data(34, 21, 3, 1)
    layer = lstm_ext.LSTM(3, 70, seed=0)
    H, _, tape = layer.forward(X, return_tape=True)
    dH = [H, -2 * H]

    def backward(n):
        return layer.backward(tape, dH[n], num_threads=1).parameters.tobytes()

    expected = [backward(n) for n in range(2)]

    def try_to(n, barrier):
        barrier.wait()
        try:
            return backward(n) == expected[n]
        except RuntimeError as error:
            assert "tape is being used by another backward pass" in str(error)  # noqa: PT017
            return None

    refused = 0
    with ThreadPoolExecutor(2) as pool:
        while refused < 5:
            results = list(pool.map(try_to, range(2), [threading.Barrier(2)] * 2))
            refused += results.count(None)
            assert set(results) in ({True}, {True, None})
    assert backward(0) == expected[0]


def test_a_signal_handler_cannot_use_the_tape_of_the_pass_that_it_interrupts(in_the_midst):
    layer = lstm_ext.LSTM(3, 70, init="pytorch", seed=0)
    H, _, tape = layer.forward(np.ones((34, 300, 3), "f4"), return_tape=True)
    expected = layer.backward(tape, H).parameters.tobytes()

    def handler():
        with pytest.raises(RuntimeError, match="tape is being used by another backward pass"):
            layer.backward(tape, H)

    assert in_the_midst(lambda: layer.backward(tape, H, num_threads=1).parameters.tobytes(), handler) == expected


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}], ids=str)
def test_one_thread_at_a_time_advances_a_state(options):
    network = lstm_ext.LSTMNetwork(4, 200, 1, init="pytorch", seed=0, **options)
    x = np.random.default_rng(0).standard_normal((2, 300, 4)).astype("float32")

    def states_after(*order):
        state = network.initial_state(300, num_threads=1)
        for n in order:
            network.step(x[n], state)
        return state.h.tobytes() + state.C.tobytes()

    right = {order: states_after(*order) for order in ((0,), (1,), (0, 1), (1, 0))}

    def step(n, state, barrier):
        barrier.wait()
        try:
            network.step(x[n], state)
        except RuntimeError as error:
            assert "state is being advanced by another thread" in str(error)  # noqa: PT017
            return None
        return n

    refused = 0
    with ThreadPoolExecutor(2) as pool:
        while refused < 5:
            state, barrier = network.initial_state(300, num_threads=1), threading.Barrier(2)
            steps = [n for n in pool.map(step, range(2), [state] * 2, [barrier] * 2) if n is not None]
            refused += len(steps) < 2
            assert steps
            assert state.steps == len(steps)
            assert state.h.tobytes() + state.C.tobytes() in {
                states for order, states in right.items() if sorted(order) == steps
            }


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}], ids=str)
def test_a_states_arrays_are_not_for_writing(options):
    state = lstm_ext.LSTMNetwork(2, 3, 1, seed=0, **options).initial_state(4)
    for array in (state.h, state.C):
        with pytest.raises(ValueError, match="read-only"):
            array[..., 0] = 1


# --- forks ---


@forks
def test_a_forked_child_computes():
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        + BIG
        + (
            "import os\n"
            "X = X * np.linspace(-1, 1, 30, dtype='f4')[:, None]\n"
            "right = network.predict(X, num_threads=4)\n"
            "children = [os.fork()]\n"
            "threads._available = 8\n"  # a child counts the CPUs again
            "same = np.array_equal(network.predict(X, num_threads=4), right)\n"
            "same &= 'lstm_ext-1' in [thread.name for thread in threading.enumerate()]\n"
            "children and children[0] == 0 and os._exit(0 if same else 1)\n"
            "print(same, os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]))\n"
        )
    )
    assert output_of(code) == ["True", "0"]


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
    """It exits with 7 then, and with 0 if the handler ran outside of a shared loop and its result is right."""
    code = "import os, signal, time, warnings; warnings.simplefilter('ignore')\n" + BIG
    code += """
network, X, children, codes = lstm_ext.LSTMNetwork(64, 128, 1, seed=0), np.ones((64, 100, 64), 'f4'), [], set()
right = network.predict(X, num_threads=1)
network.predict(X, num_threads=4)
started = time.perf_counter()
network.predict(X, num_threads=4)
seconds = time.perf_counter() - started

def fork(*_):
    children.append(os.fork())
    if not children[-1]:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)  # should it wait for helpers that are not there

signal.signal(signal.SIGALRM, fork)
for _ in range(100):
    children.clear()
    signal.setitimer(signal.ITIMER_REAL, seconds / 2)
    try:
        result = network.predict(X, num_threads=4)
    except RuntimeError as error:
        os._exit(7 if 'forked in the middle' in str(error) and children == [0] else 1)
    while not children:
        pass
    if not children[0]:
        os._exit(0 if np.array_equal(result, right) else 1)
    assert np.array_equal(result, right)
    codes.add(os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]))
    if codes - {0}:
        break
print(*codes - {0})
"""
    assert output_of(code) == ["7"]


@forks
def test_a_forked_child_may_use_what_its_parent_was_using():
    code = "import os, warnings; warnings.simplefilter('ignore')\n" + BIG
    code += """
network, Y, adam = lstm_ext.LSTMNetwork(8, 3, 1, seed=0), np.ones((64, 1), 'f4'), lstm_ext.Adam()
inside, done = threading.Event(), threading.Event()

def child(*_):
    pid = os.fork()
    if not pid:
        lstm_ext.train(network, X, Y, epochs=1, optimizer=adam, verbose=False)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

def wait(*_):
    inside.set()
    done.wait(60)

train = lambda callback: lstm_ext.train(network, X, Y, epochs=1, optimizer=adam, verbose=False, callbacks=[callback])
thread = threading.Thread(target=train, args=(wait,))
thread.start()
inside.wait(60)
child()  # the thread that trains is not there
done.set()
thread.join()
train(child)
"""
    assert output_of(code) == ["0", "0"]


def test_a_process_ends_while_a_daemon_thread_computes():
    code = BIG + (
        "import time\n"
        "X = np.ones((64, 3000, 8), 'f4')\n"
        "threading.Thread(target=lambda: [network.predict(X, num_threads=4) for _ in range(99)], daemon=True).start()\n"
        "time.sleep(0.3)\n"
    )
    assert output_of(code) == []


# --- signals ---


class Interrupt(Exception):  # noqa: N818, an event
    pass


def interrupt():
    raise Interrupt


def test_ctrl_c_ends_a_shared_loop_and_the_next_call_works(in_the_midst):
    X, _ = data(64, 100, 64, 1)
    network = lstm_ext.LSTMNetwork(64, 128, 1, seed=0)
    expected = network.predict(X, num_threads=4)
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            in_the_midst(lambda: network.predict(X, num_threads=4), lambda: signal.raise_signal(signal.SIGINT))
        assert np.array_equal(network.predict(X, num_threads=4), expected)


def test_an_exception_ends_a_shared_loop_for_all_threads(in_the_midst):
    done = np.zeros((1, 20000), np.intp)

    def loop():
        done[...] = 0
        _threads._rehearse(3, done, 100)

    for _ in range(5):
        with pytest.raises(Interrupt):
            in_the_midst(loop, interrupt)
        ended = done.copy()
        assert ended.max() == 1
        assert not ended.all()
        time.sleep(0.01)
        assert np.array_equal(done, ended)
    loop()
    assert (done == 1).all()


@pytest.fixture
def interrupted(prompt_signals):
    """Return a function that makes calls, each on what ``prepare()`` returns, and interrupts them at many moments.

    It yields what was prepared after each interrupted call, and asserts that some were interrupted.
    """
    if not hasattr(signal, "setitimer"):
        pytest.skip("no interval timers here")

    def run(prepare, call):
        seconds = np.inf
        for _ in range(3):
            subject = prepare()
            started = time.perf_counter()
            call(subject)
            seconds = min(seconds, time.perf_counter() - started)
        for part in np.linspace(0.05, 1, 40):
            subject = prepare()
            try:
                signal.setitimer(signal.ITIMER_REAL, seconds * part)
                call(subject)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupt:
                yield subject

    before = signal.signal(signal.SIGALRM, lambda *_: interrupt())
    yield run
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_an_update_that_is_begun_is_ended(interrupted):
    gradient = np.ones(5_000_000, np.float32)

    def update(parameters):
        lstm_ext.SGD(1.0).update(parameters, gradient)

    least, most = zip(*((p.min(), p.max()) for p in interrupted(lambda: np.ones_like(gradient), update)), strict=True)
    assert least == most
    assert 0 in least  # one came when the update was under way


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}], ids=str)
def test_a_step_that_is_begun_is_ended(options, interrupted):
    network = lstm_ext.LSTMNetwork(4, 300, 1, init="pytorch", seed=0, **options)
    x = np.ones((100, 4), np.float32)

    def prepare():
        return network.initial_state(100, num_threads=2)

    def bits(state):
        return state.h.tobytes() + state.C.tobytes()

    before, after = prepare(), network.step(x, prepare())[1]
    ended = 0
    for state in interrupted(prepare, lambda state: network.step(x, state)):
        assert bits(state) == bits(after if state.steps else before)
        ended += state.steps
    assert ended > 0


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
    (count, cpus), (one, _) = output_of(HOW_MANY, OMP_NUM_THREADS=""), output_of(HOW_MANY, OMP_NUM_THREADS="1,4")
    assert count == cpus
    assert one == "1"
    assert output_of(HOW_MANY, OMP_NUM_THREADS="1000") == [cpus, cpus]
    assert output_of(HOW_MANY, OMP_NUM_THREADS="many") == [cpus, cpus]
    assert output_of("import multiprocessing as m; m.current_process().daemon = True; " + HOW_MANY)[0] == "1"
    named = "import multiprocessing as m; m.current_process().name = 'LokyProcess-3'; "
    assert output_of(named + HOW_MANY)[0] == "1"


WORKERS = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
import lstm_ext

lstm_ext.threads.available_cpus = lambda: 8
at_import = lstm_ext.get_num_threads()  # a spawned worker does not know yet that it is one

def threads_at_import():
    return at_import

def tell(connection):
    connection.send(lstm_ext.get_num_threads())

if __name__ == "__main__":
    for method in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(1, context) as pool:
            print(pool.submit(lstm_ext.get_num_threads).result())
            if method != "fork":
                print(pool.submit(threads_at_import).result())
        with context.Pool(1) as pool:
            print(pool.apply(lstm_ext.get_num_threads))
        ours, theirs = context.Pipe()
        process = context.Process(target=tell, args=(theirs,))
        process.start()
        print(ours.recv())
        process.join()
"""


def test_a_worker_of_a_pool_has_one_thread_and_a_process_of_its_own_all(tmp_path):
    (tmp_path / "workers.py").write_text(WORKERS)
    code = f"import runpy; runpy.run_path({str(tmp_path / 'workers.py')!r}, run_name='__main__')"
    spawned = ["1", "1", "1", "8"]  # the second: while it imports the main module
    methods = multiprocessing.get_all_start_methods()
    assert output_of(code) == [n for method in methods for n in (["1", "1", "8"] if method == "fork" else spawned)]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_the_default_follows_affinity():
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
    assert output_of(code + HOW_MANY) == ["1", "1"]


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
