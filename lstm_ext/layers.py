"""Runs of an LSTM's layers over sequences: from arrays as they are given to the compiled stack, and back.

Sequences of different lengths are sorted, the longest first, so that every step runs the first so many of a batch;
a step that is masked is not run. Arrays have one row for each of `Sequences.rows`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np

from lstm_ext import _stack
from lstm_ext._threads import ExclusiveUse
from lstm_ext.checks import Array, Index
from lstm_ext.options import Architecture
from lstm_ext.sequences import Sequences, count_live, longest_first

INFERENCE_ROWS = 192  # sequences that run side by side where nothing is kept
INFERENCE_NUMBERS = 2**20  # of the outputs of a layer, or of the head, at a time where nothing is kept

States: TypeAlias = tuple[Array | None, Array | None]
"""h (cells, N, R) and C (cells, N, hidden_dim) of every cell, or gradients of them."""


class Batch(NamedTuple):
    """Sequences that run side by side, the longest first.

    Attributes
    ----------
    size, steps : int
        How many there are, and the steps of the longest.
    first : ndarray, optional
        The row that each begins at; without it, they come one after the other.
    lengths : ndarray, optional
        The steps of each; None: all have as many.
    batch_sizes : ndarray, optional
        How many have more than t steps, t < steps; with `lengths`.
    members : ndarray, optional
        Which of all sequences each one is; None: its own number.
    dropout_seed : int, optional
        Of the masks; None: nothing is dropped.
    first_step : int
        The time step at which this chunk starts.
    """

    size: int
    steps: int
    first: Index | None
    lengths: Index | None
    batch_sizes: Index | None
    members: Index | None
    dropout_seed: int | None
    first_step: int = 0

    def chunks(self, most: int) -> Iterator[Batch]:
        """Cut the batch after every `most` steps; a sequence that has ended is in none of the chunks that follow."""
        first = self.first
        if first is None:
            first = np.arange(0, self.size * self.steps, self.steps, dtype=np.intp)
        for first_step in range(0, self.steps, most):
            steps = min(most, self.steps - first_step)
            chunk = self._replace(steps=steps, first=first + first_step, first_step=first_step)
            if self.batch_sizes is not None and self.lengths is not None:
                size = int(self.batch_sizes[first_step])
                lengths = np.minimum(self.lengths[:size] - first_step, steps)
                batch_sizes = self.batch_sizes[first_step : first_step + steps]
                chunk = chunk._replace(size=size, lengths=lengths, batch_sizes=batch_sizes)
            yield chunk


def batches(sequences: Sequences, most: int, dropout_seed: int | None) -> Iterator[Batch]:
    """Cut sequences into batches of at most so many, sorted where they have different lengths."""
    N = len(sequences)
    if sequences.same_length and not sequences.has_padding and most >= N:
        yield Batch(N, sequences.longest, None, None, None, None, dropout_seed)
        return
    lengths = sequences.lengths
    order = longest_first(lengths)
    for start in range(0, N, most):
        members = order[start : start + most]
        first, steps = sequences.first[members], lengths[members]
        if steps[0] == steps[-1]:
            yield Batch(len(members), int(steps[0]), first, None, None, members, dropout_seed)
        else:
            yield Batch(len(members), int(steps[0]), first, steps, count_live(steps), members, dropout_seed)


def steps_at_once(architecture: Architecture, rows: int, width: int, steps: int) -> int:
    """Return how many steps of some sequences, with outputs of this width, to run at a time where nothing is kept.

    All of them where the network begins at the sequences' ends.
    """
    if architecture.directions == 2 or architecture.options.go_backwards:
        return steps
    return min(steps, max(1, INFERENCE_NUMBERS // (rows * width)))


@dataclass(frozen=True, eq=False)
class Tape:
    """What a backward pass needs of one forward pass: activations, and the weights as they were.

    Its arrays are private: a pass relies on their contents, shapes and dtypes.
    """

    architecture: Architecture
    _parameters: Array = field(repr=False)
    _sequences: Sequences = field(repr=False)
    _stack: _stack.LayerStack = field(repr=False)
    _batch: Batch = field(repr=False)
    _h_given: bool = field(repr=False)

    def __reduce__(self) -> NoReturn:
        raise TypeError("tapes are packed for this process; save the network instead")


class Outputs(NamedTuple):
    """What `forward` returns: rows of outputs, every cell's last states, and the tape if it is kept.

    H is (rows, F), h (cells, N, R), C (cells, N, hidden_dim). Of masked sequences H is (rows, D R): what the directions
    have side by side, merged or not.
    """

    H: Array
    h: Array
    C: Array
    tape: Tape | None


def forward(
    architecture: Architecture,
    parameters: Array,
    sequences: Sequences,
    initial: States,
    *,
    dropout_seed: int | None,
    keep: bool,
    threads: int,
    isa: int,
) -> Outputs:
    """Run all layers over all sequences.

    Parameters
    ----------
    architecture : Architecture
        Its head, if it has one, does not matter.
    parameters : ndarray
        The flat vector.
    sequences : Sequences
        In the parameters' dtype.
    initial : States
        h0 and C0; None for the learned one, or zeros.
    dropout_seed : int, optional
        Of the masks of dropout; None: as in inference.
    keep : bool
        Whether to return a tape.
    threads : int
        The most threads to use.
    isa : int
        The index of the instruction set.
    """
    N, dtype, count = len(sequences), parameters.dtype, len(architecture.cells)
    width = architecture.features if sequences.mask is None else architecture.directions * architecture.state_dim
    H = sequences.new_rows(width)
    h, C = np.empty((count, N, architecture.state_dim), dtype), np.empty((count, N, architecture.hidden_dim), dtype)
    most = N if keep else min(N, INFERENCE_ROWS)
    steps = sequences.longest
    if not keep and architecture.options.num_layers > 1:  # the outputs of the layers below the top one are kept
        steps = steps_at_once(architecture, most, architecture.features, steps)
    stack = _stack.LayerStack(
        isa,
        architecture,
        dtype,
        steps,
        most,
        keep=keep,
        want_dX=keep,
        draws=dropout_seed is not None,
    )
    if keep:
        parameters = parameters.copy()  # the stack points into them
    for batch in batches(sequences, most, dropout_seed):
        for chunk in [batch] if steps >= batch.steps else batch.chunks(steps):
            states = initial if chunk.first_step == 0 else (h, C)
            _stack.forward(stack, threads, chunk, parameters, sequences.rows, *states, H, h, C)
    tape = None
    if keep:
        tape = Tape(architecture, parameters, sequences, stack, batch, initial[0] is not None)
    return Outputs(H, h, C, tape)


def backward(tape: Tape, dH: Array | None, dlast: States, *, threads: int) -> tuple[Array, Array, Array, Array]:
    """Backpropagate; return dX (rows, input_dim), dh0 and dC0 (cells, N, ...), and the gradient of the parameters.

    dH (rows, F or D R) and dlast belong to what `forward` returned; None is zeros.
    """
    architecture, dtype, N = tape.architecture, tape._parameters.dtype, len(tape._sequences)
    count = len(architecture.cells)
    dX = tape._sequences.new_rows(architecture.input_dim)
    dh0 = np.empty((count, N, architecture.state_dim), dtype)
    dC0 = np.empty((count, N, architecture.hidden_dim), dtype)
    gradient = np.zeros_like(tape._parameters)
    with ExclusiveUse(tape, "tape is being used by another backward pass; expected one at a time"):
        _stack.backward(
            tape._stack,
            threads,
            tape._batch,
            tape._parameters,
            dH,
            *dlast,
            dh0,
            dC0,
            dX,
            gradient,
        )
    return dX, dh0, dC0, gradient


class Carried:
    """Which output a masked step repeats: that of the last live step before it on its direction's way (Keras).

    Parameters
    ----------
    architecture : Architecture
    sequences : Sequences
        With a mask.
    """

    def __init__(self, architecture: Architecture, sequences: Sequences) -> None:
        assert sequences.mask is not None
        self.sums = architecture.options.bidirectional == "sum"
        live = sequences.mask[:, ::-1] if architecture.options.go_backwards else sequences.mask
        first, ends = sequences.first[:, None], (sequences.first + sequences.lengths)[:, None]
        self.rows = len(sequences.rows)
        passed = live.cumsum(axis=1)
        self.sources = [(first + passed - 1, passed > 0)]  # a row for each step, and whether there is one
        if architecture.directions == 2:
            ahead = live[:, ::-1].cumsum(axis=1)[:, ::-1]
            self.sources.append((ends - ahead, ahead > 0))

    def spread(self, H: Array, initial: Array | None) -> Array:
        """Return (N, T, F) of H (rows, D R); before the first live step it is `initial` (D, N, R), or zeros."""
        parts = []
        for d, (half, (row, known)) in enumerate(
            zip(np.split(H, len(self.sources), axis=1), self.sources, strict=True)
        ):
            part = half[np.where(known, row, 0)]
            n, t = np.nonzero(~known)
            part[n, t] = 0 if initial is None else initial[d, n]
            parts.append(part)
        return sum(parts[1:], parts[0]) if self.sums else np.concatenate(parts, axis=2)

    def gather(self, dH: Array) -> tuple[Array, Array]:
        """Return what dH (N, T, F) adds up to: (rows, D R) of the outputs and (D, N, R) of the initial states."""
        count = len(self.sources)
        halves = [dH] * count if self.sums else np.split(dH, count, axis=2)
        rows = np.zeros((count, self.rows, halves[0].shape[2]), dH.dtype)
        initial = np.zeros((count, len(dH), halves[0].shape[2]), dH.dtype)
        for d, (half, (row, known)) in enumerate(zip(halves, self.sources, strict=True)):
            np.add.at(rows[d], row[known], half[known])
            np.add.at(initial[d], np.nonzero(~known)[0], half[~known])
        return np.concatenate(list(rows), axis=1), initial


def top_states(architecture: Architecture, states: Array) -> Array:
    """Return what belongs to the cells of the top layer of something (cells, ...)."""
    top: Any = states[-architecture.directions :]
    return np.asarray(top)
