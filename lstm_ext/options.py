"""The sizes and the options of a network. They are checked here and nowhere else.

The layout of the parameters, the model files and the passes depend on a network only through its `Architecture`.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property, wraps
from typing import Any, Literal, NamedTuple, TypedDict, TypeVar, cast

import numpy as np

from lstm_ext import _kernels
from lstm_ext._heads import READOUTS
from lstm_ext.checks import as_choice, as_flag, as_number, as_positive, as_size, short_repr

SIZES = ("input_dim", "hidden_dim", "output_dim")
"""A network's sizes, in the order of every signature; a cell and a layer have the first two."""

MAX_LAYERS = 2**16
MERGES = ("concat", "sum")


class OptionArguments(TypedDict, total=False):
    """The options as keyword arguments; `Options` describes them."""

    num_layers: int
    bidirectional: Literal["concat", "sum"] | bool | None
    go_backwards: bool
    proj_size: int | None
    peephole: bool
    layer_norm: bool
    coupled_gates: bool
    cell_clip: float | None
    use_bias: bool
    forget_bias: float | None
    gate_activation: Literal["sigmoid", "hard_sigmoid"]
    cell_activation: Literal["tanh", "identity", "relu"]
    learn_initial_state: bool
    dropout: float
    recurrent_dropout: float
    zoneout: float | tuple[float, float]
    weight_dropout: float


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `LSTM` and `LSTMNetwork`, which take them as keyword arguments.

    One step of a cell, with the weights' names of `parameter_layout`; * is elementwise, sigma the gate activation, phi
    the cell activation:

    z = W [h_{t-1}, x_t] + b, split into z_i, z_f, z_C, z_o;
    i_t = sigma(z_i), f_t = sigma(z_f), C~_t = phi(z_C), C_t = f_t * C_{t-1} + i_t * C~_t;
    o_t = sigma(z_o), h_t = o_t * phi(C_t).

    Parameters
    ----------
    num_layers : int
        The number of stacked layers, at most 65,536; the outputs of one are the inputs of the next.
    bidirectional : {None, "concat", "sum"} or bool
        With "concat" or "sum", every layer has a second cell that runs from each sequence's last step to its first;
        the outputs of the two are concatenated or added (Schuster and Paliwal 1997). True is kept as "concat", False
        as None.
    go_backwards : bool
        Whether the sequences are run in reverse; the outputs come in the order of the run (Keras). Not together with
        `bidirectional`.
    proj_size : int, optional
        The width R of a projected h_t = W_r (o_t * phi(C_t)), from 1 to hidden_dim - 1 (Sak et al. 2014).
    peephole : bool
        Whether the gates see the cell state: z_i += p_i * C_{t-1}, z_f += p_f * C_{t-1}, z_o += p_o * C_t (Gers and
        Schmidhuber 2000).
    layer_norm : bool
        Whether sums are normalised (Ba, Kiros and Hinton 2016, equations 20 to 22):
        z = gain_x * norm(W_x x_t) + gain_h * norm(W_h h_{t-1}) + b, h_t = o_t * phi(gain_C * norm(C_t) + shift_C), with
        norm(v) = (v - mean(v)) / sqrt(var(v) + 1e-5) over all gates, or all of C_t.
    coupled_gates : bool
        Whether f_t = 1 - i_t, without weights of its own (Greff et al. 2017; the ONNX operator's input_forget).
    cell_clip : float, optional
        A number above 0: C_t is limited to [-cell_clip, cell_clip] (Sak et al. 2014).
    use_bias : bool
        Whether the cells have a b; a network's head always has its b_y.
    forget_bias : float, optional
        The initial value of b_f (Jozefowicz et al. 2015). By default it depends on the network's `init`: 1.0 for
        "glorot" and "keras", random for "pytorch", 0 for "reference", which accepts no other. Not together with
        `coupled_gates` or ``use_bias=False``, which have no b_f.
    gate_activation : {"sigmoid", "hard_sigmoid"}
        sigma; the hard one is max(0, min(1, 0.2 z + 0.5)) (ONNX).
    cell_activation : {"tanh", "identity", "relu"}
        phi.
    learn_initial_state : bool
        Whether h_0 and C_0 of every cell are parameters, used where no states are given.
    dropout : float
        The probability, in [0, 1), that an input of a layer above the first is dropped in training, the others being
        scaled by 1 / (1 - p) (Srivastava et al. 2014). Above 0 only with several layers.
    recurrent_dropout : float
        The same for h_{t-1} where W sees it, with one mask for all steps of a sequence and all gates (Gal and
        Ghahramani 2016).
    zoneout : float or pair of float
        The probabilities, in [0, 1), that a unit of h and of C keeps its value of the step before in training; one
        number stands for both. Without training, the expectation p v_{t-1} + (1 - p) v_t (Krueger et al. 2017).
    weight_dropout : float
        The probability, in [0, 1), that a weight of W's columns of h is dropped for a whole update of the training
        (DropConnect, Wan et al. 2013; Merity et al. 2018).

    Raises
    ------
    TypeError, ValueError
        If an option is unknown, is not as above, or does not go together with another.
    """

    num_layers: int = 1
    bidirectional: Literal["concat", "sum"] | None = None
    go_backwards: bool = False
    proj_size: int | None = None
    peephole: bool = False
    layer_norm: bool = False
    coupled_gates: bool = False
    cell_clip: float | None = None
    use_bias: bool = True
    forget_bias: float | None = dataclasses.field(default=None, compare=False)  # affects only initial weights
    gate_activation: Literal["sigmoid", "hard_sigmoid"] = "sigmoid"
    cell_activation: Literal["tanh", "identity", "relu"] = "tanh"
    learn_initial_state: bool = False
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    zoneout: tuple[float, float] = (0.0, 0.0)
    weight_dropout: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            object.__setattr__(self, name, _CHECKS[name](name, value))
        if self.go_backwards and self.bidirectional is not None:
            raise ValueError(
                f"go_backwards is True and bidirectional is {self.bidirectional!r}; expected one of them: "
                "a bidirectional layer runs both ways"
            )
        if self.dropout > 0 and self.num_layers == 1:
            raise ValueError(
                f"dropout is {self.dropout} and num_layers is 1; expected 0.0: it acts between layers, "
                "as recurrent_dropout does within one"
            )
        if self.forget_bias is not None and (self.coupled_gates or not self.use_bias):
            other = "coupled_gates is True" if self.coupled_gates else "use_bias is False"
            raise ValueError(f"forget_bias is {self.forget_bias} and {other}; expected None: there is no b_f")

    def changed(self) -> dict[str, Any]:
        """Return the options that differ from their defaults.

        Returns
        -------
        dict
            Name to value, in the order above.
        """
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}


def _as_probability(name: str, value: Any) -> float:
    return as_number(name, value, low=0, high=1)


def _as_pair(name: str, value: Any) -> tuple[float, float]:
    """Return two probabilities, given as such or as one number for both."""
    if not isinstance(value, (tuple, list)):
        value = (value, value)
    if len(value) != 2:
        raise ValueError(f"{name} is {short_repr(value)}; expected a number, or a pair for h and C")
    return _as_probability(name, value[0]), _as_probability(name, value[1])


def _optional(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    """Return a check that lets None through."""
    return lambda name, value: None if value is None else check(name, value)


def _as_layers(name: str, value: Any) -> int:
    layers = as_size(name, value)
    if layers > MAX_LAYERS:
        raise ValueError(f"{name} is {short_repr(layers)}; expected at most {MAX_LAYERS}")
    return layers


def _as_merge(name: str, value: Any) -> str | None:
    if isinstance(value, (bool, np.bool_)):
        return "concat" if value else None
    if value is not None and not (isinstance(value, str) and value in MERGES):
        raise ValueError(f"{name} is {short_repr(value)}; expected None, 'concat', 'sum', True or False")
    return value


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "num_layers": _as_layers,
    "bidirectional": _as_merge,
    "go_backwards": as_flag,
    "proj_size": _optional(as_size),
    "peephole": as_flag,
    "layer_norm": as_flag,
    "coupled_gates": as_flag,
    "cell_clip": _optional(as_positive),
    "use_bias": as_flag,
    "forget_bias": _optional(as_number),
    "gate_activation": lambda name, value: as_choice(name, value, _kernels.GATE_ACTIVATIONS),
    "cell_activation": lambda name, value: as_choice(name, value, _kernels.CELL_ACTIVATIONS),
    "learn_initial_state": as_flag,
    "dropout": _as_probability,
    "recurrent_dropout": _as_probability,
    "zoneout": _as_pair,
    "weight_dropout": _as_probability,
}


GATES = ("i", "f", "C", "o")
"""The order of the gates in storage, by the article's names (C is the candidate, elsewhere called g)."""


def count_numbers(shapes: Mapping[str, tuple[int, int]]) -> int:
    """Return the number of elements of weights with these shapes."""
    return sum(rows * columns for rows, columns in shapes.values())


def offsets_of(shapes: Mapping[str, tuple[int, int]], begin: int) -> dict[str, int]:
    """Return the offset of each of these weights, which follow one another from `begin` on."""
    sizes = (rows * columns for rows, columns in shapes.values())
    return dict(zip(shapes, itertools.accumulate(sizes, initial=begin), strict=False))


class Cell(NamedTuple):
    """One cell of a network.

    Attributes
    ----------
    layer : int
        From 0.
    reverse : bool
        Whether it is the second cell of a bidirectional layer.
    input_dim : int
        The width of its inputs.
    suffix : str
        The suffix of its weights' names.
    """

    layer: int
    reverse: bool
    input_dim: int
    suffix: str


@dataclass(frozen=True)
class Architecture:
    """Sizes, options and readout: everything about a network but its weights.

    Parameters
    ----------
    input_dim, hidden_dim : int
        The widths of x_t and of C_t, at least 1.
    output_dim : int, optional
        The width of y_t; None without a head.
    options : Options
        Those of every cell.
    readout : {"last", "steps", "mean", "max"}
        What the head is applied to, as for `LSTMNetwork`. Cells and layers alone have the default. The parameters do
        not depend on it.

    Raises
    ------
    TypeError, ValueError
        If a size is not an integer of at least 1, an option does not fit it, or the readout is unknown.
    """

    input_dim: int
    hidden_dim: int
    output_dim: int | None = None
    options: Options = Options()
    readout: str = "last"

    def __post_init__(self) -> None:
        object.__setattr__(self, "readout", as_choice("readout", self.readout, READOUTS))
        for name, value in zip(SIZES, self.sizes, strict=False):
            object.__setattr__(self, name, as_size(name, value))
        proj_size = self.options.proj_size
        if proj_size is not None and proj_size >= self.hidden_dim:
            given, hidden_dim = short_repr(proj_size), short_repr(self.hidden_dim)
            raise ValueError(f"proj_size is {given}; expected less than hidden_dim, which is {hidden_dim}")

    def __str__(self) -> str:
        """Return the arguments that make it: the sizes, and whatever differs from its default."""
        arguments = dict(zip(SIZES, self.sizes, strict=False))
        return ", ".join(f"{name}={short_repr(value)}" for name, value in (arguments | self.changed()).items())

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # nothing that follows from them

    def changed(self) -> dict[str, Any]:
        """Return the readout and the options that differ from their defaults.

        Returns
        -------
        dict
            Name to value, as keyword arguments of `LSTMNetwork`.
        """
        readout = {} if self.readout == Architecture.readout else {"readout": self.readout}
        return readout | self.options.changed()

    def with_readout(self, readout: str) -> Architecture:
        """Return the same architecture with this readout."""
        return self if readout == self.readout else replace(self, readout=readout)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes: input_dim, hidden_dim and, with a head, output_dim."""
        head = () if self.output_dim is None else (self.output_dim,)
        return (self.input_dim, self.hidden_dim, *head)

    @property
    def draws_masks(self) -> bool:
        """Whether training drops or keeps anything at random."""
        options = self.options
        return max(options.dropout, options.recurrent_dropout, options.weight_dropout, *options.zoneout) > 0

    @property
    def gate_names(self) -> tuple[str, ...]:
        """The gates with weights, in the order of storage."""
        return tuple(gate for gate in GATES if gate != "f" or not self.options.coupled_gates)

    @property
    def gates(self) -> int:
        """The number of gates with weights, G."""
        return len(self.gate_names)

    @property
    def state_dim(self) -> int:
        """The width of a cell's h_t, R."""
        return self.options.proj_size or self.hidden_dim

    @property
    def directions(self) -> int:
        """The number of cells of a layer, D."""
        return 1 if self.options.bidirectional is None else 2

    @property
    def features(self) -> int:
        """The width of a layer's outputs, F."""
        return self.state_dim * (2 if self.options.bidirectional == "concat" else 1)

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """The cells, in the order of their weights: layer by layer, the forward one first."""
        return tuple(
            Cell(
                layer,
                bool(direction),
                self.features if layer else self.input_dim,
                (f"_l{layer}" if layer else "") + ("_reverse" if direction else ""),
            )
            for layer in range(self.options.num_layers)
            for direction in range(self.directions)
        )

    @property
    def runs_forwards(self) -> bool:
        """Whether no layer needs a sequence's end before its beginning."""
        return self.directions == 1 and not self.options.go_backwards

    def cell_shapes(self, input_dim: int) -> dict[str, tuple[int, int]]:
        """Return the shapes of the weights of a cell with inputs of this width, in the order of storage.

        Names have no suffix. The passes take the weights of a group as one array: W, b, from p to shift, h_0 and C_0.
        """
        H, R, options = self.hidden_dim, self.state_dim, self.options
        shapes = {f"W_{gate}": (H, R + input_dim) for gate in self.gate_names}
        if options.use_bias:
            shapes |= {f"b_{gate}": (H, 1) for gate in self.gate_names}
        if options.peephole:
            shapes |= {f"p_{gate}": (H, 1) for gate in self.gate_names if gate != "C"}
        if options.layer_norm:
            GH = self.gates * H
            shapes |= {"gain_x": (GH, 1), "gain_h": (GH, 1), "gain_C": (H, 1), "shift_C": (H, 1)}
        if options.proj_size is not None:
            shapes |= {"W_r": (R, H)}
        if options.learn_initial_state:
            shapes |= {"h_0": (R, 1), "C_0": (H, 1)}
        return shapes

    @cached_property
    def offsets(self) -> tuple[dict[str, int], ...]:
        """For each cell, the offsets of its weights in the flat parameter vector, by their names without suffix."""
        begin, offsets = 0, []
        for cell in self.cells:
            shapes = self.cell_shapes(cell.input_dim)
            offsets.append(offsets_of(shapes, begin))
            begin += count_numbers(shapes)
        return tuple(offsets)

    @cached_property
    def cell_parameters(self) -> int:
        """The number of parameters of all cells, found in a time that does not grow with the number of layers."""
        first, others = (count_numbers(self.cell_shapes(width)) for width in (self.input_dim, self.features))
        return self.directions * (first + (self.options.num_layers - 1) * others)

    @cached_property
    def is_plain(self) -> bool:
        """Whether the options are the defaults, except for forget_bias: one cell that runs forwards."""
        return self.options.changed().keys() <= {"forget_bias"}


def as_architecture(
    input_dim: int, hidden_dim: int, output_dim: int | None, options: OptionArguments, readout: str = "last"
) -> Architecture:
    """Return the architecture that a constructor's arguments describe; raises as `Options` and `Architecture`."""
    return Architecture(input_dim, hidden_dim, output_dim, Options(**cast(Any, options)), readout)


_MEANT = {
    "input_size": "input_dim",
    "hidden": "hidden_dim",
    "hidden_size": "hidden_dim",
    "hidden_units": "hidden_dim",
    "units": "hidden_dim",
    "num_units": "hidden_dim",
    "num_hidden": "hidden_dim",
    "output_size": "output_dim",
    "output_dim": "only LSTMNetwork has a head",
    "layers": "num_layers",
    "n_layers": "num_layers",
    "bias": "use_bias",
    "unit_forget_bias": "forget_bias=1.0 starts b_f at 1, which is the default",
    "proj": "proj_size",
    "projection": "proj_size",
    "activation": "cell_activation",
    "recurrent_activation": "gate_activation",
    "kernel_initializer": "init",
    "recurrent_initializer": "init",
    "random_state": "seed",
    "batch_first": "X is (N, T, input_dim) always",
    "time_major": "X is (N, T, input_dim) always",
    "return_sequences": "LSTM.forward always returns the outputs of all steps; LSTMNetwork has readout='steps'",
    "targets": "Y",
    "target": "readout",
    "readout": "readout is an argument of LSTMNetwork",
    "stateful": "initial_state and step keep states",
    "lr": "learning_rate",
    "learning_rate": "pass optimizer=Adam(learning_rate=...) to train",
    "eps": "epsilon",
    "betas": "pass beta1 and beta2 to Adam",
    "epoch": "epochs",
    "n_epochs": "epochs",
    "num_epochs": "epochs",
    "validation_split": "validation_data",
}
"""Our names for the arguments of other packages; where a function has no such argument, what to do instead."""

_Hinted = TypeVar("_Hinted", bound=Callable[..., Any])


def hinting(function: _Hinted) -> _Hinted:
    """Make a function, or a class's constructor, suggest an argument for an unknown name."""
    if isinstance(function, type):
        kind = cast(Any, function)
        kind.__init__ = hinting(kind.__init__)
        return function
    code = function.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    known = [name for name in names if name != "self"]
    if code.co_flags & inspect.CO_VARKEYWORDS:
        known += _CHECKS

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except TypeError:
            for name in kwargs:
                if name not in known:
                    raise TypeError(f"{name} is not an argument; {_hint(name, known)}") from None
            raise

    return cast(_Hinted, call)


def _hint(name: str, known: Collection[str]) -> str:
    """Return what to write instead of an unknown name."""
    import difflib  # here, so that `import lstm_ext` is quick

    meant = name
    while meant in _MEANT and meant not in known:
        meant = _MEANT[meant]
    if meant.isidentifier() and meant not in known:
        meant = next(iter(difflib.get_close_matches(name, known, n=1)), "")
    if meant in known:
        return f"did you mean {meant}?"
    return meant or f"expected some of {', '.join(known)}"
