"""The NumPy oracle: the LSTM of the well-known article, with backpropagation through time (BPTT).

Same classes and signatures as the compiled package, written to be read, not to be fast:

    f_t  = sigmoid(W_f [h_{t-1}, x_t] + b_f)        forget gate
    i_t  = sigmoid(W_i [h_{t-1}, x_t] + b_i)        input gate
    C~_t = tanh(W_C [h_{t-1}, x_t] + b_C)           candidate
    o_t  = sigmoid(W_o [h_{t-1}, x_t] + b_o)        output gate
    C_t  = f_t * C_{t-1} + i_t * C~_t               cell state
    h_t  = o_t * tanh(C_t)                          hidden state
    y_t  = W_y h_t + b_y                            output (logits)

- Inside, a batch is a matrix of columns (dim, N); with N = 1 the code is the article's.
- The backward pass computes the gates again from x_t, h_{t-1} and C_{t-1}; derivatives are
  written in terms of the outputs.
- Everything is analytic (no abs, no conjugation), so dtype "complex128", which exists for this
  purpose alone, makes every derivative checkable by the complex step, Im L(p + ih) / h.
- ``num_threads`` is taken for the sake of the signatures alone: NumPy decides on its threads.
- Arguments are copied on entry: no input is modified, and no result shares memory with one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

Array = NDArray[Any]
Shape = tuple[int | str, ...]
Seed = int | np.random.Generator | None
OrZeros = ArrayLike | None  # None stands for zeros

GATES = ("i", "f", "C", "o")  # the order in the parameter vector
DTYPES = tuple(np.dtype(name) for name in ("float32", "float64", "complex128"))
FLOAT64 = np.dtype("float64")
KINDS = {"i": "iu", "f": "biuf", "c": "biufc"}  # of dtypes: what is converted to what


# --- checks: each names the argument, what was expected and what was given ---


def _array(name: str, value: ArrayLike, dtype: np.dtype[Any], *shapes: Shape) -> Array:
    """Return a copy in `dtype`, of one of `shapes`; a letter stands for any size from 1."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be an array, got rows of different lengths") from error
    if array.dtype.kind not in KINDS[dtype.kind]:
        raise TypeError(f"{name} must hold numbers for dtype {dtype}, got dtype {array.dtype}")
    if not any(_fits(array.shape, shape) for shape in shapes):
        expected = " or ".join(str(shape).replace("'", "") for shape in shapes)
        raise ValueError(f"{name} must have shape {expected}, got {array.shape}")
    return array.astype(dtype)


def _fits(given: tuple[int, ...], shape: Shape) -> bool:
    pairs = zip(given, shape, strict=False)
    return len(given) == len(shape) and all(n > 0 if isinstance(m, str) else n == m for n, m in pairs)


def _positive(name: str, value: int) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return int(value)


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")
    return value


def _dtype(dtype: DTypeLike) -> np.dtype[Any]:
    for known in DTYPES:
        if dtype is not None and known == dtype:
            return known
    raise ValueError(f"dtype must be float32, float64 or complex128, got {dtype!r}")


# --- parameters: the layout of the flat vector, and the initial weights ---


def parameter_layout(
    input_dim: int, hidden_dim: int, output_dim: int | None = None
) -> dict[str, tuple[int, tuple[int, int]]]:
    """Return where each parameter lives in the flat vector (layout version 1).

    Parameters
    ----------
    input_dim, hidden_dim : int
        Sizes of x_t and of h_t.
    output_dim : int, optional
        Size of y_t, for a network.

    Returns
    -------
    dict
        Name -> (offset, shape). W_i W_f W_C W_o, each (hidden_dim, hidden_dim + input_dim) with
        columns [h | x]; b_i b_f b_C b_o, each (hidden_dim, 1); given `output_dim`, W_y
        (output_dim, hidden_dim) and b_y (output_dim, 1). Row-major, without gaps.
    """
    shapes = {f"W_{gate}": (hidden_dim, hidden_dim + input_dim) for gate in GATES}
    shapes |= {f"b_{gate}": (hidden_dim, 1) for gate in GATES}
    if output_dim is not None:
        shapes |= {"W_y": (output_dim, hidden_dim), "b_y": (output_dim, 1)}
    layout, offset = {}, 0
    for name, shape in shapes.items():
        layout[name] = (offset, shape)
        offset += shape[0] * shape[1]
    return layout


