"""The driver: joins a network, data, a loss and an optimizer for the compiled loop, and runs it pass by pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from lstm_ext import _epoch, _kernels
from lstm_ext._epoch import TrainingLoop
from lstm_ext._heads import POOLED, Head
from lstm_ext._stack import LayerStack
from lstm_ext.checks import (
    Array,
    Data,
    Index,
    NonFiniteError,
    as_array,
    as_shape,
    check_length,
    check_live,
    is_mapped,
)
from lstm_ext.layers import steps_at_once
from lstm_ext.options import Architecture
from lstm_ext.sequences import Sequences
from lstm_ext.threads import thread_count
from lstm_ext.training import losses, optimizers
from lstm_ext.training.batches import Batches, PassOutputs
from lstm_ext.training.losses import CompiledLoss, Loss
from lstm_ext.training.memory import NO_BOUND, Memory
from lstm_ext.training.optimizers import Optimizer
from lstm_ext.training.targets import Targets

EVERY_PHASE = _epoch.FORWARD | _epoch.LOSS | _epoch.BACKWARD | _epoch.UPDATE
_SECONDS = 0.05  # between two returns to Python, for progress, callbacks and Ctrl-C


@dataclass(frozen=True, eq=False)
class Setup:
    """What the passes of a training and those of its validation share.

    Parameters
    ----------
    parameters : ndarray
        The network's flat vector; updates change it in place.
    architecture : Architecture
        The network's.
    loss : CompiledLoss or Loss
    batch_size : int, optional
        All sequences by default.
    num_threads : int, optional
        Maximum number of threads, as `train` takes it.
    isa : int
        The instruction set's index.
    """

    parameters: Array
    architecture: Architecture
    loss: CompiledLoss | Loss
    batch_size: int | None
    num_threads: int | None
    isa: int

    @property
    def output_dim(self) -> int:
        """The number of outputs, with or without a head."""
        return self.architecture.output_dim or self.architecture.features

    @property
    def every_step(self) -> bool:
        """Whether every step of a sequence has outputs."""
        return self.architecture.readout == "steps"


class PassRunner:
    """Runs the passes of a network over its data: of a training, a validation or a gradient.

    Making one checks every argument and changes none of them. A pass runs one batch, or a chunk of its steps.

    Parameters
    ----------
    setup : Setup
        The network, the loss and how they run.
    X, Y
        The data, as `train` takes them; X also as `Sequences` of the network's dtype.
    lengths, mask : optional
        As for `Sequences`.
    optimizer : Optimizer, optional
        An object; None for no updates.
    clip_norm : float
        Infinity for none.
    forward_only : bool
        Whether only losses are wanted, as for validation.
    dropout_seed : int, optional
        The seed of the masks; None: nothing is dropped.
    tbptt : int, optional
        Maximum number of steps of a pass; by default all, or the number that `steps_at_once` returns for passes that
        keep nothing.
    memory : Memory
        The bound of the arrays of the stack and the head.
    prefix : str
        Put before errors about memory-mapped data.

    Attributes
    ----------
    sequences : Sequences
        X.
    targets : Targets
        Y.
    batches : Batches
        The order of the passes.
    loop : TrainingLoop
        What the compiled loop reads, and its results for each pass.
    gradient : ndarray
        The gradient of the latest pass, with the layout of the parameters.
    """

    def __init__(
        self,
        setup: Setup,
        X: Data | Sequences,
        Y: Any,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        optimizer: Optimizer | None = None,
        clip_norm: float = np.inf,
        forward_only: bool = False,
        dropout_seed: int | None = None,
        tbptt: int | None = None,
        memory: Memory = NO_BOUND,
        prefix: str = "",
    ) -> None:
        architecture, parameters, loss = setup.architecture, setup.parameters, setup.loss
        _check_tbptt(tbptt, architecture)
        if not isinstance(X, Sequences):
            X = Sequences(X, architecture.input_dim, parameters.dtype, lengths=lengths, mask=mask, defer=is_mapped(X))
        self.setup, self.sequences, self.clip_norm, self.prefix = setup, X, clip_norm, prefix
        self.is_list = setup.every_step and (X.is_list or lengths is not None or mask is not None)
        self.targets = Targets(
            Y,
            X,
            loss,
            width=setup.output_dim,
            every_step=setup.every_step,
            as_list=self.is_list,
            backwards=architecture.options.go_backwards,
        )
        if optimizers.is_compiled(optimizer):
            optimizer.check(parameters)
        self.python_loss = None if losses.is_compiled(loss) else cast(Loss, loss)
        self.python_optimizer = None if optimizer is None or optimizers.is_compiled(optimizer) else optimizer
        chunk_steps = self._steps_at_once() if forward_only else tbptt
        self.batches = Batches(X, setup.batch_size, chunk_steps=chunk_steps, every_step=setup.every_step)
        self.gradient = np.zeros_like(parameters[:0] if forward_only else parameters)
        self.backup = optimizers.new_backup(optimizer, parameters)
        self.loop = self._new_loop(
            optimizer, dropout_seed if architecture.draws_masks else None, memory, keep=not forward_only
        )
        self._begin_epoch()

    def _steps_at_once(self) -> int | None:
        """Return the maximum number of steps of a pass that keeps nothing; None: all."""
        setup, sequences = self.setup, self.sequences
        # a loss is summed over all outputs of a batch, so these have to come in one pass
        if setup.every_step or not sequences.same_length:
            return None
        architecture, N = setup.architecture, len(sequences)
        width = max(architecture.features, setup.output_dim)
        steps = steps_at_once(architecture, min(setup.batch_size or N, N), width, sequences.longest)
        return steps if steps < sequences.longest else None

    def _new_loop(
        self, optimizer: Optimizer | None, dropout_seed: int | None, memory: Memory, *, keep: bool
    ) -> TrainingLoop:
        """Return what the compiled loop reads, with new arrays for all passes."""
        setup, X, targets, loss = self.setup, self.sequences, self.targets, self.setup.loss
        self.stack, self.head = self._new_arrays(memory, keep=keep, draws=dropout_seed is not None)
        return TrainingLoop(
            self.stack,
            self.head,
            parameters=setup.parameters,
            gradient=self.gradient,
            rows=X.rows,
            first=X.first,
            lengths=X.lengths,
            loss=loss if losses.is_compiled(loss) else None,
            targets=targets.rows,
            target_first=targets.first,
            unchecked_X=X.unchecked,
            unchecked_Y=targets.unchecked,
            optimizer=None if self.python_optimizer is not None else optimizer,
            backup=self.backup,
            clip_norm=self.clip_norm,
            dropout_seed=dropout_seed,
            threads=thread_count(setup.num_threads),
        )

    def _new_arrays(self, memory: Memory, *, keep: bool, draws: bool) -> tuple[LayerStack, Head]:
        """Return the arrays of the largest pass within the memory; `keep` what a backward pass needs."""
        setup, batches = self.setup, self.batches
        steps = batches.chunk_steps or self.sequences.longest
        sizes = setup.isa, setup.architecture, setup.parameters.dtype, steps, batches.size
        head = Head(*sizes, setup.parameters.size, keep=keep)
        new_stack = partial(LayerStack, *sizes, keep=keep, want_outputs=head.needs_steps, draws=draws)
        segment = memory.segment(steps, lambda k: head.bytes + new_stack(segment=k, measure=True).bytes)
        return new_stack(segment=segment), head

    def set_order(self, order: Index) -> None:
        """Begin an epoch that takes the sequences in this order (N,)."""
        self.batches.set_order(order)
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        batches = self.batches
        self.loop.set_order(batches.members, batches.unsorted_positions, batches.starts, batches.first_steps)

    def run_epoch(self, epoch: int, epochs: int, advance: Callable[[int], Any]) -> None:
        """Train on all passes; call `advance` with the number of batches done after each return of the loop."""
        index = done = 0
        while index < self.batches.passes:
            try:
                index = self.run(index)
            except NonFiniteError as error:
                raise NonFiniteError(
                    f"{error} in epoch {epoch + 1} of {epochs}, {self.batches.name_of(error.index)}; training stopped "
                    "before that update: a smaller learning rate or a clip_norm may help",
                    error.index,
                ) from None
            before, done = done, self.batches.batch_of(index)
            advance(done - before)

    def run(self, index: int) -> int:
        """Train on the passes from `index` on, for about 50 ms; return the next one.

        Raises
        ------
        NonFiniteError
            With the reason and the pass, if a loss, a gradient or the result of an update is not finite.
        ValueError
            If memory-mapped data are not finite.
        """
        if self.python_loss is None and self.python_optimizer is None:
            return self._phases(index, self.batches.passes, EVERY_PHASE, _SECONDS)
        self.gradients(index)
        if self.python_optimizer is None:
            return self._phases(index, index + 1, _epoch.UPDATE)
        if self.loop.counts[index] > 0:
            self._update_in_python(index, self.python_optimizer)
        return index + 1

    def gradients(self, index: int) -> None:
        """Compute the loss and the gradient of one pass."""
        self.forward(index)
        self._phases(index, index + 1, _epoch.BACKWARD)

    def forward(self, index: int) -> None:
        """Compute the loss of one pass, and its gradient with respect to the outputs."""
        if self.python_loss is None:
            self._phases(index, index + 1, _epoch.FORWARD | _epoch.LOSS)
            return
        self._phases(index, index + 1, _epoch.FORWARD)
        if self.loop.counts[index] > 0:
            self._run_python_loss(index, self.python_loss)

    def evaluate(self) -> float:
        """Compute the losses of all passes, and return their mean."""
        for index in range(self.batches.passes):
            self.forward(index)
        return self.mean_loss()

    def mean_loss(self) -> float:
        """Return the mean of the passes' losses, each weighted by its outputs, or whole sequences of one length."""
        weights = self.loop.counts
        if self.setup.every_step and self.sequences.same_length:
            weights = weights / self.sequences.longest
        return math.fsum((self.loop.losses * weights).tolist()) / float(weights.sum())

    def _phases(self, index: int, stop: int, phases: int, seconds: float = np.inf) -> int:
        """Run phases of some passes in the compiled loop; return the next pass."""
        loop = self.loop
        index, outcome = loop.run(index, stop, phases, seconds)
        if outcome == _epoch.NOT_FINITE:
            self._check_data(index)
            what, value = ("gradient's norm", loop.norms) if np.isfinite(loop.losses[index]) else ("loss", loop.losses)
            raise NonFiniteError(f"the {what} is {value[index]}", index)
        if outcome == _epoch.UPDATE_NOT_FINITE:
            raise NonFiniteError(optimizers.NOT_FINITE_MESSAGE, index)
        if index == self.batches.passes:
            loop.trust_data()
        return index

    def _check_data(self, index: int) -> None:
        """Raise a ValueError if memory-mapped data that a pass reads are not finite."""
        N, members = len(self.sequences), np.sort(self.batches.members_of(index))
        if self.loop.unchecked_X:
            X = self.sequences.rows.reshape(N, -1, self.sequences.rows.shape[1])
            check_live(f"{self.prefix}X", X, self.sequences.lengths, members)
        if self.loop.unchecked_Y:
            shape = (N, -1, self.setup.output_dim) if self.setup.every_step else (N, self.setup.output_dim)
            lengths = self.sequences.lengths if self.setup.every_step else np.ones(N, np.intp)
            check_live(f"{self.prefix}Y", self.targets.rows.reshape(shape), lengths, members)

    def _run_python_loss(self, index: int, loss: Loss) -> None:
        """Compute a pass's loss, and write its gradient where the backward pass reads it."""
        outputs = self.batches.outputs_of(index)
        given = outputs.split(self.head.outputs[outputs.rows], as_list=self.is_list)
        value, gradient = losses.read_result(loss(given, self.targets.of(outputs)))
        self.loop.losses[index] = value
        if not np.isfinite(value):
            raise NonFiniteError(f"the loss is {value}", index)
        self.head.doutputs[outputs.rows] = self._read_gradient(gradient, outputs, index)

    def _read_gradient(self, gradient: Any, outputs: PassOutputs, index: int) -> Array:
        """Return rows of the gradient that a loss in Python returned."""
        name, dtype = "the loss's gradient", self.setup.parameters.dtype
        if self.is_list:
            check_length(name, gradient, len(outputs.members))
        shapes = outputs.shapes(self.setup.output_dim, as_list=self.is_list)
        rows = []
        for given, shape in zip(gradient if self.is_list else [gradient], shapes, strict=True):
            part = as_array(name, given, shape)
            if part.shape == shape and part.dtype.kind == "f":
                with np.errstate(all="ignore"):  # what the dtype cannot hold is Inf
                    part = part.astype(dtype, copy=False)
                if not np.isfinite(part).all():
                    raise NonFiniteError(f"{name} is not finite", index)
            rows.append(as_shape(name, part, dtype, shape).reshape(-1, self.setup.output_dim))
        return np.concatenate(rows)

    def _update_in_python(self, index: int, optimizer: Optimizer) -> None:
        """Make the update of one pass: the whole of it, or none."""
        norm, before = float(self.loop.norms[index]), self.backup[0]
        if norm > self.clip_norm:
            self.gradient *= self.clip_norm / norm
        before[:] = self.setup.parameters
        try:
            if cast(Any, optimizer).update(self.setup.parameters[:], self.gradient[:]) is not None:
                raise TypeError("optimizer.update returned a value; expected it to change the parameters in place")
            if not _kernels.is_finite(self.setup.parameters):
                raise NonFiniteError(optimizers.NOT_FINITE_MESSAGE)
        except BaseException as error:
            self.setup.parameters[:] = before
            if isinstance(error, NonFiniteError):
                error.index = index
            raise
        self.loop.updates += 1


def _check_tbptt(tbptt: int | None, architecture: Architecture) -> None:
    """Raise unless sequences can be divided into chunks."""
    if tbptt is None:
        return
    options = architecture.options
    for name, value in (("bidirectional", options.bidirectional), ("go_backwards", options.go_backwards)):
        if value:
            raise ValueError(f"tbptt is {tbptt} and the network has {name}={value!r}; expected one that runs forwards")
    if architecture.readout in POOLED:
        raise ValueError(
            f"tbptt is {tbptt} and the network has readout={architecture.readout!r}; readout must be 'last' or 'steps'"
        )
