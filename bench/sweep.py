"""How the time per sequence grows with each size, to find cliffs.

    python bench/sweep.py            (below four minutes; writes sweep.json and sweep.svg to bench/results/)
    python bench/sweep.py --quick    (half a minute: every third size, two rounds)

One size varies at a time, from 1 up. Training updates (within an epoch) and inference are timed on one thread and, if
there are more CPUs, on two, in rounds over all sizes. The minimum over all rounds counts, so another process must
disturb a size in every round to be seen. The program reports sizes at which a larger size takes less time, and steps to
the next size that cost more than their arithmetic.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import report
from rows import Row
from scoreboard import HERE, available_cpus, system

import lstm_ext

EDGES = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # sizes that fill vectors, tiles and panels
SIZES = {
    "hidden_dim": (*range(1, 7), 8, 10, 12, 13, 20, 24, 40, 56, 80, 100, 112, 160, 224, 320, 448, 500, 640, 800, 896),
    "batch": (*range(1, 21), 24, 40, 56, 80, 112, 160, 224),
    "input_dim": (*range(1, 10), 12, 13, 20, 24, 40, 80, 100, 160, 224, 320),
    "steps": (*range(1, 10), 12, 20, 25, 50, 80, 100, 200, 320, 500, 700, 1000, 1400, 2000),
}
LARGEST = {"hidden_dim": 1024, "batch": 256, "input_dim": 512, "steps": 2000}
SYMBOLS = {"steps": "T", "batch": "B", "input_dim": "I", "hidden_dim": "H"}
TASKS = {"train": "training", "infer": "inference"}
CHEAPER, STEEPER = 1.1, 1.25  # ratios above which a cliff is reported


class Sweep(NamedTuple):
    """The name of the size that varies, and the other sizes; the one that varies has no value of its own."""

    over: str
    steps: int = 0
    batch: int = 0
    input_dim: int = 0
    hidden_dim: int = 0

    def sizes(self, stride: int) -> list[int]:
        """Return every `stride`-th of the sizes in order."""
        near = {edge + d for edge in EDGES for d in (-1, 0, 1)} if self.over != "steps" else set(EDGES)
        return sorted(size for size in near | {*SIZES[self.over]} if size <= LARGEST[self.over])[::stride]

    def row(self, task: str, size: int) -> Row:
        sizes = {name: getattr(self, name) for name in SYMBOLS} | {self.over: size}
        return Row(task, **sizes)

    @property
    def fixed(self) -> str:
        """The other sizes, such as T = 16, B = 20, I = 8."""
        return ", ".join(f"{symbol} = {getattr(self, name)}" for name, symbol in SYMBOLS.items() if name != self.over)


SWEEPS = (
    Sweep("hidden_dim", steps=50, batch=1, input_dim=8),
    Sweep("hidden_dim", steps=20, batch=4, input_dim=8),
    Sweep("hidden_dim", steps=16, batch=20, input_dim=8),
    Sweep("hidden_dim", steps=8, batch=64, input_dim=8),
    Sweep("batch", steps=16, input_dim=8, hidden_dim=13),
    Sweep("batch", steps=16, input_dim=8, hidden_dim=32),
    Sweep("batch", steps=16, input_dim=32, hidden_dim=128),
    Sweep("input_dim", steps=16, batch=32, hidden_dim=32),
    Sweep("input_dim", steps=16, batch=32, hidden_dim=128),
    Sweep("steps", batch=1, input_dim=16, hidden_dim=64),
    Sweep("steps", batch=32, input_dim=8, hidden_dim=32),
    Sweep("steps", batch=20, input_dim=16, hidden_dim=100),
)


class Curve(NamedTuple):
    """The minimum seconds of one update, or of one batch's inference, at every size."""

    sweep: Sweep
    task: str
    threads: int
    sizes: list[int]
    seconds: list[float]

    @property
    def operations(self) -> list[int]:
        """The required floating-point operations at every size."""
        return [self.sweep.row(self.task, size).operations() for size in self.sizes]

    @property
    def name(self) -> str:
        """The curve's name in the printed tables."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{TASKS[self.task]}, {self.sweep.fixed}, {threads}"


def timer(row: Row) -> Callable[[float], float]:
    """Return a function that runs for `slot` seconds, or two iterations, and returns the minimum seconds of one."""
    rng = np.random.default_rng(0)
    batches = max(1, min(500, int(2e7) // row.operations())) if row.trains else 1  # a long epoch: its overhead is small
    X = rng.standard_normal((batches * row.batch, row.steps, row.input_dim), np.float32)
    Y = rng.standard_normal((len(X), 1), np.float32)
    network = lstm_ext.LSTMNetwork(row.input_dim, row.hidden_dim, 1, init="reference")
    bound = row.hidden_dim**-0.5
    network.parameters = rng.uniform(-bound, bound, network.parameters.shape)

    def update(slot: float) -> float:
        history = lstm_ext.train(
            network,
            X,
            Y,
            optimizer=lstm_ext.SGD(1e-3),
            batch_size=row.batch,
            epochs=1_000_000,
            shuffle=False,
            verbose=False,
            callbacks=[lambda _, history: len(history.seconds) > 1 and sum(history.seconds) > slot],
        )
        return min(history.seconds[1:]) / batches

    def infer(slot: float) -> float:
        ends = [time.perf_counter()]
        while len(ends) < 3 or ends[-1] - ends[0] < slot:
            network.predict(X)
            ends.append(time.perf_counter())
        return float(np.diff(ends).min())

    return update if row.trains else infer


def measure(sweep: Sweep, threads: Sequence[int], *, stride: int, rounds: int, slot: float) -> list[Curve]:
    """Time one sweep; each round times every size, task and number of threads once.

    Cliffs found in the first half of the rounds are timed again in the second half, because on a noisy machine a few
    sizes are slow by chance.
    """
    sizes = sweep.sizes(stride)
    timers = {(task, size): timer(sweep.row(task, size)) for size in sizes for task in TASKS}
    best = {(task, n, size): math.inf for task, size in timers for n in threads}
    chosen = list(best)
    for n_round in range(2 * rounds):
        for task, n, size in chosen:
            lstm_ext.set_num_threads(n)
            best[task, n, size] = min(best[task, n, size], timers[task, size](slot))
        curves = [
            Curve(sweep, task, n, sizes, [best[task, n, size] for size in sizes]) for task in TASKS for n in threads
        ]
        if n_round >= rounds - 1:
            cliffs = [cliff for curve in curves for cliff in bargains(curve) + steep_steps(curve)]
            chosen = [(curve.task, curve.threads, size) for curve, *pair, _ in cliffs for size in pair]
    return curves


class Cliff(NamedTuple):
    """Two sizes of a curve, and the ratio of the time at the slower one to the expected time."""

    curve: Curve
    smaller: int
    larger: int
    excess: float


def bargains(curve: Curve) -> list[Cliff]:
    """Return the sizes at which a larger size takes less time, so that padding would pay."""
    found, cheapest = [], len(curve.sizes) - 1
    for n in reversed(range(len(curve.sizes))):
        if curve.seconds[n] < curve.seconds[cheapest]:
            cheapest = n
        found.append(Cliff(curve, curve.sizes[n], curve.sizes[cheapest], curve.seconds[n] / curve.seconds[cheapest]))
    return [cliff for cliff in found if cliff.excess > CHEAPER]


def steep_steps(curve: Curve) -> list[Cliff]:
    """Return the steps to the next size that raise the time more than the arithmetic."""
    rates = np.divide(curve.operations, curve.seconds)
    drops = rates[:-1] / rates[1:]
    pairs = zip(curve.sizes[:-1], curve.sizes[1:], drops, strict=True)
    return [Cliff(curve, a, b, float(drop)) for a, b, drop in pairs if drop > STEEPER]


def tables(curves: list[Curve], max_rows: int = 15) -> str:
    """Return the largest cliffs of both kinds as Markdown tables."""
    kinds = (
        (bargains, f"a larger size is faster by more than {CHEAPER - 1:.0%}", "time / the larger size's"),
        (steep_steps, f"a step costs over {STEEPER - 1:.0%} more than its arithmetic", "time / expected"),
    )
    blocks = []
    for search, title, excess in kinds:
        found = sorted((cliff for curve in curves for cliff in search(curve)), key=lambda cliff: -cliff.excess)
        lines = [
            [f"{SYMBOLS[curve.sweep.over]} = {a} and {b}", curve.name, f"{excess:.2f}"]
            for curve, a, b, excess in found[:max_rows]
        ]
        blocks.append(f"{title}: {len(found)}")
        blocks += [report.markdown(["sizes", "curve", excess], lines)] if found else []
    return "\n\n".join(blocks)


def write(record: dict[str, Any], curves: list[Curve], folder: Path) -> None:
    """Write sweep.json, and sweep.svg if matplotlib is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = [
        curve._asdict() | {"sweep": curve.sweep._asdict(), "seconds": [float(f"{s:.4g}") for s in curve.seconds]}
        for curve in curves
    ]
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    (folder / "sweep.json").write_text(f'{{"machine": {json.dumps(record)},\n"curves": [\n{lines}\n]}}\n')
    try:
        draw(curves, folder / "sweep.svg")
    except ImportError:
        print("no figure: matplotlib is not installed")
    print(f"\nwritten to {folder}")


