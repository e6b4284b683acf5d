"""What the options of a network cost, ragged batches compared with PyTorch, and memory saved by recomputation.

    python bench/options.py    (five minutes; without PyTorch, its columns are empty)

The two sides of a row alternate on one thread, in bursts of some milliseconds. A ratio is formed from neighbouring
bursts; the tables show the median ratio and its quartiles. "Arithmetic" is the ratio of the required multiply-adds, and
"over it" is the measured ratio divided by that. The last two columns also count the activations, which neither a
projection nor coupled gates reduce.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import report
from scoreboard import HERE, quartiles

import lstm_ext
from lstm_ext.options import Architecture

BURST = 0.005  # minimum seconds
SIZES = ((50, 32, 8, 32), (100, 64, 32, 128))  # T, B, I, H
ACTIVATIONS = 160  # multiply-adds that take as long as the activations of a unit and step, with their derivatives
LONG_SEQUENCES = (2000, 8, 8, 64), 45  # sizes, and recompute_every
PEAK = """
import time
import numpy as np, lstm_ext
from contestants import status_mb
X = np.random.default_rng(0).standard_normal(({B}, {T}, {I}), dtype="float32")
Y = np.ones(({B}, 1))
network = lstm_ext.LSTMNetwork({I}, {H}, 1, seed=0)
how = {{"epochs": 1, "verbose": False, "num_threads": 1}}
lstm_ext.train(network, X[:, :10], Y, **how)
started, before = time.perf_counter(), status_mb("VmRSS")
lstm_ext.train(network, X, Y, **how, **{memory!r})
print(time.perf_counter() - started, before, status_mb("VmHWM"))
"""

Size: TypeAlias = tuple[int, int, int, int]
Timer: TypeAlias = Callable[[int], float]
"""Returns the seconds of one iteration, the mean of some."""


def alternate(ours: Timer, other: Timer, seconds: float) -> tuple[list[float], list[float]]:
    """Return the seconds of an iteration of each; bursts of both alternate for `seconds` seconds."""
    counts = {timer: 1 + int(BURST / min(timer(1) for _ in range(3))) for timer in (ours, other)}
    times: dict[Timer, list[float]] = {ours: [], other: []}
    started = time.perf_counter()
    while len(times[other]) < 5 or time.perf_counter() - started < seconds:
        for timer, values in times.items():
            values.append(timer(counts[timer]))
    return times[ours], times[other]


def calls(call: Callable[[], object]) -> Timer:
    """Return a timer of calls."""

    def seconds(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - started) / count

    return seconds


def training_step(size: Size, *, lengths: Any = None, recompute_every: int | None = None, **options: Any) -> Timer:
    """Return a timer of training steps of a network with these options."""
    T, B, I, H = size
    X, Y = data(T, B, I)
    network = lstm_ext.LSTMNetwork(I, H, 1, seed=0, **options)

    def seconds(count: int) -> float:
        history = lstm_ext.train(
            network,
            X,
            Y,
            optimizer=lstm_ext.SGD(1e-4),
            batch_size=B,  # an epoch is one step; the first one warms the caches
            epochs=1 + count,
            shuffle=False,
            lengths=lengths,
            recompute_every=recompute_every,
            verbose=False,
            num_threads=1,
        )
        return float(np.mean(history.seconds[1:]))

    return seconds


def data(T: int, B: int, I: int) -> tuple[Any, Any]:
    """Return X (B, T, I) and Y (B, 1)."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((B, T, I), "float32"), rng.standard_normal((B, 1), "float32")


def operations(size: Size, **options: Any) -> Any:
    """Return the multiply-adds that a training step needs per sequence and step, without and with activations."""
    _, _, I, H = size
    of = Architecture(I, H, 1, lstm_ext.options.Options(**options))
    total, GH, R = 0, of.gates * H, of.state_dim
    for cell in of.cells:
        total += GH * (2 * (R + cell.input_dim) + R)  # z, dW, and dh
        total += GH * cell.input_dim if cell.layer > 0 else 0  # dX
        total += 3 * R * H if R < H else 0
        total += 3 * (GH - H) if of.options.peephole else 0
        total += 3 * (2 * GH + H) if of.options.layer_norm else 0  # gains
    return np.array([total, total + len(of.cells) * H * ACTIVATIONS])


def compare(label: str, size: Size, ours: Timer, plain: Timer, arithmetic: Any, seconds: float) -> list[str]:
    """Return a table row that compares a network with options to plain ones."""
    times = alternate(ours, plain, seconds)
    ratios = np.divide(*times)
    return [
        label,
        sizes_of(size),
        *(report.duration(quartiles(values)[1]) for values in times),
        report.spread(quartiles(ratios)),
        *(cell for of in arithmetic for cell in (f"{of:.2f}", report.spread(quartiles(ratios / of)))),
    ]


def sizes_of(size: Size) -> str:
    return f"({','.join(map(str, size))})"


def option_rows(size: Size, seconds: float) -> list[list[str]]:
    """Return the rows of single options, compared with the plain network; dropout with two layers without it."""
    plain, half = training_step(size), size[3] // 2
    stacked = training_step(size, num_layers=2)
    rows = []
    for label, options in (
        ("peephole", {"peephole": True}),
        (f"proj_size={half}", {"proj_size": half}),
        ("coupled_gates", {"coupled_gates": True}),
        ("layer_norm", {"layer_norm": True}),
        ("zoneout=0.1", {"zoneout": 0.1}),
        ("recurrent_dropout=0.2", {"recurrent_dropout": 0.2}),
        ("weight_dropout=0.2", {"weight_dropout": 0.2}),
        ("cell_clip=3", {"cell_clip": 3}),
        ("hard_sigmoid, relu", {"gate_activation": "hard_sigmoid", "cell_activation": "relu"}),
    ):
        arithmetic = operations(size, **options) / operations(size)
        rows.append(compare(label, size, training_step(size, **options), plain, arithmetic, seconds))
    dropped = training_step(size, num_layers=2, dropout=0.2)
    rows.append(compare("dropout=0.2, 2 layers", size, dropped, stacked, (1, 1), seconds))
    return rows


def layer_rows(size: Size, seconds: float) -> list[list[str]]:
    """Return the rows of layers and directions, compared with plain networks of the same input widths in sequence.

    Unlike the plain networks, layers above the first also need the gradients of their inputs.
    """
    T, B, I, H = size
    rows = []
    for label, options, widths in (
        ("2 layers", {"num_layers": 2}, (I, H)),
        ("3 layers", {"num_layers": 3}, (I, H, H)),
        ("bidirectional sum", {"bidirectional": "sum"}, (I, I)),
        ("bidirectional concat", {"bidirectional": "concat"}, (I, I)),
        ("2 layers, concat", {"num_layers": 2, "bidirectional": "concat"}, (I, I, 2 * H, 2 * H)),
    ):
        plain = [training_step((T, B, width, H)) for width in widths]
        arithmetic = operations(size, **options) / sum(operations((T, B, width, H)) for width in widths)
        rows.append(compare(label, size, training_step(size, **options), in_sequence(plain), arithmetic, seconds))
    return rows


def in_sequence(timers: list[Timer]) -> Timer:
    """Return a timer of one iteration of each."""
    return lambda count: sum(timer(count) for timer in timers)


def layer_pass(size: Size, lengths: Any = None) -> Timer:
    """Return a timer of a forward and a backward pass of our layer, given the gradient of every output."""
    T, B, I, H = size
    X, _ = data(T, B, I)
    layer = lstm_ext.LSTM(I, H, seed=0)
    dH = np.ones((B, T, H), "float32")

    def run() -> None:
        tape = layer.forward(X, lengths=lengths, return_tape=True, num_threads=1)[2]
        layer.backward(tape, dH, num_threads=1)

    return calls(run)


def torch_pass(size: Size, lengths: Any) -> Timer:
    """Return the same for PyTorch's layer and a PackedSequence; PyTorch is not asked for dX, which ours computes."""
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    T, B, I, H = size
    layer = torch.nn.LSTM(I, H)
    X = torch.from_numpy(np.ascontiguousarray(data(T, B, I)[0].swapaxes(0, 1)))
    lengths = torch.from_numpy(lengths)
    dH = torch.ones(int(lengths.sum()), H)

    def run() -> None:
        layer.zero_grad()
        layer(pack_padded_sequence(X, lengths, enforce_sorted=False))[0].data.backward(dH)

    return calls(run)


