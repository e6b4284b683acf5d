"""Batches: the order in which a training takes its sequences, and the passes that an epoch consists of."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lstm_ext.checks import Array, Index
from lstm_ext.sequences import Sequences, longest_first


class Batches:
    """The passes of an epoch: one for each batch of sequences, or for each chunk of steps of a batch.

    Parameters
    ----------
    sequences : Sequences
        The data.
    size : int, optional
        Maximum number of sequences of a batch; all by default.
    chunk_steps : int, optional
        Maximum number of steps of a pass; all by default.
    every_step : bool
        Whether every step of a sequence has outputs, and not only the last one.

    Attributes
    ----------
    size, count : int
        The maximum number of sequences of a batch, and the number of batches; the last may be smaller.
    passes : int
        The number of passes.
    members : ndarray of int (N,)
        The sequences in the order of their batches, in each batch the longest first.
    unsorted_positions : ndarray of int (N,) or (0,)
        The position of each member in its batch before the batch was sorted; empty if it is the same.
    starts, first_steps : ndarray of int (passes,)
        The index in `members` at which the batch of each pass begins, and the step at which the pass begins.
    """

    def __init__(
        self, sequences: Sequences, size: int | None, *, chunk_steps: int | None = None, every_step: bool = False
    ) -> None:
        N = len(sequences)
        self.sequences, self.every_step = sequences, every_step
        self.size = min(size or N, N)
        self.count = -(-N // self.size)
        self.chunk_steps = None if chunk_steps is None else min(chunk_steps, sequences.longest)
        self.set_order(np.arange(N, dtype=np.intp))

    def set_order(self, order: Index) -> None:
        """Divide the sequences into batches in this order (N,)."""
        lengths, k = self.sequences.lengths, self.chunk_steps
        self.members, self.unsorted_positions = order, np.empty(0, np.intp)
        self.starts = np.arange(0, len(order), self.size, dtype=np.intp)
        if not self.sequences.same_length and self.size > 1:
            position = longest_first(lengths[order], self.size)
            self.members, self.unsorted_positions = order[position], position % self.size
        if k is None:
            self.first_steps = np.zeros(self.count, np.intp)
        else:
            chunks = -(-lengths[self.members[self.starts]] // k)
            earlier = np.repeat(np.cumsum(chunks) - chunks, chunks)
            self.first_steps = (k * (np.arange(chunks.sum()) - earlier)).astype(np.intp)
            self.starts = np.repeat(self.starts, chunks)
        self.passes = len(self.starts)

    def batch_of(self, index: int) -> int:
        """Return the number of the batch that a pass belongs to; `count` after the last pass."""
        return int(self.starts[index]) // self.size if index < self.passes else self.count

    def name_of(self, index: int) -> str:
        """Return what an error calls a pass."""
        chunk = "" if self.chunk_steps is None else f", from step {self.first_steps[index]} on"
        return f"batch {self.batch_of(index) + 1} of {self.count}{chunk}"

    def members_of(self, index: int) -> Index:
        """Return the sequences of the batch of a pass, the longest first."""
        start = self.starts[index]
        return self.members[start : start + self.size]

    def outputs_of(self, index: int) -> PassOutputs:
        """Return the outputs of a pass, in the order of their sequences before the batch was sorted."""
        start, first_step, members = self.starts[index], int(self.first_steps[index]), self.members_of(index)
        is_chunk = self.chunk_steps is not None
        lengths = self.sequences.lengths[members] - first_step
        has_outputs = lengths > 0
        if self.chunk_steps is not None:
            if not self.every_step:
                has_outputs &= lengths <= self.chunk_steps
            lengths = np.minimum(lengths, self.chunk_steps)
        position = np.flatnonzero(has_outputs)  # in the sorted batch, whose rows the head has in the same order
        first_position = position[0]
        if len(self.unsorted_positions) > 0:
            position = position[np.argsort(self.unsorted_positions[start + position])]
        members, lengths = members[position], lengths[position]
        if not self.every_step:
            return PassOutputs(members, first_step, is_chunk, None, position - first_position)
        counts = np.bincount(lengths)[:0:-1].cumsum()[::-1]  # of the rows of each step
        begins = counts[::-1].cumsum()[::-1] - counts  # of each step's rows: the last step comes first
        rows = (begins[None] + position[:, None])[np.arange(len(counts)) < lengths[:, None]]
        return PassOutputs(members, first_step, is_chunk, lengths, rows)


class PassOutputs(NamedTuple):
    """The sequences that have outputs in a pass, and the rows of these outputs.

    Attributes
    ----------
    members : ndarray of int (B,)
        The sequences, in their order before the batch was sorted.
    first_step : int
        The step at which the pass begins.
    is_chunk : bool
        Whether batches are divided into chunks of steps.
    lengths : ndarray of int (B,), or None
        The number of outputs of each sequence; None: one each.
    rows : ndarray of int
        The rows of the head's outputs, sequence after sequence.
    """

    members: Index
    first_step: int
    is_chunk: bool
    lengths: Index | None
    rows: Index

    def shapes(self, width: int, *, as_list: bool) -> list[tuple[int, ...]]:
        """Return the shape of the outputs as one array, or the shape of each array of a list."""
        if self.lengths is None:
            return [(len(self.members), width)]
        if as_list:
            return [(length, width) for length in self.lengths.tolist()]
        return [(len(self.members), int(self.lengths[0]), width)]

    def split(self, outputs: Array, *, as_list: bool) -> Any:
        """Return outputs as a loss sees them: (B, width), (B, T, width), or a list of (T_n, width)."""
        if as_list and self.lengths is not None:
            return np.split(outputs, np.cumsum(self.lengths)[:-1])
        return outputs.reshape(self.shapes(outputs.shape[1], as_list=False)[0])
