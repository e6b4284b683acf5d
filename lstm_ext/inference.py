"""Inference: predictions, and the layers' outputs without a tape.

A pass runs some sequences side by side and, if the network runs forwards, some of their steps at a time. These numbers
bound the memory and do not change the bits of the results.
"""

from __future__ import annotations

import sys
import warnings
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from lstm_ext._inference import ForwardPass
from lstm_ext._kernels import is_finite
from lstm_ext.checks import Array, Index, check_live
from lstm_ext.layers import Carried, States, new_states, steps_at_once, top_states
from lstm_ext.options import Architecture
from lstm_ext.parameters import check_weights, parameter_views
from lstm_ext.sequences import Sequences, longest_first

BATCH = 192  # maximum number of sequences that run side by side
WORK_BYTES = 2**26  # default maximum size of the work arrays, in addition to the needs of one step of one sequence


@dataclass(frozen=True, eq=False)
class Inference:
    """A network, its sequences, and how it runs over them.

    Parameters
    ----------
    architecture : Architecture
    parameters : ndarray
        The flat vector.
    sequences : Sequences
        In the parameters' dtype; they may be unchecked.
    threads : int
        The maximum number of threads.
    isa : int
        The index of the instruction set.
    budget : int, optional
        Maximum size of the work arrays in bytes.
    dropout_seed : int, optional
        Seed of the dropout masks; None: nothing is dropped.
    """

    architecture: Architecture
    parameters: Array
    sequences: Sequences
    threads: int
    isa: int
    budget: int | None = None
    dropout_seed: int | None = None

    def predict(self) -> tuple[Any, bool]:
        """Return the outputs as `LSTMNetwork.predict` does, and whether they are finite."""
        architecture, sequences, dtype = self.architecture, self.sequences, self.parameters.dtype
        N, every_step = len(sequences), architecture.readout == "steps"
        width = architecture.output_dim or architecture.features
        if every_step and sequences.mask is not None:
            outputs = np.empty((N, sequences.steps, width), dtype)
            self._run_masked(outputs, (None, None), None, has_head=architecture.output_dim is not None)
            return outputs, is_finite(outputs)
        order = sequences.by_length
        if not every_step:
            outputs = np.empty((N, width), dtype)
            self._run(self._new_pass(architecture)[1], order, Y=outputs)
            return outputs, is_finite(outputs)
        rows = sequences.new_rows(width)
        if architecture.output_dim is None:
            self._run(self._new_pass(None)[1], order, H=rows)
        else:
            self._run(self._new_pass(architecture)[1], order, Y=rows)
        return sequences.scatter(rows), is_finite(rows)

    def run_layers(self, initial: States) -> tuple[Array, tuple[Array, Array]]:
        """Run the layers alone: return H (N, T, F), and the last h (cells, N, R) and C (cells, N, hidden_dim).

        Parameters
        ----------
        initial : States
            h0 and C0; None for the learned one, or zeros.
        """
        architecture, sequences, dtype = self.architecture, self.sequences, self.parameters.dtype
        N = len(sequences)
        last = new_states(architecture, N, dtype)
        if sequences.mask is not None:
            H = np.empty((N, sequences.steps, architecture.features), dtype)
            self._run_masked(H, initial, last, has_head=False)
            return H, last
        rows = sequences.new_rows(architecture.features)
        order = sequences.by_length
        self._run(self._new_pass(None, carries=False)[1], order, initial, last, H=rows)
        return sequences.pad(rows), last

    def _run(
        self,
        forward: ForwardPass,
        members: Index,
        initial: States = (None, None),
        last: tuple[Array, Array] | None = None,
        **outputs: Any,
    ) -> None:
        finite = forward.run(
            self.threads, self.sequences, members, *initial, last=last, dropout_seed=self.dropout_seed, **outputs
        )
        if not finite:
            refuse_inputs(self.sequences)

    def _run_masked(self, outputs: Array, initial: States, last: tuple[Array, Array] | None, *, has_head: bool) -> None:
        """Write the outputs (N, T, width) of every step; a masked step repeats the output of the step before it."""
        architecture, sequences, dtype = self.architecture, self.sequences, self.parameters.dtype
        N, T = outputs.shape[:2]
        columns = architecture.directions * architecture.state_dim
        # for `Carried`, and the rows that it spreads
        extra = T * (3 * columns * dtype.itemsize + 64 * architecture.directions)
        batch, forward = self._new_pass(
            architecture.with_readout("last") if has_head else None, carries=last is None, extra=extra
        )
        before = first_outputs(architecture, self.parameters, initial[0], N)
        for start in range(0, N, batch):
            stop = min(start + batch, N)
            begin, end = sequences.first[start], sequences.first[stop - 1] + sequences.lengths[stop - 1]
            rows = np.empty((end - begin, columns), dtype)
            members = start + longest_first(sequences.lengths[start:stop])
            self._run(forward, members, initial, last, H=rows, H_begin=begin)
            carried = Carried(architecture, sequences, start, stop)
            features = carried.spread(rows, None if before is None else before[:, start:stop])
            if has_head:
                forward.apply_head(self.threads, features.reshape(-1, architecture.features), outputs[start:stop])
            else:
                outputs[start:stop] = features

    def _new_pass(
        self, with_head: Architecture | None, *, carries: bool = True, extra: int = 0
    ) -> tuple[int, ForwardPass]:
        """Return the number of sequences that run side by side, and a pass whose work arrays fit into the budget.

        Parameters
        ----------
        with_head : Architecture, optional
            The network's, with the readout of this pass; None for the layers alone.
        carries : bool
            Whether states must be carried from chunk to chunk of the steps.
        extra : int
            The bytes that each sequence needs in addition to the pass's arrays.
        """
        architecture, longest = self.architecture, self.sequences.longest
        batch = min(len(self.sequences), BATCH)
        steps = steps_at_once(architecture, batch, architecture.features, longest)

        def new(batch: int, steps: int, *, measure: bool = False) -> ForwardPass:
            return ForwardPass(
                self.isa,
                with_head or architecture,
                self.parameters,
                batch,
                steps,
                has_head=with_head is not None,
                carries=carries and (steps < longest or measure),  # so that more steps always take more
                draws=self.dropout_seed is not None,
                measure=measure,
            )

        def size(batch: int, steps: int) -> int:
            return new(batch, steps, measure=True).bytes + batch * extra

        limit = WORK_BYTES if self.budget is None else self.budget
        if size(batch, steps) > limit:
            if self.budget is None:
                limit += size(1, 1)
            if architecture.runs_forwards:
                steps = _largest(lambda k: size(batch, k), steps, limit) or 1
            batch = _largest(lambda b: size(b, steps), batch, limit)
            if batch == 0 and self.budget is not None:
                raise ValueError(
                    f"memory_budget is {self.budget} bytes; a sequence of {longest} steps needs at least "
                    f"{size(1, steps)}"
                )
            batch = max(batch, 1)
        return batch, new(batch, steps)


