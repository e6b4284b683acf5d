"""Reports of the command line on tables, trainings and models: data for JSON (`describe_*`), and lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from lstm_ext._kernels import isa
from lstm_ext.forecasting.evaluation import Evaluation
from lstm_ext.forecasting.forecaster import Fit, Forecaster
from lstm_ext.forecasting.series import Series, gap_lengths
from lstm_ext.network import Model
from lstm_ext.options import SIZES
from lstm_ext.threads import get_num_threads

_MAX_VALUES = 8  # in a list that is printed in full
_MAX_SERIES = 10  # that are printed one by one


def describe_fit(forecaster: Forecaster, fit: Fit) -> dict[str, Any]:
    """Return the training's windows and epochs, and where the training rows end."""
    return {"trained_before": forecaster.trained_before, "windows": fit.examples, "epochs": fit.epochs}


def describe_series(series: Series) -> dict[str, Any]:
    """Return the rows, times and gaps of a series."""
    first, last = (str(series.times(row)) for row in (0, len(series.values) - 1))
    gaps = {name: gap_lengths(column) for name, column in zip(series.columns, series.values.T, strict=True)}
    return {
        "series": series.name,
        "rows": len(series.values),
        "step": series.axis.describe_step(),
        "first": first,
        "last": last,
        "missing": {name: int(lengths.sum()) for name, lengths in gaps.items()},
        "longest_gap": {name: int(lengths.max(initial=0)) for name, lengths in gaps.items()},
    }


def describe_evaluation(forecaster: Forecaster, evaluation: Evaluation) -> dict[str, Any]:
    """Return the errors of each model, over all observations and by steps ahead."""
    by_step = evaluation.rmse_by_step()
    return {
        "target": forecaster.target,
        "horizon": forecaster.horizon,
        "origins": len(evaluation.origins),
        "first_origin": str(evaluation.origins.min()),
        "last_origin": str(evaluation.origins.max()),
        "rmse": evaluation.rmse(),
        "mae": evaluation.mae(),
        "rmse_by_step": {name: [None if np.isnan(x) else x for x in errors] for name, errors in by_step.items()},
    }


def describe_model(model: Model) -> dict[str, Any]:
    """Return the contents of a model file, with the shapes of its weights."""
    network = model.network
    return {
        "architecture": {name: getattr(network, name) for name in (*SIZES, "readout")},
        "options": network.options.changed(),
        "dtype": network.dtype.name,
        "parameters": {name: weight.shape for name, weight in network.named_parameters().items()},
        "scaler": None if model.scaler is None else model.scaler.to_dict(),
        "details": model.details,
    }


def table_lines(table: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of `describe_series` of every series."""
    for one in table[:_MAX_SERIES]:
        name = f"{one['series']}: " if one["series"] else ""
        yield f"{name}{one['rows']} rows, steps of {one['step']}, from {one['first']} to {one['last']}"
        for column, missing in one["missing"].items():
            if missing:
                yield f"  {column}: {missing} missing, at most {one['longest_gap'][column]} in a row"
    if len(table) > _MAX_SERIES:
        yield f"and {len(table) - _MAX_SERIES} more series"


def fit_lines(report: dict[str, Any], seconds: float) -> Iterator[str]:
    """Yield the line of `describe_fit`, with the time that both trainings took."""
    ends = set(report["trained_before"].values())
    before = f" before {ends.pop()}" if len(ends) == 1 else ""
    threads = get_num_threads()
    yield (
        f"trained on {_count(report['windows'], 'window')}{before} for {_count(report['epochs'], 'epoch')}; "
        f"{seconds:.2f} s in total "
        f"({isa()}, {'one thread' if threads == 1 else f'up to {threads} threads'})"
    )


def evaluation_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of `describe_evaluation`."""
    steps, rows = _count(report["horizon"], "step"), _count(report["origins"], "row")
    yield f"{steps} ahead from {rows}, {report['first_origin']} to {report['last_origin']}:"
    for name, error in report["rmse"].items():
        yield f"  {name:26} RMSE {error:.4g}, mean absolute error {report['mae'][name]:.4g}"
    ours = report["rmse"]["LSTM"]
    for name, error in report["rmse"].items():
        if name != "LSTM" and error > 0:
            yield f"  the LSTM is {abs(1 - ours / error):.0%} {'better' if ours < error else 'WORSE'} than {name}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def outline(part: Any, depth: int = 0) -> Iterator[str]:
    """Yield JSON data as indented lines; a long list is replaced by its length, and a missing name left out."""
    items = part.items() if isinstance(part, dict) else enumerate(part, 1)
    for key, value in items:
        if isinstance(value, dict) and [*value] == [""]:  # of the only series of a table, which has no name
            value = value[""]
        if value == "":
            continue
        nested = isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict))
        long = isinstance(value, list) and len(value) > _MAX_VALUES
        indent = "  " * depth
        if long:
            yield f"{indent}{key}: {len(value)} values"
        elif nested:
            yield f"{indent}{key}:"
            yield from outline(value, depth + 1)
        else:
            yield f"{indent}{key}: {value:.6g}" if isinstance(value, float) else f"{indent}{key}: {value}"
