"""Optimizers. SGD and Adam run in compiled code; any object with `update(parameters, gradient)` runs from Python.

An optimizer keeps its state from one call of `train` to the next, so training goes on where it stopped; use a new one
for a new network.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lstm_ext.checks import Array, as_number


@runtime_checkable
class Optimizer(Protocol):
    """What `train` asks of an optimizer written in Python."""

    def update(self, parameters: Array, gradient: Array) -> None:
        """Change the flat `parameters` in place, given the (clipped) gradient of the same layout."""


class _Compiled:
    """The state of a compiled optimizer: moments (rows, parameters) and the running powers of its decay rates."""

    settings: NDArray[np.float64]
    _rows: int

    def __init__(self) -> None:
        self.powers = np.ones(2)
        self.moments: Array | None = None

    def check(self, parameters: Array) -> None:
        """Raise ValueError if the state belongs to parameters of another number or dtype."""
        if self.moments is None:
            return
        kept = self.moments
        if kept.dtype != parameters.dtype or (self._rows and kept.shape[1] != parameters.size):
            raise ValueError(
                f"optimizer holds the state of {kept.shape[1]} {kept.dtype} parameters; expected "
                f"{parameters.size} {parameters.dtype}: use a new optimizer for a new network"
            )

    def state(self, parameters: Array) -> Array:
        """Return the moments, zero at first."""
        if self.moments is None:
            self.moments = np.zeros((self._rows, parameters.size), parameters.dtype)
        return self.moments


class SGD(_Compiled):
    """Stochastic gradient descent with momentum.

    v = momentum * v + g;  p = p - learning_rate * v   (as in PyTorch).

    Parameters
    ----------
    learning_rate : float
        Above or equal to 0.
    momentum : float
        In [0, 1).
    """

    def __init__(self, learning_rate: float = 0.01, momentum: float = 0.0) -> None:
        super().__init__()
        self.settings = np.array(
            [
                as_number("learning_rate", learning_rate, low=0),
                as_number("momentum", momentum, low=0, high=1),
            ]
        )
        self._rows = 1 if self.settings[1] > 0 else 0


class Adam(_Compiled):
    """Adam (Kingma and Ba 2015, algorithm 1, epsilon outside the bias-corrected root).

    m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
    p = p - learning_rate * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon).

    Parameters
    ----------
    learning_rate, epsilon : float
        Above or equal to 0.
    beta1, beta2 : float
        Decay rates in [0, 1).
    """

    _rows = 2

    def __init__(
        self, learning_rate: float = 0.001, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8
    ) -> None:
        super().__init__()
        self.settings = np.array(
            [
                as_number("learning_rate", learning_rate, low=0),
                as_number("beta1", beta1, low=0, high=1),
                as_number("beta2", beta2, low=0, high=1),
                as_number("epsilon", epsilon, low=0),
            ]
        )


OPTIMIZERS = {"sgd": SGD, "adam": Adam}


def as_optimizer(optimizer: str | Optimizer | SGD | Adam) -> Optimizer | SGD | Adam:
    """Return an optimizer given by name (with its defaults) or as an object."""
    if isinstance(optimizer, str) and optimizer in OPTIMIZERS:
        return SGD() if optimizer == "sgd" else Adam()
    if isinstance(optimizer, (SGD, Adam)) or (
        not isinstance(optimizer, (str, type)) and isinstance(optimizer, Optimizer)
    ):
        return optimizer
    raise ValueError(
        f"optimizer is {optimizer!r}; expected one of {', '.join(map(repr, OPTIMIZERS))}, or an object with update()"
    )
