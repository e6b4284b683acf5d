"""The scoreboard's reports: a line per row while it runs, Markdown tables, the JSON file and the figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAMES = {
    "torch": "PyTorch",
    "jax": "JAX",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "scipy": "BLAS",
    "oracle": "oracle",
}
OURS, OURS_ON_TWO, AVX2 = "lstm_ext-1", "lstm_ext-2", "lstm_ext-1-avx2"
SUFFIXES = {"epoch": "inside an epoch", "stream": "streamed"}
MARKS = {
    "torch": ("#D55E00", "o"),
    "jax": ("#0072B2", "s"),
    "onnxruntime": ("#009E73", "^"),
    "openvino": ("#CC79A7", "D"),
}


def heading(about: dict[str, Any]) -> str:
    """Return a few lines on the machine, the versions and the instruction sets."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    sets = ", ".join(f"{label} {isa}" for label, isa in about["instruction_sets"].items())
    return (
        f"{about['cpu']}, {about['cpus_used']} CPUs used; {about['date']}, revision {about['revision']}, "
        f"load average {about['load_before']}\n{versions}\ninstruction sets: {sets}\n"
    )


def line(row: dict[str, Any]) -> str:
    """Return one row as text: the time of every contestant, and its ratio to ours."""
    parts = [f"{row['name']}:"]
    for label, figures in row["contestants"].items():
        part = f"{label} {duration(figures['seconds'][1])}"
        if label.startswith("lstm_ext-") and "peak_fraction" in figures:
            part += f" = {figures['gflops']:.1f} GFLOP/s, {percent(figures, 'peak_fraction')} of the peak"
            if "roofline_fraction" in figures:
                part += f", {percent(figures, 'roofline_fraction')} of the roofline"
        if "speed_up" in figures:
            part += f", {spread(figures['speed_up'])} times as fast as on one thread"
        if "ratio" in figures:
            part += f", {spread(figures['ratio'])} times ours"
        parts.append(part)
    for name, unit in (("peak_gflops", "GFLOP/s peak (float32)"), ("bandwidth_gb_per_second", "GB/s from L2")):
        if name in row:
            parts.append(f"{row[name][1]:.0f} {unit}")
    return "\n    ".join(parts)


def duration(seconds: float) -> str:
    """Return a time with three digits, in s, ms or us."""
    for unit, factor in (("us", 1e6), ("ms", 1e3), ("s", 1.0)):
        value = seconds * factor
        if value < 999.5 or unit == "s":
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    raise AssertionError


def percent(figures: dict[str, Any], key: str) -> str:
    return f"{figures[key][1]:.0%}" if key in figures else ""


def spread(ratio: list[float]) -> str:
    """Return a median and its quartiles."""
    low, middle, high = (f"{value:.2f}" if value < 9.995 else f"{value:,.0f}" for value in ratio)
    return f"{middle} ({low}-{high})"


def title(row: dict[str, Any]) -> str:
    """Return the row's sizes, with its task and dtype if they are unusual."""
    sizes = ",".join(str(row[key]) for key in ("steps", "batch", "input_dim", "hidden_dim"))
    unusual = [SUFFIXES.get(row["task"], ""), row["dtype"] if row["dtype"] != "float32" else ""]
    return ", ".join([f"({sizes})", *filter(None, unusual)])


def tables(record: dict[str, Any]) -> str:
    """Return the Markdown tables: training, inference, and memory."""
    training = [row for row in record["rows"] if row["task"] in ("epoch", "train")]
    inference = [row for row in record["rows"] if row["task"] in ("infer", "stream")]
    blocks = [table("training", training), table("inference", inference), memory_table(training)]
    return "\n\n".join(block for block in blocks if block)


def table(kind: str, rows: list[dict[str, Any]]) -> str:
    """Return one table: our time and its share of the peak, the peers' times, and the same on two threads.

    A peer's cell is its time divided by ours on the same number of threads.
    """
    rows = [row for row in rows if OURS in row["contestants"]]
    if not rows:
        return ""
    present = {label for row in rows for label in row["contestants"]}
    singles = [label for label in (AVX2, *(f"{peer}-1" for peer in NAMES)) if label in present]
    head = [f"{kind}, (T,B,I,H)", "lstm_ext", "of the peak (roofline)"]
    head += ["its AVX2" if label == AVX2 else NAMES[label[:-2]] for label in singles]
    head += ["lstm_ext, 2 threads (speed-up)", "fastest peer, 2 threads"] * (OURS_ON_TWO in present)
    lines = []
    for row in rows:
        entrants = row["contestants"]
        ours = entrants[OURS]
        fractions = f"{percent(ours, 'peak_fraction')} ({percent(ours, 'roofline_fraction')})"
        cells = [title(row), duration(ours["seconds"][1]), fractions if "roofline_fraction" in ours else ""]
        cells += [spread(entrants[label]["ratio"]) if label in entrants else "" for label in singles]
        cells += two_threads(entrants) if OURS_ON_TWO in present else []
        lines.append(cells)
    return markdown(head, lines)


