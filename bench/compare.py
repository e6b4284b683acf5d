"""Side-by-side timings of one training step: lstm_ext, PyTorch and the NumPy oracle, one thread.

Everything is measured in one run: a round times each contestant once, in turn, and the machine's peak of fused
multiply-adds beside them, so a noisy neighbour meets all alike. Printed are medians over the rounds, and the median of
the rounds' ratios with its quartiles. Only arithmetic that is needed counts: forward 8 H (I + H) T B, weight gradient
the same, recurrent backward 8 H^2 T B.

    pip install . -r bench/requirements.txt
    python bench/compare.py            (two minutes)
    python bench/compare.py --quick    (about half a minute)
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before NumPy and PyTorch are loaded

import numpy as np

import lstm_ext
from lstm_ext import _kernels, reference

LEARNING_RATE = 1e-3
Contestant = Callable[[], float]
"""Runs for a while and returns the seconds of one update."""


class Row(NamedTuple):
    """One line of the table: the sizes of a training step."""

    name: str
    steps: int
    batch: int
    input_dim: int
    hidden_dim: int

    def operations(self) -> int:
        """Return the needed floating-point operations of one training step."""
        H, K = self.hidden_dim, self.input_dim + self.hidden_dim
        return (2 * 8 * H * K + 8 * H * H) * self.steps * self.batch


ARTICLE = Row("article, online SGD", 10, 1, 3, 5)
ROWS = (ARTICLE, Row("training step", 100, 64, 32, 128), Row("training step", 50, 64, 256, 512))


def data(row: Row, sequences: int, dtype: str) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((sequences, row.steps, row.input_dim)).astype(dtype)
    return X, rng.standard_normal((sequences, 1)).astype(dtype)


def article_ours(updates: int) -> Contestant:
    X, Y = data(ARTICLE, 100, "float64")

    def run() -> float:
        np.random.seed(0)
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            lstm_ext.train_lstm(X, Y, ARTICLE.input_dim, ARTICLE.hidden_dim, 1, epochs=updates // 100)
        return (time.perf_counter() - started) / updates

    return run


def article_oracle(updates: int) -> Contestant:
    X, Y = data(ARTICLE, 100, "float64")

    def run() -> float:
        np.random.seed(0)
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            reference.train_lstm(X[:updates], Y[:updates], ARTICLE.input_dim, ARTICLE.hidden_dim, 1, epochs=1)
        return (time.perf_counter() - started) / updates

    return run


def step_ours(row: Row, updates: int) -> Contestant:
    network = lstm_ext.LSTMNetwork(row.input_dim, row.hidden_dim, 1, seed=0)
    X, Y = data(row, row.batch, "float32")
    optimizer = lstm_ext.SGD(LEARNING_RATE)

    def run() -> float:
        started = time.perf_counter()
        lstm_ext.train(network, X, Y, optimizer=optimizer, batch_size=row.batch, epochs=updates, verbose=False)
        return (time.perf_counter() - started) / updates

    return run


def step_oracle(row: Row, updates: int) -> Contestant:
    network = reference.LSTMNetwork(row.input_dim, row.hidden_dim, 1, seed=0)
    X, Y = data(row, row.batch, "float32")

    def run() -> float:
        started = time.perf_counter()
        for _ in range(updates):
            _, gradient = network.gradient(X, Y)
            network.parameters = network.parameters - LEARNING_RATE * gradient
        return (time.perf_counter() - started) / updates

    return run


def step_torch(row: Row, updates: int, dtype: str) -> Contestant:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(row.input_dim, row.hidden_dim, batch_first=True, dtype=getattr(torch, dtype))
    head = torch.nn.Linear(row.hidden_dim, 1, dtype=getattr(torch, dtype))
    optimizer = torch.optim.SGD([*lstm.parameters(), *head.parameters()], lr=LEARNING_RATE)
    X, Y = (torch.from_numpy(array) for array in data(row, max(row.batch, 100), dtype))

    def run() -> float:
        started = time.perf_counter()
        for n in range(updates):
            first = n * row.batch % (len(X) - row.batch + 1)
            optimizer.zero_grad()
            H, _ = lstm(X[first : first + row.batch])
            loss = torch.nn.functional.mse_loss(head(H[:, -1]), Y[first : first + row.batch])
            loss.backward()
            optimizer.step()
        return (time.perf_counter() - started) / updates

    return run


def fma_peak() -> Contestant | None:
    """Return a contestant that measures seconds for one float32 operation, or None without a C compiler."""
    lanes = {"avx512": 16, "avx2": 8}.get(_kernels.isa(), 4)
    command = [os.environ.get("CC", "cc"), "-O2", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "peak.so"
        command += [f"-DLANES={lanes}", str(Path(__file__).with_name("peak.c")), "-o", str(library)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        multiply_adds = ctypes.CDLL(str(library)).multiply_adds
    multiply_adds.argtypes = [ctypes.c_long]
    repeats = 1_000_000

    def run() -> float:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            multiply_adds(repeats)
            times.append(time.perf_counter() - started)
        return min(times) / (repeats * 16 * lanes * 2)

    return run


def contestants(row: Row, *, quick: bool) -> dict[str, Contestant]:
    if row is ARTICLE:
        result = {"lstm_ext": article_ours(20_000), "oracle": article_oracle(20)}
        with contextlib.suppress(ImportError):
            result["torch"] = step_torch(row, 200, "float64")
    else:
        updates = 3 if quick else 10
        result = {"lstm_ext": step_ours(row, updates)}
        with contextlib.suppress(ImportError):
            result["torch"] = step_torch(row, updates, "float32")
        if not quick:
            result["oracle"] = step_oracle(row, 1)
        if (peak := fma_peak()) is not None:
            result["peak"] = peak
    return result


def measure(row: Row, rounds: int, *, quick: bool) -> dict[str, Any]:
    """Return medians, ratios with quartiles, and the fraction of the peak of one row."""
    runners = contestants(row, quick=quick)
    for runner in runners.values():
        runner()
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            times[name].append(runner())
    ours = times["lstm_ext"]
    result: dict[str, Any] = {"row": row._asdict(), "seconds": {}, "ratio": {}}
    for name in times.keys() - {"peak"}:
        result["seconds"][name] = statistics.median(times[name])
    for name in result["seconds"].keys() - {"lstm_ext"}:
        ratios = [theirs / our for theirs, our in zip(times[name], ours, strict=True)]
        result["ratio"][name] = statistics.quantiles(ratios, n=4)
    if "peak" in times:
        fractions = [row.operations() * op / our for op, our in zip(times["peak"], ours, strict=True)]
        result["peak_gflops"] = 1e-9 / statistics.median(times["peak"])
        result["peak_fraction"] = statistics.quantiles(fractions, n=4)
    return result


def machine() -> dict[str, str]:
    """Return what the figures depend on."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    versions = {"lstm_ext": lstm_ext.__version__, "numpy": np.__version__, "python": platform.python_version()}
    with contextlib.suppress(ImportError):
        import torch

        versions["torch"] = torch.__version__
    return {"cpu": model, "set": _kernels.isa(), "threads": "1", **versions}


def show(result: dict[str, Any]) -> None:
    row = Row(**result["row"])
    sizes = f"(T,B,I,H) = ({row.steps},{row.batch},{row.input_dim},{row.hidden_dim})"
    ours = result["seconds"]["lstm_ext"]
    print(f"\n{row.name} {sizes}: lstm_ext {ours * 1e6:,.1f} us", end="")
    if "peak_fraction" in result:
        low, middle, high = result["peak_fraction"]
        rate = row.operations() / ours * 1e-9
        print(f" = {rate:.1f} GFLOP/s, {middle:.0%} ({low:.0%} to {high:.0%}) of the ", end="")
        print(f"FMA peak {result['peak_gflops']:.1f}", end="")
    print()
    for name in sorted(result["ratio"]):
        low, middle, high = result["ratio"][name]
        seconds = result["seconds"][name]
        print(f"    {name:8} {seconds * 1e6:>12,.1f} us    {middle:8.2f} x ours ({low:.2f} to {high:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, without the oracle's long rows")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    about = machine()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    results = []
    for row in ROWS:
        results.append(measure(row, 3 if options.quick else 9, quick=options.quick))
        show(results[-1])
    if options.json:
        options.json.write_text(json.dumps({"machine": about, "rows": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
