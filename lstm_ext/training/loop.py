"""The training loop: `train` and its `History`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from lstm_ext._threads import ExclusiveUse
from lstm_ext.checks import (
    Data,
    NonFiniteError,
    as_flag,
    as_positive,
    as_seed,
    as_size,
    make_generator,
    short_repr,
)
from lstm_ext.network import LSTMNetwork
from lstm_ext.options import hinting
from lstm_ext.parameters import check_weights
from lstm_ext.training.callbacks import as_callbacks, run_callbacks
from lstm_ext.training.driver import PassRunner, Setup
from lstm_ext.training.losses import CompiledLoss, Loss
from lstm_ext.training.memory import as_memory
from lstm_ext.training.optimizers import Optimizer, as_optimizer
from lstm_ext.training.progress import showing_progress


@dataclass
class History:
    """What `train` recorded, one entry for each epoch.

    Attributes
    ----------
    loss : list of float
        The mean of the batches' losses, each taken before its update and weighted by the batch's number of outputs: of
        sequences, or with readout "steps" of live steps. If each of these losses is a mean over its outputs, this is
        the mean over the epoch. A loss in Python that leaves outputs out is weighted by all of them.
    validation_loss : list of float
        The mean loss over the validation data after the epoch; empty without them.
    seconds : list of float
        The epoch's training time.
    """

    loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


_VALIDATION = "validation_data: "  # the prefix of errors about these data

Callback: TypeAlias = Callable[[LSTMNetwork, History], bool | None]
"""Called after each epoch. True stops training; None or False goes on."""


@hinting
def train(
    network: LSTMNetwork,
    X: Data,
    Y: Data,
    *,
    loss: str | CompiledLoss | Loss = "mse",
    optimizer: str | Optimizer = "adam",
    batch_size: int = 32,
    epochs: int = 10,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    tbptt: int | None = None,
    clip_norm: float | None = None,
    validation_data: tuple[Any, Any] | Mapping[str, Any] | None = None,
    shuffle: bool = True,
    seed: int | None = None,
    verbose: bool = True,
    callbacks: Iterable[Callback] = (),
    recompute_every: int | None = None,
    memory_budget: int | str | None = None,
    num_threads: int | None = None,
) -> History:
    """Train a network in place.

    Every sequence starts from zero states, or from learned ones. The same seed gives the same bits. Ctrl-C leaves the
    network as it was after the last whole update.

    Parameters
    ----------
    network : LSTMNetwork
        Its parameters are changed in place.
    X : array_like (N, T, input_dim), or a list of arrays (T_n, input_dim)
        The sequences. Only their live steps cost work. A C-contiguous X or Y of the network's dtype is not copied.
        Memory-mapped arrays are checked for NaN and Inf batch by batch during the first epoch.
    Y : array_like
        One target for each sequence (N, output_dim). With the network's readout "steps", one for each step: an array
        (N, T, output_dim), where the padding may hold anything, or a list of arrays (T_n, output_dim). If output_dim
        is 1, the last axis may be left out. For `CrossEntropy`, integer classes (N,) or (N, T). Without a head,
        output_dim is the width of the top layer's outputs. For a loss in Python, any object with one entry for each
        sequence.
    loss : str, or an object
        A compiled loss by its name, as "mse", or as an object; or a callable. `lstm_ext.training.losses.Loss` describes
        the callable, and `lstm_ext.check_gradient` checks its gradient.
    optimizer : str, or an object
        A name, as "adam", gives a compiled optimizer its default settings. `lstm_ext.training.optimizers.Optimizer`
        describes an object of your own.
    batch_size, epochs : int
        The last batch of an epoch may be smaller.
    lengths : array_like of int (N,), optional
        Number of live steps of each sequence in a padded X.
    mask : array_like of bool (N, T), optional
        True for the live steps of X. The other steps are skipped, including their inputs. For missing targets, use a
        loss that leaves them out instead, as in docs/guide/sequences.md, "Missing targets".
    tbptt : int, optional
        Truncated backpropagation through time: run every batch in chunks of `tbptt` steps, with an update after each.
        States are carried from chunk to chunk; gradients are not. With readout "last", a chunk in which no sequence
        ends makes no update. The network must run forwards, and its readout must be "last" or "steps".
    clip_norm : float, optional
        Maximum norm of the gradient, above 0. A gradient with a larger norm is scaled down to it.
    validation_data : tuple (X, Y), or mapping, optional
        Data whose loss is computed after every epoch. A mapping has the keys ``"X"`` and ``"Y"`` and, for padded data,
        ``"lengths"`` or ``"mask"``.
    shuffle : bool
        Whether to draw a new order of the sequences for each epoch.
    seed : int, optional
        Seed of the shuffling and the dropout masks (below 2**64 with dropout). The same seed repeats the same order
        and masks, so pass another one to continue a training.
    verbose : bool
        Show the progress and the losses on stderr: a progress bar on a terminal with tqdm; otherwise at most one line a
        second, and always one for the last epoch.
    callbacks : iterable of callable
        Each is called as ``callback(network, history)`` after every epoch. True stops training; None or False goes on.
        If a callback changes the optimizer's settings, the next epoch uses them.
    recompute_every : int, optional
        For long sequences: keep the activations of only this number of steps at a time and compute the others again
        during the backward pass. The results are the same to the bit.
    memory_budget : int or str, optional
        Maximum size of the passes' arrays, in bytes or with a unit, such as "256MB" or "1.5GiB". The largest
        `recompute_every` that fits is chosen.
    num_threads : int, optional
        Maximum number of threads (default: see `set_num_threads`). It does not change the bits of the results.

    Returns
    -------
    History
        The losses and the time of every epoch.

    Raises
    ------
    NonFiniteError
        If a loss, a gradient or the result of an update is NaN or infinite. The error names the epoch and the batch.
        The parameters, and the state of `SGD` and `Adam`, are as before that update.
    RuntimeError
        If another call, for example in another thread, is training the network or using the optimizer. Nothing is
        changed.
    TypeError, ValueError
        If an argument is not as above, or a weight of the network is NaN or infinite. Nothing is changed. If a
        memory-mapped X or Y holds NaN or Inf, the network is as it was after the last update before that batch.
    """
    if not isinstance(network, LSTMNetwork):
        raise TypeError(f"network is {short_repr(network)}; expected an LSTMNetwork")
    check_weights(network.parameters, network.architecture)
    epochs, optimizer = as_size("epochs", epochs), as_optimizer(optimizer)
    shuffle, verbose = as_flag("shuffle", shuffle), as_flag("verbose", verbose)
    rng = make_generator(seed)
    callbacks = as_callbacks(callbacks)
    setup = network._setup(loss, as_size("batch_size", batch_size), num_threads)
    if network.architecture.draws_masks:
        dropout_seed = as_seed("seed", seed) if seed is not None else int(rng.integers(2**64, dtype=np.uint64))
    else:
        dropout_seed = None
    runner = PassRunner(
        setup,
        X,
        Y,
        lengths=lengths,
        mask=mask,
        optimizer=optimizer,
        clip_norm=math.inf if clip_norm is None else as_positive("clip_norm", clip_norm),
        dropout_seed=dropout_seed,
        tbptt=None if tbptt is None else as_size("tbptt", tbptt),
        memory=as_memory(recompute_every, memory_budget),
    )
    validation = None if validation_data is None else _validation_runner(setup, validation_data)

    history = History()
    with (
        ExclusiveUse(network, "network is being trained by another call; expected one at a time: train a copy of it"),
        ExclusiveUse(
            optimizer, "optimizer is being used by another call; expected one at a time: use one for each training"
        ),
        showing_progress(epochs, runner.batches.count, verbose=verbose) as progress,
    ):
        for epoch in range(epochs):
            if shuffle:
                runner.set_order(rng.permutation(len(runner.sequences)))
            started = time.perf_counter()
            runner.run_epoch(epoch, epochs, progress.advance)
            history.seconds.append(time.perf_counter() - started)
            history.loss.append(runner.mean_loss())
            if validation is not None:
                history.validation_loss.append(_validation_loss(validation, epoch, epochs))
            progress.end_epoch(history.loss[-1], history.validation_loss[-1] if validation is not None else None)
            if run_callbacks(callbacks, network, history):
                break
    return history


def _validation_runner(setup: Setup, data: Any) -> PassRunner:
    if not isinstance(data, Mapping):
        try:
            X, Y = data
        except (TypeError, ValueError, NotImplementedError):  # the latter from a memoryview
            raise TypeError("validation_data is not a pair; expected (X, Y), or a mapping") from None
        data = {"X": X, "Y": Y}
    elif not {"X", "Y"} <= data.keys() <= {"X", "Y", "lengths", "mask"}:
        raise ValueError(f"validation_data has the keys {list(data)}; expected 'X', 'Y', and maybe 'lengths' or 'mask'")
    try:
        return PassRunner(setup, **data, forward_only=True, prefix=_VALIDATION)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{_VALIDATION}{error}") from None


def _validation_loss(runner: PassRunner, epoch: int, epochs: int) -> float:
    try:
        return runner.evaluate()
    except NonFiniteError as error:
        raise NonFiniteError(f"{_VALIDATION}{error} after epoch {epoch + 1} of {epochs}", error.step) from None
