"""The speed of lstm_ext on one and on two threads while other processes keep the CPUs busy.

    python bench/neighbours.py    (below two minutes; prints a Markdown table)

A neighbour is a process with an endless loop. No process is pinned to a CPU. Bursts on one thread and on two alternate
in one process; they are longer than the scheduler's time slices. A ratio is formed from two consecutive bursts.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import report
from contestants import Ours
from rows import Row
from scoreboard import quartiles

import lstm_ext

SIZES = ((50, 32, 8, 32), (100, 64, 32, 128), (200, 32, 64, 256))
NEIGHBOURS = (0, 1, 2)
BURST = 0.4  # seconds: longer than the scheduler's time slices and the rests of helper threads
SPIN = "import time\nend = time.time() + {}\nwhile time.time() < end: pass"


@contextlib.contextmanager
def neighbours(count: int, seconds: float) -> Iterator[None]:
    """Keep `count` processes busy within the block; they end by themselves after `seconds` seconds."""
    processes = [subprocess.Popen([sys.executable, "-c", SPIN.format(seconds)]) for _ in range(count)]
    time.sleep(0.2)  # until they have started
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(row: Row, seconds: float) -> tuple[list[float], list[float]]:
    """Return the seconds of an iteration in bursts on one thread and on two, which alternate for `seconds` seconds."""
    ours = Ours(row, 1)
    count = 1 + int(BURST / ours.seconds(1))
    bursts: dict[int, list[float]] = {1: [], 2: []}
    started = time.perf_counter()
    while len(bursts[1]) < 3 or time.perf_counter() - started < seconds:
        for threads, values in bursts.items():
            lstm_ext.set_num_threads(threads)
            values.append(ours.seconds(count))
    return bursts[1], bursts[2]


def cells(one: list[float], two: list[float]) -> list[str]:
    """Return the median, quartiles and maximum of both times, and of their ratio."""
    ratios = np.divide(two, one)
    return [*(times(values) for values in (one, two)), f"{report.spread(quartiles(ratios))}, {max(ratios):.2f}"]


def times(seconds: list[float]) -> str:
    low, middle, high = (report.duration(value) for value in quartiles(seconds))
    return f"{middle} ({low}-{high}), {report.duration(max(seconds))}"


def main() -> None:
    """Print a line for every size, task and number of neighbours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds for each line of the table")
    options = parser.parse_args()
    rows = [Row(task, *sizes) for task in ("train", "infer") for sizes in SIZES]
    lines = []
    for count in NEIGHBOURS:
        with neighbours(count, 60 + 2 * len(rows) * options.seconds):
            for row in rows:
                one, two = measure(row, options.seconds)
                lines.append([row.task, report.title(row._asdict()), str(count), *cells(one, two)])
    head = ["", "(T,B,I,H)", "neighbours", "one thread: median (quartiles), maximum", "two threads", "two / one"]
    print(report.markdown(head, sorted(lines, key=lambda line: [row.task for row in rows].index(line[0]))))


if __name__ == "__main__":
    main()
