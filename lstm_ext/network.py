"""The cell, the sequence layer and the network, on the compiled passes.

All three are a flat parameter vector with named views; the network's layer and the layer's cell are views of the
network's vector. Nothing of a call stays in them: what a backward pass needs is a `Tape` that the forward pass
returns on request, so threads can share a network.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, NoReturn, Self, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from lstm_ext import _inference, _kernels, _passes
from lstm_ext.checks import (
    Array,
    Data,
    as_choice,
    as_column,
    as_dtype,
    as_shape,
    as_size,
    check_allocatable,
    check_output,
)
from lstm_ext.data import SequenceScaler
from lstm_ext.losses import MSE, CrossEntropy, Loss, as_loss
from lstm_ext.options import SIZES, Architecture, Cell, OptionArguments, Options, as_architecture
from lstm_ext.parameters import cell_shapes, initialize, parameter_count, parameter_views
from lstm_ext.persistence import read_model, write_model
from lstm_ext.plan import TARGETS, Plan
from lstm_ext.sequences import Sequences
from lstm_ext.threads import thread_count
from lstm_ext.workspace import Activations, BackwardScratch, Shape

_INFERENCE_ROWS = 192  # sequences that run side by side where nothing is kept


class CellGradients(NamedTuple):
    """What `LSTMCell.backward` returns: gradients in the shapes of what they belong to."""

    dx: Array
    dh_prev: Array
    dC_prev: Array
    parameters: Array


class LSTMGradients(NamedTuple):
    """What `LSTM.backward` returns: gradients in the shapes of what they belong to."""

    dX: Array
    dh0: Array
    dC0: Array
    parameters: Array


@dataclass(frozen=True)
class Tape:
    """What `LSTM.backward` needs of one `LSTM.forward`: activations, and the weights as they were."""

    shape: Shape
    activations: Activations
    W: Array


class _Weight:
    """A named weight: a writable view of the flat vector. Assigning to it writes into the view."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, owner: Any, _: type | None = None) -> Any:
        return self if owner is None else self._view(owner)

    def __set__(self, owner: Any, value: ArrayLike) -> None:
        view = self._view(owner)
        view[...] = as_shape(self._name, value, view.dtype, view.shape)

    def _view(self, owner: Any) -> Array:
        view: Array | None = owner.named_parameters().get(self._name)
        if view is None:
            raise AttributeError(f"{owner!r} has no {self._name}")
        return view


class _Parametrised:
    """Architecture, dtype, and the flat parameter vector with its named views."""

    def __init__(self, architecture: Architecture, dtype: DTypeLike, init: str, seed: int | None) -> None:
        native = as_dtype(dtype)
        hidden_dim, output_dim, features = architecture.hidden_dim, architecture.output_dim, architecture.features
        check_allocatable("W", architecture.gates, hidden_dim, architecture.state_dim + architecture.input_dim)
        check_allocatable("W_y", output_dim or 0, features)
        count = parameter_count(architecture)
        check_allocatable("the parameter vector", count)
        self._use(architecture, np.zeros(count, native))
        initialize(self._views, architecture, init, seed)

    def _use(self, architecture: Architecture, vector: Array) -> None:
        self._architecture, self._sizes = architecture, architecture.sizes
        self._parameters = vector
        self._views = parameter_views(vector, architecture)

    def __getstate__(self) -> dict[str, Any]:
        return {"architecture": self._architecture, "parameters": self._parameters}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # from `copy.copy` the parameters are another's, from a buffer read-only
        self._use(state["architecture"], np.array(state["parameters"]))

    @classmethod
    def _from_parameters(cls, vector: Array, architecture: Architecture) -> Self:
        """Return one whose `parameters` is `vector`, not a copy; contiguous, with the length of the architecture's."""
        made = cls.__new__(cls)
        made._use(architecture, vector)
        return made

    def __repr__(self) -> str:
        arguments = {name: getattr(self, name) for name in SIZES if hasattr(self, name)}
        arguments |= self._architecture.options.changed() | {"dtype": self.dtype.name}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"

    @property
    def architecture(self) -> Architecture:
        """Sizes and options."""
        return self._architecture

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes: input_dim, hidden_dim and, with a head, output_dim."""
        return self._sizes

    @property
    def input_dim(self) -> int:
        """The width of x_t."""
        return self._sizes[0]

    @property
    def hidden_dim(self) -> int:
        """The number of hidden units, the width of C_t; and of h_t without a projection."""
        return self._sizes[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters and of every result."""
        return self._parameters.dtype

    @property
    def parameters(self) -> Array:
        """The flat parameter vector, writable (`parameter_layout`). Assigning writes into it."""
        return self._parameters

    @parameters.setter
    def parameters(self, value: ArrayLike) -> None:
        shape = self._parameters.shape
        self._parameters[...] = as_shape("parameters", value, self.dtype, shape)

    def named_parameters(self) -> dict[str, Array]:
        """Return the weights by name.

        Returns
        -------
        dict
            Writable views of `parameters`, in its order.
        """
        return dict(self._views)


