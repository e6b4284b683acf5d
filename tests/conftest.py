"""Fixtures that choose the instruction set, send signals or mount a disk, and a check of the skipped tests."""

import os
import signal
import subprocess
import time
from collections import Counter

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the threads of NumPy's BLAS spin, most of all on a busy machine

import pytest

from lstm_ext import _kernels, _threads

_threads._adjust(rests=False)  # on a busy machine helpers would rest, and tests of threads test one

FMA_ISAS = [name for name in _kernels.available_isas() if name != "baseline"]
ONE_FMA_ISA = "this machine has one instruction set with fused multiply-adds"


def pytest_addoption(parser):
    parser.addoption(
        "--expect-skips",
        action="append",
        metavar="[N REASON]",
        help="fail unless N tests are skipped for this reason, and none for another that is not given; '' for none at "
        "all. Comparisons of instruction sets are expected to be skipped where there is one only.",
    )


def pytest_configure(config):
    given = config.getoption("--expect-skips")
    if given is not None:
        config.pluginmanager.register(SkipCounter(given))


class SkipCounter:
    """Fail a run whose skips are not the expected ones: a missing package would hide all tests that need it."""

    def __init__(self, given):
        pairs = [text.split(maxsplit=1) for text in given if text]
        self.expected = Counter({reason: int(count) for count, reason in pairs})
        self.found = Counter()

    def pytest_collection_finish(self, session):
        if len(FMA_ISAS) < 2:
            users = ["assert_same_on_every_fma_isa" in item.fixturenames for item in session.items]
            self.expected[ONE_FMA_ISA] += sum(users)

    def pytest_runtest_logreport(self, report):
        if report.skipped:
            self.count(report)

    def pytest_collectreport(self, report):
        if report.skipped:
            self.count(report)

    def count(self, report):
        *_, reason = report.longrepr
        self.found[reason.removeprefix("Skipped: ")] += 1

    def pytest_sessionfinish(self, session):
        if +self.expected != self.found:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        for reason in sorted(self.expected | self.found):
            counts = f"{self.found[reason]} skipped, {self.expected[reason]} expected"
            terminalreporter.write_line(f"{counts}: {reason}", red=self.found[reason] != self.expected[reason])


@pytest.fixture
def restored_isa():
    before = _kernels.isa()
    yield
    _kernels.use_isa(before)


@pytest.fixture(params=_kernels.available_isas())
def isa(request, restored_isa):
    """Use each instruction set in turn, and return its name."""
    _kernels.use_isa(request.param)
    return request.param


@pytest.fixture(params=dict.fromkeys((_kernels.available_isas()[0], _kernels.available_isas()[-1])))
def rounding_isa(request, restored_isa):
    """Use the widest instruction set, then the baseline if there is one, and return its name.

    For comparisons with the oracle: the other sets have the widest one's bits, which `assert_same_on_every_fma_isa`
    checks on the same problems.
    """
    _kernels.use_isa(request.param)
    return request.param


@pytest.fixture
def assert_same_on_every_fma_isa(restored_isa):
    """Return a check that ``results()``, an iterable of arrays, has the same bits on every set.

    All sets but the baseline have the fused multiply-add, and promise equal bits.
    """
    if len(FMA_ISAS) < 2:
        pytest.skip(ONE_FMA_ISA)

    def check(results):
        first = None
        for name in FMA_ISAS:
            _kernels.use_isa(name)
            bits = [array.tobytes() for array in results()]
            first = first or bits
            for k, (ours, theirs) in enumerate(zip(bits, first, strict=True)):
                assert ours == theirs, f"result {k} differs between {name} and {FMA_ISAS[0]}"

    return check


@pytest.fixture
def prompt_signals():
    """Let calls check for signals whenever they can, not only every tenth of a second."""
    _threads._adjust(rests=False, signal_seconds=0)
    yield
    _threads._adjust(rests=False)


@pytest.fixture
def in_the_midst(prompt_signals):
    """Return a function that makes a call and runs ``handler()``, as a signal handler, in the midst of its work.

    How long a call works is measured, in CPU time of this thread, so it holds for any machine, however busy.
    """
    if not hasattr(signal, "setitimer"):
        pytest.skip("no interval timers here")

    def measure(call):
        started = time.thread_time()
        call()
        return time.thread_time() - started

    def run(call, handler):
        work = min(measure(call) for _ in range(2))
        started, ran = 0.0, False

        def note(*_):
            nonlocal ran
            if work / 20 < time.thread_time() - started < work * 0.4:
                ran = True
                handler()

        before = signal.signal(signal.SIGALRM, note)
        try:
            for _ in range(100):
                started = time.thread_time()
                signal.setitimer(signal.ITIMER_REAL, work / 5)
                result = call()
                if ran:
                    return result
            pytest.fail("no signal handler ran in the midst of the call")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    return run


@pytest.fixture
def small_disk(tmp_path):
    """Yield a folder on a file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("a file system can be mounted by root on Linux only")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
