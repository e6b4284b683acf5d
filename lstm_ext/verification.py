"""Verification of the compiled half against the NumPy oracle, on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, Unpack, cast

import numpy as np
from numpy.typing import DTypeLike

from lstm_ext import _kernels
from lstm_ext._heads import POOLED
from lstm_ext.checks import Array, as_dtype, short_repr
from lstm_ext.network import LSTM, LSTMNetwork
from lstm_ext.options import OptionArguments
from lstm_ext.training.losses import LOSSES

if TYPE_CHECKING:
    from lstm_ext import reference

_Shape: TypeAlias = tuple[int, int, int, int, int]  # N, T, I, H, O
# These leave remainders of every vector width, of every tile, and of the blocks of steps and sequences into which the
# passes are divided.
_SHAPES = (
    (1, 1, 1, 1, 1),
    (2, 3, 2, 5, 3),
    (13, 5, 17, 13, 2),
    (34, 4, 3, 34, 13),
    (7, 6, 40, 70, 1),
    (1, 300, 3, 5, 2),
    (300, 2, 2, 5, 3),
)
_OPTION_SHAPE = (7, 6, 3, 13, 2)
_TOLERANCE = {
    "float32": {"forward": 5e-6, "gradients": 2e-5},
    "float64": {"forward": 1e-12, "gradients": 1e-12},
}


class VerificationError(RuntimeError):
    """The compiled half disagrees with the oracle."""


class Verification(NamedTuple):
    """One row of `verify`: the largest relative (norm-wise) differences over all shapes and options."""

    isa: str
    dtype: str
    forward: float
    gradients: float
    agrees: bool


def verify() -> list[Verification]:
    """Compare compiled passes with the oracle: every instruction set, both dtypes, odd shapes, every option.

    A line is printed for each instruction set and dtype, with the largest differences, relative to the oracle's norm,
    of outputs, states and losses (forward) and of the gradients of parameters, X, h0 and C0.

    Returns
    -------
    list of Verification
        One row for each printed line.

    Raises
    ------
    VerificationError
        If a difference exceeds its limit: 1e-12 in float64; in float32, 5e-6 (forward) or 2e-5 (gradients).
    """
    print(f"{'set':10}{'dtype':10}{'forward':>10}{'gradients':>12}")
    rows = []
    for isa in _kernels.available_isas():
        for dtype in _TOLERANCE:
            row = _verify_one(isa, dtype)
            rows.append(row)
            verdict = "agrees" if row.agrees else "DISAGREES"
            print(f"{isa:10}{dtype:10}{row.forward:10.1e}{row.gradients:12.1e}  {verdict}")
    wrong = [f"{row.isa} {row.dtype}" for row in rows if not row.agrees]
    if wrong:
        raise VerificationError(f"compiled code and oracle disagree for {', '.join(wrong)}; please report it")
    return rows


def to_reference(network: LSTMNetwork, *, dtype: DTypeLike = "float64") -> reference.LSTMNetwork:
    """Return an oracle network with the weights, the options and the readout of a compiled network.

    Parameters
    ----------
    network : LSTMNetwork
        The compiled network. Its weights are copied.
    dtype : {"float64", "float32"}
        Dtype of the oracle network.

    Returns
    -------
    lstm_ext.reference.LSTMNetwork
        The oracle network.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.
    """
    from lstm_ext import reference  # here, so that only users of the oracle load it

    if not isinstance(network, LSTMNetwork):
        raise TypeError(f"network is {short_repr(network)}; expected an LSTMNetwork")
    sizes = network.input_dim, network.hidden_dim, network.output_dim
    oracle = reference.LSTMNetwork(*sizes, dtype=as_dtype(dtype), seed=0, **network.architecture.changed())
    oracle.parameters = network.parameters
    return oracle


def from_reference(oracle: reference.LSTMNetwork) -> LSTMNetwork:
    """Return a compiled network with the weights, the options, the readout and the dtype of an oracle network.

    Parameters
    ----------
    oracle : lstm_ext.reference.LSTMNetwork
        The oracle network. Its weights are copied.

    Returns
    -------
    LSTMNetwork
        The compiled network.

    Raises
    ------
    TypeError
        If `oracle` is not an oracle network.
    """
    from lstm_ext import reference

    if not isinstance(oracle, reference.LSTMNetwork):
        raise TypeError(f"oracle is {short_repr(oracle)}; expected a reference.LSTMNetwork")
    sizes = oracle.input_dim, oracle.hidden_dim, oracle.output_dim
    network = LSTMNetwork(*sizes, readout=oracle.readout, dtype=oracle.dtype, seed=0, **vars(oracle.options))
    network.parameters = oracle.parameters
    return network


def relative_difference(ours: Array, oracle: Array) -> float:
    """Return ||ours - oracle|| / ||oracle||, or ||ours|| if the oracle's array is zero."""
    norm = float(np.linalg.norm(oracle))
    return float(np.linalg.norm(ours - oracle)) / (norm or 1.0)