def _flatten(arrays: Iterable[Array]) -> Array:
    return np.concatenate([array.ravel() for array in arrays])


def _generator(init: str, seed: Seed) -> np.random.Generator | None:
    """Return what "glorot" draws from; None for "reference", which uses NumPy's global."""
    if _choice("init", init, ("glorot", "reference")) == "reference":
        if seed is not None:
            raise ValueError(f"seed must be None with init='reference', got {seed!r}")
        return None
    try:
        return np.random.default_rng(seed)  # a Generator is handed back as it is
    except (TypeError, ValueError) as error:
        raise type(error)(f"seed must be None or an integer from 0, got {seed!r}") from error


def _glorot(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Uniform in (-a, a), a = sqrt(6 / (rows + columns))."""
    a = np.sqrt(6 / (rows + columns))
    return rng.uniform(-a, a, (rows, columns))


def _orthogonal(rng: np.random.Generator, size: int) -> Array:
    Q, R = np.linalg.qr(rng.standard_normal((size, size)))
    return Q * np.sign(np.diag(R))


def _gate_weights(rng: np.random.Generator | None, input_dim: int, hidden_dim: int) -> dict[str, Array]:
    if rng is None:  # the article's draws, in the article's order
        return {gate: np.random.randn(hidden_dim, hidden_dim + input_dim) for gate in "fiCo"}
    weights = {}
    for gate in GATES:
        W_x = _glorot(rng, hidden_dim, input_dim)
        weights[gate] = np.hstack((_orthogonal(rng, hidden_dim), W_x))
    return weights


class _Parametrised:
    """Weights that keep their shape and dtype, and the flat vector of them all."""

    dtype: np.dtype[Any]

    def _weights(self) -> list[Array]:
        """Return the arrays in the order of `parameter_layout`."""
        raise NotImplementedError

    @property
    def parameters(self) -> Array:
        """A copy of the flat vector (see `parameter_layout`); assign one to set every weight."""
        return _flatten(self._weights())

    @parameters.setter
    def parameters(self, vector: ArrayLike) -> None:
        vector, offset = _array("parameters", vector, self.dtype, self.parameters.shape), 0
        for weight in self._weights():
            weight[...] = vector[offset : offset + weight.size].reshape(weight.shape)
            offset += weight.size

    def __setattr__(self, name: str, value: Any) -> None:
        """Copy into a weight that exists, so that neither shape nor dtype can change."""
        old = self.__dict__.get(name)
        if isinstance(old, np.ndarray):
            old[...] = _array(name, value, old.dtype, old.shape)
        else:
            object.__setattr__(self, name, value)


# --- the LSTM ---


def _floating(x: ArrayLike) -> Array:
    x = np.asarray(x)
    return x if x.dtype.kind in "fc" else _array("x", x, FLOAT64, x.shape)


def sigmoid(x: ArrayLike) -> Array:
    """Return 1 / (1 + exp(-x)), elementwise, without overflow.

    Parameters
    ----------
    x : array_like
        Complex numbers are selected on their real part, so that the result stays analytic.

    Returns
    -------
    ndarray
        With the shape of `x`; float64 for integers.
    """
    x = _floating(x)
    positive = x.real >= 0
    e = np.exp(np.where(positive, -x, x))
    return np.where(positive, 1 / (1 + e), e / (1 + e))


def tanh(x: ArrayLike) -> Array:
    """Return the hyperbolic tangent, elementwise.

    Parameters
    ----------
    x : array_like
        Real or complex.

    Returns
    -------
    ndarray
        With the shape of `x`; float64 for integers.
    """
    return np.asarray(np.tanh(_floating(x)))


class CellGradients(NamedTuple):
    """Of one step: dx (input_dim, 1), dh_prev, dC_prev (hidden_dim, 1), parameters (flat)."""

    dx: Array
    dh_prev: Array
    dC_prev: Array
    parameters: Array


class LSTMCell(_Parametrised):
    """One step of an LSTM.

    Parameters
    ----------
    input_dim, hidden_dim : int
        Sizes of x_t and of h_t.
    dtype : {"float32", "float64", "complex128"}
        Of parameters and results; complex128 is for complex-step derivatives alone.
    init : {"glorot", "reference"}
        "glorot": uniform columns for x, orthogonal columns for h, biases 0 but b_f = 1.
        "reference": the article's draws from NumPy's global generator; biases 0.
    seed : int, optional
        Of "glorot"; a numpy.random.Generator is drawn from directly. None with "reference".

    Attributes
    ----------
    W_f, W_i, W_C, W_o : ndarray (hidden_dim, hidden_dim + input_dim)
        Columns [h | x].
    b_f, b_i, b_C, b_o : ndarray (hidden_dim, 1)
        Biases.

    Raises
    ------
    TypeError, ValueError
        If an argument, here or in a method, has a wrong type, value or shape; it is named.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        *,
        dtype: DTypeLike = "float32",
        init: str = "glorot",
        seed: Seed = None,
    ) -> None:
        self.input_dim = _positive("input_dim", input_dim)
        self.hidden_dim = _positive("hidden_dim", hidden_dim)
        self.dtype = _dtype(dtype)
        rng = _generator(init, seed)
        W = _gate_weights(rng, self.input_dim, self.hidden_dim)
        b = np.zeros((self.hidden_dim, 1), self.dtype)
        self.W_f, self.b_f = W["f"].astype(self.dtype), b + (0 if rng is None else 1)
        self.W_i, self.b_i = W["i"].astype(self.dtype), b.copy()
        self.W_C, self.b_C = W["C"].astype(self.dtype), b.copy()
        self.W_o, self.b_o = W["o"].astype(self.dtype), b.copy()

    def _weights(self) -> list[Array]:
        return [getattr(self, name) for name in parameter_layout(self.input_dim, self.hidden_dim)]

    def forward(self, x_t: ArrayLike, h_prev: ArrayLike, C_prev: ArrayLike) -> tuple[Array, Array]:
        """Return (h_t, C_t), columns (hidden_dim, 1), from x_t, (input_dim, 1) or (input_dim,)."""
        return self._forward(*self._columns(x_t, h_prev=h_prev, C_prev=C_prev))

    def backward(
        self, x_t: ArrayLike, h_prev: ArrayLike, C_prev: ArrayLike, dh_t: ArrayLike, dC_t: ArrayLike
    ) -> CellGradients:
        """Return the gradients of a loss, given `forward`'s arguments and dL/dh_t, dL/dC_t."""
        columns = self._columns(x_t, h_prev=h_prev, C_prev=C_prev, dh_t=dh_t, dC_t=dC_t)
        return self._backward(*columns)

    def _columns(self, x_t: ArrayLike, **states: ArrayLike) -> list[Array]:
        shapes = (self.input_dim, 1), (self.input_dim,)
        x = _array("x_t", x_t, self.dtype, *shapes).reshape(self.input_dim, 1)
        shape = (self.hidden_dim, 1)
        return [x] + [_array(name, state, self.dtype, shape) for name, state in states.items()]

    def _gates(self, combined: Array) -> tuple[Array, Array, Array, Array]:
        f = sigmoid(self.W_f @ combined + self.b_f)
        i = sigmoid(self.W_i @ combined + self.b_i)
        C_tilde = tanh(self.W_C @ combined + self.b_C)
        o = sigmoid(self.W_o @ combined + self.b_o)
        return f, i, C_tilde, o

    def _forward(self, x: Array, h_prev: Array, C_prev: Array) -> tuple[Array, Array]:
        """One step on columns (dim, N)."""
        f, i, C_tilde, o = self._gates(np.vstack((h_prev, x)))
        C = f * C_prev + i * C_tilde
        return o * tanh(C), C

    def _backward(self, x: Array, h_prev: Array, C_prev: Array, dh: Array, dC: Array) -> CellGradients:
        """One step back on columns (dim, N); the parameter gradient is summed over N."""
        combined = np.vstack((h_prev, x))
        f, i, C_tilde, o = self._gates(combined)
        tanh_C = tanh(f * C_prev + i * C_tilde)

        dC = dC + dh * o * (1 - tanh_C**2)  # C_t acts through h_t and through C_{t+1}
        dz = {  # of the pre-activations z = W [h, x] + b
            "i": dC * C_tilde * i * (1 - i),
            "f": dC * C_prev * f * (1 - f),
            "C": dC * i * (1 - C_tilde**2),
            "o": dh * tanh_C * o * (1 - o),
        }
        dW = [dz[gate] @ combined.T for gate in GATES]
        db = [dz[gate].sum(axis=1) for gate in GATES]
        dcombined = self.W_i.T @ dz["i"] + self.W_f.T @ dz["f"]
        dcombined += self.W_C.T @ dz["C"] + self.W_o.T @ dz["o"]
        dh_prev, dx = dcombined[: self.hidden_dim], dcombined[self.hidden_dim :]
        return CellGradients(dx, dh_prev, dC * f, _flatten(dW + db))

    def _copy(self) -> LSTMCell:
        twin = object.__new__(LSTMCell)
        for name, value in self.__dict__.items():
            setattr(twin, name, value.copy() if isinstance(value, np.ndarray) else value)
        return twin


