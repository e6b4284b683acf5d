"""The oracle's checks and options, and its parameters: their layout, their initial values, and how models hold them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from lstm_ext.reference.activations import CELL_ACTIVATIONS, GATE_ACTIVATIONS

Array = NDArray[Any]
Shape = tuple[int | str, ...]
Seed = int | np.random.Generator | None
OrZeros = ArrayLike | None  # None stands for zeros

GATES = ("i", "f", "C", "o")  # the order in the parameter vector
INITS = ("glorot", "keras", "pytorch", "reference")
DTYPES = tuple(np.dtype(name) for name in ("float32", "float64", "complex128"))
FLOAT64 = np.dtype("float64")
KINDS = {"i": "iu", "f": "biuf", "c": "biufc"}  # the kinds of dtypes that are converted to each kind


# --- checks: the messages name the argument, the expected value and the given one ---


def as_array(name: str, value: ArrayLike, dtype: np.dtype[Any], *shapes: Shape) -> Array:
    """Return a copy in `dtype`, with one of `shapes`; a letter stands for any size of at least 1."""
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


def as_size(name: str, value: int) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return int(value)


def as_choice(name: str, value: Any, choices: tuple[str | None, ...]) -> Any:
    if not (value is None or isinstance(value, str)) or value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")
    return value


def _flag(name: str, value: bool) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def _number(name: str, value: float) -> float:
    if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not np.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)


def _probability(name: str, value: float) -> float:
    if not 0 <= _number(name, value) < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {value}")
    return float(value)


def _dtype(dtype: DTypeLike) -> np.dtype[Any]:
    for known in DTYPES:
        if isinstance(dtype, str | type | np.dtype) and known == dtype:
            return known
    raise ValueError(f"dtype must be float32, float64 or complex128, got {dtype!r}")


# --- options ---


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `LSTM` and `LSTMNetwork`; the defaults are the article's LSTM.

    Attributes
    ----------
    num_layers : int
        Number of layers; the outputs of a layer are the inputs of the next one.
    bidirectional : {None, "concat", "sum"}, or bool
        Each layer has a second cell, which takes the sequence from its end to its start; the value says how the
        outputs are merged. True is "concat".
    go_backwards : bool
        Run on reversed sequences; outputs are in processing order (Keras).
    proj_size : int, optional
        R, the width of h_t = W_r (o_t * act(C_t)) (Sak et al. 2014).
    peephole : bool
        z_i += p_i * C_{t-1}, z_f += p_f * C_{t-1}, z_o += p_o * C_t (Gers and Schmidhuber 2000; ONNX).
    layer_norm : bool
        z = b + gain_x * norm(W_x x_t) + gain_h * norm(W_h h_{t-1}), h_t = o_t * act(gain_C * norm(C_t)
        + shift_C) (Ba et al. 2016, eq. 20-22).
    coupled_gates : bool
        f_t = 1 - i_t (ONNX input_forget).
    cell_clip : float, optional
        C_t is clipped to [-cell_clip, cell_clip] (Sak et al. 2014; TensorFlow).
    use_bias : bool
        Whether the cells have biases.
    forget_bias : float, optional
        The initial b_f; None: 1 for "glorot" and "keras", drawn for "pytorch", 0 for "reference".
    gate_activation : str
        Activation of i, f and o; a name in `GATE_ACTIVATIONS` (activations.py).
    cell_activation : str
        Activation of the candidate and of C_t; a name in `CELL_ACTIVATIONS`.
    learn_initial_state : bool
        h_0 and C_0 are parameters.
    dropout : float
        Probability of dropping an input of a layer above the first, in training.
    recurrent_dropout : float
        Probability of dropping a unit of h_{t-1} before it is multiplied by W, in training. A sequence has one mask
        (Gal and Ghahramani 2016).
    zoneout : pair of float
        Probabilities that a unit of h, and one of C, keeps its previous state (Krueger et al. 2017).
    weight_dropout : float
        Probability of dropping a weight in W's columns of h (DropConnect; Merity et al. 2018), in training.
    """

    num_layers: int = 1
    bidirectional: str | None = None
    go_backwards: bool = False
    proj_size: int | None = None
    peephole: bool = False
    layer_norm: bool = False
    coupled_gates: bool = False
    cell_clip: float | None = None
    use_bias: bool = True
    forget_bias: float | None = None
    gate_activation: str = "sigmoid"
    cell_activation: str = "tanh"
    learn_initial_state: bool = False
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    zoneout: tuple[float, float] = (0.0, 0.0)
    weight_dropout: float = 0.0

    def __post_init__(self) -> None:
        as_size("num_layers", self.num_layers)
        if isinstance(self.bidirectional, bool | np.bool_):
            object.__setattr__(self, "bidirectional", "concat" if self.bidirectional else None)
        as_choice("bidirectional", self.bidirectional, (None, "concat", "sum"))
        if self.proj_size is not None:
            as_size("proj_size", self.proj_size)
        if self.cell_clip is not None and _number("cell_clip", self.cell_clip) <= 0:
            raise ValueError(f"cell_clip must be above 0, got {self.cell_clip}")
        if self.forget_bias is not None:
            _number("forget_bias", self.forget_bias)
            if self.coupled_gates or not self.use_bias:
                raise ValueError(f"forget_bias must be None where there is no b_f, got {self.forget_bias}")
        as_choice("gate_activation", self.gate_activation, tuple(GATE_ACTIVATIONS))
        as_choice("cell_activation", self.cell_activation, tuple(CELL_ACTIVATIONS))
        for name in "go_backwards", "peephole", "layer_norm", "coupled_gates", "use_bias", "learn_initial_state":
            _flag(name, getattr(self, name))
        for name in "dropout", "recurrent_dropout", "weight_dropout":
            _probability(name, getattr(self, name))
        pair = self.zoneout if isinstance(self.zoneout, tuple | list) else (self.zoneout, self.zoneout)
        if len(pair) != 2:
            raise ValueError(f"zoneout must be a number or a pair (h, C), got {self.zoneout!r}")
        object.__setattr__(self, "zoneout", tuple(_probability("zoneout", p) for p in pair))
        if self.go_backwards and self.bidirectional:
            raise ValueError("go_backwards must be False with bidirectional, got True")
        if self.dropout and self.num_layers == 1:
            raise ValueError(f"dropout must be 0 with one layer (it acts between layers), got {self.dropout}")