def _verify_one(isa: str, dtype: str) -> Verification:
    worst = {"forward": np.float64(0), "gradients": np.float64(0)}
    rng = np.random.default_rng(0)
    for kind, ours, oracle in _pairs(rng, dtype, _kernels.isa_index(isa)):
        worst[kind] = np.maximum(worst[kind], relative_difference(ours, oracle))  # keeps NaN
    agrees = all(worst[kind] <= limit for kind, limit in _TOLERANCE[dtype].items())
    return Verification(isa, dtype, float(worst["forward"]), float(worst["gradients"]), agrees)


def _pairs(rng: np.random.Generator, dtype: str, isa: int) -> Iterator[tuple[str, Array, Array]]:
    """Yield what is compared: "forward" or "gradients", our array, the oracle's. Other threads keep their `isa`."""
    for shape in _SHAPES:
        yield from _layer_pairs(rng, dtype, isa, shape)
        for readout in ("last", "steps"):
            yield from _network_pairs(rng, dtype, isa, shape, readout)
    for readout in POOLED:
        yield from _network_pairs(rng, dtype, isa, _OPTION_SHAPE, readout)
    for options in _option_sets():
        yield from _layer_pairs(rng, dtype, isa, _OPTION_SHAPE, ragged=True, **options)


def _option_sets() -> tuple[OptionArguments, ...]:
    """Return sets of options that include every option."""
    return (
        {"num_layers": 3, "dropout": 0.3},
        {"num_layers": 2, "bidirectional": "concat", "learn_initial_state": True},
        {"bidirectional": "sum", "use_bias": False},
        {"go_backwards": True, "proj_size": 3},
        {"peephole": True, "cell_clip": 0.5},
        {"layer_norm": True},
        {"coupled_gates": True, "recurrent_dropout": 0.3},
        {"zoneout": (0.2, 0.3), "weight_dropout": 0.3},
        *(OptionArguments(gate_activation=cast(Any, name)) for name in _kernels.GATE_ACTIVATIONS),
        *(OptionArguments(cell_activation=cast(Any, name)) for name in _kernels.CELL_ACTIVATIONS),
    )


def _layer_pairs(
    rng: np.random.Generator,
    dtype: str,
    isa: int,
    shape: _Shape,
    *,
    ragged: bool = False,
    **options: Unpack[OptionArguments],
) -> Iterator[tuple[str, Array, Array]]:
    from lstm_ext import reference

    N, T, I, H, _ = shape
    ours, oracle = LSTM(I, H, dtype=dtype, seed=1, **options), reference.LSTM(I, H, dtype="float64", **options)
    ours._isa = isa
    oracle.parameters = ours.parameters
    architecture = ours.architecture
    cells, R = len(architecture.cells), architecture.state_dim
    states = [(N, R), (N, H)] if cells == 1 else [(cells, N, R), (cells, N, H)]
    X, h0, C0, dH, dh_T, dC_T = (
        rng.standard_normal(sizes).astype(dtype)
        for sizes in ((N, T, I), *states, (N, T, architecture.features), *states)
    )
    arguments: dict[str, Any] = {"return_tape": True}
    if ragged:
        arguments |= {"lengths": T - np.arange(N) % T, "dropout_seed": 3}
    if not architecture.options.learn_initial_state:
        arguments |= {"h0": h0, "C0": C0}
    H_ours, state_ours, tape = ours.forward(X, **arguments)
    H_oracle, state_oracle, oracle_tape = oracle.forward(X, **arguments)
    for pair in zip((H_ours, *state_ours), (H_oracle, *state_oracle), strict=True):
        yield "forward", *pair
    for pair in zip(ours.backward(tape, dH, dh_T, dC_T), oracle.backward(oracle_tape, dH, dh_T, dC_T), strict=True):
        yield "gradients", *pair


def _network_pairs(
    rng: np.random.Generator, dtype: str, isa: int, shape: _Shape, readout: str
) -> Iterator[tuple[str, Array, Array]]:
    N, T, I, H, O = shape
    ours = LSTMNetwork(I, H, O, readout=readout, dtype=dtype, seed=2)
    ours._isa = isa
    oracle = to_reference(ours)
    X = rng.standard_normal((N, T, I)).astype(dtype)
    yield "forward", ours.predict(X), oracle.predict(X)
    rows = (N, T) if readout == "steps" else (N,)
    for loss, make in LOSSES.items():
        labels = make().takes_labels
        Y = rng.integers(0, O, rows) if labels else rng.standard_normal((*rows, O)).astype(dtype)
        value_ours, gradient_ours = ours.gradient(X, Y, loss=loss)
        value_oracle, gradient_oracle = oracle.gradient(X, Y, loss=loss)
        yield "forward", np.array(value_ours), np.array(value_oracle)
        yield "gradients", gradient_ours, gradient_oracle
