"""The NumPy oracle: the article's LSTM, its options, and backpropagation through time (BPTT).

It has the classes and signatures of the compiled package, and is written for clarity, not for speed:

    f_t  = sigmoid(W_f [h_{t-1}, x_t] + b_f)        forget gate
    i_t  = sigmoid(W_i [h_{t-1}, x_t] + b_i)        input gate
    C~_t = tanh(W_C [h_{t-1}, x_t] + b_C)           candidate
    o_t  = sigmoid(W_o [h_{t-1}, x_t] + b_o)        output gate
    C_t  = f_t * C_{t-1} + i_t * C~_t               cell state
    h_t  = o_t * tanh(C_t)                          hidden state
    y_t  = W_y h_t + b_y                            output (logits)

- parameters.py has the options and the parameter vector, cell.py one step (`forward_step`, `backward_step`) and its
  masks; activations, losses and optimizers have files of their own. This file has the rest: `_run` and `_run_back` take
  a cell through its sequences, `LSTM` adds layers and directions, and `LSTMNetwork` adds the head.
- Within a step, the batch is a matrix of columns (dim, N); for N = 1 the equations are the article's.
- Derivatives are written in terms of the outputs.
- Everything is analytic: there is no abs and no conjugation, and selections look at the real part. So the complex step,
  Im L(p + ih) / h, checks every derivative; dtype "complex128" exists only for that. At a kink (of relu, hard_sigmoid,
  cell_clip or a maximum) it gives the derivative of one side.
- ``num_threads`` has no effect; it is there because the compiled package has it.
- Arguments are copied on entry: inputs are not modified, and no result shares memory with them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from lstm_ext.reference.activations import sigmoid, tanh
from lstm_ext.reference.cell import (
    CellGradients,
    Key,
    LSTMCell,
    Masks,
    Step,
    backward_step,
    forward_step,
    masked,
    philox,
    row_sums,
)
from lstm_ext.reference.losses import LOSSES
from lstm_ext.reference.optimizers import OPTIMIZERS
from lstm_ext.reference.parameters import (
    FLOAT64,
    GATES,
    Architecture,
    Array,
    Options,
    OrZeros,
    Parametrised,
    Seed,
    Weights,
    as_architecture,
    as_array,
    as_choice,
    as_size,
    cell_weights,
    flatten,
    parameter_layout,
)

__all__ = [
    "GATES",
    "LOSSES",
    "LSTM",
    "OPTIMIZERS",
    "READOUTS",
    "CellGradients",
    "LSTMCell",
    "LSTMGradients",
    "LSTMNetwork",
    "LSTMTape",
    "Options",
    "parameter_layout",
    "philox",
    "sigmoid",
    "tanh",
    "train_lstm",
]


# --- batches of sequences: the live steps, and the order in which a cell takes them ---


class _Batch(NamedTuple):
    """Sequences, padded to one length."""

    X: Array  # (N, T, input_dim)
    live: Array  # (N, T) bool: the steps that a cell takes
    inside: Array  # (N, T) bool: the steps that have an output: with a mask all, else the live ones

    def reversed(self) -> _Batch:
        """Return the batch with each sequence reversed within its length."""
        index = np.arange(len(self.X))[:, None], self._mirror()
        return _Batch(self.X[index], self.live[index], self.inside)

    def restored(self, X: Array) -> Array:
        """Undo `reversed` for an array of X's shape."""
        return np.asarray(X[np.arange(len(X))[:, None], self._mirror()])

    def _mirror(self) -> Array:
        t, lengths = np.arange(self.X.shape[1]), self.inside.sum(axis=1, keepdims=True)
        return np.where(self.inside, lengths - 1 - t, t)