def draw(curves: list[Curve], path: Path) -> None:
    """Draw the speed at every size, with a row of panels for each size that varies."""
    matplotlib, plt = report.matplotlib_for_files()
    overs = list(dict.fromkeys(curve.sweep.over for curve in curves))
    figure, axes = plt.subplots(len(overs), 2, figsize=(11, 3.4 * len(overs)), squeeze=False, sharey="row")
    for curve in curves:
        axis = axes[overs.index(curve.sweep.over), list(TASKS).index(curve.task)]
        among = [sweep for sweep in SWEEPS if sweep.over == curve.sweep.over]
        axis.plot(
            curve.sizes,
            np.divide(curve.operations, curve.seconds) * 1e-9,
            color=f"C{among.index(curve.sweep)}",
            linestyle="-" if curve.threads == 1 else "--",
            linewidth=1,
            marker=".",
            markersize=3,
            label=curve.sweep.fixed if curve.threads == 1 else None,
        )
        axis.set_title(TASKS[curve.task])
        axis.set_xlabel(SYMBOLS[curve.sweep.over])
    for axis in axes.flat:
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        for set_formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            set_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("required GFLOP/s\n(one thread; dashed: two)")
        axis.legend(fontsize=8)
    figure.tight_layout()
    report.save_figure(figure, path)


def main() -> None:
    """Run the sweeps that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="every third size, two rounds")
    parser.add_argument("--over", nargs="+", choices=list(SIZES), default=list(SIZES), help="sizes to vary")
    parser.add_argument("--output", type=Path, help="folder for the results (default: bench/results after a full run)")
    options = parser.parse_args()
    threads = (1, 2) if len(available_cpus()) > 1 else (1,)
    settings: dict[str, Any] = {"stride": 1, "rounds": 5, "slot": 0.003}
    settings |= {"stride": 3, "rounds": 2} if options.quick else {}
    started, about = time.perf_counter(), system() | settings
    curves: list[Curve] = []
    for sweep in (sweep for sweep in SWEEPS if sweep.over in options.over):
        begun = time.perf_counter()
        curves += measure(sweep, threads, **settings)
        print(f"{SYMBOLS[sweep.over]} at {sweep.fixed}: {time.perf_counter() - begun:.0f} s", flush=True)
    print("\n" + tables(curves))
    full = not options.quick and options.over == list(SIZES)
    output = options.output or (HERE / "results" if full else None)
    if output is not None:
        write(about, curves, output)
    print(f"\n{(time.perf_counter() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