class LSTMGradients(NamedTuple):
    """Of a batch: dX (N, T, input_dim), dh0, dC0 (N, hidden_dim), parameters (flat)."""

    dX: Array
    dh0: Array
    dC0: Array
    parameters: Array


class LSTMTape(NamedTuple):
    """What `LSTM.backward` needs from `LSTM.forward`: the weights as they were, and every state."""

    lstm_cell: LSTMCell
    X: Array  # (N, T, input_dim)
    h: list[Array]  # T + 1 states (hidden_dim, N): h[t] goes into step t
    C: list[Array]


class LSTM(_Parametrised):
    """The sequence layer: an `LSTMCell` (see there for the parameters), applied step by step."""

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        *,
        dtype: DTypeLike = "float32",
        init: str = "glorot",
        seed: Seed = None,
    ) -> None:
        self.lstm_cell = LSTMCell(input_dim, hidden_dim, dtype=dtype, init=init, seed=seed)
        self.input_dim = self.lstm_cell.input_dim
        self.hidden_dim = self.lstm_cell.hidden_dim
        self.dtype = self.lstm_cell.dtype

    def _weights(self) -> list[Array]:
        return self.lstm_cell._weights()

    def forward(
        self,
        X: ArrayLike,
        h0: OrZeros = None,
        C0: OrZeros = None,
        *,
        return_tape: bool = False,
        num_threads: int | None = None,
    ) -> Any:
        """Return (H, (h_T, C_T)), or (H, (h_T, C_T), tape) if `return_tape`.

        X is (N, T, input_dim), H (N, T, hidden_dim); h0, C0, h_T and C_T are (N, hidden_dim), and
        None stands for zeros.
        """
        X = _array("X", X, self.dtype, ("N", "T", self.input_dim))
        N, T, _ = X.shape
        h = [self._or_zeros("h0", h0, N, self.hidden_dim).T]
        C = [self._or_zeros("C0", C0, N, self.hidden_dim).T]
        for t in range(T):
            h_t, C_t = self.lstm_cell._forward(X[:, t].T, h[t], C[t])
            h.append(h_t)
            C.append(C_t)
        H = np.stack([h_t.T for h_t in h[1:]], axis=1)
        last = h[T].T.copy(), C[T].T.copy()
        return (H, last, LSTMTape(self.lstm_cell._copy(), X, h, C)) if return_tape else (H, last)

    def backward(
        self,
        tape: LSTMTape,
        dH: OrZeros = None,
        dh_T: OrZeros = None,
        dC_T: OrZeros = None,
        *,
        num_threads: int | None = None,
    ) -> LSTMGradients:
        """Return the gradients of a loss, given dL/dH, dL/dh_T and dL/dC_T; None is zeros."""
        if not isinstance(tape, LSTMTape):
            raise TypeError(f"tape must be one that forward returned, got {type(tape).__name__}")
        cell, X = tape.lstm_cell, tape.X
        ours, theirs = ((c.input_dim, c.hidden_dim, c.dtype) for c in (self, cell))
        if ours != theirs:
            raise ValueError(f"tape must be of a layer like this one, {ours}, got {theirs}")
        N, T, _ = X.shape
        dH = self._or_zeros("dH", dH, N, T, self.hidden_dim)
        dh = self._or_zeros("dh_T", dh_T, N, self.hidden_dim).T
        dC = self._or_zeros("dC_T", dC_T, N, self.hidden_dim).T
        dX, parameters = np.empty_like(X), np.zeros_like(self.parameters)
        for t in reversed(range(T)):
            step = cell._backward(X[:, t].T, tape.h[t], tape.C[t], dh + dH[:, t].T, dC)
            dX[:, t] = step.dx.T
            dh, dC = step.dh_prev, step.dC_prev
            parameters += step.parameters
        return LSTMGradients(dX, dh.T.copy(), dC.T.copy(), parameters)

    def _or_zeros(self, name: str, value: OrZeros, *shape: int) -> Array:
        return _array(name, np.zeros(shape) if value is None else value, self.dtype, shape)


