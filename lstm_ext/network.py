"""The cell, the sequence layer and the network, on the compiled passes.

All three are a flat parameter vector with named views; a `lstm_cell` is a view of its owner's vector. A call leaves
nothing in them: the forward pass returns a `Tape` on request, which has all that a backward pass needs. So threads can
share a network.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Self, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from lstm_ext import _inference, _kernels, _stack, layers
from lstm_ext._heads import POOLED, READOUTS
from lstm_ext._products import check_allocatable
from lstm_ext.checks import (
    Array,
    Data,
    NonFiniteError,
    as_choice,
    as_column,
    as_dtype,
    as_flag,
    as_numbers,
    as_real,
    as_seed,
    as_shape,
    as_size,
    check_live,
    check_output,
    check_shape,
    short_repr,
    without_conversion,
)
from lstm_ext.files import read_model, write_model
from lstm_ext.inference import BATCH, Inference, first_outputs, refuse_inputs, warn_not_finite
from lstm_ext.layers import Carried, States, Tape, top_states
from lstm_ext.options import SIZES, Architecture, Cell, OptionArguments, Options, as_architecture, hinting
from lstm_ext.parameters import initialize, parameter_count, parameter_views
from lstm_ext.scaling import SequenceScaler
from lstm_ext.sequences import Sequences
from lstm_ext.threads import thread_count
from lstm_ext.training.driver import PassRunner, Setup
from lstm_ext.training.losses import CompiledLoss, Loss, as_loss
from lstm_ext.training.memory import as_memory

State = _inference.Streams
"""The state of a batch of streams, which `LSTMNetwork.step` advances; `h` and `C` are copies."""


class CellGradients(NamedTuple):
    """The result of `LSTMCell.backward`; each gradient has the shape of its variable."""

    dx: Array
    dh_prev: Array
    dC_prev: Array
    parameters: Array


class LSTMGradients(NamedTuple):
    """The result of `LSTM.backward`; each gradient has the shape of its variable."""

    dX: Array
    dh0: Array
    dC0: Array
    parameters: Array


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
        view: Array | None = owner._views.get(self._name)
        if view is None:
            raise AttributeError(f"{owner!r} has no {self._name}")
        return view[:]


class _Parametrised:
    """Architecture, dtype, and the flat parameter vector with its named views.

    Users get new views: they may set the shape, dtype and flags of these, and the passes rely on those of ours.
    """

    __slots__ = ("__weakref__", "_architecture", "_isa", "_parameters", "_sizes", "_views")

    def __init__(self, architecture: Architecture, dtype: DTypeLike, init: str, seed: int | None) -> None:
        native = as_dtype(dtype)
        hidden_dim, output_dim, features = architecture.hidden_dim, architecture.output_dim, architecture.features
        columns, count = architecture.state_dim + architecture.input_dim, parameter_count(architecture)
        check_allocatable(f"W for {architecture}", architecture.gates, hidden_dim, columns)
        check_allocatable(f"W_y for {architecture}", output_dim or 0, features)
        check_allocatable(f"the parameter vector for {architecture}", count)
        self._use(architecture, np.zeros(count, native))
        initialize(self._views, architecture, init, seed)

    def _use(self, architecture: Architecture, vector: Array) -> None:
        self._architecture, self._sizes = architecture, architecture.sizes
        self._isa: int | None = None  # the index of the instruction set that `verify` chose
        self._parameters = vector[:]  # not `vector`, which is the base of every view
        self._views = parameter_views(vector, architecture)

    def _isa_in_use(self) -> int:
        """Return the index of the instruction set that the passes run on."""
        return _kernels.current() if self._isa is None else self._isa

    def __getstate__(self) -> dict[str, Any]:
        own = {"architecture": self._architecture, "parameters": self._parameters}
        return own | getattr(self, "__dict__", {})  # of a subclass

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = state.copy()
        # a copy, because `copy.copy` passes another object's parameters, and pickle may pass a read-only array
        self._use(state.pop("architecture"), np.array(state.pop("parameters")))
        if state:
            vars(self).update(state)

    @classmethod
    def _from_parameters(cls, vector: Array, architecture: Architecture) -> Self:
        """Return an object whose parameters are `vector` itself, which is contiguous and fits the architecture."""
        result = cls.__new__(cls)
        result._use(architecture, vector)
        return result

    def __repr__(self) -> str:
        arguments = {name: getattr(self, name) for name in SIZES if hasattr(self, name)}
        arguments |= self._architecture.changed() | {"dtype": self.dtype.name}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"

    @property
    def architecture(self) -> Architecture:
        """Sizes, options and readout."""
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
        """The number of hidden units: the width of C_t and, without a projection, of h_t."""
        return self._sizes[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters and of every result."""
        return self._parameters.dtype

    @property
    def parameters(self) -> Array:
        """A writable view of the flat parameter vector (`parameter_layout`). Assigning writes into it."""
        return self._parameters[:]

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
        return {name: view[:] for name, view in self._views.items()}


