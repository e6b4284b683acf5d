"""The oracle's losses: their values and gradients for rows of outputs and targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Loss(NamedTuple):
    """A loss.

    Attributes
    ----------
    value_and_gradient : callable
        A function of the outputs (n, O) and the targets, which returns the mean loss and its derivative (n, O).
    takes_labels : bool
        Whether the targets are integer classes (n,), not numbers (n, O).
    """

    value_and_gradient: Callable[[Array, Array], tuple[Any, Array]]
    takes_labels: bool = False


def mse(y: Array, Y: Array) -> tuple[Any, Array]:
    """Mean of (y - Y)^2 over all elements."""
    error = y - Y
    return np.mean(error**2), 2 * error / error.size


def mae(y: Array, Y: Array) -> tuple[Any, Array]:
    """Mean of |y - Y| over all elements; the sign is that of the real part, so that the result stays analytic."""
    error = y - Y
    sign = np.sign(error.real).astype(error.dtype)
    return np.mean(sign * error), sign / error.size


def cross_entropy(y: Array, classes: Array) -> tuple[Any, Array]:
    """Mean of -log softmax(y)[class] over the rows."""
    shifted = y - y.real.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    one_hot = np.eye(y.shape[-1], dtype=y.dtype)[classes]
    return -np.sum(one_hot * log_p) / classes.size, (np.exp(log_p) - one_hot) / classes.size


LOSSES = {"mse": Loss(mse), "mae": Loss(mae), "cross_entropy": Loss(cross_entropy, takes_labels=True)}