def _mse(y: Array, Y: Array) -> tuple[Any, Array]:
    """Mean over every element of (y - Y)^2, and its gradient by y."""
    error = y - Y
    return np.mean(error**2), 2 * error / error.size


def _cross_entropy(logits: Array, classes: Array) -> tuple[Any, Array]:
    """Mean over the rows of -log softmax(logits)[class], and its gradient by the logits."""
    shifted = logits - logits.real.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    one_hot = np.eye(logits.shape[-1], dtype=logits.dtype)[classes]
    return -np.sum(one_hot * log_p) / classes.size, (np.exp(log_p) - one_hot) / classes.size


LOSSES = {"mse": _mse, "cross_entropy": _cross_entropy}


class LSTMNetwork(_Parametrised):
    """An LSTM and a linear output, y_t = W_y h_t + b_y.

    Parameters as for `LSTMCell`; `output_dim` (int) is the size of y_t.

    Attributes
    ----------
    lstm_cell : LSTMCell
        The cell with the LSTM's weights.
    W_y, b_y : ndarray (output_dim, hidden_dim) and (output_dim, 1)
        The output's weights and bias.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        output_dim: int,
        *,
        dtype: DTypeLike = "float32",
        init: str = "glorot",
        seed: Seed = None,
    ) -> None:
        self.output_dim = _positive("output_dim", output_dim)
        rng = _generator(init, seed)
        self._lstm = LSTM(input_dim, hidden_dim, dtype=dtype, init=init, seed=rng)
        self.input_dim, self.hidden_dim = self._lstm.input_dim, self._lstm.hidden_dim
        self.dtype = self._lstm.dtype
        shape = self.output_dim, self.hidden_dim
        W_y = np.random.randn(*shape) if rng is None else _glorot(rng, *shape)
        self.W_y, self.b_y = W_y.astype(self.dtype), np.zeros((self.output_dim, 1), self.dtype)

    @property
    def lstm_cell(self) -> LSTMCell:
        return self._lstm.lstm_cell

    def _weights(self) -> list[Array]:
        return [*self.lstm_cell._weights(), self.W_y, self.b_y]

    def forward(self, X: ArrayLike, *, num_threads: int | None = None) -> list[Array]:
        """Return the T outputs, each (output_dim, 1), of one sequence X (T, input_dim)."""
        X = _array("X", X, self.dtype, ("T", self.input_dim))
        return [y.reshape(-1, 1) for y in self.predict(X[np.newaxis], target="steps")[0]]

    def predict(self, X: ArrayLike, *, target: str = "last", num_threads: int | None = None) -> Array:
        """Return the outputs of X (N, T, input_dim).

        (N, output_dim), the last step's, for target "last"; (N, T, output_dim) for "steps".
        """
        steps = self._steps(target)
        H, _ = self._lstm.forward(X)
        return self._outputs(H[:, steps])

    def gradient(
        self,
        X: ArrayLike,
        Y: ArrayLike,
        *,
        loss: str = "mse",
        target: str = "last",
        num_threads: int | None = None,
    ) -> tuple[float, Array]:
        """Return the loss (complex for dtype complex128) and its flat gradient.

        Parameters
        ----------
        X : array_like (N, T, input_dim)
            A batch of sequences.
        Y : array_like
            "mse": in the shape that `predict` returns.
            "cross_entropy": integer classes, (N,) for target "last", (N, T) for "steps".
        loss : {"mse", "cross_entropy"}
            Mean over every element of (y - Y)^2, or over the rows of -log softmax(y)[class].
        target : {"last", "steps"}
            The outputs that the loss looks at: the last step's, or every step's.
        num_threads : int, optional
            Without effect.
        """
        steps = self._steps(target)
        _choice("loss", loss, tuple(LOSSES))
        X = _array("X", X, self.dtype, ("N", "T", self.input_dim))
        rows = X.shape[:2] if target == "steps" else X.shape[:1]
        if loss == "mse":
            Y = _array("Y", Y, self.dtype, (*rows, self.output_dim))
        else:
            Y = self._classes(Y, rows)
        H, _, tape = self._lstm.forward(X, return_tape=True)
        value, dy = LOSSES[loss](self._outputs(H[:, steps]), Y)
        dH = np.zeros_like(H)
        dH[:, steps] = dy @ self.W_y
        dy, h = dy.reshape(-1, self.output_dim), H[:, steps].reshape(-1, self.hidden_dim)
        d_lstm = self._lstm.backward(tape, dH).parameters
        return value.item(), _flatten((d_lstm, dy.T @ h, dy.sum(axis=0)))

    def _outputs(self, h: Array) -> Array:
        """Y = W_y h + b_y for states in rows (..., hidden_dim)."""
        return np.asarray(h @ self.W_y.T + self.b_y.T)

    def _steps(self, target: str) -> slice | int:
        return -1 if _choice("target", target, ("last", "steps")) == "last" else slice(None)

    def _classes(self, Y: ArrayLike, shape: Shape) -> Array:
        classes = _array("Y", Y, np.dtype(np.int64), shape)
        if classes.min() < 0 or classes.max() >= self.output_dim:
            given = f"{classes.min()} to {classes.max()}"
            raise ValueError(f"Y must hold classes 0 to {self.output_dim - 1}, got {given}")
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
    """Train the article's network, one gradient step per sequence; print each epoch's mean loss.

    Parameters
    ----------
    X : sequence of array_like (T_i, input_dim)
        The sequences; their lengths may differ.
    Y : sequence of array_like (output_dim, 1) or (output_dim,)
        The target of each sequence's last output; the loss is mean((y_T - Y[i])^2).
    input_dim, hidden_dim, output_dim : int
        Sizes of the network, which is float64 with ``init="reference"``.
    learning_rate : float
        The step, p -= learning_rate * dL/dp.
    epochs : int
        How often to go through the data.
    num_threads : int, optional
        Without effect.

    Returns
    -------
    LSTMNetwork
        The trained network.
    """
    for name, size in (("input_dim", input_dim), ("hidden_dim", hidden_dim), ("epochs", epochs)):
        _positive(name, size)
    shapes = (_positive("output_dim", output_dim), 1), (output_dim,)
    rate = _array("learning_rate", learning_rate, FLOAT64, ())
    if not (np.isfinite(rate) and rate >= 0):
        raise ValueError(f"learning_rate must be finite and at least 0, got {learning_rate}")
    for name, data in (("X", X), ("Y", Y)):
        if not isinstance(data, Iterable):
            raise TypeError(f"{name} must be a sequence of arrays, got {data!r}")
    sequences = [_array(f"X[{k}]", x, FLOAT64, ("T", input_dim))[None] for k, x in enumerate(X)]
    targets = [_array(f"Y[{k}]", y, FLOAT64, *shapes).reshape(1, -1) for k, y in enumerate(Y)]
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