class LSTMCell(_Parametrised):
    """One step of an LSTM (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000).

    f_t = sigmoid(W_f [h_{t-1}, x_t] + b_f), i_t and o_t likewise, C~_t = tanh(W_C [h_{t-1}, x_t] + b_C),
    C_t = f_t * C_{t-1} + i_t * C~_t, h_t = o_t * tanh(C_t).

    Parameters
    ----------
    input_dim, hidden_dim : int
        The widths of x_t and h_t, at least 1.
    dtype : {"float32", "float64"}
        Of parameters and results.
    init : {"glorot", "keras", "pytorch", "reference"}
        See `lstm_ext.parameters.initialize`.
    seed : int, optional
        The same seed gives the same weights. With ``init="reference"`` the draws come from
        `numpy.random`'s global state.

    Attributes
    ----------
    W_f, W_i, W_C, W_o : ndarray (hidden_dim, hidden_dim + input_dim)
        Columns [h | x]; writable views of `parameters`, as are the biases.
    b_f, b_i, b_C, b_o : ndarray (hidden_dim, 1)

    Raises
    ------
    TypeError, ValueError
        If a size is not an integer of at least 1, or dtype or init is unknown.
    """

    W_f, b_f, W_i, b_i = _Weight(), _Weight(), _Weight(), _Weight()
    W_C, b_C, W_o, b_o = _Weight(), _Weight(), _Weight(), _Weight()

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        *,
        dtype: DTypeLike = "float32",
        init: str = "glorot",
        seed: int | None = None,
    ) -> None:
        super().__init__(Architecture(input_dim, hidden_dim), dtype, init, seed)

    def _use(self, architecture: Architecture, vector: Array) -> None:
        super()._use(architecture, vector)
        gates = 4 * self.hidden_dim
        end = gates * (self.hidden_dim + self.input_dim)
        self._W = vector[:end].reshape(gates, -1)
        self._b = vector[end : end + gates].reshape(gates, 1)

    def forward(self, x_t: ArrayLike, h_prev: ArrayLike, C_prev: ArrayLike) -> tuple[Array, Array]:
        """Run one step.

        Parameters
        ----------
        x_t : array_like (input_dim, 1) or (input_dim,)
            The input.
        h_prev, C_prev : array_like (hidden_dim, 1) or (hidden_dim,)
            The state before the step.

        Returns
        -------
        h_t : ndarray (hidden_dim, 1)
            The hidden state after the step.
        C_t : ndarray (hidden_dim, 1)
            The cell state after the step.

        Raises
        ------
        TypeError, ValueError
            If an argument has another shape or does not hold finite real numbers.
        """
        _, h, C, _ = _forward(self, *self._columns(x_t, h_prev, C_prev), threads=1)
        return h.T, C.T

    def backward(
        self,
        x_t: ArrayLike,
        h_prev: ArrayLike,
        C_prev: ArrayLike,
        dh_t: ArrayLike,
        dC_t: ArrayLike,
    ) -> CellGradients:
        """Backpropagate through one step; the forward step is computed again.

        Parameters
        ----------
        x_t, h_prev, C_prev : array_like
            As for `forward`.
        dh_t, dC_t : array_like (hidden_dim, 1) or (hidden_dim,)
            The loss's gradient with respect to h_t, and to C_t by ways other than h_t.

        Returns
        -------
        CellGradients
            As columns dx, dh_prev, dC_prev, and the flat gradient of the parameters.

        Raises
        ------
        TypeError, ValueError
            As for `forward`.
        """
        dh, dC = (
            as_column(name, value, self.dtype, self.hidden_dim).T for name, value in (("dh_t", dh_t), ("dC_t", dC_t))
        )
        *_, tape = _forward(self, *self._columns(x_t, h_prev, C_prev), threads=1, keep=True)
        assert tape is not None
        gradients = _backward(self, tape, None, dh.copy(), dC.copy(), threads=1)
        return CellGradients(gradients.dX[0].T, gradients.dh0.T, gradients.dC0.T, gradients.parameters)

    def _columns(self, x_t: ArrayLike, h_prev: ArrayLike, C_prev: ArrayLike) -> tuple[Array, Array, Array]:
        x = as_column("x_t", x_t, self.dtype, self.input_dim)
        h = as_column("h_prev", h_prev, self.dtype, self.hidden_dim)
        C = as_column("C_prev", C_prev, self.dtype, self.hidden_dim)
        return x.reshape(1, 1, -1), h.T, C.T