def _batch(X: Any, lengths: ArrayLike | None, mask: ArrayLike | None, input_dim: int, dtype: np.dtype[Any]) -> _Batch:
    """Check and copy the sequences of a batch."""
    if isinstance(X, list | tuple):
        for name, value in (("lengths", lengths), ("mask", mask)):
            if value is not None:
                raise ValueError(f"{name} must be None for a list of sequences")
        sequences = [as_array(f"X[{n}]", x, dtype, ("T", input_dim)) for n, x in enumerate(X)]
        if not sequences:
            raise ValueError("X must hold at least one sequence, got 0")
        X, lengths = _pad(sequences), [len(x) for x in sequences]
    else:
        X = as_array("X", X, dtype, ("N", "T", input_dim))
    if mask is not None:
        if lengths is not None:
            raise ValueError("lengths must be None with a mask")
        return _Batch(X, _live(mask, X.shape[:2]), np.ones(X.shape[:2], bool))
    N, T, _ = X.shape
    ends = as_array("lengths", np.full(N, T) if lengths is None else lengths, np.dtype(np.int64), (N,))
    if ends.min() < 1 or ends.max() > T:
        raise ValueError(f"lengths must be 1 to {T}, got {ends.min()} to {ends.max()}")
    live = np.arange(T) < ends[:, None]
    return _Batch(X, live, live)


def _live(mask: ArrayLike, shape: tuple[int, ...]) -> Array:
    """Check and copy a mask."""
    live = np.array(mask)
    if live.dtype != bool:
        raise TypeError(f"mask must hold bools, got dtype {live.dtype}")
    if live.shape != shape:
        raise ValueError(f"mask must have shape {shape}, got {live.shape}")
    if not live.any(axis=1).all():
        raise ValueError(f"mask must have a live step in every row, got none in row {live.any(axis=1).argmin()}")
    return live


def _pad(sequences: list[Array]) -> Array:
    """Stack arrays (T_n, ...) of different lengths, with zeros at the end."""
    padded = np.zeros((len(sequences), max(map(len, sequences)), *sequences[0].shape[1:]), sequences[0].dtype)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return padded


class _Order(NamedTuple):
    """The order of one direction's steps: step s = 0, 1, ... of row n takes x at time[n][s]."""

    time: list[Array]  # one array for each row, with the times of its live steps
    state: Array  # (N, T): the number of steps that the row has taken before its output at t is read

    @classmethod
    def of(cls, live: Array, reverse: bool) -> _Order:
        way = slice(None, None, -1 if reverse else 1)
        return cls([np.flatnonzero(row)[way] for row in live], np.cumsum(live[:, way], axis=1)[:, way])

    @property
    def steps(self) -> int:
        """The steps of the longest row."""
        return max(map(len, self.time))

    def at(self, s: int) -> tuple[Array, Array]:
        """Return the rows that have a step s, and the times of that step."""
        rows = [n for n, time in enumerate(self.time) if s < len(time)]
        return np.array(rows), np.array([self.time[n][s] for n in rows])


class _Run(NamedTuple):
    """All steps of one cell over a batch."""

    order: _Order
    steps: list[Step]  # step s of the rows that have one
    h: list[Array]  # (R, N): h[s] is the input of step s; a finished row keeps its last state
    C: list[Array]  # (H, N)


def _run(w: Weights, architecture: Architecture, X: Array, order: _Order, h0: Array, C0: Array, masks: Masks) -> _Run:
    """Run one cell from the states h0 (N, R), C0 (N, H)."""
    run = _Run(order, [], [h0.T], [C0.T])
    for s in range(order.steps):
        rows, times = order.at(s)
        h, C = run.h[s].copy(), run.C[s].copy()
        step = forward_step(w, architecture, X[rows, times].T, h[:, rows], C[:, rows], masks.at(s, rows))
        h[:, rows], C[:, rows] = step.h, step.C
        run.steps.append(step)
        run.h.append(h)
        run.C.append(C)
    return run


def _outputs(run: _Run) -> Array:
    """Return h (N, T, R) at every time, also beyond a sequence's end."""
    h = np.stack(run.h)
    return np.asarray(h[run.order.state, :, np.arange(h.shape[2])[:, None]])