def two_threads(entrants: dict[str, Any]) -> list[str]:
    """Return the cells of two threads: our time and speed-up, and the fastest peer's time divided by ours."""
    if OURS_ON_TWO not in entrants:
        return ["", ""]
    ours = entrants[OURS_ON_TWO]
    cell = f"{duration(ours['seconds'][1])}, {spread(ours['speed_up'])}"
    peers = [label for label in entrants if label.endswith("-2") and label != OURS_ON_TWO]
    if not peers:
        return [cell, ""]
    fastest = min(peers, key=lambda label: float(entrants[label]["seconds"][1]))
    return [cell, f"{NAMES[fastest[:-2]]} {spread(entrants[fastest]['ratio'])}"]


def memory_table(rows: list[dict[str, Any]]) -> str:
    """Return the peak memory of training beyond data and parameters, and the value of lstm_ext's formula."""
    peers = {OURS: "lstm_ext", "torch-1": "PyTorch", "jax-1": "JAX"}
    rows = [row for row in rows if row["contestants"].get(OURS, {}).get("memory_mb") is not None]
    if not rows:
        return ""
    head = ["peak memory of training beyond data and parameters, MB", "lstm_ext's formula", *peers.values()]
    lines = []
    for row in rows:
        given, formula = (row[key] / 2**20 for key in ("given_bytes", "training_bytes"))
        taken = [row["contestants"].get(label, {}).get("memory_mb") for label in peers]
        beyond = [None if mb is None else mb - given for mb in taken]
        cells = ["" if mb is None else f"{mb:.{2 if mb < 10 else 1 if mb < 100 else 0}f}" for mb in [formula, *beyond]]
        lines.append([title(row), *cells])
    return markdown(head, lines)


def markdown(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *lines])


def write(record: dict[str, Any], folder: Path) -> None:
    """Write latest.json, and latest.svg if matplotlib is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "latest.json").write_text(json.dumps(record, indent=1) + "\n")
    try:
        draw(record, folder / "latest.svg")
    except ImportError:
        print("no figure: matplotlib is not installed")
    print(f"\nwritten to {folder}")


def matplotlib_for_files() -> tuple[Any, Any]:
    """Return matplotlib and its pyplot, set up for reproducible files."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": "lstm_ext", "font.size": 9, "svg.fonttype": "none"})
    return matplotlib, plt


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure to a file and close it."""
    import matplotlib.pyplot as plt

    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)
    plt.close(figure)


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw each peer's time divided by ours on the same number of threads, in panels for training and inference."""
    matplotlib, plt = matplotlib_for_files()
    groups = {"training": ("epoch", "train"), "inference": ("infer", "stream")}
    panels = {
        panel: [row for row in record["rows"] if row["task"] in tasks and OURS in row["contestants"]]
        for panel, tasks in groups.items()
    }
    panels = {panel: rows for panel, rows in panels.items() if rows}
    longest = max(map(len, panels.values()))
    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 1.4 + 0.5 * longest), squeeze=False)
    handles: dict[str, Any] = {}
    for axis, (panel, rows) in zip(axes[0], panels.items(), strict=True):
        for y, row in enumerate(rows):
            drawn = [
                label for label, figures in row["contestants"].items() if label[:-2] in MARKS and "ratio" in figures
            ]
            for n, label in enumerate(drawn):
                low, middle, high = row["contestants"][label]["ratio"]
                colour, marker = MARKS[label[:-2]]
                single = label.endswith("-1")
                height = y + (n - (len(drawn) - 1) / 2) * 0.1
                handle = axis.errorbar(
                    middle,
                    height,
                    xerr=[[middle - low], [high - middle]],
                    color=colour,
                    marker=marker,
                    markersize=5.5,
                    markerfacecolor=colour if single else "white",
                    linestyle="none",
                    elinewidth=1,
                )
                handles.setdefault(f"{NAMES[label[:-2]]}, {'1 thread' if single else '2 threads'}", handle)
        axis.axvline(1, color="black", linewidth=1)
        axis.set_xscale("log")
        axis.set_yticks(range(len(rows)), [title(row).replace(", ", "\n") for row in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        for y in range(1, len(rows), 2):
            axis.axhspan(y - 0.5, y + 0.5, color="0.95", zorder=0)
        axis.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axis.grid(axis="x", alpha=0.3)
        axis.set_title(panel)
        axis.set_xlabel(
            "peer's time / lstm_ext's on the same number of threads\n(right of the line lstm_ext is faster)"
        )
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=4, frameon=False)
    figure.tight_layout(rect=(0, 0.5 / (1.4 + 0.5 * longest), 1, 1))
    save_figure(figure, path)