class _Layers(_Parametrised):
    """What has cells by `Options`, and maybe a head."""

    def _use(self, architecture: Architecture, vector: Array) -> None:
        super()._use(architecture, vector)
        self._lstm_cell = None
        if architecture.is_plain:
            cell = Architecture(architecture.input_dim, architecture.hidden_dim)
            self._lstm_cell = LSTMCell._from_parameters(vector[: parameter_count(cell)], cell)

    @property
    def options(self) -> Options:
        """The options, as they were given to the constructor or are by default."""
        return self._architecture.options

    @property
    def lstm_cell(self) -> LSTMCell:
        """The cell, a view of `parameters`; only of one layer without options."""
        if self._lstm_cell is None:
            raise AttributeError(f"{self!r} has no lstm_cell, which is without options; use named_parameters()")
        return self._lstm_cell


class LSTM(_Layers):
    """The sequence layers alone, for those who build their own models.

    Parameters
    ----------
    input_dim, hidden_dim : int
        The widths of x_t and C_t, at least 1.
    dtype, init, seed : optional
        As for `LSTMCell`.
    **options
        As for `Options`: layers, directions, the cells' equations, and what training drops.

    Attributes
    ----------
    lstm_cell : LSTMCell
        The weights by name; its vector is this layer's. Only without options, where `named_parameters` has them.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        *,
        dtype: DTypeLike = "float32",
        init: str = "glorot",
        seed: int | None = None,
        **options: Unpack[OptionArguments],
    ) -> None:
        super().__init__(as_architecture(input_dim, hidden_dim, None, options), dtype, init, seed)

    @overload
    def forward(
        self,
        X: ArrayLike,
        h0: ArrayLike | None = None,
        C0: ArrayLike | None = None,
        *,
        return_tape: Literal[False] = False,
        num_threads: int | None = None,
    ) -> tuple[Array, tuple[Array, Array]]: ...

    @overload
    def forward(
        self,
        X: ArrayLike,
        h0: ArrayLike | None = None,
        C0: ArrayLike | None = None,
        *,
        return_tape: Literal[True],
        num_threads: int | None = None,
    ) -> tuple[Array, tuple[Array, Array], Tape]: ...

    def forward(
        self,
        X: ArrayLike,
        h0: ArrayLike | None = None,
        C0: ArrayLike | None = None,
        *,
        return_tape: bool = False,
        num_threads: int | None = None,
    ) -> Any:
        """Run over N sequences of T steps.

        Parameters
        ----------
        X : array_like (N, T, input_dim)
            The inputs.
        h0, C0 : array_like (N, hidden_dim), optional
            The initial states, zeros by default.
        return_tape : bool
            Whether to keep what `backward` needs: about N T (input_dim + 6 hidden_dim) numbers.
        num_threads : int, optional
            The most threads to use (`set_num_threads`).

        Returns
        -------
        H : ndarray (N, T, hidden_dim)
            Every step's h_t.
        state : tuple of ndarray (N, hidden_dim)
            The last h_T and C_T.
        tape : Tape
            With ``return_tape=True`` only.

        Raises
        ------
        TypeError, ValueError
            If an argument has another shape or does not hold finite real numbers.
        """
        X = as_shape("X", X, self.dtype, ("N", "T", self.input_dim))
        h, C = (_state(*pair, self, len(X)) for pair in (("h0", h0), ("C0", C0)))
        threads = thread_count(num_threads)
        H, h, C, tape = _forward(self.lstm_cell, X, h, C, threads, keep=return_tape, want_H=True)
        return (H, (h, C), tape) if return_tape else (H, (h, C))

    def backward(
        self,
        tape: Tape,
        dH: ArrayLike | None = None,
        dh_T: ArrayLike | None = None,
        dC_T: ArrayLike | None = None,
        *,
        num_threads: int | None = None,
    ) -> LSTMGradients:
        """Backpropagate through time.

        Parameters
        ----------
        tape : Tape
            Of `forward`; it can be used again.
        dH : array_like (N, T, hidden_dim), optional
            The loss's gradient with respect to H; zeros by default.
        dh_T, dC_T : array_like (N, hidden_dim), optional
            Its gradient with respect to the final state, beyond what dH holds; zeros by default.
        num_threads : int, optional
            The most threads to use (`set_num_threads`).

        Returns
        -------
        LSTMGradients
            The fields dX (N, T, input_dim), dh0 and dC0 (N, hidden_dim), and the flat gradient of the parameters.

        Raises
        ------
        TypeError, ValueError
            If an argument has another shape or does not hold finite real numbers.
        """
        if not isinstance(tape, Tape):
            raise TypeError(f"tape is {tape!r}; expected what forward returns with return_tape")
        if tape.W.shape != self.lstm_cell._W.shape or tape.W.dtype != self.dtype:
            raise ValueError(
                f"tape is of a layer with W {tape.W.shape} {tape.W.dtype}; "
                f"expected {self.lstm_cell._W.shape} {self.dtype}"
            )
        if dH is not None:
            shape = (tape.shape.batch, tape.shape.steps, self.hidden_dim)
            dH = as_shape("dH", dH, self.dtype, shape)
        dh, dC = (_state(*pair, self, tape.shape.batch) for pair in (("dh_T", dh_T), ("dC_T", dC_T)))
        return _backward(self.lstm_cell, tape, dH, dh.copy(), dC.copy(), thread_count(num_threads))


class State(_inference.Streams):
    """Where `LSTMNetwork.step` is in a batch of streams.

    The weights are packed once, when the state is made: a network that is changed afterwards needs a new state.
    """

    @property
    def h(self) -> Array:
        """A copy of h_t (batch, hidden_dim)."""
        start, _, stride = self.state()
        rows: Array = self.scratch[start : start + self.batch * stride].reshape(self.batch, stride)
        return rows[:, : self.sizes[1]].copy()

    @property
    def C(self) -> Array:
        """A copy of C_t (batch, hidden_dim)."""
        _, start, _ = self.state()
        rows: Array = self.scratch[start : start + self.batch * self.sizes[1]]
        return rows.reshape(self.batch, -1).copy()

    def __reduce__(self) -> NoReturn:
        raise TypeError("stream states are packed for this process; save the network instead")


class LSTMNetwork(_Layers):
    """LSTM layers with a linear head: y_t = W_y h_t + b_y.

    Parameters
    ----------
    input_dim, hidden_dim : int
        The widths of x_t and C_t, at least 1.
    output_dim : int or None
        The width of y_t, at least 1; None for no head: y_t is the top layer's output.
    dtype, init, seed : optional
        As for `LSTMCell`.
    **options
        As for `Options`: layers, directions, the cells' equations, and what training drops.

    Attributes
    ----------
    lstm_cell : LSTMCell
        The cell's weights by name. Only without options, where `named_parameters` has them.
    W_y : ndarray (output_dim, width of the top layer's outputs)
        A writable view of `parameters`, as are all weights.
    b_y : ndarray (output_dim, 1)
    """

    W_y, b_y = _Weight(), _Weight()

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        output_dim: int | None,
        *,
        dtype: DTypeLike = "float32",
        init: str = "glorot",
        seed: int | None = None,
        **options: Unpack[OptionArguments],
    ) -> None:
        super().__init__(as_architecture(input_dim, hidden_dim, output_dim, options), dtype, init, seed)

    @property
    def output_dim(self) -> int | None:
        """The width of y_t; None without a head."""
        return self._architecture.output_dim

    def summary(self) -> str:
        """Return a table of the weights: layer, name, shape, number of parameters, bytes.

        Returns
        -------
        str
            Several lines; print them.

        Examples
        --------
        >>> print(LSTMNetwork(3, 5, 2).summary())
        LSTMNetwork(input_dim=3, hidden_dim=5, output_dim=2, dtype='float32')
        layer   weight  shape   parameters  bytes
        LSTM    W_i     (5, 8)          40    160
        LSTM    W_f     (5, 8)          40    160
        LSTM    W_C     (5, 8)          40    160
        LSTM    W_o     (5, 8)          40    160
        LSTM    b_i     (5, 1)           5     20
        LSTM    b_f     (5, 1)           5     20
        LSTM    b_C     (5, 1)           5     20
        LSTM    b_o     (5, 1)           5     20
        linear  W_y     (2, 5)          10     40
        linear  b_y     (2, 1)           2      8
        total                          192    768
        """
        layers = {
            name + cell.suffix: self._layer_name(cell)
            for cell in self._architecture.cells
            for name in cell_shapes(self._architecture, cell.input_dim)
        }
        rows = [("layer", "weight", "shape", "parameters", "bytes")]
        for name, weight in self._views.items():
            layer = layers.get(name, "linear")
            rows.append((layer, name, str(weight.shape), str(weight.size), str(weight.nbytes)))
        rows.append(("total", "", "", str(self._parameters.size), str(self._parameters.nbytes)))
        a, b, c, d, e = (max(map(len, column)) for column in zip(*rows, strict=True))
        lines = (f"{row[0]:{a}}  {row[1]:{b}}  {row[2]:{c}}  {row[3]:>{d}}  {row[4]:>{e}}" for row in rows)
        return "\n".join([repr(self), *lines])

    def _layer_name(self, cell: Cell) -> str:
        layer = f" {cell.layer}" if self.options.num_layers > 1 else ""
        direction = (" reverse" if cell.reverse else " forward") if self.options.bidirectional is not None else ""
        return f"LSTM{layer}{direction}"

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        scaler: SequenceScaler | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the network to a file, whole or not at all; `load` and `load_model` read it.

        The file is in the safetensors format, with the weights by name.

        Parameters
        ----------
        path : path-like
            Replaced if it exists.
        scaler : SequenceScaler, optional
            A fitted one.
        details : mapping, optional
            What JSON holds, without NaN and Inf; tuples come back as lists, keys as str.

        Raises
        ------
        OSError
            If the file cannot be written; an older one stays as it was.
        TypeError, ValueError
            If an argument is not as above.
        RuntimeError
            If the scaler is not fitted.
        """
        write_model(path, self._architecture, self._parameters, scaler, details)

    def forward(self, X: ArrayLike, *, num_threads: int | None = None) -> list[Array]:
        """Run over one sequence from the zero state.

        Parameters
        ----------
        X : array_like (T, input_dim)
            The sequence.
        num_threads : int, optional
            The most threads to use (`set_num_threads`).

        Returns
        -------
        list of ndarray (output_dim, 1)
            The T outputs.

        Raises
        ------
        TypeError, ValueError
            If X has another shape or does not hold finite real numbers.
        """
        X = as_shape("X", X, self.dtype, ("T", self.input_dim))
        outputs: Array = self._infer(X[None], None, num_threads, every_step=True)
        return list(outputs.reshape(len(X), -1, 1))

    def predict(self, X: Data, *, target: str = "last", num_threads: int | None = None) -> Any:
        """Run over N sequences from zero states.

        Parameters
        ----------
        X : array_like (N, T, input_dim), or a list of arrays (T_n, input_dim)
            The sequences.
        target : {"last", "steps"}
            Which outputs to return.
        num_threads : int, optional
            The most threads to use (`set_num_threads`).

        Returns
        -------
        ndarray (N, output_dim) or (N, T, output_dim)
            The last or every step's outputs; for ``"steps"`` and sequences of different lengths, a list of arrays
            (T_n, output_dim).

        Raises
        ------
        TypeError, ValueError
            If X has another shape or does not hold finite real numbers.
        """
        every_step = as_choice("target", target, TARGETS) == "steps"
        outputs = self._infer(X, None, num_threads, every_step=every_step)
        if outputs is not None:
            return outputs
        sequences = Sequences(X, self.input_dim, self.dtype)
        outputs = self._infer(sequences.rows, sequences.offsets, num_threads, every_step=every_step)
        if not every_step:
            return outputs
        if sequences.same_length:
            return outputs.reshape(len(sequences), -1, self.output_dim)
        return np.split(outputs, sequences.offsets[1:-1])

    def _infer(self, X: Any, offsets: Array | None, num_threads: int | None, *, every_step: bool) -> Any:
        isa, threads = _kernels.current(), thread_count(num_threads)
        return _inference.infer(isa, threads, _INFERENCE_ROWS, self._sizes, self._parameters, X, offsets, every_step)

    def gradient(
        self,
        X: Data,
        Y: Data,
        *,
        loss: str | MSE | CrossEntropy | Loss = "mse",
        target: str = "last",
        num_threads: int | None = None,
    ) -> tuple[float, Array]:
        """Return the loss of the whole of X as one batch, and its gradient.

        Parameters
        ----------
        X, Y : array_like or list of arrays
            As for `train`.
        loss, target, num_threads : optional
            As for `train`.

        Returns
        -------
        loss : float
            The mean over the batch.
        gradient : ndarray
            With the layout of `parameters`.

        Raises
        ------
        NonFiniteError
            If the loss or the gradient is not finite.
        TypeError, ValueError
            As for `train`.
        """
        plan = Plan(
            self._parameters,
            self._sizes,
            X,
            Y,
            target=target,
            loss=as_loss(loss),
            optimizer=None,
            batch_size=None,
            num_threads=num_threads,
        )
        plan.gradients(0)
        return float(plan.losses[0]), plan.gradient

    def initial_state(self, batch: int = 1, *, num_threads: int | None = None) -> State:
        """Return the zero state of some streams, with the weights packed as they are now.

        Parameters
        ----------
        batch : int
            The number of streams, at least 1.
        num_threads : int, optional
            The most threads that a step is to use (`set_num_threads`).

        Returns
        -------
        State
            For `step`.

        Raises
        ------
        TypeError, ValueError
            If an argument is not an integer of at least 1.
        """
        batch, threads = as_size("batch", batch), thread_count(num_threads)
        check_allocatable("a work array", batch, 2 * (self.input_dim + self.hidden_dim) + self.hidden_dim)
        return State(_kernels.current(), threads, self._sizes, batch, self._parameters)

    def step(self, x: ArrayLike, state: State, *, out: Array | None = None) -> tuple[Array, State]:
        """Advance `batch` streams by one step; the outputs are those of a whole sequence, to the bit.

        Parameters
        ----------
        x : array_like (batch, input_dim)
            Each stream's next input.
        state : State
            From `initial_state`; it is advanced in place.
        out : ndarray (batch, output_dim), optional
            What the outputs are written to: C-contiguous, of the network's dtype, and no part of x. With it, and an x
            that needs no conversion, nothing is allocated but the returned pair and, while the call runs, NumPy's
            descriptions of the two buffers.

        Returns
        -------
        y : ndarray (batch, output_dim)
            Each stream's output; `out` if it is given.
        state : State
            The same object.

        Raises
        ------
        TypeError, ValueError
            If x has another shape or does not hold finite real numbers, if the state is of a network of other sizes, or
            if `out` is not as above; nothing has changed then.
        """
        if not isinstance(state, State):
            raise TypeError(f"state is {state!r}; expected what initial_state returns")
        dtype = self._parameters.dtype
        if state.sizes != self._sizes or state.dtype != dtype:
            raise ValueError(f"state is of a network {state.sizes} {state.dtype}; expected {self._sizes} {dtype}")
        y = state.advance(x, out)
        if y is None:
            if out is not None:
                check_output("out", out, dtype, (state.batch, self._sizes[2]))
            y = state.advance(as_shape("x", x, dtype, (state.batch, self._sizes[0])), out)
            if y is None:
                raise ValueError("out shares memory with x; expected an array of its own")
        return y, state


class Model(NamedTuple):
    """What `load_model` returns.

    Attributes
    ----------
    network : LSTMNetwork
        Equal to the saved one to the bit.
    scaler : SequenceScaler or None
        As given to `LSTMNetwork.save`.
    details : dict
        As given to `LSTMNetwork.save`, through JSON; empty without.
    """

    network: LSTMNetwork
    scaler: SequenceScaler | None
    details: dict[str, Any]


def load(path: str | os.PathLike[str]) -> LSTMNetwork:
    """Read the network from a file that `LSTMNetwork.save` wrote.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    LSTMNetwork
        Equal to the saved one to the bit.

    Raises
    ------
    ModelFileError
        If the file is not such a model, is damaged, or was written by a newer version.
    OSError
        If the file cannot be read.
    """
    return load_model(path).network


def load_model(path: str | os.PathLike[str]) -> Model:
    """Read all that a file holds which `LSTMNetwork.save` wrote.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    Model
        Network, scaler and details, as they were saved.

    Raises
    ------
    ModelFileError, OSError
        As for `load`.
    """
    contents = read_model(path)
    network = LSTMNetwork._from_parameters(contents.parameters, contents.architecture)
    return Model(network, contents.scaler, contents.details)


def _state(name: str, value: ArrayLike | None, layer: LSTM, batch: int) -> Array:
    shape = (batch, layer.hidden_dim)
    if value is None:
        return np.zeros(shape, layer.dtype)
    return as_shape(name, value, layer.dtype, shape)


def _chunks(X: Array, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, len(X))) for start in range(0, len(X), size))


