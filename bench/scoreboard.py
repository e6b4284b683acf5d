"""The scoreboard: lstm_ext and other packages on the same work, measured in one run.

    pip install -e ".[cli]" -r bench/requirements.txt
    python bench/scoreboard.py            (all rows, below 15 minutes; writes bench/results/)
    python bench/scoreboard.py --quick    (about a minute: six rows, one thread, three short rounds)

Every contestant is a separate process with its own CPUs and number of threads. In a round, each runs for a moment while
the others are stopped. A ratio compares a contestant with lstm_ext on the same number of threads in the same round, so
other processes disturb both sides alike; the tables show the median ratio and its quartiles. Before a row is timed,
every contestant's outputs, and how some updates change them, are compared with the oracle's. Packages that are not
installed are left out, unless `--peers` names them.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fnmatch
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import report
from contestants import CONTESTANTS, cache_bytes
from rows import QUICK, ROWS, Row

HERE = Path(__file__).parent
GAUGES = ("peak", "bandwidth")  # measured in every round, but not competitors
TOLERANCE = {"outputs": 1e-4, "change": 2e-3}  # norm-wise; a change is a small difference of float32 outputs


class Entry(NamedTuple):
    """A contestant with its number of threads and, for lstm_ext, its instruction set."""

    peer: str
    threads: int = 1
    isa: str = ""

    @property
    def label(self) -> str:
        return "-".join([self.peer, str(self.threads), *([self.isa] if self.isa else [])])


ENTRIES = (
    Entry("oracle"),  # first, because the others are compared with it
    *(Entry(gauge) for gauge in GAUGES),
    Entry("lstm_ext"),
    Entry("lstm_ext", 2),
    Entry("lstm_ext", isa="avx2"),
    *(Entry(peer, threads) for peer in ("torch", "jax", "onnxruntime", "openvino") for threads in (1, 2)),
    Entry("scipy"),
)


class WorkerError(RuntimeError):
    """An error in a worker."""


class Process:
    """The worker process of one entry; it is stopped between requests, so that its threads cannot spin."""

    def __init__(self, entry: Entry, cpus: list[int]) -> None:
        self.entry = entry
        count = str(entry.threads)
        environment = os.environ | dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"), count
        )
        environment |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}
        if entry.threads == 1:
            environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
        environment.pop("LSTM_EXT_ISA", None)
        if entry.isa:
            environment["LSTM_EXT_ISA"] = entry.isa
        self.cpus = set(cpus[-entry.threads :])  # the first CPU has the most interrupts
        with affinity(self.cpus):
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "contestants.py"), entry.peer, count],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                text=True,
            )
        self.about: dict[str, Any] = {}

    def ask(self, do: str, **arguments: Any) -> Any:
        """Return the worker's answer to a request (see contestants.py)."""
        self.send(do, **arguments)
        return self.receive()

    def send(self, do: str, **arguments: Any) -> None:
        assert self.process.stdin is not None
        self._signal("SIGCONT")
        with contextlib.suppress(BrokenPipeError):  # `receive` reports it
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()

    def receive(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise WorkerError("the process ended")
        answer = json.loads(line)
        self._signal("SIGSTOP")
        if "missing" in answer:
            raise ImportError(answer["missing"])
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["result"]

    def close(self) -> None:
        self._signal("SIGCONT")
        self.process.kill()
        self.process.wait()

    def _signal(self, name: str) -> None:
        if hasattr(signal, name) and self.process.poll() is None:
            self.process.send_signal(getattr(signal, name))


@contextlib.contextmanager
def affinity(cpus: set[int]) -> Any:
    """Restrict processes started within the block to these CPUs, if the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def available_cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def start(peers: list[str], threads: int) -> dict[str, Process]:
    """Start the workers of the named peers, and of the oracle and the gauges."""
    cpus = available_cpus()
    entries = [entry for entry in ENTRIES if entry.peer in (*peers, "oracle", *GAUGES)]
    started = [Process(entry, cpus) for entry in entries if entry.threads <= min(threads, len(cpus))]
    for process in started:
        process.send("about")
    processes: dict[str, Process] = {}
    for process in started:
        entry = process.entry
        try:
            process.about = process.receive()
            if entry.peer in GAUGES:
                process.ask("prepare", row=ROWS[0], updates=0)
        except (ImportError, WorkerError) as error:
            reason = "not installed" if isinstance(error, ImportError) else "not available"
            print(f"{entry.label}: {reason} ({error})")
            process.close()
            continue
        default = processes.get("lstm_ext-1")
        if entry.isa and default and default.about["instruction_set"] == entry.isa:
            process.close()  # it is the default set
            continue
        processes[entry.label] = process
    return processes


def fail(failures: list[str], label: str, row: Row, reason: object) -> None:
    failures.append(f"FAILED: {label} on {row.name}: {reason}")
    print(failures[-1], flush=True)


def prepare(row: Row, processes: dict[str, Process], failures: list[str]) -> dict[str, Process]:
    """Set up a row in all workers; return the contestants, without those that disagree with the oracle."""
    updates = row.batches if row.task == "epoch" else 3 if row.operations() < 1e10 else 1
    field, expected = {}, {}
    for label, process in processes.items():
        if process.entry.peer in GAUGES or not CONTESTANTS[process.entry.peer].enters(row):
            continue
        try:
            result = process.ask("prepare", row=row, updates=updates if row.trains else 0)
        except WorkerError as error:
            fail(failures, label, row, error)
            continue
        if label == "oracle-1":
            expected = result
        wrong = [
            f"{name} off by {error:.1e}"
            for name, right in expected.items()
            if not (error := norm_error(result[name], right)) < TOLERANCE[name]
        ]
        if wrong:
            fail(failures, label, row, f"disagrees with the oracle, {', '.join(wrong)}")
            process.ask("finish")
        else:
            field[label] = process
    return field


def norm_error(given: list[float], right: list[float]) -> float:
    return float(np.linalg.norm(np.subtract(given, right)) / np.linalg.norm(right))


def measure(
    row: Row, processes: dict[str, Process], failures: list[str], *, rounds: int, slot: float, limit: float
) -> dict[str, Any]:
    """Time one row, for `rounds` rounds, or for at least three until `limit` seconds have passed."""
    field = prepare(row, processes, failures)
    field |= {label: process for label, process in processes.items() if process.entry.peer in GAUGES}
    times: dict[str, list[float]] = {label: [] for label in field}
    labels = list(field)
    started = time.perf_counter()
    for n in range(rounds):
        if n >= 3 and time.perf_counter() - started > limit:
            break
        turn = n % len(labels)
        for label in labels[turn:] + labels[:turn]:
            times[label].append(field[label].ask("seconds", slot=slot))
    memory = {label: field[label].ask("finish") for label in labels if field[label].entry.peer not in GAUGES}
    return summarise(row, {label: field[label].entry for label in labels}, times, memory)


def summarise(
    row: Row, entries: dict[str, Entry], times: dict[str, list[float]], memory: dict[str, float | None]
) -> dict[str, Any]:
    """Return medians and quartiles of times, ratios to ours, our speed-up, and fractions of peak and roofline."""
    gauges = {gauge: times.pop(f"{gauge}-1", None) for gauge in GAUGES}
    result: dict[str, Any] = {"name": row.name, **row._asdict(), "operations": row.operations(), "contestants": {}}
    traffic = row.traffic(cache_bytes(1))
    width = np.dtype(row.dtype).itemsize // 4  # a vector holds half as many float64
    for label, seconds in times.items():
        entry = entries[label]
        figures: dict[str, Any] = {"seconds": quartiles(seconds), "rounds": [float(f"{s:.4g}") for s in seconds]}
        figures |= {"memory_mb": memory[label], "gflops": row.operations() / figures["seconds"][1] * 1e-9}
        rival, single = f"lstm_ext-{entry.threads}", "lstm_ext-1"
        if label != rival and rival in times:
            figures["ratio"] = quartiles(np.divide(seconds, times[rival]))
        if label == rival != single and single in times:
            figures["speed_up"] = quartiles(np.divide(times[single], seconds))
        if gauges["peak"] and entry.threads == 1:
            least = np.multiply(gauges["peak"], row.operations() * width)
            figures["peak_fraction"] = quartiles(least / seconds)
            if gauges["bandwidth"]:
                least = np.maximum(least, np.multiply(gauges["bandwidth"], traffic))
                figures["roofline_fraction"] = quartiles(least / seconds)
        result["contestants"][label] = figures
    for gauge, name in zip(GAUGES, ("peak_gflops", "bandwidth_gb_per_second"), strict=True):
        if gauges[gauge]:
            result[name] = quartiles(1e-9 / np.array(gauges[gauge]))
    result |= {"traffic_bytes": traffic, "given_bytes": row.given_bytes()}
    result |= {"training_bytes": row.training_bytes()} if row.trains else {}
    return result


def quartiles(values: Any) -> list[float]:
    return [float(f"{value:.4g}") for value in np.quantile(values, (0.25, 0.5, 0.75))]


def machine(processes: dict[str, Process]) -> dict[str, Any]:
    """Return the machine, the versions and the instruction sets of a run."""
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    for process in processes.values():
        versions |= process.about["versions"]
    sets = {label: process.about["instruction_set"] for label, process in processes.items()}
    return system() | {
        "cpus_used": max(len(process.cpus) for process in processes.values()),
        "versions": versions,
        "instruction_sets": {label: isa for label, isa in sets.items() if isa},
    }


def system() -> dict[str, Any]:
    """Return the CPU, the system and its load, the revision of the sources and the date."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--exclude=*"]
    revision = (
        subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() if shutil.which("git") else ""
    )
    return {
        "cpu": model,
        "system": platform.system(),
        "revision": revision or None,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "load_before": load(),
    }