def _run_back(
    w: Weights,
    g: Weights,
    architecture: Architecture,
    run: _Run,
    dH: Array,
    dh_T: Array,
    dC_T: Array,
    dX: Array,
) -> tuple[Array, Array]:
    """Return dh0 and dC0, given dL/dH (N, T, R) and the gradients of the final states; add to `g` and `dX`."""
    dstates = np.zeros((len(run.h), len(dH), dH.shape[2]), dH.dtype)
    np.add.at(dstates, (run.order.state, np.arange(len(dH))[:, None]), dH)
    dh, dC = dh_T.T.copy(), dC_T.T.copy()
    for s in reversed(range(len(run.steps))):
        rows, times = run.order.at(s)
        dh_t = dh[:, rows] + dstates[s + 1, rows].T
        dx, dh[:, rows], dC[:, rows] = backward_step(w, g, architecture, run.steps[s], dh_t, dC[:, rows])
        dX[rows, times] += dx.T
    return dh.T + dstates[0], dC.T.copy()


# --- layers ---


class LSTMGradients(NamedTuple):
    """The gradients of a batch: dX has the shape of X (padded), dh0 and dC0 of the states; `parameters` is flat."""

    dX: Array
    dh0: Array
    dC0: Array
    parameters: Array


class LSTMTape(NamedTuple):
    """What `LSTM.backward` needs from `LSTM.forward`: a copy of the weights, and every step."""

    architecture: Architecture
    parameters: Array
    batch: _Batch
    runs: list[_Run]  # one for each cell
    dropout: list[Array | None]  # the mask of each layer's inputs
    learned: tuple[bool, bool]  # whether the learned h_0 and C_0 were used


class LSTM(Parametrised):
    """A stack of LSTM layers.

    The parameters are those of `LSTMCell`, further keyword arguments those of `Options`. A plain layer has a
    `lstm_cell`. The states of a single cell are (N, R) and (N, hidden_dim), where R is proj_size or hidden_dim; those
    of several are (num_layers * directions, N, R) and (..., N, hidden_dim), layer by layer, the forward direction
    first.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        *,
        dtype: DTypeLike = "float32",
        init: str = "glorot",
        seed: Seed = None,
        **options: Any,
    ) -> None:
        self._build(as_architecture(input_dim, hidden_dim, None, options), dtype, init, seed)

    def _adopt(self, architecture: Architecture, named: dict[str, Array]) -> None:
        super()._adopt(architecture, named)
        if architecture.plain:
            vars(self)["lstm_cell"] = self._part(LSTMCell, architecture)

    def forward(
        self,
        X: Any,
        h0: OrZeros = None,
        C0: OrZeros = None,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        dropout_seed: int | None = None,
        return_tape: bool = False,
        num_threads: int | None = None,
    ) -> Any:
        """Return (H, (h_T, C_T)), or (H, (h_T, C_T), tape) if `return_tape`.

        Parameters
        ----------
        X : array_like (N, T, input_dim), or list of array_like (T_n, input_dim)
            The sequences; a list is padded.
        h0, C0 : array_like, optional
            Initial states; by default the learned ones, or zeros.
        lengths : array_like of int (N,), optional
            Lengths of the sequences of a padded X, 1 to T; H is zero beyond them.
        mask : array_like of bool (N, T), optional
            False where a step is skipped; H repeats the output before it.
        dropout_seed : int, optional
            Seed of the masks of dropout; None for inference.
        return_tape : bool
            Whether to return the tape that `backward` takes.
        num_threads : int, optional
            No effect.
        """
        batch = _batch(X, lengths, mask, self.input_dim, self.dtype)
        H, last, tape = self._forward(batch, h0, C0, Key.of(dropout_seed, 0))
        return (H, last, tape) if return_tape else (H, last)

    def _forward(
        self, batch: _Batch, h0: OrZeros, C0: OrZeros, key: Key | None
    ) -> tuple[Array, tuple[Array, Array], LSTMTape]:
        architecture, options, D = self._architecture, self.options, self._architecture.directions
        N = len(batch.X)
        h0s = None if h0 is None else self._states("h0", h0, N, architecture.state_dim)
        C0s = None if C0 is None else self._states("C0", C0, N, self.hidden_dim)
        learned = (options.learn_initial_state and h0 is None, options.learn_initial_state and C0 is None)
        batch = batch.reversed() if options.go_backwards else batch
        tape = LSTMTape(architecture, self.parameters, batch, [], [], learned)
        orders = [_Order.of(batch.live, reverse) for reverse in (False, True)[:D]]
        weights = cell_weights(tape.parameters, architecture)

        outputs = batch.X
        for layer in range(options.num_layers):
            dropout = self._input_mask(key, layer, orders[0]) if layer else None
            tape.dropout.append(dropout)
            inputs = masked(outputs, dropout)
            for cell in range(layer * D, layer * D + D):
                w = weights[cell]
                h = _initial(h0s, cell, N, architecture.state_dim, w.h_0, self.dtype)
                C = _initial(C0s, cell, N, self.hidden_dim, w.C_0, self.dtype)
                order = orders[cell - layer * D]
                masks = Masks.draw(architecture, self.dtype, key, cell, order.steps, N)
                tape.runs.append(_run(w, architecture, inputs, order, h, C, masks))
            outputs = _merge([_outputs(run) for run in tape.runs[layer * D :]], options.bidirectional)
        final = [run.h[-1].T for run in tape.runs], [run.C[-1].T for run in tape.runs]
        h_T, C_T = (np.stack(states) if len(states) > 1 else states[0].copy() for states in final)
        return np.where(batch.inside[:, :, None], outputs, 0), (h_T, C_T), tape

    def backward(
        self,
        tape: LSTMTape,
        dH: OrZeros = None,
        dh_T: OrZeros = None,
        dC_T: OrZeros = None,
        *,
        num_threads: int | None = None,
    ) -> LSTMGradients:
        """Return the gradients of a loss, given dL/dH, dL/dh_T and dL/dC_T; None stands for zeros."""
        if not isinstance(tape, LSTMTape):
            raise TypeError(f"tape must be a tape that forward returned, got {type(tape).__name__}")
        architecture, D = self._architecture, self._architecture.directions
        ours, theirs = (self._architecture, self.dtype), (tape.architecture, tape.parameters.dtype)
        if ours != theirs:
            raise ValueError(f"tape must come from a layer like this one, {ours}, got {theirs}")
        batch, (N, T, _) = tape.batch, tape.batch.X.shape
        shape = N, T, architecture.feature_dim
        doutputs = as_array("dH", np.zeros(shape) if dH is None else dH, self.dtype, shape)
        doutputs[~batch.inside] = 0
        dh = self._states("dh_T", dh_T, N, architecture.state_dim)
        dC = self._states("dC_T", dC_T, N, self.hidden_dim)

        gradient = np.zeros_like(tape.parameters)
        weights, gradients = cell_weights(tape.parameters, architecture), cell_weights(gradient, architecture)
        for layer in reversed(range(self.options.num_layers)):
            width = architecture.feature_dim if layer else self.input_dim
            dinputs = np.zeros((N, T, width), self.dtype)
            for direction, part in enumerate(_split(doutputs, self.options.bidirectional)):
                cell = layer * D + direction
                w, g = weights[cell], gradients[cell]
                dh[cell], dC[cell] = _run_back(w, g, architecture, tape.runs[cell], part, dh[cell], dC[cell], dinputs)
                if tape.learned[0]:
                    g.h_0[...] = row_sums(dh[cell].T)
                if tape.learned[1]:
                    g.C_0[...] = row_sums(dC[cell].T)
            doutputs = masked(dinputs, tape.dropout[layer])
        dX = batch.restored(doutputs) if self.options.go_backwards else doutputs
        if len(weights) == 1:
            dh, dC = dh[0], dC[0]
        return LSTMGradients(dX, dh, dC, gradient)

    def _states(self, name: str, value: OrZeros, N: int, width: int) -> Array:
        """Return states as (cells, N, width)."""
        cells = self._architecture.directions * self.options.num_layers
        shape = (N, width) if cells == 1 else (cells, N, width)
        array = as_array(name, np.zeros(shape) if value is None else value, self.dtype, shape)
        return array.reshape(cells, N, width)

    def _input_mask(self, key: Key | None, layer: int, order: _Order) -> Array | None:
        """Return the dropout mask (N, T, F) of a layer's inputs, for a layer above the first."""
        if key is None or not self.options.dropout:
            return None
        n, t = np.arange(len(order.state))[:, None, None], np.maximum(order.state - 1, 0)[:, :, None]
        j, cell = np.arange(self._architecture.feature_dim), layer * self._architecture.directions
        return key.mask(self.dtype, self.options.dropout, 0, cell, j, n, t)


