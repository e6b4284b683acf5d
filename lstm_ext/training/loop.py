"""Training: `train`, and the article's `train_lstm`."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypedDict

import numpy as np
from numpy.typing import ArrayLike

from lstm_ext._threads import ExclusiveUse
from lstm_ext.checks import (
    Array,
    Data,
    NonFiniteError,
    as_column,
    as_flag,
    as_positive,
    as_seed,
    as_size,
    as_targets,
    check_length,
    make_generator,
    short_repr,
)
from lstm_ext.network import LSTMNetwork
from lstm_ext.options import hinting
from lstm_ext.parameters import check_weights
from lstm_ext.sequences import Sequences
from lstm_ext.threads import thread_count
from lstm_ext.training.losses import MSE, CompiledLoss, Loss, as_loss
from lstm_ext.training.optimizers import SGD, Optimizer, as_optimizer
from lstm_ext.training.plan import Plan, as_memory, draws_masks


@dataclass
class History:
    """What `train` saw, one entry for each epoch.

    Attributes
    ----------
    loss : list of float
        The mean of the batches' losses, each taken before its update and weighted by the batch's number of outputs: of
        sequences, or for ``target="steps"`` of live steps. If each of these losses is a mean over its outputs, this is
        the mean over the epoch. A loss in Python that leaves outputs out is weighted by all of them.
    validation_loss : list of float
        The mean loss over the validation data after the epoch; empty without them.
    seconds : list of float
        The epoch's training time.
    """

    loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class _Common(TypedDict):
    """The arguments of `Plan` that a training and its validation share."""

    target: str
    loss: CompiledLoss | Loss
    batch_size: int
    num_threads: int | None
    isa: int


_VALIDATION = "validation_data: "  # put before errors about these data

Callback: TypeAlias = Callable[[LSTMNetwork, History], bool | None]
"""Called after each epoch. True stops training; None or False goes on."""


@hinting
def train(
    network: LSTMNetwork,
    X: Data,
    Y: Data,
    *,
    target: str = "last",
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
        One target for each sequence (N, output_dim). For ``target="steps"``, one for each step: an array
        (N, T, output_dim), where the padding may hold anything, or a list of arrays (T_n, output_dim). If output_dim
        is 1, the last axis may be left out. For cross-entropy, integer classes (N,) or (N, T). Without a head,
        output_dim is the width of the top layer's outputs. For a loss in Python, any object with one entry for each
        sequence.
    target : {"last", "steps", "mean", "max"}
        What the head is applied to: the top layer's last h; its output at every live step, with `go_backwards` in the
        order of the run; or the mean or the maximum of each of its outputs over the live steps.
    loss : {"mse", "cross_entropy"}, or a callable
        `lstm_ext.training.losses.Loss` describes the callable, and `lstm_ext.check_gradient` checks its gradient.
    optimizer : {"adam", "sgd"}, or an object
        A name gives the optimizer its default settings. `lstm_ext.training.optimizers.Optimizer` describes the object.
    batch_size, epochs : int
        The last batch of an epoch may be smaller.
    lengths : array_like of int (N,), optional
        Number of live steps of each sequence in a padded X.
    mask : array_like of bool (N, T), optional
        True for the live steps of X. The other steps are skipped, including their inputs. For missing targets, use a
        loss that leaves them out instead, as in docs/layers.md, "Missing targets".
    tbptt : int, optional
        Truncated backpropagation through time: run every batch in chunks of `tbptt` steps, with an update after each.
        States are carried from chunk to chunk; gradients are not. For ``target="last"``, a chunk in which no sequence
        ends makes no update. The network must run forwards, and `target` must be "last" or "steps".
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
    common: _Common = {
        "target": target,
        "loss": as_loss(loss),
        "batch_size": as_size("batch_size", batch_size),
        "num_threads": num_threads,
        "isa": network._isa_in_use(),
    }
    if draws_masks(network.options):
        dropout_seed = as_seed("seed", seed) if seed is not None else int(rng.integers(2**64, dtype=np.uint64))
    else:
        dropout_seed = None
    plan = Plan(
        network.parameters,
        network.architecture,
        X,
        Y,
        lengths=lengths,
        mask=mask,
        dropout_seed=dropout_seed,
        tbptt=None if tbptt is None else as_size("tbptt", tbptt),
        **as_memory(recompute_every, memory_budget),
        optimizer=optimizer,
        clip_norm=math.inf if clip_norm is None else as_positive("clip_norm", clip_norm),
        **common,
    )
    validation = None
    if validation_data is not None:
        validation = _validation_plan(network, validation_data, common)

    history = History()
    with (
        ExclusiveUse(network, "network is being trained by another call; expected one at a time: train a copy of it"),
        ExclusiveUse(
            optimizer, "optimizer is being used by another call; expected one at a time: use one for each training"
        ),
        _progress(epochs, plan.batches, verbose) as progress,
    ):
        for epoch in range(epochs):
            if shuffle:
                plan.order = rng.permutation(len(plan.sequences))
            started = time.perf_counter()
            _run_epoch(plan, epoch, epochs, progress.advance)
            history.seconds.append(time.perf_counter() - started)
            history.loss.append(plan.mean_loss())
            if validation is not None:
                history.validation_loss.append(_evaluate(validation, epoch, epochs))
            progress.end_epoch(history)
            if run_callbacks(callbacks, network, history):
                break
    return history


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
        Above or equal to 0.
    epochs : int
        How often to go through the data, at least once.
    num_threads : int, optional
        The most threads to use (`set_num_threads`).

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
    network = LSTMNetwork(*sizes, dtype="float64", init="reference")  # drawn when nothing can be wrong any more
    plan = Plan(
        network.parameters,
        network.architecture,
        sequences,
        targets,
        target="last",
        loss=MSE(),
        optimizer=optimizer,
        batch_size=1,
        num_threads=num_threads,
    )
    for epoch in range(epochs):
        _run_epoch(plan, epoch, epochs, lambda _: None)
        print(f"Epoch {epoch + 1}/{epochs}, Loss: {plan.mean_loss()}")
    return network


def _article_targets(Y: Any, N: int, output_dim: int) -> Array:
    """Return Y, an array or a sequence of columns (output_dim, 1) or vectors, as float64 (N, output_dim)."""
    dtype = np.dtype(np.float64)
    if isinstance(Y, (np.ndarray, memoryview)):
        Y = np.asarray(Y)
        return as_targets("Y", Y[:, :, 0] if Y.ndim == 3 and Y.shape[2] == 1 else Y, dtype, (N,), output_dim)
    check_length("Y", Y, N)
    return np.stack([as_column(f"Y[{n}]", y, dtype, output_dim)[:, 0] for n, y in enumerate(Y)])


def _run_epoch(plan: Plan, epoch: int, epochs: int, advance: Callable[[int], Any]) -> None:
    step = batches = 0
    while step < plan.passes:
        try:
            step = plan.run(step)
        except NonFiniteError as error:
            raise NonFiniteError(
                f"{error} in epoch {epoch + 1} of {epochs}, {plan.name_of(error.step)}; training stopped before that "
                "update: a smaller learning rate or a clip_norm may help",
                error.step,
            ) from None
        done = plan.batch_of(step)
        advance(done - batches)
        batches = done


def _validation_plan(network: LSTMNetwork, data: Any, common: _Common) -> Plan:
    if not isinstance(data, Mapping):
        try:
            X, Y = data
        except (TypeError, ValueError, NotImplementedError):  # the latter from a memoryview
            raise TypeError("validation_data is not a pair; expected (X, Y), or a mapping") from None
        data = {"X": X, "Y": Y}
    elif not {"X", "Y"} <= data.keys() <= {"X", "Y", "lengths", "mask"}:
        raise ValueError(f"validation_data has the keys {list(data)}; expected 'X', 'Y', and maybe 'lengths' or 'mask'")
    try:
        return Plan(
            network.parameters,
            network.architecture,
            optimizer=None,
            forward_only=True,
            prefix=_VALIDATION,
            **data,
            **common,
        )
    except (TypeError, ValueError) as error:
        raise type(error)(f"{_VALIDATION}{error}") from None


def _evaluate(plan: Plan, epoch: int, epochs: int) -> float:
    try:
        for step in range(plan.passes):
            plan.forward(step)
    except NonFiniteError as error:
        raise NonFiniteError(f"{_VALIDATION}{error} after epoch {epoch + 1} of {epochs}", error.step) from None
    return plan.mean_loss()


def as_callbacks(callbacks: Iterable[Callback]) -> tuple[Callback, ...]:
    """Return the callbacks of a training, each of which can be called."""
    try:
        result = tuple(callbacks)
    except (TypeError, NotImplementedError):  # the latter from a memoryview
        raise TypeError(f"callbacks is {short_repr(callbacks)}; expected an iterable of callables") from None
    for n, callback in enumerate(result):
        if not callable(callback):
            raise TypeError(f"callbacks[{n}] is {short_repr(callback)}; expected a callable")
    return result


def run_callbacks(callbacks: Sequence[Callback], network: LSTMNetwork, history: History) -> bool:
    """Call all callbacks and return whether one of them stops the training."""
    answers = [callback(network, history) for callback in callbacks]
    for n, answer in enumerate(answers):
        if answer is not None and not isinstance(answer, (bool, np.bool_)):
            returned = short_repr(answer)
            raise TypeError(f"callbacks[{n}] returned {returned}; expected True to stop, or None or False to go on")
    return any(answers)


class _Progress:
    """Shows nothing, as for ``verbose=False``."""

    def advance(self, batches: int) -> None:
        """Tell that some batches are done."""

    def end_epoch(self, history: History) -> None:
        """Tell that an epoch is done."""

    def close(self) -> None:
        """Tell that the training has ended."""


_UNWRITABLE = suppress(OSError, ValueError)  # a standard error that is closed ends no training


class _Bar(_Progress):
    def __init__(self, tqdm: Any, total: int) -> None:
        self._bar = tqdm(total=total, unit="batch")

    def advance(self, batches: int) -> None:
        with _UNWRITABLE:
            self._bar.update(batches)

    def end_epoch(self, history: History) -> None:
        self._bar.set_postfix_str(_losses(history), refresh=False)

    def close(self) -> None:
        with _UNWRITABLE:
            self._bar.close()


class _Lines(_Progress):
    """Writes one line for each epoch, at most one a second, and that of the last epoch."""

    def __init__(self, epochs: int) -> None:
        self._epochs, self._written, self._waiting = epochs, -math.inf, ""

    def end_epoch(self, history: History) -> None:
        self._waiting = f"epoch {len(history.loss)}/{self._epochs}: {_losses(history)}"
        if time.monotonic() - self._written >= 1:
            self.close()

    def close(self) -> None:
        if self._waiting:
            with _UNWRITABLE:
                print(self._waiting, file=sys.stderr, flush=True)
            self._written, self._waiting = time.monotonic(), ""


def _losses(history: History) -> str:
    """Return the last losses as text."""
    validation = f", validation loss {history.validation_loss[-1]:#.4g}" if history.validation_loss else ""
    return f"loss {history.loss[-1]:#.4g}{validation}"


@contextmanager
def _progress(epochs: int, batches: int, verbose: bool) -> Iterator[_Progress]:
    """Yield what shows the progress of a training of so many epochs, of so many batches each."""
    progress = _Progress()
    if verbose and sys.stderr is not None:
        tqdm = _tqdm() if _is_terminal(sys.stderr) else None
        with _UNWRITABLE:
            progress = _Lines(epochs) if tqdm is None else _Bar(tqdm, epochs * batches)
    try:
        yield progress
    finally:
        progress.close()


def _is_terminal(file: Any) -> bool:
    try:
        return bool(file.isatty())
    except (AttributeError, ValueError):  # an object of the user's, or a closed file
        return False


def _tqdm() -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm
