"""Inference: predictions, and the layers' outputs without a tape.

A pass runs some sequences side by side and, if the network runs forwards, some of their steps at a time. Neither number
changes a bit of the results; together they bound the memory.
"""

from __future__ import annotations

import sys
import warnings
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from lstm_ext import _inference
from lstm_ext._inference import ForwardPass
from lstm_ext._kernels import is_finite
from lstm_ext.checks import Array, Index, check_live
from lstm_ext.layers import Carried, States, new_states, steps_at_once, top_states
from lstm_ext.options import Architecture
from lstm_ext.parameters import check_weights, parameter_views
from lstm_ext.sequences import Sequences, longest_first

BATCH = 192  # the sequences that run side by side, if memory allows it
WORK_BYTES = 2**26  # that the work arrays may take without a budget, in addition to what one step of one sequence needs


@dataclass(frozen=True, eq=False)
class Inference:
    """What runs over which sequences, and how.

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
        The bytes that the work arrays may take.
    dropout_seed : int, optional
        Of the masks of dropout; None: nothing is dropped.
    """

    architecture: Architecture
    parameters: Array
    sequences: Sequences
    threads: int
    isa: int
    budget: int | None = None
    dropout_seed: int | None = None

    def predict(self, *, quick: bool) -> tuple[Any, bool]:
        """Return the outputs as `LSTMNetwork.predict` does, and whether they are finite.

        Parameters
        ----------
        quick : bool
            Whether `_inference.infer` can run the network.
        """
        made, sequences, dtype = self.architecture, self.sequences, self.parameters.dtype
        N, every_step, width = len(sequences), made.readout == "steps", made.output_dim or made.features
        if quick and sequences.is_whole and self.budget is None:
            X, checked = sequences.rows.reshape(N, -1, made.input_dim), not sequences.unchecked
            found = _inference.infer(self.isa, self.threads, BATCH, made.sizes, self.parameters, X, checked, every_step)
            if found is None:
                self._refuse_inputs()
            return found
        if every_step and sequences.mask is not None:
            outputs = np.empty((N, sequences.steps, width), dtype)
            self._run_masked(outputs, (None, None), None, has_head=made.output_dim is not None)
            return outputs, is_finite(outputs)
        order = longest_first(sequences.lengths)
        if not every_step:
            outputs = np.empty((N, width), dtype)
            self._run(self._new_pass(made)[1], order, Y=outputs)
            return outputs, is_finite(outputs)
        rows = sequences.new_rows(width)
        if made.output_dim is None:
            self._run(self._new_pass(None)[1], order, H=rows)
        else:
            self._run(self._new_pass(made)[1], order, Y=rows)
        return sequences.scatter(rows), is_finite(rows)

    def run_layers(self, initial: States) -> tuple[Array, tuple[Array, Array]]:
        """Run the layers alone: return H (N, T, F), and the last h (cells, N, R) and C (cells, N, hidden_dim).

        Parameters
        ----------
        initial : States
            h0 and C0; None for the learned one, or zeros.
        """
        made, sequences, dtype = self.architecture, self.sequences, self.parameters.dtype
        N = len(sequences)
        last = new_states(made, N, dtype)
        if sequences.mask is not None:
            H = np.empty((N, sequences.steps, made.features), dtype)
            self._run_masked(H, initial, last, has_head=False)
            return H, last
        rows = sequences.new_rows(made.features)
        order = longest_first(sequences.lengths)
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
            self._refuse_inputs()

    def _refuse_inputs(self) -> NoReturn:
        """Raise an error that names the element of X that is not finite."""
        sequences = self.sequences
        check_live("X", sequences.rows.reshape(len(sequences), -1, sequences.rows.shape[1]), sequences.lengths)
        raise ValueError("X was not finite when it was read; expected an array that does not change meanwhile")

    def _run_masked(self, outputs: Array, initial: States, last: tuple[Array, Array] | None, *, has_head: bool) -> None:
        """Write the outputs (N, T, width) of every step: a masked step repeats those of its directions' last ones."""
        made, sequences, dtype = self.architecture, self.sequences, self.parameters.dtype
        N, T = outputs.shape[:2]
        columns = made.directions * made.state_dim
        extra = T * (3 * columns * dtype.itemsize + 64 * made.directions)  # `Carried`, and the rows that it spreads
        batch, forward = self._new_pass(
            made.with_readout("last") if has_head else None, carries=last is None, extra=extra
        )
        before = first_outputs(made, self.parameters, initial[0], N)
        for start in range(0, N, batch):
            stop = min(start + batch, N)
            begin, end = sequences.first[start], sequences.first[stop - 1] + sequences.lengths[stop - 1]
            rows = np.empty((end - begin, columns), dtype)
            members = start + longest_first(sequences.lengths[start:stop])
            self._run(forward, members, initial, last, H=rows, H_begin=begin)
            carried = Carried(made, sequences, start, stop)
            features = carried.spread(rows, None if before is None else before[:, start:stop])
            if has_head:
                forward.apply_head(self.threads, features.reshape(-1, made.features), outputs[start:stop])
            else:
                outputs[start:stop] = features

    def _new_pass(
        self, with_head: Architecture | None, *, carries: bool = True, extra: int = 0
    ) -> tuple[int, ForwardPass]:
        """Return how many sequences run side by side, and the pass, with work arrays within the budget.

        Parameters
        ----------
        with_head : Architecture, optional
            The network's, with the readout of this pass; None: without readout and head.
        carries : bool
            Whether states must be carried from chunk to chunk of the steps.
        extra : int
            The bytes that each sequence needs in addition to the pass's arrays.
        """
        made, longest = self.architecture, self.sequences.longest
        batch, steps = min(len(self.sequences), BATCH), longest
        keeps_outputs = made.options.num_layers > 1 or (with_head is not None and with_head.readout != "last")

        def new(batch: int, steps: int, *, measure: bool = False) -> ForwardPass:
            return ForwardPass(
                self.isa,
                with_head or made,
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

        if keeps_outputs:
            steps = steps_at_once(made, batch, made.features, longest)
        limit = WORK_BYTES if self.budget is None else self.budget
        if size(batch, steps) > limit:
            if self.budget is None:
                limit += size(1, 1)
            if made.runs_forwards:
                steps = _most(lambda k: size(batch, k), steps, limit) or 1
            batch = _most(lambda b: size(b, steps), batch, limit)
            if batch == 0 and self.budget is not None:
                raise ValueError(
                    f"memory_budget is {self.budget} bytes; a sequence of {longest} steps needs at least "
                    f"{size(1, steps)}"
                )
            batch = max(batch, 1)
        return batch, new(batch, steps)


def _most(size: Callable[[int], int], most: int, limit: int) -> int:
    """Return the largest number up to `most` whose size is within a limit; 0: none is."""
    return bisect_right(range(1, most + 1), limit, key=size)


def first_outputs(architecture: Architecture, parameters: Array, h0: Array | None, N: int) -> Array | None:
    """Return the h (D, N, R) that the top layer begins with; None for zeros."""
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