def _initial(given: Array | None, cell: int, N: int, width: int, learned: Any, dtype: np.dtype[Any]) -> Array:
    """Return a cell's initial states (N, width): those given, otherwise the learned ones, otherwise zeros."""
    if given is not None:
        return np.asarray(given[cell])
    return np.zeros((N, width), dtype) if learned is None else np.repeat(learned.T, N, axis=0)


def _merge(parts: list[Array], how: str | None) -> Array:
    """Merge the outputs of the directions along the last axis."""
    if how == "concat":
        return np.concatenate(parts, axis=-1)
    return parts[0] + parts[1] if how == "sum" else parts[0]


def _split(gradient: Array, how: str | None) -> list[Array]:
    """Return the gradient of each direction's outputs, given that of `_merge`'s result."""
    if how == "concat":
        return np.split(gradient, 2, axis=-1)
    return [gradient, gradient] if how == "sum" else [gradient]


def _mean(H: Array, live: Array) -> Array:
    """Mean over the live steps."""
    return np.asarray((H * live[:, :, None]).sum(axis=1) / live.sum(axis=1, keepdims=True)).astype(H.dtype)


def _mean_back(dfeatures: Array, H: Array, live: Array) -> Array:
    return np.asarray(live[:, :, None] * (dfeatures / live.sum(axis=1, keepdims=True))[:, None])


def _max(H: Array, live: Array) -> Array:
    """Maximum of each unit over the live steps."""
    return np.take_along_axis(H, _largest(H, live), axis=1)[:, 0]


def _max_back(dfeatures: Array, H: Array, live: Array) -> Array:
    dH = np.zeros_like(H)
    np.put_along_axis(dH, _largest(H, live), dfeatures[:, None], axis=1)
    return dH


def _largest(H: Array, live: Array) -> Array:
    """Return when each unit is largest, (N, 1, width), the first time of equals; live steps alone count."""
    return np.asarray(np.where(live[:, :, None], H.real, -np.inf).argmax(axis=1, keepdims=True))


POOLS = {"mean": (_mean, _mean_back), "max": (_max, _max_back)}
READOUTS = ("last", "steps", *POOLS)


