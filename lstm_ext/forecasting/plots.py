"""The picture of an evaluation. This module needs matplotlib."""

from __future__ import annotations

from typing import Any, BinaryIO, cast

import matplotlib
import numpy as np

from lstm_ext.forecasting.evaluation import Evaluation
from lstm_ext.forecasting.forecaster import Forecaster
from lstm_ext.forecasting.series import Series

FORMATS = ("png", "svg", "pdf")


def draw_evaluation(
    file: BinaryIO, file_format: str, forecaster: Forecaster, series: Series, evaluation: Evaluation
) -> None:
    """Draw the forecasts of one series over its observations, and the errors of all series by steps ahead.

    Parameters
    ----------
    file : binary file
    file_format : {"png", "svg", "pdf"}
    forecaster : Forecaster
    series : Series
        One of those evaluated.
    evaluation : Evaluation
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: Any = {"date.converter": "concise", "svg.hashsalt": "lstm_ext", "text.parse_math": False}
    with matplotlib.rc_context(style):
        figure, (above, below) = pyplot.subplots(2, 1, figsize=(9, 7), height_ratios=(3, 2), layout="constrained")
        _draw_forecasts(above, forecaster, series, evaluation)
        _draw_errors(below, evaluation)
        undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(file_format)  # reproducible files
        figure.savefig(file, format=file_format, dpi=120, metadata=undated)
        pyplot.close(figure)


def _draw_forecasts(axes: matplotlib.axes.Axes, forecaster: Forecaster, series: Series, evaluation: Evaluation) -> None:
    chosen = np.flatnonzero(evaluation.series == series.name)
    rows = np.searchsorted(series.times(np.arange(len(series.values))), evaluation.origins[chosen])
    first = max(0, rows[0] - max(2 * forecaster.window, forecaster.horizon))
    recent = np.arange(first, len(series.values))
    axes.plot(series.times(recent), series.values[recent, 0], color="0.6", linewidth=2, label="observed")
    forecast = evaluation.forecasts["LSTM"][chosen]
    if forecaster.horizon == 1:
        axes.plot(series.times(rows + 1), forecast[:, 0], color="C0", linewidth=1, label="forecast, one step ahead")
    else:
        next_free, number = rows[0], 0
        for n, row in enumerate(rows):
            if row >= next_free:
                label = f"forecast, {forecaster.horizon} steps from one origin" if number == 0 else None
                ahead = series.times(row + 1 + np.arange(forecaster.horizon))
                axes.plot(ahead, forecast[n], color=f"C{number % 2}", linewidth=1, label=label)
                next_free, number = row + forecaster.horizon, number + 1
    axes.axvline(cast(float, series.times(rows[0])), color="0.3", linestyle=":", linewidth=1)
    axes.set(ylabel=forecaster.target, title=f"{series.name or forecaster.target}: observations and held-out forecasts")
    axes.legend(loc="upper left")


def _draw_errors(axes: matplotlib.axes.Axes, evaluation: Evaluation) -> None:
    errors = evaluation.rmse()
    for position, (name, by_step) in enumerate(evaluation.rmse_by_step().items()):
        label = f"{name} ({errors[name]:.3g})"
        if len(by_step) == 1:
            axes.barh(position, by_step, label=label)
        else:
            axes.plot(np.arange(1, len(by_step) + 1), by_step, label=label)
    if evaluation.observed.shape[1] == 1:
        axes.set(xlabel="RMSE", yticks=[])
    else:
        axes.set(xlabel="steps ahead", ylabel="RMSE", ylim=(0, None))
    axes.legend()