class Architecture(NamedTuple):
    """Sizes and options of a model, and the readout of a network."""

    input_dim: int
    hidden_dim: int
    output_dim: int | None = None
    options: Options = Options()
    readout: str = "last"

    @property
    def gates(self) -> tuple[str, ...]:
        """The gates that have weights."""
        return ("i", "C", "o") if self.options.coupled_gates else GATES

    @property
    def peepholes(self) -> tuple[str, ...]:
        """The gates that see the cell state."""
        return tuple(gate for gate in self.gates if gate != "C")

    @property
    def state_dim(self) -> int:
        """R, the width of h_t."""
        return self.options.proj_size or self.hidden_dim

    @property
    def directions(self) -> int:
        return 2 if self.options.bidirectional else 1

    @property
    def feature_dim(self) -> int:
        """F, the width of a layer's output."""
        return self.state_dim * (2 if self.options.bidirectional == "concat" else 1)

    @property
    def plain(self) -> bool:
        """Whether there is one cell, the article's."""
        return all(
            getattr(self.options, field.name) == field.default
            for field in fields(Options)
            if field.name != "forget_bias"
        )

    def cells(self) -> list[tuple[str, int]]:
        """Return, for each cell in the order of the parameters, the suffix of its names and the width of its input."""
        return [
            (("", f"_l{layer}")[layer > 0] + direction, self.feature_dim if layer else self.input_dim)
            for layer in range(self.options.num_layers)
            for direction in ("", "_reverse")[: self.directions]
        ]

    def blocks(self, input_dim: int) -> dict[str, tuple[int, int]]:
        """Return the shapes of a cell's parameters; those of the gates (W, b, p) are stacked."""
        H, R, G, options = self.hidden_dim, self.state_dim, len(self.gates), self.options
        blocks = {"W": (G * H, R + input_dim)}
        if options.use_bias:
            blocks |= {"b": (G * H, 1)}
        if options.peephole:
            blocks |= {"p": (len(self.peepholes) * H, 1)}
        if options.layer_norm:
            blocks |= {"gain_x": (G * H, 1), "gain_h": (G * H, 1), "gain_C": (H, 1), "shift_C": (H, 1)}
        if options.proj_size:
            blocks |= {"W_r": (R, H)}
        if options.learn_initial_state:
            blocks |= {"h_0": (R, 1), "C_0": (H, 1)}
        return blocks

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Return the shape of each named parameter, in the order of the parameter vector."""
        gated = {"W": self.gates, "b": self.gates, "p": self.peepholes}
        shapes: dict[str, tuple[int, int]] = {}
        for suffix, input_dim in self.cells():
            for block, (rows, columns) in self.blocks(input_dim).items():
                if block in gated:
                    shapes |= {f"{block}_{gate}{suffix}": (self.hidden_dim, columns) for gate in gated[block]}
                else:
                    shapes[block + suffix] = rows, columns
        if self.output_dim is not None:
            shapes |= {"W_y": (self.output_dim, self.feature_dim), "b_y": (self.output_dim, 1)}
        return shapes


def as_architecture(input_dim: int, hidden_dim: int, output_dim: int | None, options: dict[str, Any]) -> Architecture:
    """Check sizes and options; `output_dim` may be None."""
    sizes: dict[str, Any] = {"input_dim": input_dim, "hidden_dim": hidden_dim, "output_dim": output_dim}
    sizes = {name: size if size is None else as_size(name, size) for name, size in sizes.items()}
    known = [field.name for field in fields(Options)]
    for name in options:
        if name not in known:
            raise TypeError(f"{name} must be one of the options {', '.join(known)}")
    given = Options(**options)
    if given.proj_size is not None and given.proj_size >= hidden_dim:
        raise ValueError(f"proj_size must be below hidden_dim, {hidden_dim}, got {given.proj_size}")
    return Architecture(**sizes, options=given)


# --- parameters: the layout of the flat vector, and the initial weights ---


def parameter_layout(
    input_dim: int, hidden_dim: int, output_dim: int | None = None, **options: Any
) -> dict[str, tuple[int, tuple[int, int]]]:
    """Return the place of each parameter in the flat vector (layout version 1).

    Parameters
    ----------
    input_dim, hidden_dim : int
        Sizes of x_t and of C_t.
    output_dim : int, optional
        Size of y_t, for a network with a head.
    **options : Any
        See `Options`.

    Returns
    -------
    dict
        Name -> (offset, shape), row-major, without gaps. For each cell (layer by layer, the forward
        direction first), with H = hidden_dim, R = proj_size or H, I = the width of the cell's input:
        W_i W_f W_C W_o, each (H, R + I) with columns [h | x]; b_i b_f b_C b_o, each (H, 1);
        p_i p_f p_o, each (H, 1), for peepholes; gain_x, gain_h (gates * H, 1), gain_C, shift_C (H, 1) for
        layer norm; W_r (R, H) for a projection; h_0 (R, 1), C_0 (H, 1) if they are learned. Names get
        "_l1", "_l2" ... from the second layer on, and "_reverse" for the reverse direction.
        Given `output_dim`, W_y (output_dim, F) and b_y (output_dim, 1) for F features.
    """
    layout, offset = {}, 0
    for name, shape in as_architecture(input_dim, hidden_dim, output_dim, options).shapes().items():
        layout[name] = (offset, shape)
        offset += shape[0] * shape[1]
    return layout


def flatten(arrays: Iterable[Array]) -> Array:
    return np.concatenate([array.ravel() for array in arrays])


class Weights(NamedTuple):
    """Views of one cell's blocks in a flat vector, of parameters or of a gradient; None if there is no such block."""

    W: Any  # (gates * H, R + I), the gates' rows stacked
    b: Any = None
    p: Any = None
    gain_x: Any = None
    gain_h: Any = None
    gain_C: Any = None
    shift_C: Any = None
    W_r: Any = None
    h_0: Any = None
    C_0: Any = None