class LSTMCell(_Parametrised):
    """One step of an LSTM (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000).

    f_t = sigmoid(W_f [h_{t-1}, x_t] + b_f), i_t and o_t likewise, C~_t = tanh(W_C [h_{t-1}, x_t] + b_C),
    C_t = f_t * C_{t-1} + i_t * C~_t, h_t = o_t * tanh(C_t).

    Parameters
    ----------
    input_dim, hidden_dim : int
        The widths of x_t and h_t, at least 1.
    dtype : {"float32", "float64"}
        The dtype of the parameters and results.
    init : {"glorot", "keras", "pytorch", "reference"}
        The distribution of the initial weights (`lstm_ext.parameters.initialize`). Keep the default for new models;
        "keras" and "pytorch" reproduce those packages' models, "reference" reproduces the article's.
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

    __slots__ = ()

    W_f, b_f, W_i, b_i = _Weight(), _Weight(), _Weight(), _Weight()
    W_C, b_C, W_o, b_o = _Weight(), _Weight(), _Weight(), _Weight()

    @hinting
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

    def forward(self, x_t: ArrayLike, h_prev: ArrayLike, C_prev: ArrayLike) -> tuple[Array, Array]:
        """Run one step. Outputs are not checked for NaN and Inf, as in NumPy.

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
        initial, sequences = self._read(x_t, h_prev, C_prev)
        _, (h, C) = Inference(self._architecture, self._parameters, sequences, 1, self._isa_in_use()).run_layers(
            initial
        )
        return h[0].T, C[0].T

    def backward(
        self,
        x_t: ArrayLike,
        h_prev: ArrayLike,
        C_prev: ArrayLike,
        dh_t: ArrayLike,
        dC_t: ArrayLike,
    ) -> CellGradients:
        """Backpropagate through one step; the forward step is computed again.

        Gradients are not checked for NaN and Inf, as in NumPy.

        Parameters
        ----------
        x_t, h_prev, C_prev : array_like
            As for `forward`.
        dh_t, dC_t : array_like (hidden_dim, 1) or (hidden_dim,)
            The loss's gradient with respect to h_t, and to C_t except through h_t.

        Returns
        -------
        CellGradients
            As columns dx, dh_prev, dC_prev, and the flat gradient of the parameters.

        Raises
        ------
        TypeError, ValueError
            As for `forward`.
        """
        dlast = self._states(dh_t=dh_t, dC_t=dC_t)
        initial, sequences = self._read(x_t, h_prev, C_prev)
        isa = self._isa_in_use()
        tape = layers.forward(
            self._architecture, self._parameters, sequences, initial, dropout_seed=None, threads=1, isa=isa
        ).tape
        dX, dh0, dC0, gradient = layers.backward(tape, None, dlast, threads=1)
        return CellGradients(dX.T, dh0[0].T, dC0[0].T, gradient)

    def _read(self, x_t: ArrayLike, h_prev: ArrayLike, C_prev: ArrayLike) -> tuple[States, Sequences]:
        x = as_column("x_t", x_t, self.dtype, self.input_dim).reshape(1, 1, -1)
        return self._states(h_prev=h_prev, C_prev=C_prev), Sequences(x, self.input_dim, self.dtype)

    def _states(self, **columns: ArrayLike) -> tuple[Array, Array]:
        h, C = (as_column(*pair, self.dtype, self.hidden_dim).reshape(1, 1, -1) for pair in columns.items())
        return h, C