def refuse_inputs(sequences: Sequences) -> NoReturn:
    """Raise an error that names the element of X that is not finite."""
    check_live("X", sequences.rows.reshape(len(sequences), -1, sequences.rows.shape[1]), sequences.lengths)
    raise ValueError("X was not finite when it was read; expected an array that does not change during the call")


def _largest(size: Callable[[int], int], maximum: int, limit: int) -> int:
    """Return the largest number up to `maximum` whose size is within a limit; 0 if there is none."""
    return bisect_right(range(1, maximum + 1), limit, key=size)


def first_outputs(architecture: Architecture, parameters: Array, h0: Array | None, N: int) -> Array | None:
    """Return the initial h (D, N, R) of the top layer; None for zeros."""
    if h0 is not None:
        return top_states(architecture, h0)
    if not architecture.options.learn_initial_state:
        return None
    views = parameter_views(parameters, architecture)
    learned = np.stack([views["h_0" + cell.suffix][:, 0] for cell in architecture.cells])
    return np.repeat(top_states(architecture, learned)[:, None], N, axis=1)


def warn_not_finite(outputs: Any, parameters: Array, architecture: Architecture) -> None:
    """Warn that outputs are not finite, at the line that called the package."""
    n = next(n for n, y in enumerate(outputs) if not np.isfinite(y).all())
    try:
        check_weights(parameters, architecture)
        reason = f"a number has become too large for {parameters.dtype}; check the scale of X and of the weights"
    except ValueError as error:
        reason = str(error)
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("lstm_ext."):
        level, frame = level + 1, frame.f_back
    warnings.warn(f"the outputs of sequence {n} are not finite: {reason}", RuntimeWarning, stacklevel=level)
