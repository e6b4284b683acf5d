"""A training plan: everything that the compiled loop needs, checked and laid out once."""

from __future__ import annotations

import math
import re
import sys
from array import array
from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lstm_ext import _epoch, _kernels, _updates
from lstm_ext._heads import Head
from lstm_ext._stack import LayerStack
from lstm_ext.checks import (
    Array,
    Data,
    Index,
    NonFiniteError,
    as_array,
    as_choice,
    as_labels,
    as_shape,
    as_size,
    as_targets,
    check_length,
    check_live,
    is_mapped,
    short_repr,
    without_conversion,
)
from lstm_ext.options import Architecture, Options
from lstm_ext.sequences import Sequences
from lstm_ext.threads import thread_count
from lstm_ext.training import losses, optimizers
from lstm_ext.training.losses import CompiledLoss, Loss
from lstm_ext.training.optimizers import Optimizer
from lstm_ext.workspace import steps_at_once

TARGETS = ("last", "steps", "mean", "max")
_SECONDS = 0.05  # between two returns to Python, for progress, callbacks and Ctrl-C
_NUMERIC = (int, float, np.number, np.ndarray, list, tuple)  # what the targets of a sequence may be given as
_EVERY_PHASE = _epoch.FORWARD | _epoch.LOSS | _epoch.BACKWARD | _epoch.UPDATE


