"""Optimizers. SGD and Adam run in compiled code; any object with `update(parameters, gradient)` runs from Python.

An optimizer keeps its state from one call of `train` to the next, so training goes on where it stopped; use a new one
for a new network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from lstm_ext import _epoch, _kernels
from lstm_ext._threads import Sole
from lstm_ext.checks import Array, as_number, as_shape
from lstm_ext.threads import thread_count


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
        """Raise ValueError if settings or state do not fit the parameters; change nothing.

        Parameters
        ----------
        parameters : ndarray (n,)
            Those to be updated.

        Raises
        ------
        ValueError
            If their dtype cannot hold the settings, or the state is of others.
        """
        with np.errstate(over="ignore"):
            settings = self.settings.astype(parameters.dtype)
        if not np.isfinite(settings).all() or (self._rows == 2 and settings[-1] == 0):
            raise ValueError(
                f"optimizer has the settings {self.settings.tolist()}; expected numbers that {parameters.dtype} holds, "
                "an epsilon above 0 among them"
            )
        kept = self.moments
        if kept is not None and kept.size and (kept.dtype, kept.shape[1]) != (parameters.dtype, parameters.size):
            raise ValueError(
                f"optimizer holds the state of {kept.shape[1]} {kept.dtype} parameters; expected "
                f"{parameters.size} {parameters.dtype}: use a new optimizer for a new network"
            )

    def state(self, parameters: Array) -> Array:
        """Return the moments, zero at first.

        Parameters
        ----------
        parameters : ndarray (n,)
            Those to be updated.

        Returns
        -------
        ndarray (rows, n)
            One row for each moment, changed in place by the updates.
        """
        if self.moments is None or self.moments.dtype != parameters.dtype:
            self.moments = np.zeros((self._rows, parameters.size), parameters.dtype)
        return self.moments

    def update(self, parameters: Array, gradient: Array) -> None:
        """Make one update, for models built on `LSTM`; `train` makes its own in the compiled loop.

        Parameters
        ----------
        parameters : ndarray (n,)
            Contiguous; changed in place.
        gradient : array_like (n,)
            Of the loss, with respect to `parameters`.

        Raises
        ------
        TypeError, ValueError
            If an argument is not as above, or the optimizer holds the state of other parameters.
        RuntimeError
            If another thread is updating or training with the optimizer; nothing has changed then.
        """
        if parameters.ndim != 1 or not parameters.flags.c_contiguous:
            raise ValueError(f"parameters has shape {parameters.shape}; expected a contiguous vector")
        gradient = as_shape("gradient", gradient, parameters.dtype, parameters.shape)
        threads = thread_count(None)
        with Sole(self, "optimizer is being used by another call; expected one at a time", nests=True):
            self.check(parameters)
            moments = self.state(parameters)
            _epoch.update_parameters(
                _kernels.current(), threads, self.settings, self.powers, moments, parameters, gradient
            )


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
    learning_rate : float
        Above or equal to 0.
    beta1, beta2 : float
        Decay rates in [0, 1).
    epsilon : float
        Above 0.
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


OPTIMIZERS: dict[str, Callable[[], Optimizer]] = {"sgd": SGD, "adam": Adam}


def is_compiled(optimizer: Any) -> TypeGuard[SGD | Adam]:
    """Return whether an optimizer's updates run in the compiled loop; a subclass's do not."""
    return type(optimizer) in (SGD, Adam)


def as_optimizer(optimizer: str | Optimizer) -> Optimizer:
    """Return an optimizer given by name (with its defaults) or as an object."""
    if isinstance(optimizer, str) and optimizer in OPTIMIZERS:
        return OPTIMIZERS[optimizer]()
    if not isinstance(optimizer, (str, type, Mapping)) and callable(getattr(optimizer, "update", None)):
        return optimizer
    raise ValueError(
        f"optimizer is {optimizer!r}; expected one of {', '.join(map(repr, OPTIMIZERS))}, or an object with update()"
    )
