"""Helpers that several test files use."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lstm_ext
from lstm_ext.forecasting.series import find_series

NOT_REAL = [
    np.array([1.0, 2.0, None], dtype=object),
    np.array([1.0, 2.0j, 3.0]),
    np.array(["1", "2", "3"]),
    np.array(["2001-01-01", "NaT"], dtype="datetime64[D]"),
]


def relative_error(actual, expected):
    """Return ||actual - expected|| / ||expected||, or ||actual|| where that is 0."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    return np.linalg.norm(actual - expected) / (np.linalg.norm(expected) or 1)


def assert_close(actual, expected, what="", tolerance=1e-12):
    """Compare norm-wise."""
    error = relative_error(actual, expected)
    assert error <= tolerance, f"{what}: relative error {error}"


def assert_parameters_close(actual, expected, layout, tolerance=1e-12):
    """Compare two flat vectors, each named parameter by itself."""
    assert actual.shape == expected.shape
    for name, (offset, (rows, columns)) in layout.items():
        part = slice(offset, offset + rows * columns)
        assert_close(actual[part], expected[part], name, tolerance)


def python_mse(outputs, targets):
    """Compute mean squared error as a loss written in Python; a list of outputs has a list of targets."""
    if isinstance(outputs, list):
        errors = [y - t for y, t in zip(outputs, targets, strict=True)]
        size = sum(error.size for error in errors)
        return sum(np.sum(error**2) for error in errors) / size, [2 * error / size for error in errors]
    error = outputs - np.asarray(targets).reshape(outputs.shape)
    return np.mean(error**2), 2 * error / error.size


def run_python(*arguments, cwd=None, **environment):
    """Run another Python on the package under test; it may crash."""
    package = {"PYTHONPATH": str(Path(lstm_ext.__file__).parents[1])}
    inherited = {name: value for name, value in os.environ.items() if name != "LSTM_EXT_ISA"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=inherited | package | environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def import_torch():
    """Return PyTorch on one thread: on a busy machine, its threads wait for each other."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return torch


def only(source, *columns, time=None, axis=None):
    """Return the one series of a table without a series column."""
    (found,) = find_series(source, columns or ["y"], time=time, series=None, axis=axis)
    return found
