"""A training plan: everything that the compiled loop needs, checked and laid out once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from lstm_ext import _epoch, _kernels, losses, optimizers
from lstm_ext.checks import Array, Data, as_choice, as_labels, as_shape, check_length
from lstm_ext.losses import MSE, CrossEntropy, Loss
from lstm_ext.optimizers import Optimizer
from lstm_ext.sequences import Sequences
from lstm_ext.threads import thread_count
from lstm_ext.workspace import Activations, BackwardScratch, HeadScratch, Shape, StateGradients

TARGETS = ("last", "steps")
_SECONDS = 0.05  # between two returns to Python, for progress, callbacks and Ctrl-C
_EVERY_PHASE = _epoch.FORWARD | _epoch.LOSS | _epoch.BACKWARD | _epoch.UPDATE


class NonFiniteError(ArithmeticError):
    """A loss or a gradient is NaN or infinite; the parameters are those before that update.

    Parameters
    ----------
    message : str
        What is not finite, and where.
    step : int
        The batch of the epoch, from 0; kept as an attribute.
    """

    def __init__(self, message: str, step: int = 0) -> None:
        super().__init__(message)
        self.step = step


class Plan:
    """One network's parameters, one data set, one loss and one optimizer, ready for the compiled loop.

    The attributes are what `_epoch.run` reads. Making a plan checks every argument and changes none of them.

    Parameters
    ----------
    parameters : ndarray
        The network's flat vector; updates change it in place.
    sizes : tuple of int
        input_dim, hidden_dim, output_dim.
    X, Y
        The data, as `train` takes them; X also as `Sequences` of the network's dtype.
    target : {"last", "steps"}
        Whether Y belongs to the last step of each sequence or to every step.
    loss, optimizer
        Objects; optimizer None for a plan that never updates.
    batch_size : int, optional
        All sequences by default.
    clip_norm : float
        Infinity for none.
    forward_only : bool
        Whether only losses are wanted, as for validation.
    num_threads : int, optional
        The most threads to use.
    """

    def __init__(
        self,
        parameters: Array,
        sizes: tuple[int, ...],
        X: Data | Sequences,
        Y: Data,
        *,
        target: str,
        loss: MSE | CrossEntropy | Loss,
        optimizer: Optimizer | None,
        batch_size: int | None,
        clip_norm: float = np.inf,
        forward_only: bool = False,
        num_threads: int | None = None,
    ) -> None:
        input_dim, hidden_dim, output_dim = sizes
        dtype = parameters.dtype
        self.every_step = as_choice("target", target, TARGETS) == "steps"
        self.sequences = X if isinstance(X, Sequences) else Sequences(X, input_dim, dtype)
        batch_size = min(batch_size or len(self.sequences), len(self.sequences))
        if not self.sequences.same_length and batch_size > 1:
            lengths = self.sequences.lengths()
            raise ValueError(
                f"X holds sequences of {lengths.min()} to {lengths.max()} steps; expected one length in a batch "
                f"(batch_size is {batch_size})"
            )
        self.parameters, self.batch_size, self.clip_norm = parameters, batch_size, clip_norm
        self.loss, self.optimizer = loss, optimizer
        self.python_loss = None if losses.is_compiled(loss) else cast(Loss, loss)
        self.python_optimizer = None if optimizer is None or optimizers.is_compiled(optimizer) else optimizer
        self.rows, self.offsets = self.sequences.rows, self.sequences.offsets
        self.Y, self.targets, self.labels = self._read_targets(Y, output_dim)
        if optimizers.is_compiled(optimizer):
            optimizer.check(parameters)

        self.isa, self.threads = _kernels.current(), thread_count(num_threads)
        shape = Shape(self.sequences.longest, batch_size, input_dim, hidden_dim, output_dim, dtype, self.isa)
        self.activations = Activations(shape, keep="hidden" if forward_only else "all")
        self.head = HeadScratch(shape, every_step=self.every_step)
        self.scratch = self.state_gradients = None
        self.gradient = np.empty(0, dtype)
        if not forward_only:
            self.scratch = BackwardScratch(shape, want_dX=False)
            self.state_gradients = StateGradients(shape, every_step=self.every_step)
            self.gradient = np.zeros_like(parameters)
        self.first = np.empty(batch_size, np.intp)
        self.order = np.arange(len(self.sequences), dtype=np.intp)
        self.batches = -(-len(self.sequences) // batch_size)  # the last may be smaller
        self.losses, self.norms = np.zeros(self.batches), np.zeros(self.batches)

    def _read_targets(self, Y: Any, output_dim: int) -> tuple[Any, Array, Array]:
        """Return Y for a loss in Python, target rows for the mean squared error, labels for the cross-entropy."""
        N, dtype = len(self.sequences), self.parameters.dtype
        no_targets, no_labels = np.empty((0, output_dim), dtype), np.empty(0, np.intp)
        if not losses.is_compiled(self.loss):
            check_length("Y", Y, N)
            return np.asarray(Y) if hasattr(Y, "__array__") else Y, no_targets, no_labels
        if self.loss.takes_labels:
            labels = self._target_rows(lambda name, y, shape: as_labels(name, y, shape, output_dim), Y)
            return None, no_targets, labels
        targets = self._target_rows(lambda name, y, shape: as_shape(name, y, dtype, (*shape, output_dim)), Y)
        return None, targets, no_labels

    def _target_rows(self, read: Callable[[str, Any, tuple[int, ...]], Array], Y: Any) -> Array:
        """Return one row for each sequence, or for each step of it."""
        N = len(self.sequences)
        if not self.every_step:
            return read("Y", Y, (N,))
        if self.sequences.same_length:
            rows = read("Y", Y, (N, self.sequences.longest))
            return rows.reshape(-1, *rows.shape[2:])
        check_length("Y", Y, N)
        lengths = self.sequences.lengths()
        return np.concatenate([read(f"Y[{n}]", Y[n], (int(lengths[n]),)) for n in range(N)])

    def run(self, step: int) -> int:
        """Train on the batches from `step` on, for about 50 ms; return the next step.

        Raises
        ------
        NonFiniteError
            With the reason and the step, if a loss or a gradient is not finite.
        """
        if self.python_loss is None and self.python_optimizer is None:
            return self._phases(step, self.batches, _EVERY_PHASE, _SECONDS)
        self.gradients(step)
        if self.python_optimizer is None:
            return self._phases(step, step + 1, _epoch.UPDATE)
        if self.norms[step] > self.clip_norm:
            self.gradient *= self.clip_norm / self.norms[step]
        if cast(Any, self.python_optimizer).update(self.parameters, self.gradient) is not None:
            raise TypeError("optimizer.update returned a value; expected it to change the parameters in place")
        return step + 1

    def gradients(self, step: int) -> None:
        """Compute the loss and the gradient of one batch."""
        self.forward(step)
        self._phases(step, step + 1, _epoch.BACKWARD)

    def forward(self, step: int) -> None:
        """Compute the loss of one batch, and its gradient with respect to the outputs."""
        if self.python_loss is None:
            self._phases(step, step + 1, _epoch.FORWARD | _epoch.LOSS)
        else:
            self._phases(step, step + 1, _epoch.FORWARD)
            self._run_python_loss(step, self.python_loss)

    def mean_loss(self) -> float:
        """Return the mean of the batches' losses, each weighted by its sequences."""
        N, size = len(self.sequences), self.batch_size
        sums = (self.losses * size).tolist()
        sums[-1] = float(self.losses[-1]) * (N - size * (self.batches - 1))
        return math.fsum(sums) / N

    def _phases(self, step: int, last_step: int, phases: int, seconds: float = np.inf) -> int:
        step, finite = _epoch.run(self, step, last_step, phases, seconds)
        if not finite:
            what, value = ("gradient's norm", self.norms) if np.isfinite(self.losses[step]) else ("loss", self.losses)
            raise NonFiniteError(f"the {what} is {value[step]}", step)
        return step

    def _run_python_loss(self, step: int, loss: Loss) -> None:
        members = self.order[step * self.batch_size : (step + 1) * self.batch_size]
        outputs, doutputs = (self._slots(array, members) for array in (self.head.ws_outputs, self.head.ws_doutputs))
        targets = self.Y[members] if isinstance(self.Y, np.ndarray) else [self.Y[n] for n in members]
        result = loss(outputs.copy(), targets)
        try:
            value, gradient = result
            self.losses[step] = value
        except (TypeError, ValueError):
            raise TypeError(f"loss returned {result!r}; expected (value, gradient)") from None
        if not np.isfinite(value):
            raise NonFiniteError(f"the loss is {value}", step)
        gradient = np.asarray(gradient)
        if gradient.shape == doutputs.shape and not np.isfinite(gradient).all():
            raise NonFiniteError("the loss's gradient is not finite", step)
        doutputs[...] = as_shape("the loss's gradient", gradient, self.parameters.dtype, doutputs.shape)

    def _slots(self, array: Array, members: Array) -> Array:
        """Return the outputs' slots in use as a view (B, output_dim) or (B, T, output_dim)."""
        output_dim = array.shape[2]
        steps = int(self.sequences.lengths()[members[0]]) if self.every_step else 1
        used = array.reshape(-1, output_dim)[: steps * len(members)].reshape(steps, len(members), output_dim)
        return used[::-1].transpose(1, 0, 2) if self.every_step else used[0]