def _forward(
    cell: LSTMCell, X: Array, h0: Array, C0: Array, threads: int, *, keep: bool = False, want_H: bool = False
) -> tuple[Array, Array, Array, Tape | None]:
    """Run X (N, T, I) and return H (empty unless wanted), h_T, C_T, and the tape if it is to be kept."""
    N, T, I = X.shape
    dtype, hidden_dim = cell.dtype, cell.hidden_dim
    h, C = np.empty((N, hidden_dim), dtype), np.empty((N, hidden_dim), dtype)
    H = np.empty((N, T, hidden_dim) if want_H else (0, 0, 0), dtype)
    size = N if keep else min(N, _INFERENCE_ROWS)
    shape = Shape(T, size, I, hidden_dim, 1, dtype, _kernels.current())
    work = Activations(shape, keep="all" if keep else "latest")
    _passes.pack_cell_weights(work.isa, threads, cell._W, cell._b, work.scratch_packed)
    rows = X.reshape(N * T, I)
    for part in _chunks(X, size):
        count = part.stop - part.start
        work.ws_hx[0, :count, :hidden_dim] = h0[part]
        C[part] = C0[part]
        first = np.arange(part.start, part.stop, dtype=np.intp) * T
        _passes.forward(
            work.isa,
            threads,
            T,
            rows,
            first,
            work.scratch_packed,
            work.ws_hx,
            work.ws_C,
            work.ws_gates,
            H[part],
            C[part],
        )
        h[part] = work.ws_hx[T % len(work.ws_hx), :count, :hidden_dim]
    return H, h, C, Tape(shape, work, cell._W.copy()) if keep else None


def _backward(cell: LSTMCell, tape: Tape, dH: Array | None, dh: Array, dC: Array, threads: int) -> LSTMGradients:
    """Backpropagate; dh and dC, (N, H), are changed to the gradients of the initial state."""
    dtype, work = cell.dtype, tape.activations
    dX = np.empty((tape.shape.batch, tape.shape.steps, cell.input_dim), dtype)
    gradient = np.empty(cell.parameters.shape, dtype)
    scratch = BackwardScratch(tape.shape, want_dX=True)
    _passes.backward(
        work.isa,
        threads,
        tape.shape.steps,
        tape.shape.batch,
        tape.W,
        work.ws_hx,
        work.ws_C,
        work.ws_gates,
        np.empty((0, 0, 0), dtype) if dH is None else dH,
        dh,
        dC,
        dX,
        gradient[: tape.W.size].reshape(tape.W.shape),
        gradient[tape.W.size :].reshape(-1, 1),
        scratch.scratch_packed_h,
        scratch.scratch_packed_x,
        scratch.scratch_dz,
        scratch.scratch_panels,
    )
    return LSTMGradients(dX, dh, dC, gradient)
