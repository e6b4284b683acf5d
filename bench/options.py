"""What the options of a network cost when they are on, ragged batches against PyTorch, and checkpoints.

    python bench/options.py    (five minutes; the rows of PyTorch are left out where it is not installed)

A row alternates between what it measures and what that is measured against, on one thread, in bursts of some
milliseconds; a ratio is formed from two neighbours, and shown is the median with its quartiles. "Arithmetic" is the
same ratio of the needed multiply-adds, and "over it" one divided by the other; both also with the activations, which
neither a projection nor coupled gates have fewer of.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import report
from scoreboard import HERE, quartiles

import lstm_ext
from lstm_ext import _epoch
from lstm_ext.options import Architecture
from lstm_ext.training.driver import EVERY_PHASE, PassRunner
from lstm_ext.training.losses import MSE

BURST = 0.005  # seconds, at least
SIZES = ((50, 32, 8, 32), (100, 64, 32, 128))  # T, B, I, H
ACTIVATIONS = 160  # multiply-adds that those of a unit and step, and their derivatives, take as long as
CHECKPOINTS, CHECKPOINT_EVERY = (2000, 8, 8, 64), 45
LONG = """
import time
import numpy as np, lstm_ext
from contestants import status_mb
X = np.random.default_rng(0).standard_normal((1, 100_000, 8), dtype="float32")
network = lstm_ext.LSTMNetwork(8, 64, 1, seed=0)
lstm_ext.train(network, X[:, :10], [[1.0]], epochs=1, verbose=False, num_threads=1)
started, before = time.perf_counter(), status_mb("VmRSS")
lstm_ext.train(network, X, [[1.0]], epochs=1, verbose=False, num_threads=1, memory_budget={budget!r})
print(time.perf_counter() - started, before, status_mb("VmHWM"))
"""

Call = Callable[[], object]


class Rows(NamedTuple):
    """The data of a row: X (B, T, I), Y (B, 1) and, where they differ, the lengths."""

    X: Any
    Y: Any
    lengths: Any = None


def data(T: int, B: int, I: int, lengths: Any = None) -> Rows:
    rng = np.random.default_rng(0)
    return Rows(rng.standard_normal((B, T, I), "float32"), rng.standard_normal((B, 1), "float32"), lengths)


def alternate(ours: Call, other: Call, seconds: float) -> tuple[list[float], list[float]]:
    """Return the seconds of a call of each, taken in turn for so long."""
    count = {call: 1 + int(BURST / min(duration(call, 1) for _ in range(3))) for call in (ours, other)}
    times: dict[Call, list[float]] = {ours: [], other: []}
    started = time.perf_counter()
    while len(times[other]) < 5 or time.perf_counter() - started < seconds:
        for call, values in times.items():
            values.append(duration(call, count[call]))
    return times[ours], times[other]


def duration(call: Call, count: int) -> float:
    """Return the seconds of one of `count` calls."""
    started = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - started) / count


def runner_of(rows: Rows, hidden_dim: int, **options: Any) -> PassRunner:
    """Return what runs the passes of a network with these options."""
    memory = {"recompute_every": options.pop("recompute_every", None)}
    seed = 0 if any("dropout" in name or name == "zoneout" for name in options) else None
    network = lstm_ext.LSTMNetwork(rows.X.shape[2], hidden_dim, 1, seed=0, **options)
    return PassRunner(
        network.parameters,
        network.architecture,
        rows.X,
        rows.Y,
        loss=MSE(),
        optimizer=lstm_ext.SGD(1e-4),
        batch_size=None,
        lengths=rows.lengths,
        dropout_seed=seed,
        **memory,
        num_threads=1,
    )


def step(runner: PassRunner, phases: int = EVERY_PHASE) -> Call:
    """Return one training step, or some phases of it."""
    return lambda: runner.loop.run(0, 1, phases, np.inf)


def training_step(size: tuple[int, ...], input_dim: int | None = None, **options: Any) -> Call:
    """Return a training step of a network with these options, with inputs of another width if one is given."""
    T, B, I, H = size
    return step(runner_of(data(T, B, input_dim or I), H, **options))


def operations(size: tuple[int, ...], **options: Any) -> Any:
    """Return the multiply-adds that a training step needs for each sequence and step, without and with activations."""
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


def compare(label: str, size: tuple[int, ...], ours: Call, plain: Call, arithmetic: Any, seconds: float) -> list[str]:
    """Return the cells of a row about what plain layers are the measure of."""
    times = alternate(ours, plain, seconds)
    ratios = np.divide(*times)
    return [
        label,
        sizes_of(size),
        *(report.duration(quartiles(values)[1]) for values in times),
        report.spread(quartiles(ratios)),
        *(cell for of in arithmetic for cell in (f"{of:.2f}", report.spread(quartiles(ratios / of)))),
    ]


def sizes_of(size: tuple[int, ...]) -> str:
    return f"({','.join(map(str, size))})"


def option_rows(size: tuple[int, ...], seconds: float) -> list[list[str]]:
    """Return the rows of options that are on, against the plain network; of dropout, against two layers without."""
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


def layer_rows(size: tuple[int, ...], seconds: float) -> list[list[str]]:
    """Return the rows of layers and directions, against plain networks of the same input widths, one after the other.

    The arithmetic of layers has what plain networks do not need: the gradients of the inputs of layers above the first.
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
        parts = [training_step(size, width) for width in widths]
        arithmetic = operations(size, **options) / sum(operations((T, B, width, H)) for width in widths)
        rows.append(compare(label, size, training_step(size, **options), in_turn(parts), arithmetic, seconds))
    return rows