class Plan:
    """One network's parameters, one data set, one loss and one optimizer, ready for the compiled loop.

    The attributes are what `_epoch.run` reads. Making a plan checks every argument and changes none of them. A pass
    runs one batch, or a chunk of its steps.

    Parameters
    ----------
    parameters : ndarray
        The network's flat vector; updates change it in place.
    architecture : Architecture
        The network's.
    X, Y
        The data, as `train` takes them; X also as `Sequences` of the network's dtype. Y None without a loss.
    target : {"last", "steps", "mean", "max"}
        What of each sequence the outputs are of.
    loss, optimizer
        Objects; loss None for a plan that only predicts, optimizer None for one that never updates.
    batch_size : int, optional
        All sequences by default.
    lengths, mask : optional
        As for `Sequences`.
    clip_norm : float
        Infinity for none.
    forward_only : bool
        Whether only outputs or losses are wanted, as for validation.
    dropout_seed : int, optional
        Of the masks of dropout; None: nothing is dropped.
    tbptt : int, optional
        The most steps of a pass; by default all, or where nothing is kept of them those that `steps_at_once` says.
    recompute_every : int, optional
        How many steps' activations are kept at a time; all by default.
    memory_budget : int, optional
        How many bytes the arrays of the stack and the head may take; not together with `recompute_every`.
    num_threads : int, optional
        The most threads to use.
    isa : int, optional
        The instruction set's index; by default that of the set in use.
    prefix : str
        Put before errors about memory-mapped data.
    """

    def __init__(
        self,
        parameters: Array,
        architecture: Architecture,
        X: Data | Sequences,
        Y: Any,
        *,
        target: str,
        loss: CompiledLoss | Loss | None,
        optimizer: Optimizer | None,
        batch_size: int | None,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        clip_norm: float = np.inf,
        forward_only: bool = False,
        dropout_seed: int | None = None,
        tbptt: int | None = None,
        recompute_every: int | None = None,
        memory_budget: int | None = None,
        num_threads: int | None = None,
        isa: int | None = None,
        prefix: str = "",
    ) -> None:
        dtype, options = parameters.dtype, architecture.options
        self.every_step = as_choice("target", target, TARGETS) == "steps"
        _check_tbptt(tbptt, target, architecture)
        if isinstance(X, Sequences):
            self.sequences = X
        else:
            self.sequences = Sequences(X, architecture.input_dim, dtype, lengths=lengths, mask=mask, defer=True)
        self.lists = self.every_step and (self.sequences.is_list or lengths is not None or mask is not None)
        N, longest = len(self.sequences), self.sequences.longest
        self.output_dim = architecture.output_dim or architecture.features
        self.parameters, self.batch_size, self.clip_norm = parameters, min(batch_size or N, N), clip_norm
        # a loss is summed over all outputs of a batch, so these have to come in one pass
        if forward_only and (loss is None or (self.sequences.same_length and not self.every_step)):
            steps = steps_at_once(architecture, self.batch_size, max(architecture.features, self.output_dim), longest)
            chunk_steps = steps if steps < longest else None
        else:
            chunk_steps = tbptt
        self.chunk_steps = None if chunk_steps is None else min(chunk_steps, longest)
        self.loss, self.optimizer = loss, optimizer
        self.python_loss = None if loss is None or losses.is_compiled(loss) else cast(Loss, loss)
        self.python_optimizer = None if optimizer is None or optimizers.is_compiled(optimizer) else optimizer
        self.rows = self.sequences.rows
        self.Y, self.targets, self.labels, self.target_first, self.unchecked_Y = self._read_targets(
            Y, backwards=options.go_backwards
        )
        self.unchecked_X = self.sequences.unchecked  # both: True until the first epoch has checked memory-mapped data
        self.prefix = prefix
        if optimizers.is_compiled(optimizer):
            optimizer.check(parameters)

        self.isa, self.threads = _kernels.current() if isa is None else isa, thread_count(num_threads)
        self.dropout_seed = dropout_seed if draws_masks(options) else None
        steps = self.chunk_steps or longest
        sizes = (self.isa, architecture, dtype, steps, self.batch_size)
        self.head = Head(*sizes, target, parameters.size, keep=not forward_only)

        def new_stack(segment: int, *, measure: bool = False) -> LayerStack:
            return LayerStack(
                *sizes,
                keep=not forward_only,
                want_outputs=target != "last",
                draws=self.dropout_seed is not None,
                segment=segment,
                measure=measure,
            )

        segment = min(recompute_every or 0, steps)
        if memory_budget is not None:
            segment = _largest_segment(
                memory_budget, steps, lambda k: self.head.bytes + new_stack(k, measure=True).bytes
            )
        self.stack = new_stack(segment)
        self.gradient = np.zeros_like(parameters[:0] if forward_only else parameters)
        self.backup = optimizers.new_backup(optimizer, parameters)
        self.sums = np.empty(-(-parameters.size // _updates.NORM_BLOCK))
        carried = self.batch_size if steps < longest else 0
        cells = len(architecture.cells) if carried else 0
        self.carried_h = np.empty((cells, carried, architecture.state_dim), dtype)
        self.carried_C = np.empty((cells, carried, architecture.hidden_dim), dtype)
        self.first, self.lengths = np.empty(self.batch_size, np.intp), np.empty(self.batch_size, np.intp)
        self.batch_sizes = np.empty(steps, np.intp)
        self.updates = np.zeros(1, np.uint64)  # made so far
        self.batches = -(-N // self.batch_size)  # the last may be smaller
        self.order = np.arange(N, dtype=np.intp)

    @property
    def order(self) -> Index:
        """The sequences in the order of their batches."""
        return self._order

    @order.setter
    def order(self, order: Index) -> None:
        N, size, k = len(order), self.batch_size, self.chunk_steps
        self._order = self.members = order
        self.draw_order = np.empty(
            0, np.intp
        )  # of members in their batches, as drawn; none if they are where they were
        starts, self.first_steps = np.arange(0, N, size, dtype=np.intp), np.zeros(self.batches, np.intp)
        lengths = self.sequences.lengths
        if not self.sequences.same_length and size > 1:
            sort = np.lexsort((-lengths[order], np.arange(N) // size))
            self.members, self.draw_order = order[sort], sort % size
        if k is not None:
            chunks = -(-lengths[self.members[starts]] // k)
            self.first_steps = k * (np.arange(chunks.sum()) - np.repeat(np.cumsum(chunks) - chunks, chunks)).astype(
                np.intp
            )
            starts = np.repeat(starts, chunks)
        self.starts = starts  # where the batch of each pass begins in the order; first_steps: the step it begins at
        self.passes = len(starts)
        self.losses, self.counts, self.norms = np.zeros((3, self.passes))

    def batch_of(self, step: int) -> int:
        """Return which batch a pass belongs to; after the last pass, how many there are."""
        return int(self.starts[step]) // self.batch_size if step < self.passes else self.batches

    def name_of(self, step: int) -> str:
        """Return what an error calls a pass."""
        chunk = "" if self.chunk_steps is None else f", from step {self.first_steps[step]} on"
        return f"batch {self.batch_of(step) + 1} of {self.batches}{chunk}"

    def _read_targets(self, Y: Any, *, backwards: bool) -> _Targets:
        N, dtype, width, lengths = len(self.sequences), self.parameters.dtype, self.output_dim, self.sequences.lengths
        first = np.cumsum(lengths) - lengths if self.every_step else np.arange(N, dtype=np.intp)
        nothing = _Targets(None, np.empty((0, width), dtype), np.empty(0, np.intp), first, unchecked=False)
        if self.loss is None:
            return nothing
        if losses.is_compiled(self.loss) and not self.loss.takes_labels:
            rows = self._targets_in_place(Y)
            if rows is not None:
                first = self.sequences.steps * np.arange(N, dtype=np.intp) if self.every_step else first
                return nothing._replace(rows=rows, first=first, unchecked=is_mapped(Y))
        places = self._places(backwards) if self.every_step else None
        if not losses.is_compiled(self.loss):
            check_length("Y", Y, N)
            Y = as_array("Y", Y) if hasattr(Y, "__array__") or isinstance(Y, (memoryview, array)) else Y
            if places is not None and isinstance(Y, np.ndarray) and Y.shape[:2] == places.shape:
                if self.sequences.mask is None:
                    Y = [y[:length] for y, length in zip(Y, self.sequences.lengths, strict=True)]
                else:
                    Y = [y[live] for y, live in zip(Y, places, strict=True)]
            return nothing._replace(Y=self._with_last_axis(Y) if width == 1 else Y)
        if self.loss.takes_labels:
            labels = self._target_rows(lambda name, y, shape: as_labels(name, y, shape, width), Y, places)
            return nothing._replace(labels=labels)
        rows = self._target_rows(lambda name, y, shape: as_targets(name, y, dtype, shape, width), Y, places)
        return nothing._replace(rows=rows)

    def _with_last_axis(self, Y: Any) -> Any:
        """Return targets of a single output, if they are floats without the last axis, with it; others as given."""
        lengths = self.sequences.lengths.tolist()
        shapes = [(length,) if self.every_step else () for length in lengths]
        if isinstance(Y, np.ndarray):
            fits = Y.dtype.kind == "f" and all(Y.shape[1:] == shape for shape in set(shapes))
            return Y[..., None] if fits else Y
        if not isinstance(Y, (list, tuple)) or not all(isinstance(y, _NUMERIC) for y in Y):
            return Y
        try:
            parts = [np.asanyarray(y) for y in Y]  # masks are kept
        except ValueError:  # ragged
            return Y
        kinds = {part.dtype.kind for part in parts}
        if not {"f"} <= kinds <= {*"fiu"} or [part.shape for part in parts] != shapes:
            return Y
        return [part[..., None] for part in parts]

    def _places(self, backwards: bool) -> NDArray[np.bool_] | None:
        """Return which of the (N, T) outputs of a padded X there are; None if all are."""
        sequences = self.sequences
        if sequences.is_list or sequences.is_whole:
            return None
        places = sequences.live_mask
        return places[:, ::-1] if backwards and sequences.mask is not None else places

    def _targets_in_place(self, Y: Any) -> Array | None:
        """Return the rows of a Y that needs no conversion, padding among them; None if it has to be read otherwise."""
        sequences, given = self.sequences, without_conversion(Y, self.parameters.dtype)
        shape: tuple[int, ...] = (len(sequences), self.output_dim)
        lengths = np.ones(len(sequences), np.intp)
        if self.every_step:
            shape, lengths = (len(sequences), sequences.steps, self.output_dim), sequences.lengths
            if sequences.mask is not None or (sequences.is_list and not sequences.same_length):
                return None
        if given is None or given.shape != shape:
            return None
        if not is_mapped(Y):
            check_live("Y", given, lengths)
        return given.reshape(-1, self.output_dim)

    def _target_rows(
        self, read: Callable[[str, Any, tuple[int, ...]], Array], Y: Any, places: NDArray[np.bool_] | None
    ) -> Array:
        """Return one row for each sequence, or for each live step of it."""
        N, sequences = len(self.sequences), self.sequences
        if not self.every_step:
            return read("Y", Y, (N,))
        if places is not None and not isinstance(Y, (list, tuple)):
            source = as_array("Y", Y)
            if source.shape[:2] == places.shape:  # padding may hold anything
                source = np.where(places.reshape(places.shape + (1,) * (source.ndim - 2)), source, source.dtype.type(0))
            return read("Y", source, places.shape)[places]
        if places is None and sequences.same_length:
            rows = read("Y", Y, (N, sequences.longest))
            return rows.reshape(-1, *rows.shape[2:])
        check_length("Y", Y, N)
        return np.concatenate([read(f"Y[{n}]", Y[n], (int(sequences.lengths[n]),)) for n in range(N)])

    def run(self, step: int) -> int:
        """Train on the passes from `step` on, for about 50 ms; return the next one.

        Raises
        ------
        NonFiniteError
            With the reason and the pass, if a loss, a gradient or the result of an update is not finite.
        ValueError
            If memory-mapped data are not finite.
        """
        if self.python_loss is None and self.python_optimizer is None:
            return self._phases(step, self.passes, _EVERY_PHASE, _SECONDS)
        self.gradients(step)
        if self.python_optimizer is None:
            return self._phases(step, step + 1, _epoch.UPDATE)
        if self.counts[step] > 0:
            self._update_in_python(step, self.python_optimizer)
        return step + 1

    def _update_in_python(self, step: int, optimizer: Optimizer) -> None:
        """Make the update of one pass: the whole of it, or none."""
        norm, before = float(self.norms[step]), self.backup[0]
        if norm > self.clip_norm:
            self.gradient *= self.clip_norm / norm
        before[:] = self.parameters
        try:
            if cast(Any, optimizer).update(self.parameters[:], self.gradient[:]) is not None:
                raise TypeError("optimizer.update returned a value; expected it to change the parameters in place")
            if not _kernels.is_finite(self.parameters):
                raise NonFiniteError(optimizers.NOT_FINITE_MESSAGE)
        except BaseException as error:
            self.parameters[:] = before
            if isinstance(error, NonFiniteError):
                error.step = step
            raise
        self.updates += np.uint64(1)

    def gradients(self, step: int) -> None:
        """Compute the loss and the gradient of one pass."""
        self.forward(step)
        self._phases(step, step + 1, _epoch.BACKWARD)

    def forward(self, step: int) -> None:
        """Compute the loss of one pass, and its gradient with respect to the outputs."""
        if self.python_loss is None:
            self._phases(step, step + 1, _epoch.FORWARD | _epoch.LOSS)
        else:
            self._phases(step, step + 1, _epoch.FORWARD)
            if self.counts[step] > 0:
                self._run_python_loss(step, self.python_loss)

    def predict(self) -> Array:
        """Return the outputs in the order of X: (N, output_dim), or for "steps" (rows, output_dim)."""
        N = len(self.sequences)
        if not self.sequences.same_length:  # neighbours in a batch are of almost one length
            self.order = np.argsort(-self.sequences.lengths, kind="stable")
        if self.every_step:
            result = self.sequences.new_rows(self.output_dim)
        else:
            result = np.empty((N, self.output_dim), self.parameters.dtype)
        for step in range(self.passes):
            self._phases(step, step + 1, _epoch.FORWARD)
            if self.counts[step] == 0:  # no sequence ends in this chunk
                continue
            chunk = self._chunk(step)
            rows = chunk.members
            if self.every_step:
                rows = chunk.rows_of(self.sequences.first[chunk.members] + self.first_steps[step])
            result[rows] = self.head.outputs[chunk.outputs]
        return result

    def mean_loss(self) -> float:
        """Return the mean of the passes' losses, each weighted by its outputs, or whole sequences of one length."""
        weights = self.counts
        if self.every_step and self.sequences.same_length:
            weights = weights / self.sequences.longest
        return math.fsum((self.losses * weights).tolist()) / float(weights.sum())

    def _phases(self, step: int, last_step: int, phases: int, seconds: float = np.inf) -> int:
        step, outcome = _epoch.run(self, step, last_step, phases, seconds)
        if outcome == _epoch.NOT_FINITE:
            self._check_data(step)
            what, value = ("gradient's norm", self.norms) if np.isfinite(self.losses[step]) else ("loss", self.losses)
            raise NonFiniteError(f"the {what} is {value[step]}", step)
        if outcome == _epoch.UPDATE_NOT_FINITE:
            raise NonFiniteError(optimizers.NOT_FINITE_MESSAGE, step)
        if step == self.passes:
            self.unchecked_X = self.unchecked_Y = False
        return step

    def _check_data(self, step: int) -> None:
        """Raise a ValueError if what a pass reads of memory-mapped files is not finite."""
        start, N = self.starts[step], len(self.sequences)
        members = np.sort(self.members[start : start + self.batch_size])
        if self.unchecked_X:
            X = self.rows.reshape(N, -1, self.rows.shape[1])
            check_live(f"{self.prefix}X", X, self.sequences.lengths, members)
        if self.unchecked_Y:
            shape = (N, -1, self.output_dim) if self.every_step else (N, self.output_dim)
            lengths = self.sequences.lengths if self.every_step else np.ones(N, np.intp)
            check_live(f"{self.prefix}Y", self.targets.reshape(shape), lengths, members)

    def _run_python_loss(self, step: int, loss: Loss) -> None:
        chunk = self._chunk(step)
        outputs = chunk.split(self.head.outputs[chunk.outputs])
        value, gradient = losses.read_result(loss(outputs, self._chunk_targets(chunk, int(self.first_steps[step]))))
        self.losses[step] = value
        if not np.isfinite(value):
            raise NonFiniteError(f"the loss is {value}", step)
        self.head.doutputs[chunk.outputs] = self._read_gradient(gradient, chunk, step)

    def _read_gradient(self, gradient: Any, chunk: _Chunk, step: int) -> Array:
        """Return rows of the gradient that a loss returned."""
        name, dtype = "the loss's gradient", self.parameters.dtype
        if chunk.is_list:
            check_length(name, gradient, len(chunk.members))
        rows = []
        for given, shape in zip(gradient if chunk.is_list else [gradient], chunk.shapes(self.output_dim), strict=True):
            part = as_array(name, given, shape)
            if part.shape == shape and part.dtype.kind == "f":
                with np.errstate(all="ignore"):  # what the dtype cannot hold is Inf
                    part = part.astype(dtype, copy=False)
                if not np.isfinite(part).all():
                    raise NonFiniteError(f"{name} is not finite", step)
            rows.append(as_shape(name, part, dtype, shape).reshape(-1, self.output_dim))
        return np.concatenate(rows)

    def _chunk(self, step: int) -> _Chunk:
        """Return the sequences and the output rows of a pass, in the order in which they were drawn."""
        start, since = self.starts[step], self.first_steps[step]
        members = self.members[start : start + self.batch_size]
        lengths = self.sequences.lengths[members] - since
        alive = lengths > 0
        if self.chunk_steps is not None:
            if not self.every_step:
                alive &= lengths <= self.chunk_steps
            lengths = np.minimum(lengths, self.chunk_steps)
        drawn = np.flatnonzero(alive)
        if len(self.draw_order) > 0:
            drawn = drawn[np.argsort(self.draw_order[start + drawn])]
        members, lengths = members[drawn], lengths[drawn]
        if not self.every_step:
            return _Chunk(members, None, drawn - np.flatnonzero(alive)[0], is_list=False)
        live = np.arange(lengths.max())[:, None] < np.sort(lengths)[::-1]
        counts = live.sum(axis=1)
        slots = counts[::-1].cumsum()[::-1] - counts  # where the outputs of each step begin
        outputs = (slots[None] + drawn[:, None])[np.arange(len(live)) < lengths[:, None]]
        return _Chunk(members, lengths, outputs, self.lists)

    def _chunk_targets(self, chunk: _Chunk, since: int) -> Any:
        """Return what Y holds for a pass; with chunks and a target for every step, for its steps."""
        is_array = isinstance(self.Y, np.ndarray) and not chunk.is_list
        if self.chunk_steps is None or chunk.lengths is None:
            return self.Y[chunk.members] if is_array else [self.Y[n] for n in chunk.members]
        if is_array:
            return self.Y[chunk.members, since : since + int(chunk.lengths[0])]
        return [self.Y[n][since : since + T] for n, T in zip(chunk.members, chunk.lengths.tolist(), strict=True)]


class _Targets(NamedTuple):
    """The targets of a plan's sequences. Two of the first three are empty.

    Attributes
    ----------
    Y : object
        For a loss in Python.
    rows : ndarray (n, output_dim)
        For a compiled loss of numbers.
    labels : ndarray of int (n,)
        For a compiled loss of labels.
    first : ndarray of int (N,)
        The row, or the label, at which each sequence begins.
    unchecked : bool
        Whether the rows are memory-mapped and have not been checked for NaN and Inf.
    """

    Y: Any
    rows: Array
    labels: Index
    first: Index
    unchecked: bool


class _Chunk(NamedTuple):
    """The sequences and output rows of one pass.

    Attributes
    ----------
    members : ndarray of int
        The sequences, in the order in which they were drawn.
    lengths : ndarray of int, or None
        How many outputs each has; None: one.
    outputs : ndarray of int
        Their rows, sequence after sequence.
    is_list : bool
        Whether a loss sees them as a list of arrays.
    """

    members: Index
    lengths: Index | None
    outputs: Index
    is_list: bool

    def shapes(self, width: int) -> list[tuple[int, ...]]:
        """Return the shape of the outputs as one array, or of each array of a list."""
        if self.lengths is None:
            return [(len(self.members), width)]
        if self.is_list:
            return [(length, width) for length in self.lengths.tolist()]
        return [(len(self.members), int(self.lengths[0]), width)]

    def split(self, rows: Array) -> Any:
        """Return rows as a loss sees them: (B, width), (B, T, width), or a list of (T_n, width)."""
        if self.is_list:
            assert self.lengths is not None
            return np.split(rows, np.cumsum(self.lengths)[:-1])
        return rows.reshape(self.shapes(rows.shape[1])[0])

    def rows_of(self, first: Index) -> Index:
        """Return the rows of sequences that begin at `first` (B), sequence after sequence."""
        assert self.lengths is not None
        ends = np.cumsum(self.lengths)
        return np.arange(ends[-1]) + np.repeat(first - ends + self.lengths, self.lengths)


class Memory(TypedDict, total=False):
    """What bounds the memory of a plan's passes."""

    recompute_every: int
    memory_budget: int


def as_memory(recompute_every: Any, memory_budget: Any) -> Memory:
    """Return the arguments of `Plan` that bound the memory of its passes; a budget may be given as "256MB"."""
    if recompute_every is not None and memory_budget is not None:
        raise ValueError("recompute_every and memory_budget are both given; expected one of them")
    if recompute_every is not None:
        return {"recompute_every": as_size("recompute_every", recompute_every)}
    if memory_budget is None:
        return {}
    if not isinstance(memory_budget, str):
        return {"memory_budget": as_size("memory_budget", memory_budget)}
    found = re.fullmatch(r"\s*(\d+\.?\d*)\s*([KMGT]?)(i?)B\s*", memory_budget, re.IGNORECASE)
    if found is None:
        raise ValueError(
            f"memory_budget is {short_repr(memory_budget)}; expected bytes, or a number and a unit, as '256MB'"
        )
    number, prefix, binary = found.groups()
    unit = (1024 if binary else 1000) ** " KMGT".index(prefix.upper() or " ")
    return {"memory_budget": as_size("memory_budget", int(min(float(number) * unit, sys.maxsize)))}


def draws_masks(options: Options) -> bool:
    """Return whether training drops anything."""
    return max(options.dropout, options.recurrent_dropout, options.weight_dropout, *options.zoneout) > 0


def _check_tbptt(tbptt: int | None, target: str, architecture: Architecture) -> None:
    """Raise unless sequences can be cut into chunks."""
    if tbptt is None:
        return
    options = architecture.options
    for name, value in (("bidirectional", options.bidirectional), ("go_backwards", options.go_backwards)):
        if value:
            raise ValueError(f"tbptt is {tbptt} and the network has {name}={value!r}; expected one that runs forwards")
    if target not in ("last", "steps"):
        raise ValueError(f"tbptt is {tbptt} and target is {target!r}; expected 'last' or 'steps'")


def _largest_segment(budget: int, steps: int, size: Callable[[int], int]) -> int:
    """Return the most steps whose activations can be kept at a time within a budget of bytes; 0: all."""
    if size(0) <= budget:
        return 0
    low = root = math.isqrt(steps - 1) + 1
    if size(root) > budget:  # fewer steps may still take less: states begin every segment, but they are small
        least = min(range(1, root + 1), key=size)
        if size(least) > budget:
            raise ValueError(
                f"memory_budget is {budget} bytes; batches of this size and sequences of this length need at least "
                f"{min(size(0), size(least))}"
            )
        return max(steps for steps in range(least, root) if size(steps) <= budget)
    high = steps
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= budget else (low, middle)
    return low
