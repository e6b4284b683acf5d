"""The training program of the article "Implementing a Long Short-Term Memory from Scratch in Python"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lstm_ext.checks import Array, as_column, as_size, as_targets, check_length
from lstm_ext.network import LSTMNetwork
from lstm_ext.sequences import Sequences
from lstm_ext.threads import thread_count
from lstm_ext.training.driver import PassRunner
from lstm_ext.training.losses import MSE
from lstm_ext.training.optimizers import SGD


def train_lstm(
    X: Sequence[ArrayLike] | np.ndarray[Any, Any],
    Y: Sequence[ArrayLike] | np.ndarray[Any, Any],
    input_dim: int,
    hidden_dim: int,
    output_dim: int,
    learning_rate: float = 0.01,
    epochs: int = 100,
    *,
    num_threads: int | None = None,
) -> LSTMNetwork:
    """Train as the article's program does: float64, its initial weights, one SGD update for each sequence in order.

    Parameters
    ----------
    X : array_like (N, T, input_dim), or a sequence of arrays (T_n, input_dim)
        The sequences; their lengths may differ.
    Y : sequence of array_like (output_dim, 1) or (output_dim,)
        The target of each sequence's last output; the loss is ``mean((outputs[-1] - Y[i])**2)``. If output_dim is 1,
        also an array (N,).
    input_dim, hidden_dim, output_dim : int
        The network's sizes, at least 1.
    learning_rate : float
        At least 0.
    epochs : int
        Number of passes through the data, at least 1.
    num_threads : int, optional
        Maximum number of threads (default: see `set_num_threads`).

    Returns
    -------
    LSTMNetwork
        The trained network. Each epoch prints its mean loss.

    Raises
    ------
    NonFiniteError
        If a loss, a gradient or the result of an update is NaN or infinite.
    TypeError, ValueError
        If an argument is not as above.
    """
    epochs, output_dim = as_size("epochs", epochs), as_size("output_dim", output_dim)
    num_threads = thread_count(num_threads)
    sizes = as_size("input_dim", input_dim), as_size("hidden_dim", hidden_dim), output_dim
    optimizer = SGD(learning_rate)
    sequences = Sequences(X, sizes[0], np.dtype(np.float64))
    targets = _article_targets(Y, len(sequences), output_dim)
    network = LSTMNetwork(*sizes, dtype="float64", init="reference")  # last: it draws from NumPy's global generator
    runner = PassRunner(network._setup(MSE(), 1, num_threads), sequences, targets, optimizer=optimizer)
    for epoch in range(epochs):
        runner.run_epoch(epoch, epochs, lambda _: None)
        print(f"Epoch {epoch + 1}/{epochs}, Loss: {runner.mean_loss()}")
    return network


def _article_targets(Y: Any, N: int, output_dim: int) -> Array:
    """Return Y, an array or a sequence of columns (output_dim, 1) or vectors, as float64 (N, output_dim)."""
    dtype = np.dtype(np.float64)
    if isinstance(Y, (np.ndarray, memoryview)):
        Y = np.asarray(Y)
        return as_targets("Y", Y[:, :, 0] if Y.ndim == 3 and Y.shape[2] == 1 else Y, dtype, (N,), output_dim)
    check_length("Y", Y, N)
    return np.stack([as_column(f"Y[{n}]", y, dtype, output_dim)[:, 0] for n, y in enumerate(Y)])