class _Layers(_Parametrised):
    """A layer or a network: cells with `Options`, perhaps with a head."""

    __slots__ = ("_lstm_cell",)

    def _use(self, architecture: Architecture, vector: Array) -> None:
        super()._use(architecture, vector)
        self._lstm_cell: LSTMCell | None = None
        if architecture.is_plain:
            cell = Architecture(architecture.input_dim, architecture.hidden_dim)
            self._lstm_cell = LSTMCell._from_parameters(vector[: parameter_count(cell)], cell)

    @property
    def options(self) -> Options:
        """The options, with the defaults of those that were not given."""
        return self._architecture.options

    @property
    def lstm_cell(self) -> LSTMCell:
        """The cell, a view of `parameters`. Only a single layer without options has it."""
        if self._lstm_cell is None:
            raise AttributeError(
                f"{self!r} has no lstm_cell; expected a single layer without options: use named_parameters()"
            )
        return self._lstm_cell


class LSTM(_Layers):
    """The sequence layers without a head, to build your own models.

    Parameters
    ----------
    input_dim, hidden_dim : int
        The widths of x_t and C_t, at least 1.
    dtype, init, seed : optional
        As for `LSTMCell`.
    **options
        As for `Options`: layers, directions, the cells' equations, dropout.

    Attributes
    ----------
    lstm_cell : LSTMCell
        The cell with the weights by name; its vector is this layer's. Only a single layer without options has it;
        `named_parameters` works for all.

    Raises
    ------
    TypeError, ValueError
        If a size is not an integer of at least 1, dtype or init is unknown, or an option is not as for `Options`.
    """

    __slots__ = ()

    @hinting
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
        X: Data,
        h0: ArrayLike | None = None,
        C0: ArrayLike | None = None,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        dropout_seed: int | None = None,
        return_tape: Literal[False] = False,
        num_threads: int | None = None,
    ) -> tuple[Array, tuple[Array, Array]]: ...

    @overload
    def forward(
        self,
        X: Data,
        h0: ArrayLike | None = None,
        C0: ArrayLike | None = None,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        dropout_seed: int | None = None,
        return_tape: Literal[True],
        num_threads: int | None = None,
    ) -> tuple[Array, tuple[Array, Array], Tape]: ...

    def forward(
        self,
        X: Data,
        h0: ArrayLike | None = None,
        C0: ArrayLike | None = None,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        dropout_seed: int | None = None,
        return_tape: bool = False,
        num_threads: int | None = None,
    ) -> Any:
        """Run over N sequences of up to T steps.

        Below, R is the width of h_t, which is hidden_dim or proj_size, and F is the width of an output: R, or 2 R if
        two directions are concatenated. Outputs are not checked for NaN and Inf, as in NumPy.

        Parameters
        ----------
        X : array_like (N, T, input_dim), or a list of arrays (T_n, input_dim)
            The inputs.
        h0, C0 : array_like (N, R) and (N, hidden_dim), optional
            The initial states; by default the learned ones, or zeros. With several cells (cells, N, ...), layer by
            layer, the forward direction first.
        lengths : array_like of int (N,), optional
            Number of live steps of each sequence of a padded X. The padding is not read.
        mask : array_like of bool (N, T), optional
            True for the live steps of X. The other steps keep the state and repeat the output of the step before.
        dropout_seed : int, optional
            Seed of the dropout masks (dropout, recurrent_dropout, zoneout, weight_dropout), as in training; by default
            nothing is dropped.
        return_tape : bool
            Whether to return the tape that `backward` needs, about N T (input_dim + 6 hidden_dim) numbers for one
            layer.
        num_threads : int, optional
            Maximum number of threads (default: see `set_num_threads`).

        Returns
        -------
        H : ndarray (N, T, F)
            The output of every step, with `go_backwards` in the order of the run; zeros past a sequence's end.
        state : tuple of ndarray
            The final h and C, in the shapes of h0 and C0: after each sequence's last step or, for a reverse direction,
            after its first.
        tape : Tape
            With ``return_tape=True`` only.

        Raises
        ------
        TypeError, ValueError
            If an argument is not as above or does not hold finite real numbers.
        """
        seed, return_tape = as_seed("dropout_seed", dropout_seed), as_flag("return_tape", return_tape)
        architecture, threads, isa = self._architecture, thread_count(num_threads), self._isa_in_use()
        if architecture.is_plain and not return_tape and lengths is None and mask is None:
            found = _inference.infer_layer(isa, threads, BATCH, self._sizes, self._parameters, X, h0, C0)
            if found is not None:
                return found[0], found[1:]
        defer = not return_tape
        sequences = Sequences(X, self.input_dim, self.dtype, lengths=lengths, mask=mask, defer=defer)
        N = len(sequences)
        initial = self._state_pair(N, h0=h0, C0=C0)
        if not return_tape:
            run = Inference(architecture, self._parameters, sequences, threads, isa, dropout_seed=seed)
            H, (h, C) = run.run_layers(initial)
            return H, (self._public(h), self._public(C))
        rows, h, C, tape = layers.forward(
            architecture, self._parameters, sequences, initial, dropout_seed=seed, threads=threads, isa=isa
        )
        if sequences.mask is None:
            H = sequences.pad(rows)
        else:
            before = first_outputs(architecture, self._parameters, initial[0], N)
            H = Carried(architecture, sequences).spread(rows, before)
        return H, (self._public(h), self._public(C)), tape

    def backward(
        self,
        tape: Tape,
        dH: ArrayLike | None = None,
        dh_T: ArrayLike | None = None,
        dC_T: ArrayLike | None = None,
        *,
        num_threads: int | None = None,
    ) -> LSTMGradients:
        """Backpropagate through time. Gradients are not checked for NaN and Inf, as in NumPy.

        Parameters
        ----------
        tape : Tape
            The tape that `forward` returned. It can be used again, but not while another backward pass uses it.
        dH : array_like (N, T, F), optional
            The loss's gradient with respect to H; zeros by default. Entries past a sequence's end are ignored.
        dh_T, dC_T : array_like, optional
            Its gradient with respect to the final state, in addition to dH; zeros by default.
        num_threads : int, optional
            Maximum number of threads (default: see `set_num_threads`).

        Returns
        -------
        LSTMGradients
            The fields dX (N, T, input_dim), zeros for steps that are not live; dh0 and dC0 in the shapes of the states;
            and the flat gradient of the parameters.

        Raises
        ------
        RuntimeError
            If another backward pass is using the tape.
        TypeError, ValueError
            If an argument has another shape or does not hold finite real numbers.
        """
        if not isinstance(tape, Tape):
            raise TypeError(f"tape is {short_repr(tape)}; expected the tape that forward returns with return_tape=True")
        if tape.architecture != self._architecture or tape._parameters.dtype != self.dtype:
            raise ValueError(
                f"tape is of a layer with {tape.architecture}, {tape._parameters.dtype}; "
                f"expected {self._architecture}, {self.dtype}"
            )
        sequences, threads = tape._sequences, thread_count(num_threads)
        N = len(sequences)
        dlast = self._state_pair(N, dh_T=dh_T, dC_T=dC_T)
        rows, before = self._output_gradient(sequences, dH)
        dX, dh0, dC0, gradient = layers.backward(tape, rows, dlast, threads=threads)
        if before is not None:
            top_states(self._architecture, dh0)[...] += before
            if self.options.learn_initial_state and not tape._h_given:
                self._add_to_learned(gradient, before)
        return LSTMGradients(sequences.pad(dX), self._public(dh0), self._public(dC0), gradient)

    def _output_gradient(self, sequences: Sequences, dH: ArrayLike | None) -> tuple[Array | None, Array | None]:
        """Return the rows of dH, and the gradient that masked steps give to the top layer's initial states."""
        if dH is None:
            return None, None
        shape = (len(sequences), sequences.steps, self._architecture.features)
        if sequences.mask is not None:
            return Carried(self._architecture, sequences).gather(as_shape("dH", dH, self.dtype, shape))
        if sequences.is_whole:
            return as_shape("dH", dH, self.dtype, shape).reshape(-1, shape[2]), None
        array = without_conversion(dH, self.dtype) if sequences.in_place else None
        source = as_numbers("dH", dH, shape) if array is None else array
        check_shape("dH", source.shape, shape)
        if array is not None:
            check_live("dH", array, sequences.lengths)
            return array.reshape(-1, shape[2]), None
        rows = as_real("dH", source[sequences.live_mask], self.dtype)
        return (sequences.pad(rows).reshape(-1, shape[2]) if sequences.in_place else rows), None

    def _add_to_learned(self, gradient: Array, before: Array) -> None:
        views = parameter_views(gradient, self._architecture)
        for cell, part in zip(self._architecture.cells[-len(before) :], before, strict=True):
            views["h_0" + cell.suffix][:, 0] += part.sum(axis=0)

    def _state_pair(self, N: int, **given: ArrayLike | None) -> States:
        """Return h and C as (cells, N, width), None where none is given."""
        count = len(self._architecture.cells)
        pair: list[Array | None] = []
        for (name, value), width in zip(given.items(), (self._architecture.state_dim, self.hidden_dim), strict=True):
            shape = (N, width) if count == 1 else (count, N, width)
            state = None if value is None else as_shape(name, value, self.dtype, shape).reshape(count, N, width)
            pair.append(state)
        return pair[0], pair[1]

    def _public(self, states: Array) -> Array:
        """Return states (cells, N, width) as users see them."""
        return states[0] if len(states) == 1 else states


