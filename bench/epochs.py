"""The overhead of whole calls of `train` over the training steps in them.

    python bench/epochs.py    (a minute)

The steps alone are one compiled run over all batches in a shuffled order, prepared beforehand. `train` also checks and
lays out its data, draws an order for each epoch, returns to Python twenty times a second, and checks the parameters.
The two alternate. A ratio is formed from neighbouring runs; the table shows the median ratio and its quartiles.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import report
from scoreboard import quartiles

import lstm_ext
from lstm_ext.training.driver import EVERY_PHASE, PassRunner

EPOCHS, ROUNDS = 5, 15


class Job(NamedTuple):
    """The sizes of a data set and of its network."""

    name: str
    sequences: int
    steps: int
    input_dim: int
    hidden_dim: int
    output_dim: int
    batch: int


JOBS = (
    Job("the CO2 job", 1320, 52, 3, 32, 52, 64),
    Job("10,000 sequences", 10_000, 10, 3, 5, 1, 1),
    Job("10,000 sequences", 10_000, 10, 3, 5, 1, 32),
    Job("10,000 sequences", 10_000, 50, 8, 32, 1, 32),
)


def measure(job: Job) -> tuple[list[float], list[float]]:
    """Return the seconds of an epoch in calls of `train`, and those of its steps alone."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((job.sequences, job.steps, job.input_dim)).astype("float32")
    Y = rng.standard_normal((job.sequences, job.output_dim)).astype("float32")
    sizes = job.input_dim, job.hidden_dim, job.output_dim
    network, other = (lstm_ext.LSTMNetwork(*sizes, seed=0) for _ in range(2))
    runner = PassRunner(other._setup("mse", job.batch, 1), X, Y, optimizer=lstm_ext.Adam())
    runner.set_order(rng.permutation(job.sequences))
    whole, steps = [], []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        lstm_ext.train(network, X, Y, batch_size=job.batch, epochs=EPOCHS, seed=0, verbose=False, num_threads=1)
        middle = time.perf_counter()
        for _ in range(EPOCHS):
            runner.loop.run(0, runner.batches.passes, EVERY_PHASE, np.inf)
        whole.append((middle - started) / EPOCHS)
        steps.append((time.perf_counter() - middle) / EPOCHS)
    return whole, steps


def main() -> None:
    """Print a line for every job."""
    lines = []
    for job in JOBS:
        whole, steps = measure(job)
        sizes = f"({job.steps},{job.batch},{job.input_dim},{job.hidden_dim})"
        seconds = (report.duration(quartiles(values)[1]) for values in (whole, steps))
        lines.append([job.name, sizes, *seconds, report.spread(quartiles(np.divide(whole, steps)))])
    print(report.markdown(["", "(T,B,I,H)", "an epoch of `train`", "its steps", "ratio"], lines))


if __name__ == "__main__":
    main()