def load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def main() -> None:
    """Run the rows and contestants that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    competitors = [name for name in CONTESTANTS if name not in (*GAUGES, "oracle")]
    parser.add_argument("--quick", action="store_true", help="six rows, one thread, three short rounds")
    parser.add_argument("--rows", nargs="+", metavar="PATTERN", help="such as 'train-*' or infer-50-32-8-32")
    parser.add_argument(
        "--peers", nargs="+", choices=competitors, default=[], help="run only these, and fail if one is missing"
    )
    parser.add_argument("--output", type=Path, help="folder for the results (default: bench/results after a full run)")
    options = parser.parse_args()
    patterns = options.rows or (QUICK if options.quick else ["*"])
    rows = [row for row in ROWS if any(fnmatch.fnmatch(row.name, pattern) for pattern in patterns)]
    if not rows:
        parser.error(f"no row matches; the rows are {', '.join(row.name for row in ROWS)}")
    started, failures = time.perf_counter(), []
    processes = start(options.peers or competitors, threads=1 if options.quick else 2)
    present = {process.entry.peer for process in processes.values()}
    failures += [f"FAILED: {peer} is not available" for peer in options.peers if peer not in present]
    try:
        about = machine(processes)
        print(report.heading(about), flush=True)
        settings = {"rounds": 3, "slot": 0.04, "limit": 3} if options.quick else {"rounds": 9, "slot": 0.1, "limit": 15}
        results: list[dict[str, Any]] = []
        for row in rows:
            results.append(measure(row, processes, failures, **settings))
            print(report.line(results[-1]), flush=True)
    finally:
        for process in processes.values():
            process.close()
    about |= {"load_after": load(), "minutes": round((time.perf_counter() - started) / 60, 1), "settings": settings}
    record = {"machine": about, "failures": failures, "rows": results}
    print("\n" + report.tables(record))
    output = options.output or (None if options.quick or options.rows else HERE / "results")
    if output is not None:
        report.write(record, output)
    print(f"\n{about['minutes']} minutes; load average {about['load_before']} before, {about['load_after']} after")
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