class LSTMNetwork(_Layers):
    """LSTM layers with a linear head: y = W_y v + b_y. The readout says what v is.

    Parameters
    ----------
    input_dim, hidden_dim : int
        The widths of x_t and C_t, at least 1.
    output_dim : int or None
        The width of y, at least 1; None for no head: y is v.
    readout : {"last", "steps", "mean", "max"}
        What the head is applied to: the top layer's last h; its output at every live step, with `go_backwards` in the
        order of the run; or the mean or the maximum of each of its outputs over the live steps. `train`, `predict`,
        `evaluate` and `gradient` use it, and model files keep it.
    dtype, init, seed : optional
        As for `LSTMCell`.
    **options
        As for `Options`: layers, directions, the cells' equations, dropout.

    Attributes
    ----------
    lstm_cell : LSTMCell
        The cell with the weights by name. Only a single layer without options has it; `named_parameters` works for all.
    W_y : ndarray (output_dim, width of the top layer's outputs)
        A writable view of `parameters`, as are all weights.
    b_y : ndarray (output_dim, 1)

    Raises
    ------
    TypeError, ValueError
        If a size is not an integer of at least 1, readout, dtype or init is unknown, or an option is not as for
        `Options`.
    """

    __slots__ = ()

    W_y, b_y = _Weight(), _Weight()

    @hinting
    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        output_dim: int | None,
        *,
        readout: str = "last",
        dtype: DTypeLike = "float32",
        init: str = "glorot",
        seed: int | None = None,
        **options: Unpack[OptionArguments],
    ) -> None:
        super().__init__(as_architecture(input_dim, hidden_dim, output_dim, options, readout), dtype, init, seed)

    @property
    def output_dim(self) -> int | None:
        """The width of y; None without a head."""
        return self._architecture.output_dim

    @property
    def readout(self) -> str:
        """What the head is applied to: "last", "steps", "mean" or "max"."""
        return self._architecture.readout

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
            for name in self._architecture.cell_shapes(cell.input_dim)
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
        """Write the network to a file, atomically; `load` and `load_model` read it.

        The file is in the safetensors format, with the weights by name.

        Parameters
        ----------
        path : path-like
            The file. An existing one is replaced.
        scaler : SequenceScaler, optional
            A fitted scaler to keep in the file.
        details : mapping, optional
            Further JSON data to keep in the file, without NaN and Inf. Tuples come back as lists, and keys as str.

        Raises
        ------
        OSError
            If the file cannot be written. An existing file is unchanged.
        TypeError, ValueError
            If an argument is not as above, or a weight is NaN or infinite.
        RuntimeError
            If the scaler is not fitted.
        """
        write_model(path, self._architecture, self._parameters, scaler, details)

    def forward(self, X: ArrayLike, *, num_threads: int | None = None) -> list[Array]:
        """Run over one sequence from the zero states, or the learned ones.

        Outputs that are not finite are returned with a RuntimeWarning.

        Parameters
        ----------
        X : array_like (T, input_dim)
            The sequence.
        num_threads : int, optional
            Maximum number of threads (default: see `set_num_threads`).

        Returns
        -------
        list of ndarray (output_dim, 1)
            The T outputs.

        Raises
        ------
        TypeError, ValueError
            If X has another shape or does not hold finite real numbers, or if the network has a head for pooled
            outputs.
        """
        self._check_has_steps()
        X = as_shape("X", X, self.dtype, ("T", self.input_dim))
        outputs: Array = self.predict(X[None], readout="steps", num_threads=num_threads)
        return list(outputs.reshape(len(X), -1, 1))

    @hinting
    def predict(
        self,
        X: Data,
        *,
        readout: str | None = None,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        memory_budget: int | str | None = None,
        num_threads: int | None = None,
    ) -> Any:
        """Run over N sequences from zero states, or the learned ones.

        Outputs that are not finite are returned with a RuntimeWarning that names the first sequence.

        Parameters
        ----------
        X : array_like (N, T, input_dim), or a list of arrays (T_n, input_dim)
            The sequences.
        readout : {"last", "steps"}, optional
            Another readout than the network's: "steps" asks a network with readout "last" for the outputs of every
            step, and "last" asks one with readout "steps" for those of the last states. Without a head, any readout is
            allowed.
        lengths : array_like of int (N,), optional
            Number of live steps of each sequence of a padded X.
        mask : array_like of bool (N, T), optional
            True for the live steps of X. The other steps are skipped, including their inputs. If only targets are
            missing, see docs/guide/sequences.md, "Missing targets".
        memory_budget : int or str, optional
            Maximum size of the work arrays, in bytes or with a unit, such as "256MB" or "1.5GiB". It decides how many
            sequences run side by side and does not change the bits of the outputs. By default 64 MiB in addition to the
            weights, or the needs of one sequence if these are larger.
        num_threads : int, optional
            Maximum number of threads (default: see `set_num_threads`).

        Returns
        -------
        ndarray (N, output_dim) or (N, T, output_dim)
            The outputs. With readout "steps", those past a sequence's end are zeros, and those of masked steps repeat
            what their direction gave before; with `go_backwards` they are in the order of the run, from the end. For a
            list of sequences of different lengths, a list of arrays (T_n, output_dim). Without a head, output_dim is
            the width of the top layer's outputs.
            For one output they are (N, 1): compare ``outputs[:, 0]`` with targets (N,).

        Raises
        ------
        TypeError, ValueError
            If an argument is not as above, if X does not hold finite real numbers, or if one sequence needs more memory
            than `memory_budget`.
        """
        architecture, isa, threads = self._architecture, self._isa, thread_count(num_threads)
        readout = architecture.readout if readout is None else self._readout_of(readout)
        if isa is None:  # a call of `_isa_in_use` takes 2 % of the time
            isa = _kernels.current()
        quick = architecture.is_plain and architecture.output_dim is not None and readout not in POOLED
        quick = quick and memory_budget is None
        every_step, sizes, found = readout == "steps", self._sizes, None
        if quick and lengths is None and mask is None:
            found = _inference.infer(isa, threads, BATCH, sizes, self._parameters, X, False, every_step)
        if found is None:
            budget = as_memory(None, memory_budget).budget
            sequences = Sequences(X, self.input_dim, self.dtype, lengths=lengths, mask=mask, defer=True)
            if quick and sequences.is_whole:
                checked, X = not sequences.unchecked, sequences.rows.reshape(len(sequences), -1, sizes[0])
                found = _inference.infer(isa, threads, BATCH, sizes, self._parameters, X, checked, every_step)
                if found is None:
                    refuse_inputs(sequences)
            else:
                architecture = architecture.with_readout(readout)
                found = Inference(architecture, self._parameters, sequences, threads, isa, budget).predict()
        outputs, finite = found
        if not finite:
            warn_not_finite(outputs, self._parameters, architecture)
        return outputs

    @hinting
    def evaluate(
        self,
        X: Data,
        Y: Data,
        *,
        loss: str | CompiledLoss | Loss = "mse",
        batch_size: int = 32,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        memory_budget: int | str | None = None,
        num_threads: int | None = None,
    ) -> float:
        """Return the mean loss over X and Y.

        With the same `batch_size` it is equal, to the bit, to `History.validation_loss`. Nothing is dropped, as in
        `predict`.

        Parameters
        ----------
        X, Y : array_like or list of arrays
            As for `train`.
        loss : optional
            As for `train`.
        batch_size : int
            Number of sequences whose loss is computed at a time. A loss in Python sees one batch in each call.
        lengths, mask : optional
            As for `train`.
        memory_budget : int or str, optional
            Maximum size of the arrays of a batch's pass, in bytes or with a unit, such as "256MB" or "1.5GiB".
        num_threads : int, optional
            Maximum number of threads (default: see `set_num_threads`).

        Returns
        -------
        float
            The mean of the batches' losses, each weighted by its number of outputs.

        Raises
        ------
        NonFiniteError
            If the loss of a batch is not finite.
        TypeError, ValueError
            As for `train`, or if a batch needs more memory than `memory_budget`.
        """
        runner = PassRunner(
            self._setup(loss, as_size("batch_size", batch_size), num_threads),
            X,
            Y,
            lengths=lengths,
            mask=mask,
            forward_only=True,
            memory=as_memory(None, memory_budget),
        )
        try:
            return runner.evaluate()
        except NonFiniteError as error:
            raise NonFiniteError(f"{error} in {runner.batches.name_of(error.step)}", error.step) from None

    def _readout_of(self, readout: str) -> str:
        """Return the readout that a call asks for; raise ValueError if the head was trained on something else."""
        own = self._architecture.readout
        as_choice("readout", readout, READOUTS)
        if readout != own and self.output_dim is not None and (readout in POOLED or own in POOLED):
            takes = "pooled outputs" if own in POOLED else "outputs of single steps"
            others = repr(own) if own in POOLED else "'last' or 'steps'"
            raise ValueError(
                f"readout is {readout!r}; expected {others}: with readout={own!r}, the head was trained on {takes}"
            )
        return readout

    def _check_has_steps(self) -> None:
        """Raise ValueError if the head is not for the outputs of single steps."""
        if self.readout in POOLED and self.output_dim is not None:
            raise ValueError(
                f"{self!r} has a head for pooled outputs; expected readout 'last' or 'steps' for those of single steps"
            )

    @hinting
    def gradient(
        self,
        X: Data,
        Y: Data,
        *,
        loss: str | CompiledLoss | Loss = "mse",
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        dropout_seed: int | None = None,
        recompute_every: int | None = None,
        memory_budget: int | str | None = None,
        num_threads: int | None = None,
    ) -> tuple[float, Array]:
        """Return the loss of the whole of X as one batch, and its gradient.

        Parameters
        ----------
        X, Y : array_like or list of arrays
            As for `train`.
        loss, lengths, mask : optional
            As for `train`.
        dropout_seed : int, optional
            Seed of the dropout masks, below 2**64; by default nothing is dropped, as in `predict`. The masks are those
            of the first update of `train` with this seed.
        recompute_every, memory_budget, num_threads : optional
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
        runner = PassRunner(
            self._setup(loss, None, num_threads),
            X,
            Y,
            lengths=lengths,
            mask=mask,
            dropout_seed=as_seed("dropout_seed", dropout_seed),
            memory=as_memory(recompute_every, memory_budget),
        )
        runner.gradients(0)
        return float(runner.loop.losses[0]), runner.gradient

    def _setup(self, loss: str | CompiledLoss | Loss, batch_size: int | None, num_threads: int | None) -> Setup:
        """Return how passes of this network run; batch_size None is all sequences."""
        isa = self._isa_in_use()
        return Setup(self._parameters, self._architecture, as_loss(loss), batch_size, num_threads, isa)

    def initial_state(self, batch: int = 1, *, num_threads: int | None = None) -> State:
        """Return the initial state of some streams, zeros or learned, with the weights packed as they are now.

        A network that is changed afterwards needs a new state.

        Parameters
        ----------
        batch : int
            The number of streams, at least 1.
        num_threads : int, optional
            Maximum number of threads of a step (default: see `set_num_threads`).

        Returns
        -------
        State
            For `step`.

        Raises
        ------
        TypeError, ValueError
            If an argument is not an integer of at least 1, if the network runs backwards, or if it has a head for
            pooled outputs.
        """
        self._check_has_steps()
        if not self._architecture.runs_forwards:
            raise ValueError(f"{self!r} begins at the end of a sequence; expected a network that runs forwards")
        batch, threads, architecture = as_size("batch", batch), thread_count(num_threads), self._architecture
        _stack.check_stack(f"the states of a batch of {short_repr(batch)} streams", architecture, 1, batch)
        return _inference.begin_streams(self._isa_in_use(), threads, architecture, batch, self._parameters)

    def step(self, x: ArrayLike, state: State, *, out: Array | None = None) -> tuple[Array, State]:
        """Advance `batch` streams by one step; the outputs are those of a whole sequence, to the bit.

        Outputs are not checked for NaN and Inf, as in NumPy.

        Parameters
        ----------
        x : array_like (batch, input_dim)
            Each stream's next input.
        state : State
            From `initial_state`; it is advanced in place.
        out : ndarray (batch, output_dim), optional
            Array for the outputs: C-contiguous, of the network's dtype, and without memory of x. With it, and an x that
            needs no conversion, the call allocates only the returned pair and, while it runs, NumPy's descriptions of
            the two buffers.

        Returns
        -------
        y : ndarray (batch, output_dim)
            Each stream's output; `out` if it is given.
        state : State
            The same object.

        Raises
        ------
        TypeError, ValueError
            If x has another shape or does not hold finite real numbers, if the state is of a network of other sizes or
            options, if this network has a head for pooled outputs, or if `out` is not as above; nothing has changed.
        RuntimeError
            If another thread is advancing the state; nothing has changed then.
        """
        if not isinstance(state, State):
            raise TypeError(f"state is {short_repr(state)}; expected the state that initial_state returns")
        dtype, architecture = self._parameters.dtype, self._architecture
        if state.architecture is not architecture or state.dtype != dtype:
            self._check_state(state)
        y = state.advance(x, out)
        if y is None:
            if out is not None:
                check_output("out", out, dtype, (state.batch, architecture.output_dim or architecture.features))
            y = state.advance(as_shape("x", x, dtype, (state.batch, self._sizes[0])), out)
            if y is None:
                raise ValueError("out shares memory with x; expected an array of its own")
        return y, state

    def _check_state(self, state: State) -> None:
        """Raise ValueError unless a state, of this network or of another, fits; readouts do not matter to it."""
        self._check_has_steps()
        architecture, dtype = self._architecture.with_readout(state.architecture.readout), self.dtype
        if state.architecture != architecture or state.dtype != dtype:
            raise ValueError(
                f"state is of a network with {state.architecture}, {state.dtype}; expected {architecture}, {dtype}"
            )


class Model(NamedTuple):
    """The contents of a model file, from `load_model`.

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
        If the file is not such a model, is damaged, holds a weight that is NaN or infinite, or was written by a newer
        version.
    OSError
        If the file cannot be read.
    TypeError, ValueError
        If `path` is not the path of a file.
    """
    return load_model(path).network


def load_model(path: str | os.PathLike[str]) -> Model:
    """Read the network, the scaler and the details from a file that `LSTMNetwork.save` wrote.

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
    ModelFileError, OSError, TypeError, ValueError
        As for `load`.
    """
    contents = read_model(path)
    network = LSTMNetwork._from_parameters(contents.parameters, contents.architecture)
    return Model(network, contents.scaler, contents.details)
