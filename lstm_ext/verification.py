"""The compiled half against the NumPy oracle, on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack, cast

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

# Sequences, steps, input, hidden and output widths: tails of every vector width, of every tile, and of the blocks of
# steps and sequences that the passes are cut into.
_SHAPES = (
    (1, 1, 1, 1, 1),
    (2, 3, 2, 5, 3),
    (13, 5, 17, 13, 2),
    (34, 4, 3, 34, 13),
    (7, 6, 40, 70, 1),
    (1, 300, 3, 5, 2),
    (300, 2, 2, 5, 3),
)
_OPTION_SHAPE = (7, 6, 3, 13)
_TOLERANCE = {
    "float32": {"forward": 5e-6, "gradients": 2e-5},
    "float64": {"forward": 1e-12, "gradients": 1e-12},
}


class VerificationError(RuntimeError):
    """The compiled half disagrees with the oracle."""


class Verification(NamedTuple):
    """One row of `verify`: the largest relative differences over all shapes, norm-wise."""

    isa: str
    dtype: str
    forward: float
    gradients: float
    agrees: bool


def verify() -> list[Verification]:
    """Run compiled passes against the oracle: every instruction set, both dtypes, odd shapes, every option.

    Prints one line for each instruction set and dtype, with the largest difference over outputs, states and losses, and
    over gradients (parameters, dX, dh0, dC0), relative to the oracle's norm.

    Returns
    -------
    list of Verification
        One row for each line.

    Raises
    ------
    VerificationError
        If a difference is beyond the promised 1e-12 in float64, 5e-6 (forward) and 2e-5 (gradients) in float32.
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
        raise VerificationError(f"compiled and oracle disagree for {', '.join(wrong)}; please report it")
    return rows


def to_reference(network: LSTMNetwork, *, dtype: DTypeLike = "float64") -> reference.LSTMNetwork:
    """Return the oracle's network with the weights, the options and the readout of a compiled one.

    Parameters
    ----------
    network : LSTMNetwork
        Its weights are copied.
    dtype : {"float64", "float32"}
        The oracle's.

    Returns
    -------
    lstm_ext.reference.LSTMNetwork
        A network of its own.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above.
    """
    from lstm_ext import reference  # here, so that only its users load the oracle

    if not isinstance(network, LSTMNetwork):
        raise TypeError(f"network is {short_repr(network)}; expected an LSTMNetwork")
    sizes = network.input_dim, network.hidden_dim, network.output_dim
    oracle = reference.LSTMNetwork(*sizes, dtype=as_dtype(dtype), seed=0, **network.architecture.changed())
    oracle.parameters = network.parameters
    return oracle


def from_reference(oracle: reference.LSTMNetwork) -> LSTMNetwork:
    """Return a compiled network with the weights, the options, the readout and the dtype of the oracle's.

    Parameters
    ----------
    oracle : lstm_ext.reference.LSTMNetwork
        Its weights are copied.

    Returns
    -------
    LSTMNetwork
        A network of its own.

    Raises
    ------
    TypeError
        If `oracle` is another object.
    """
    from lstm_ext import reference

    if not isinstance(oracle, reference.LSTMNetwork):
        raise TypeError(f"oracle is {short_repr(oracle)}; expected a reference.LSTMNetwork")
    sizes = oracle.input_dim, oracle.hidden_dim, oracle.output_dim
    network = LSTMNetwork(*sizes, readout=oracle.readout, dtype=oracle.dtype, seed=0, **vars(oracle.options))
    network.parameters = oracle.parameters
    return network


def relative_difference(ours: Array, oracle: Array) -> float:
    """Return ||ours - oracle|| / ||oracle||, or ||ours|| where the oracle is zero."""
    norm = float(np.linalg.norm(oracle))
    return float(np.linalg.norm(ours - oracle)) / (norm or 1.0)


def _verify_one(isa: str, dtype: str) -> Verification:
    worst = {"forward": np.float64(0), "gradients": np.float64(0)}
    rng = np.random.default_rng(0)
    for kind, ours, oracle in _pairs(rng, dtype, _kernels.isa_index(isa)):
        worst[kind] = np.maximum(worst[kind], relative_difference(ours, oracle))  # a NaN stays
    agrees = all(worst[kind] <= limit for kind, limit in _TOLERANCE[dtype].items())
    return Verification(isa, dtype, float(worst["forward"]), float(worst["gradients"]), agrees)


def _pairs(rng: np.random.Generator, dtype: str, isa: int) -> Iterator[tuple[str, Array, Array]]:
    """Yield pairs (ours, oracle). `isa` is passed explicitly, so other threads keep theirs."""
    for shape in _SHAPES:
        yield from _layer_pairs(rng, dtype, isa, *shape[:4])
        for readout in ("last", "steps"):
            yield from _network_pairs(rng, dtype, isa, *shape, readout=readout)
    for readout in POOLED:
        yield from _network_pairs(rng, dtype, isa, *_OPTION_SHAPE, 2, readout=readout)
    for options in _option_sets():
        yield from _layer_pairs(rng, dtype, isa, *_OPTION_SHAPE, ragged=True, **options)


def _option_sets() -> tuple[OptionArguments, ...]:
    """Return every option at least once."""
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
    N: int,
    T: int,
    I: int,
    H: int,
    *,
    ragged: bool = False,
    **options: Unpack[OptionArguments],
) -> Iterator[tuple[str, Array, Array]]:
    from lstm_ext import reference

    ours, oracle = LSTM(I, H, dtype=dtype, seed=1, **options), reference.LSTM(I, H, dtype="float64", **options)
    ours._isa = isa
    oracle.parameters = ours.parameters
    architecture = ours.architecture
    cells, R = len(architecture.cells), architecture.state_dim
    states = [(N, R), (N, H)] if cells == 1 else [(cells, N, R), (cells, N, H)]
    X, h0, C0, dH, dh_T, dC_T = (
        rng.standard_normal(shape).astype(dtype)
        for shape in ((N, T, I), *states, (N, T, architecture.features), *states)
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
    rng: np.random.Generator,
    dtype: str,
    isa: int,
    N: int,
    T: int,
    I: int,
    H: int,
    O: int,
    *,
    readout: str,
) -> Iterator[tuple[str, Array, Array]]:
    ours = LSTMNetwork(I, H, O, readout=readout, dtype=dtype, seed=2)
    ours._isa = isa
    oracle = to_reference(ours)
    X = rng.standard_normal((N, T, I)).astype(dtype)
    yield "forward", ours.predict(X), oracle.predict(X)
    shape = (N, T) if readout == "steps" else (N,)
    for loss, make in LOSSES.items():
        labels = make().takes_labels
        Y = rng.integers(0, O, shape) if labels else rng.standard_normal((*shape, O)).astype(dtype)
        value_ours, gradient_ours = ours.gradient(X, Y, loss=loss)
        value_oracle, gradient_oracle = oracle.gradient(X, Y, loss=loss)
        yield "forward", np.array(value_ours), np.array(value_oracle)
        yield "gradients", gradient_ours, gradient_oracle