class LSTMNetwork(Parametrised):
    """An LSTM and a head: y = W_y feature + b_y, or the features themselves if `output_dim` is None.

    Parameters as for `LSTM`; `output_dim` (int or None) is the size of y. `readout` says what the features
    are: "last", the top layer's final states; "steps", its output at every step; "mean" and "max", of its
    outputs over the live steps.

    Attributes
    ----------
    lstm_cell : LSTMCell
        The cell with the LSTM's weights, of a plain network.
    W_y, b_y : ndarray (output_dim, feature_dim) and (output_dim, 1)
        The output's weights and bias.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        output_dim: int | None,
        *,
        readout: str = "last",
        dtype: DTypeLike = "float32",
        init: str = "glorot",
        seed: Seed = None,
        **options: Any,
    ) -> None:
        as_choice("readout", readout, READOUTS)
        architecture = as_architecture(input_dim, hidden_dim, output_dim, options)
        self._build(architecture._replace(readout=readout), dtype, init, seed)

    def _adopt(self, architecture: Architecture, named: dict[str, Array]) -> None:
        super()._adopt(architecture, named)
        vars(self).update(output_dim=architecture.output_dim, readout=architecture.readout)
        vars(self)["_lstm"] = self._part(LSTM, architecture._replace(output_dim=None, readout="last"))
        if architecture.plain:
            vars(self)["lstm_cell"] = self._lstm.lstm_cell

    def forward(self, X: ArrayLike, *, num_threads: int | None = None) -> list[Array]:
        """Return the T outputs, each (output_dim, 1), of one sequence X (T, input_dim)."""
        X = as_array("X", X, self.dtype, ("T", self.input_dim))
        return [y.reshape(-1, 1) for y in self.predict(X[np.newaxis], readout="steps")[0]]

    def predict(
        self,
        X: Any,
        *,
        readout: str | None = None,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        num_threads: int | None = None,
    ) -> Array:
        """Return the outputs of X, which is as for `LSTM.forward`.

        (N, output_dim); (N, T, output_dim) for readout "steps", zero past a sequence's end. By default the
        network's readout; a head of "last" or "steps" can be applied to the other, and without a head any
        can be asked for.
        """
        readout = self.readout if readout is None else self._other_readout(readout)
        batch = _batch(X, lengths, mask, self.input_dim, self.dtype)
        H, (h_T, _), tape = self._lstm._forward(batch, None, None, None)
        y = self._head(self._features(readout, H, h_T, tape.batch.live))
        return np.where(batch.inside[:, :, None], y, 0) if readout == "steps" else y

    def _other_readout(self, readout: str) -> str:
        as_choice("readout", readout, READOUTS)
        if readout != self.readout and self.output_dim is not None and {readout, self.readout} & {*POOLS}:
            raise ValueError(f"readout must fit a head for {self.readout!r}, got {readout!r}")
        return readout

    def gradient(
        self,
        X: Any,
        Y: Any,
        *,
        loss: str = "mse",
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        dropout_seed: int | None = None,
        update: int = 0,
        num_threads: int | None = None,
    ) -> tuple[float, Array]:
        """Return the loss (complex for dtype complex128) and its flat gradient.

        Parameters
        ----------
        X : array_like (N, T, input_dim), or list of array_like (T_n, input_dim)
            A batch of sequences, with `lengths` or `mask` as for `LSTM.forward`.
        Y : array_like
            In the shape that `predict` returns; for a loss of labels ("cross_entropy") integer classes, (N,), or
            (N, T) for readout "steps". For a list X and readout "steps" also a list, of T_n rows each. Of the steps,
            only live ones count.
        loss : str
            A name in `LOSSES` (losses.py).
        lengths, mask : array_like, optional
            As for `LSTM.forward`.
        dropout_seed : int, optional
            Of the masks; None for inference.
        update : int
            Which of the seed's masks: those of an update of a training, from 0.
        num_threads : int, optional
            Without effect.
        """
        as_choice("loss", loss, tuple(LOSSES))
        batch = _batch(X, lengths, mask, self.input_dim, self.dtype)
        key = Key.of(dropout_seed, update)
        steps = self.readout == "steps"
        if steps and isinstance(X, list | tuple) and isinstance(Y, list | tuple):
            Y = self._pad_targets(Y, loss, batch)
        H, (h_T, _), tape = self._lstm._forward(batch, None, None, key)
        live = tape.batch.live
        rows = live if steps else np.ones(len(live), bool)  # those that count
        Y = self._targets(Y, loss, rows)
        features = self._features(self.readout, H, h_T, live)
        value, dy = LOSSES[loss].value_and_gradient(self._head(features[rows]), Y[rows])
        head, dfeatures = [], np.zeros_like(features)
        dfeatures[rows] = dy if self.output_dim is None else dy @ self.W_y
        if self.output_dim is not None:
            head = [dy.T @ features[rows], dy.sum(axis=0)]
        dH, dh_T = self._features_back(dfeatures, H, h_T, live)
        return value.item(), flatten([self._lstm.backward(tape, dH, dh_T).parameters, *head])

    def _head(self, features: Array) -> Array:
        """Y = W_y feature + b_y for features in rows (..., feature_dim)."""
        return features if self.output_dim is None else np.asarray(features @ self.W_y.T + self.b_y.T)

    def _features(self, readout: str, H: Array, h_T: Array, live: Array) -> Array:
        """Return what the head sees: (N, T, feature_dim) for "steps", else (N, feature_dim)."""
        if readout in POOLS:
            return POOLS[readout][0](H, live)
        return H if readout == "steps" else _merge(list(self._top(h_T)), self.options.bidirectional)

    def _features_back(self, dfeatures: Array, H: Array, h_T: Array, live: Array) -> tuple[Array, Array]:
        """Return dH and dh_T."""
        dH, dh_T = np.zeros_like(H), np.zeros_like(h_T)
        if self.readout in POOLS:
            dH = POOLS[self.readout][1](dfeatures, H, live)
        elif self.readout == "steps":
            dH = dfeatures
        else:
            self._top(dh_T)[...] = _split(dfeatures, self.options.bidirectional)
        return dH, dh_T

    def _top(self, h_T: Array) -> Array:
        """Return the top layer's states (directions, N, R), as a view."""
        return h_T.reshape(-1, *h_T.shape[-2:])[-self._architecture.directions :]

    def _pad_targets(self, Y: Any, loss: str, batch: _Batch) -> Array:
        lengths, width = batch.live.sum(axis=1), self._architecture.output_dim or self._architecture.feature_dim
        if len(Y) != len(lengths):
            raise ValueError(f"Y must hold {len(lengths)} arrays, as X, got {len(Y)}")
        labels = LOSSES[loss].takes_labels
        dtype = np.dtype(np.int64) if labels else self.dtype
        shapes = [(int(T),) if labels else (int(T), width) for T in lengths]
        return _pad([as_array(f"Y[{n}]", y, dtype, shapes[n]) for n, y in enumerate(Y)])

    def _targets(self, Y: ArrayLike, loss: str, rows: Array) -> Array:
        """Check and copy Y; where `rows` is False it may be anything."""
        width = self._architecture.output_dim or self._architecture.feature_dim
        if not LOSSES[loss].takes_labels:
            return as_array("Y", Y, self.dtype, (*rows.shape, width))
        classes = as_array("Y", Y, np.dtype(np.int64), rows.shape)
        low, high = classes[rows].min(), classes[rows].max()
        if low < 0 or high >= width:
            raise ValueError(f"Y must hold classes 0 to {width - 1}, got {low} to {high}")
        return classes


