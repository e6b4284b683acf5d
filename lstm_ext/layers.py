"""Runs of an LSTM's layers over sequences, forward and backward, on the compiled stack.

Sequences of different lengths are sorted, the longest first, so the live rows of a step come first. Masked steps do not
run. Arrays have one row for each of `Sequences.rows`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np

from lstm_ext import _stack
from lstm_ext._threads import ExclusiveUse
from lstm_ext.checks import Array
from lstm_ext.options import Architecture
from lstm_ext.sequences import Sequences

INFERENCE_NUMBERS = 2**20  # the outputs of a layer, or of the head, that a pass without a tape has at a time

States: TypeAlias = tuple[Array | None, Array | None]
"""h (cells, N, R) and C (cells, N, hidden_dim) of every cell, or gradients of them."""


def steps_at_once(architecture: Architecture, rows: int, width: int, steps: int) -> int:
    """Return the number of steps that a pass without a tape runs at a time.

    `rows` sequences run side by side, and their outputs have `width`. A network that runs backwards runs all steps.
    """
    if not architecture.runs_forwards:
        return steps
    return min(steps, max(1, INFERENCE_NUMBERS // (rows * width)))


@dataclass(frozen=True, eq=False)
class Tape:
    """What a backward pass needs from its forward pass: the activations, and a copy of the weights.

    Its arrays are private: a pass relies on their contents, shapes and dtypes.
    """

    architecture: Architecture
    _parameters: Array = field(repr=False)
    _sequences: Sequences = field(repr=False)
    _stack: _stack.LayerStack = field(repr=False)
    _h_given: bool = field(repr=False)

    def __reduce__(self) -> NoReturn:
        raise TypeError("tapes are packed for this process; save the network instead")


class Outputs(NamedTuple):
    """The result of `forward`: rows of outputs, the last states of every cell, and the tape.

    H is (rows, F), h (cells, N, R), C (cells, N, hidden_dim). For masked sequences H is (rows, D R): the outputs of the
    directions side by side, not merged.
    """

    H: Array
    h: Array
    C: Array
    tape: Tape


def forward(
    architecture: Architecture,
    parameters: Array,
    sequences: Sequences,
    initial: States,
    *,
    dropout_seed: int | None,
    threads: int,
    isa: int,
) -> Outputs:
    """Run all layers over all sequences, and keep what `backward` needs.

    Parameters
    ----------
    architecture : Architecture
        The head is ignored.
    parameters : ndarray
        The flat vector.
    sequences : Sequences
        In the parameters' dtype.
    initial : States
        h0 and C0; None for the learned one, or zeros.
    dropout_seed : int, optional
        Seed of the dropout masks; None: nothing is dropped.
    threads : int
        The maximum number of threads.
    isa : int
        The index of the instruction set.
    """
    N, dtype = len(sequences), parameters.dtype
    H, (h, C) = sequences.new_rows(row_width(architecture, sequences)), new_states(architecture, N, dtype)
    stack = _stack.LayerStack(
        isa,
        architecture,
        dtype,
        sequences.longest,
        N,
        keep=True,
        want_dX=True,
        draws=dropout_seed is not None,
    )
    parameters = parameters.copy()  # the stack points into them
    _stack.forward(stack, threads, sequences, sequences.by_length, dropout_seed or 0, parameters, *initial, H, h, C)
    return Outputs(H, h, C, Tape(architecture, parameters, sequences, stack, initial[0] is not None))


def row_width(architecture: Architecture, sequences: Sequences) -> int:
    """Return the width of a row of outputs; with a mask, the directions are merged later."""
    return architecture.features if sequences.mask is None else architecture.directions * architecture.state_dim


def new_states(architecture: Architecture, N: int, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Return uninitialised arrays for h and C of every cell."""
    count = len(architecture.cells)
    return np.empty((count, N, architecture.state_dim), dtype), np.empty((count, N, architecture.hidden_dim), dtype)


def backward(tape: Tape, dH: Array | None, dlast: States, *, threads: int) -> tuple[Array, Array, Array, Array]:
    """Backpropagate; return dX (rows, input_dim), dh0 and dC0 (cells, N, ...), and the gradient of the parameters.

    dH (rows, F or D R) and dlast are the gradients with respect to the results of `forward`; None for zeros.
    """
    architecture, dtype, N = tape.architecture, tape._parameters.dtype, len(tape._sequences)
    dX = tape._sequences.new_rows(architecture.input_dim)
    dh0, dC0 = new_states(architecture, N, dtype)
    gradient = np.zeros_like(tape._parameters)
    with ExclusiveUse(tape, "tape is being used by another backward pass; expected one at a time"):
        _stack.backward(
            tape._stack,
            threads,
            tape._sequences,
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
    """The outputs that masked steps repeat: each that of the live step before it in its direction (as in Keras).

    Parameters
    ----------
    architecture : Architecture
    sequences : Sequences
        With a mask.
    start, stop : int, optional
        The range of sequences; by default all. Rows are counted from the first row of the first one.
    """

    def __init__(
        self, architecture: Architecture, sequences: Sequences, start: int = 0, stop: int | None = None
    ) -> None:
        assert sequences.mask is not None
        self.sums = architecture.options.bidirectional == "sum"
        mask = sequences.mask[start:stop]
        live = mask[:, ::-1] if architecture.options.go_backwards else mask
        first = sequences.first[start:stop, None] - sequences.first[start]
        ends = first + sequences.lengths[start:stop, None]
        self.rows = int(ends[-1, 0])
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
        """Return dH (N, T, F) summed over repeated outputs: (rows, D R), and (D, N, R) for the initial states."""
        count = len(self.sources)
        halves = [dH] * count if self.sums else np.split(dH, count, axis=2)
        rows = np.zeros((count, self.rows, halves[0].shape[2]), dH.dtype)
        initial = np.zeros((count, len(dH), halves[0].shape[2]), dH.dtype)
        for d, (half, (row, known)) in enumerate(zip(halves, self.sources, strict=True)):
            np.add.at(rows[d], row[known], half[known])
            np.add.at(initial[d], np.nonzero(~known)[0], half[~known])
        return np.concatenate(list(rows), axis=1), initial


def top_states(architecture: Architecture, states: Array) -> Array:
    """Return the part of an array (cells, ...) that belongs to the top layer."""
    top: Any = states[-architecture.directions :]
    return np.asarray(top)