def cell_weights(vector: Array, architecture: Architecture) -> list[Weights]:
    """Return the views of each cell, in the order of the parameters."""
    cells, offset = [], 0
    for _, input_dim in architecture.cells():
        blocks = {}
        for name, (rows, columns) in architecture.blocks(input_dim).items():
            blocks[name] = vector[offset : offset + rows * columns].reshape(rows, columns)
            offset += rows * columns
        cells.append(Weights(**blocks))
    return cells


def _generator(init: str, seed: Seed) -> np.random.Generator | None:
    """Return the generator of the weights; None for "reference", which uses NumPy's global generator."""
    if as_choice("init", init, INITS) == "reference":
        if seed is not None:
            raise ValueError(f"seed must be None with init='reference', got {seed!r}")
        return None
    try:
        return np.random.default_rng(seed)  # returns a Generator unchanged
    except (TypeError, ValueError) as error:
        raise type(error)(f"seed must be None or an integer from 0, got {seed!r}") from error


def _glorot(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Draw from the uniform distribution on (-a, a), a = sqrt(6 / (rows + columns))."""
    a = np.sqrt(6 / (rows + columns))
    return rng.uniform(-a, a, (rows, columns))


def _orthogonal(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Draw orthonormal columns (Saxe et al. 2014)."""
    Q, R = np.linalg.qr(rng.standard_normal((rows, columns)))
    return Q * np.sign(np.diag(R))


def _initial_weights(architecture: Architecture, init: str, seed: Seed) -> dict[str, Array]:
    """Return the named parameters in float64."""
    rng = _generator(init, seed)
    forget_bias = architecture.options.forget_bias
    if rng is None and not architecture.plain:
        raise ValueError("init must not be 'reference' with options: the article has none")
    if rng is None and forget_bias is not None:
        raise ValueError(f"forget_bias must be None with init='reference', got {forget_bias}")
    if forget_bias is None and init != "pytorch":
        forget_bias = 1.0
    weights = {name: np.zeros(shape) for name, shape in architecture.shapes().items()}
    if rng is None:  # the article's draws, in the article's order
        for name in ("W_f", "W_i", "W_C", "W_o", "W_y"):
            if name in weights:
                weights[name] = np.random.randn(*weights[name].shape)
        return weights
    for suffix, _ in architecture.cells():
        own = {
            name: weights[name + suffix] for name in ("W_r", "gain_x", "gain_h", "gain_C") if name + suffix in weights
        }
        for name, array in own.items():
            array[...] = name != "W_r"  # gains start at 1
        W = [weights[f"W_{gate}{suffix}"] for gate in architecture.gates]
        b = [weights[f"b_{gate}{suffix}"] for gate in architecture.gates] if architecture.options.use_bias else []
        _draw_cell(rng, init, W, b, own.get("W_r"))
        if f"b_f{suffix}" in weights and forget_bias is not None:
            weights[f"b_f{suffix}"][...] = forget_bias
    if "W_y" in weights:
        W_y, b_y = weights["W_y"], weights["b_y"]
        if init == "pytorch":
            k = 1 / np.sqrt(architecture.feature_dim)
            W_y[...], b_y[...] = rng.uniform(-k, k, W_y.shape), rng.uniform(-k, k, b_y.shape)
        else:
            W_y[...] = _glorot(rng, *W_y.shape)
    return weights


def _draw_cell(rng: np.random.Generator, init: str, W: list[Array], b: list[Array], W_r: Array | None) -> None:
    """Draw one cell's weights in place; W and b are lists with an array for each gate."""
    G, (H, columns) = len(W), W[0].shape
    R = H if W_r is None else len(W_r)
    if init == "pytorch":
        k = 1 / np.sqrt(H)
        drawn = rng.uniform(-k, k, (G * H, columns))
        if b:
            both = rng.uniform(-k, k, G * H) + rng.uniform(-k, k, G * H)
            for b_gate, part in zip(b, np.split(both, G), strict=True):
                b_gate[:, 0] = part
    elif init == "keras":
        x = _glorot(rng, G * H, columns - R)
        drawn = np.hstack((_orthogonal(rng, G * H, R), x))
    else:
        gates = []
        for _ in range(G):
            x = _glorot(rng, H, columns - R)
            gates.append(np.hstack((_orthogonal(rng, H, R), x)))
        drawn = np.vstack(gates)
    for W_gate, part in zip(W, np.split(drawn, G), strict=True):
        W_gate[...] = part
    if W_r is not None:
        W_r[...] = rng.uniform(-k, k, W_r.shape) if init == "pytorch" else _glorot(rng, *W_r.shape)


class Parametrised:
    """A model with named weights, which keep their shape and dtype, and the flat vector of all weights."""

    dtype: np.dtype[Any]
    _architecture: Architecture
    _named: dict[str, Array]

    def _build(self, architecture: Architecture, dtype: DTypeLike, init: str, seed: Seed) -> None:
        vars(self)["dtype"] = _dtype(dtype)
        weights = _initial_weights(architecture, init, seed)
        self._adopt(architecture, {name: weight.astype(self.dtype) for name, weight in weights.items()})

    def _adopt(self, architecture: Architecture, named: dict[str, Array]) -> None:
        vars(self).update(input_dim=architecture.input_dim, hidden_dim=architecture.hidden_dim)
        vars(self).update(options=architecture.options, _architecture=architecture, _named=named)

    def _part(self, kind: Any, architecture: Architecture) -> Any:
        """Return a model of another class that shares the first weights of this one."""
        part = object.__new__(kind)
        vars(part)["dtype"] = self.dtype
        part._adopt(architecture, {name: self._named[name] for name in architecture.shapes()})
        return part

    def named_parameters(self) -> dict[str, Array]:
        """Return the weights by name, in the order of `parameter_layout`; they are writable, not copies."""
        return dict(self._named)

    @property
    def parameters(self) -> Array:
        """A copy of the flat vector (see `parameter_layout`); assign a vector to set every weight."""
        return flatten(self._named.values())

    @parameters.setter
    def parameters(self, vector: ArrayLike) -> None:
        vector, offset = as_array("parameters", vector, self.dtype, self.parameters.shape), 0
        for weight in self._named.values():
            weight[...] = vector[offset : offset + weight.size].reshape(weight.shape)
            offset += weight.size

    def __getattr__(self, name: str) -> Any:
        """Return a weight by its name."""
        if name in vars(self).get("_named", {}):
            return self._named[name]
        why = ": only plain layers have it; see named_parameters()" if name == "lstm_cell" else ""
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{why}")

    def __setattr__(self, name: str, value: Any) -> None:
        """Copy the values into a weight, which keeps its shape and dtype; no other attribute can be set."""
        if name == "parameters":
            object.__setattr__(self, name, value)
        elif name in self._named:
            weight = self._named[name]
            weight[...] = as_array(name, value, weight.dtype, weight.shape)
        else:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r} that can be set")