def train_lstm(
    X: Iterable[ArrayLike],
    Y: Iterable[ArrayLike],
    input_dim: int,
    hidden_dim: int,
    output_dim: int,
    learning_rate: float = 0.01,
    epochs: int = 100,
    *,
    num_threads: int | None = None,
) -> LSTMNetwork:
    """Train the article's network with one update per sequence, and print each epoch's mean loss.

    Parameters
    ----------
    X : sequence of array_like (T_i, input_dim)
        The sequences, which may have different lengths.
    Y : sequence of array_like (output_dim, 1) or (output_dim,)
        The target of each sequence's last output; the loss is mean((y_T - Y[i])^2).
    input_dim, hidden_dim, output_dim : int
        Sizes of the network, which is float64 with ``init="reference"``.
    learning_rate : float
        The learning rate: p -= learning_rate * dL/dp.
    epochs : int
        Number of epochs.
    num_threads : int, optional
        No effect.

    Returns
    -------
    LSTMNetwork
        The trained network.
    """
    for name, size in (("input_dim", input_dim), ("hidden_dim", hidden_dim), ("epochs", epochs)):
        as_size(name, size)
    shapes = (as_size("output_dim", output_dim), 1), (output_dim,)
    rate = as_array("learning_rate", learning_rate, FLOAT64, ())
    if not (np.isfinite(rate) and rate >= 0):
        raise ValueError(f"learning_rate must be finite and at least 0, got {learning_rate}")
    for name, data in (("X", X), ("Y", Y)):
        if not isinstance(data, Iterable):
            raise TypeError(f"{name} must be a sequence of arrays, got {data!r}")
    sequences = [as_array(f"X[{k}]", x, FLOAT64, ("T", input_dim))[None] for k, x in enumerate(X)]
    targets = [as_array(f"Y[{k}]", y, FLOAT64, *shapes).reshape(1, -1) for k, y in enumerate(Y)]
    if not sequences or len(sequences) != len(targets):
        given = f"{len(sequences)} sequences and {len(targets)} targets"
        raise ValueError(f"X and Y must hold one target per sequence, at least one, got {given}")

    network = LSTMNetwork(input_dim, hidden_dim, output_dim, dtype="float64", init="reference")
    for epoch in range(epochs):
        losses = []
        for x, y in zip(sequences, targets, strict=True):
            loss, gradient = network.gradient(x, y)
            network.parameters = network.parameters - rate * gradient
            losses.append(loss)
        print(f"Epoch {epoch + 1}/{epochs}, Loss: {sum(losses) / len(losses)}")
    return network