def in_turn(calls: list[Call]) -> Call:
    def run() -> None:
        for call in calls:
            call()

    return run


def layer_pass(rows: Rows, hidden_dim: int) -> Call:
    """Return a forward and a backward pass of our layer, with the gradient of every output given."""
    layer = lstm_ext.LSTM(rows.X.shape[2], hidden_dim, seed=0)
    dH = np.ones((*rows.X.shape[:2], hidden_dim), "float32")

    def run() -> None:
        tape = layer.forward(rows.X, lengths=rows.lengths, return_tape=True, num_threads=1)[2]
        layer.backward(tape, dH, num_threads=1)

    return run


def torch_pass(rows: Rows, hidden_dim: int) -> Call:
    """Return the same of PyTorch's layer, with its PackedSequence; dX, which ours has, is not asked for."""
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    layer = torch.nn.LSTM(rows.X.shape[2], hidden_dim)
    X = torch.from_numpy(np.ascontiguousarray(rows.X.swapaxes(0, 1)))
    lengths = torch.from_numpy(rows.lengths)
    dH = torch.ones(int(rows.lengths.sum()), hidden_dim)

    def run() -> None:
        layer.zero_grad()
        layer(pack_padded_sequence(X, lengths, enforce_sorted=False))[0].data.backward(dH)

    return run


def ragged_rows(size: tuple[int, ...], seconds: float) -> list[list[str]]:
    """Return the rows of sequences of different lengths."""
    T, B, I, H = size
    lengths = np.random.default_rng(1).integers(T // 4, T + 1, B)
    full = data(T, B, I)
    rows = []
    for label, some in (("not sorted", lengths), ("sorted", -np.sort(-lengths))):
        ragged = data(T, B, I, some)
        for what, ours, whole in (
            ("layer", layer_pass(ragged, H), layer_pass(full, H)),
            ("network's training step", step(runner_of(ragged, H)), step(runner_of(full, H))),
        ):
            times, of_full = alternate(ours, whole, seconds)
            cells = [f"{what}, {label}", sizes_of(size), report.duration(quartiles(times)[1])]
            cells += [f"{lengths.mean() / T:.2f}", report.spread(quartiles(np.divide(times, of_full)))]
            rows.append([*cells, *against_torch(ours, ragged, H, seconds)])
    return rows


def against_torch(ours: Call, rows: Rows, hidden_dim: int, seconds: float) -> list[str]:
    """Return PyTorch's time and its ratio to ours."""
    try:
        other = torch_pass(rows, hidden_dim)
    except ImportError:
        return ["", ""]
    own, times = alternate(ours, other, seconds)
    return [report.duration(quartiles(times)[1]), report.spread(quartiles(np.divide(times, own)))]


def checkpoint_row(seconds: float) -> list[str]:
    """Return the row of a training step that keeps the activations of some steps only."""
    T, B, I, H = CHECKPOINTS
    kept, whole = (runner_of(data(T, B, I), H, recompute_every=every) for every in (CHECKPOINT_EVERY, None))
    forward = step(whole, _epoch.FORWARD)
    passes: list[float] = []

    def whole_step() -> None:
        passes.append(duration(forward, 1))  # a neighbour of both
        step(whole)()

    with_checkpoints, times = alternate(step(kept), whole_step, 3 * seconds)
    passes = passes[-len(times) :]
    without = np.subtract(times, passes)
    return [
        sizes_of(CHECKPOINTS),
        *(report.duration(quartiles(values)[1]) for values in (with_checkpoints, without, passes)),
        report.spread(quartiles(np.divide(with_checkpoints, without))),
        report.spread(quartiles((np.array(with_checkpoints) - without) / passes)),
        *(f"{runner.stack.bytes / 1e6:.1f} MB" for runner in (kept, whole)),
    ]


def long_row(budget: str) -> list[str]:
    """Return the row of one training step on 100,000 steps, in a process of its own; Linux tells its peak."""
    program = [sys.executable, "-c", LONG.format(budget=budget)]
    seconds, before, peak = map(float, subprocess.check_output(program, text=True, cwd=HERE).split())
    return ["(100000,1,8,64)", budget, report.duration(seconds), f"{peak:.0f} MB", f"{peak - before:.0f} MB"]


def main() -> None:
    """Print a table for every kind of option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each pair of a table")
    seconds = parser.parse_args().seconds
    head = ["", "(T,B,I,H)", "with it", "plain", "ratio", "arithmetic", "over it"]
    head += ["with activations", "over both"]
    show("A training step with an option", head, [row for size in SIZES for row in option_rows(size, seconds)])
    head[2:4] = "a training step", "of plain layers"
    show("Layers and directions", head, [row for size in SIZES for row in layer_rows(size, seconds)])
    head = ["", "(T,B,I,H)", "lstm_ext", "live steps", "ragged / full", "PyTorch", "PyTorch / lstm_ext"]
    rows = [row for size in SIZES for row in ragged_rows(size, seconds)]
    show("Lengths uniform in T/4..T, forward and backward", head, rows)
    head = ["(T,B,I,H)", f"recompute_every={CHECKPOINT_EVERY}", "without", "forward pass", "ratio"]
    head += ["extra, in forward passes", "its memory", "without"]
    show("Checkpoints, a training step", head, [checkpoint_row(seconds)])
    head = ["(T,B,I,H)", "memory_budget", "a training step", "peak of the process", "above what it had"]
    if sys.platform == "linux":
        show("A long sequence", head, [long_row(budget) for budget in ("256MB", "16MB")])


def show(title: str, head: list[str], rows: list[list[str]]) -> None:
    print(f"\n{title}\n\n{report.markdown(head, rows)}", flush=True)


if __name__ == "__main__":
    main()