def ragged_rows(size: Size, seconds: float) -> list[list[str]]:
    """Return the rows of sequences of different lengths."""
    T, B, _, _ = size
    lengths = np.random.default_rng(1).integers(T // 4, T + 1, B)
    rows = []
    for order, some in (("not sorted", lengths), ("sorted", -np.sort(-lengths))):
        for what, ours, full in (
            ("layer", layer_pass(size, some), layer_pass(size)),
            ("network's training step", training_step(size, lengths=some), training_step(size)),
        ):
            times, of_full = alternate(ours, full, seconds)
            cells = [f"{what}, {order}", sizes_of(size), report.duration(quartiles(times)[1])]
            cells += [f"{lengths.mean() / T:.2f}", report.spread(quartiles(np.divide(times, of_full)))]
            rows.append([*cells, *against_torch(ours, size, some, seconds)])
    return rows


def against_torch(ours: Timer, size: Size, lengths: Any, seconds: float) -> list[str]:
    """Return PyTorch's time and its ratio to ours."""
    try:
        other = torch_pass(size, lengths)
    except ImportError:
        return ["", ""]
    own, times = alternate(ours, other, seconds)
    return [report.duration(quartiles(times)[1]), report.spread(quartiles(np.divide(times, own)))]


def recompute_row(seconds: float) -> list[str]:
    """Return the row of a training step that keeps the activations of a few steps and recomputes the others."""
    size, every = LONG_SEQUENCES
    times = alternate(training_step(size, recompute_every=every), training_step(size), 3 * seconds)
    memory = [f"{peak_of(size, **how)[2]:.0f} MB" for how in ({"recompute_every": every}, {})]
    durations = [report.duration(quartiles(values)[1]) for values in times]
    return [sizes_of(size), *durations, report.spread(quartiles(np.divide(*times))), *memory]


def budget_row(budget: str) -> list[str]:
    """Return the row of one training step on a sequence of 100,000 steps."""
    size = (100_000, 1, 8, 64)
    seconds, peak, added = peak_of(size, memory_budget=budget)
    return [sizes_of(size), budget, report.duration(seconds), f"{peak:.0f} MB", f"{added:.0f} MB"]


def peak_of(size: Size, **memory: Any) -> tuple[float, float, float]:
    """Run a training step in another process (Linux).

    Returns its seconds, the process's peak memory in MB, and how much of that the step added.
    """
    program = PEAK.format(**dict(zip("TBIH", size, strict=True)), memory=memory)
    command = [sys.executable, "-c", program]
    seconds, before, peak = map(float, subprocess.check_output(command, text=True, cwd=HERE).split())
    return seconds, peak, peak - before


def main() -> None:
    """Print a table for every kind of option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds for each pair of a table")
    seconds = parser.parse_args().seconds
    head = ["", "(T,B,I,H)", "with it", "plain", "ratio", "arithmetic", "over it"]
    head += ["with activations", "over both"]
    show("A training step with an option", head, [row for size in SIZES for row in option_rows(size, seconds)])
    head[2:4] = "a training step", "of plain layers"
    show("Layers and directions", head, [row for size in SIZES for row in layer_rows(size, seconds)])
    head = ["", "(T,B,I,H)", "lstm_ext", "live steps", "ragged / full", "PyTorch", "PyTorch / lstm_ext"]
    rows = [row for size in SIZES for row in ragged_rows(size, seconds)]
    show("Lengths uniform in T/4..T, forward and backward", head, rows)
    if sys.platform == "linux":
        head = ["(T,B,I,H)", f"recompute_every={LONG_SEQUENCES[1]}", "without", "ratio", "its memory", "without"]
        show("Recomputation, a training step", head, [recompute_row(seconds)])
        head = ["(T,B,I,H)", "memory_budget", "a training step", "peak of the process", "added by the step"]
        show("A long sequence", head, [budget_row(budget) for budget in ("256MB", "16MB")])


def show(title: str, head: list[str], rows: list[list[str]]) -> None:
    print(f"\n{title}\n\n{report.markdown(head, rows)}", flush=True)


if __name__ == "__main__":
    main()
