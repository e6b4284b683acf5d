"""The oracle's optimizers: each returns the parameters after an update, and the state, () before the first update."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
State = tuple[Any, ...]


def sgd(p: Array, g: Array, state: State, *, learning_rate: float, momentum: float = 0.0) -> tuple[Array, State]:
    """Gradient descent: v = momentum v + g;  p = p - learning_rate v."""
    (v,) = state or (0.0,)
    v = momentum * v + g
    return p - learning_rate * v, (v,)


def adam(
    p: Array,
    g: Array,
    state: State,
    *,
    learning_rate: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
) -> tuple[Array, State]:
    """Kingma and Ba 2015, algorithm 1; the powers of beta are products, because the settings may change."""
    m, v, power1, power2 = state or (0.0, 0.0, 1.0, 1.0)
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
    power1, power2 = power1 * beta1, power2 * beta2
    m_hat, v_hat = m / (1 - power1), v / (1 - power2)
    return p - learning_rate * m_hat / (np.sqrt(v_hat) + epsilon), (m, v, power1, power2)


OPTIMIZERS = {"sgd": sgd, "adam": adam}
