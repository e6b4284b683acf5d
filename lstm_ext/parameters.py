"""The flat parameter vector: its layout, its named views, its initialisation."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np

from lstm_ext._kernels import is_finite
from lstm_ext.checks import Array, as_choice, as_real, make_generator, short_repr
from lstm_ext.options import Architecture, OptionArguments, as_architecture, count_numbers, hinting, offsets_of

LAYOUT_VERSION = 1
"""The version of `parameter_layout`: a change of names, order or shapes changes it."""

INITS = ("glorot", "keras", "pytorch", "reference")


@hinting
def parameter_layout(
    input_dim: int, hidden_dim: int, output_dim: int | None = None, **options: Unpack[OptionArguments]
) -> dict[str, tuple[int, tuple[int, int]]]:
    """Return the offset and the shape of each weight in the flat parameter vector.

    Parameters
    ----------
    input_dim, hidden_dim : int
        The widths of x_t and C_t.
    output_dim : int, optional
        The width of y_t; without it, the layout has no head.
    **options
        As for `Options`.

    Returns
    -------
    dict
        Name to (offset in elements, shape), in storage order and without gaps. For each cell, with H = hidden_dim, R
        the width of h_t, I that of x_t, and G = 4 gates: W_i, W_f, W_C, W_o, each (H, R + I) with columns [h | x]; b_i,
        b_f, b_C, b_o, each (H, 1). Options add p_i, p_f, p_o (H, 1); gain_x, gain_h (G H, 1), gain_C, shift_C (H, 1);
        W_r (R, H); h_0 (R, 1), C_0 (H, 1), in this order. With coupled gates, the gate f has no weights, and G = 3.
        Cells come layer by layer, the forward one first; the names of layer l > 0 end in ``_l{l}``, those of the
        reverse direction in ``_reverse``. At the end come W_y (O, F) and b_y (O, 1), where O is output_dim and F the
        width of a layer's outputs.

    Raises
    ------
    TypeError, ValueError
        If a size is not an integer of at least 1, or an option is not as for `Options`.
    """
    return layout(as_architecture(input_dim, hidden_dim, output_dim, options))


def layout(architecture: Architecture) -> dict[str, tuple[int, tuple[int, int]]]:
    """Return the `parameter_layout` of an architecture."""
    table = {
        name + cell.suffix: (offsets[name], shape)
        for cell, offsets in zip(architecture.cells, architecture.offsets, strict=True)
        for name, shape in architecture.cell_shapes(cell.input_dim).items()
    }
    head = head_shapes(architecture)
    offsets = offsets_of(head, architecture.cell_parameters)
    return table | {name: (offsets[name], shape) for name, shape in head.items()}


def head_shapes(architecture: Architecture) -> dict[str, tuple[int, int]]:
    """Return the shapes of the head's weights, in the order of storage."""
    O = architecture.output_dim
    return {} if O is None else {"W_y": (O, architecture.features), "b_y": (O, 1)}


def parameter_count(architecture: Architecture) -> int:
    """Return the length of the flat parameter vector, in a time that does not grow with the number of layers."""
    return architecture.cell_parameters + count_numbers(head_shapes(architecture))


def parameter_views(vector: Array, architecture: Architecture) -> dict[str, Array]:
    """Return the named weights as views of `vector`."""
    return {
        name: vector[offset : offset + shape[0] * shape[1]].reshape(shape)
        for name, (offset, shape) in layout(architecture).items()
    }


def check_weights(vector: Array, architecture: Architecture) -> None:
    """Raise ValueError if a weight is NaN or infinite."""
    if is_finite(vector):
        return
    for name, weights in parameter_views(vector, architecture).items():
        for index in np.argwhere(~np.isfinite(weights)):
            element = ", ".join(map(str, index))
            raise ValueError(f"network has {weights[tuple(index)]} in {name}[{element}]; expected finite weights")


def initialize(views: dict[str, Array], architecture: Architecture, init: str, seed: int | None) -> None:
    """Set the initial weights, in place; they are zeros before.

    Cells are drawn from `seed` in the order of storage, then the head. Weights that are not named below stay 0, gains
    are 1, and b_f is the option forget_bias (Jozefowicz et al. 2015): by default 1, except for "pytorch", which draws
    it, and "reference", where it is 0.

    Keep the default for new models. ``"keras"`` and ``"pytorch"`` start as models of those packages do, and
    ``"reference"`` as the article's program does.

    ``"glorot"``: uniform in +-sqrt(6 / (fan_in + fan_out)) for the columns of x of each gate, W_r and W_y (Glorot and
    Bengio 2010), orthonormal for the columns of h of each gate (Saxe et al. 2014).
    ``"keras"``: the same, but for all gates of a cell as one matrix.
    ``"pytorch"``: uniform in +-1/sqrt(hidden_dim) for W and W_r, the sum of two such draws for b, and +-1/sqrt(F) for
    W_y and b_y, where F is the number of columns of W_y.
    ``"reference"``: the article's: standard normal from NumPy's global generator, in the article's order, biases 0. For
    one layer without options.
    """
    if as_choice("init", init, INITS) == "reference":
        _initialize_reference(views, architecture, seed)
        return
    rng, forget_bias = make_generator(seed), architecture.options.forget_bias
    if forget_bias is None and init != "pytorch":
        forget_bias = 1.0
    if forget_bias is not None:
        as_real("forget_bias", forget_bias, views["W_i"].dtype)
    draw = {"glorot": _draw_glorot, "keras": _draw_keras, "pytorch": _draw_pytorch}[init]
    for cell in architecture.cells:
        weights = {name: views[name + cell.suffix] for name in architecture.cell_shapes(cell.input_dim)}
        for name in ("gain_x", "gain_h", "gain_C"):
            if name in weights:
                weights[name][...] = 1
        draw(rng, weights, architecture.gate_names, architecture.state_dim)
        if "b_f" in weights and forget_bias is not None:
            weights["b_f"][...] = forget_bias
    if architecture.output_dim is None:
        return
    if init == "pytorch":
        limit = 1 / np.sqrt(architecture.features)
        for name in ("W_y", "b_y"):
            views[name][...] = _uniform(rng, limit, views[name].shape)
    else:
        views["W_y"][...] = _glorot(rng, views["W_y"].shape)


def _initialize_reference(views: dict[str, Array], architecture: Architecture, seed: int | None) -> None:
    if seed is not None:
        raise ValueError(
            f"seed is {short_repr(seed)}; expected None with init='reference', which draws from numpy.random's global "
            "state"
        )
    if not architecture.is_plain:
        given = ", ".join(f"{name}={value!r}" for name, value in architecture.options.changed().items())
        raise ValueError(f"init is 'reference' with {given}; expected another one: the article has no such network")
    if architecture.options.forget_bias is not None:
        raise ValueError(
            f"forget_bias is {architecture.options.forget_bias}; expected None with init='reference': "
            "the article's biases start at 0"
        )
    for name in ("W_f", "W_i", "W_C", "W_o", "W_y"):
        if name in views:
            views[name][...] = np.random.randn(*views[name].shape)


def _draw_glorot(rng: np.random.Generator, cell: dict[str, Array], gates: tuple[str, ...], R: int) -> None:
    for gate in gates:
        h, x = np.split(cell[f"W_{gate}"], [R], axis=1)
        x[...] = _glorot(rng, x.shape)
        h[...] = _orthonormal(rng, h.shape)
    _draw_projection(rng, cell)


def _draw_keras(rng: np.random.Generator, cell: dict[str, Array], gates: tuple[str, ...], R: int) -> None:
    W = [cell[f"W_{gate}"] for gate in gates]
    H, columns = W[0].shape
    x = _glorot(rng, (len(W) * H, columns - R))
    h = _orthonormal(rng, (len(W) * H, R))
    for weight, rows in zip(W, np.split(np.hstack((h, x)), len(W)), strict=True):
        weight[...] = rows
    _draw_projection(rng, cell)


def _draw_projection(rng: np.random.Generator, cell: dict[str, Array]) -> None:
    if "W_r" in cell:
        cell["W_r"][...] = _glorot(rng, cell["W_r"].shape)


def _draw_pytorch(rng: np.random.Generator, cell: dict[str, Array], gates: tuple[str, ...], R: int) -> None:
    H, columns = cell["W_i"].shape
    limit, GH = 1 / np.sqrt(H), len(gates) * H
    W = _uniform(rng, limit, (GH, columns))
    for gate, rows in zip(gates, np.split(W, len(gates)), strict=True):
        cell[f"W_{gate}"][...] = rows
    if "b_i" in cell:
        b = _uniform(rng, limit, (GH, 1)) + _uniform(rng, limit, (GH, 1))
        for gate, rows in zip(gates, np.split(b, len(gates)), strict=True):
            cell[f"b_{gate}"][...] = rows
    if "W_r" in cell:
        cell["W_r"][...] = _uniform(rng, limit, cell["W_r"].shape)


def _uniform(rng: np.random.Generator, limit: Any, shape: tuple[int, ...]) -> Array:
    return rng.uniform(-limit, limit, shape)


def _glorot(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Draw (fan_out, fan_in)."""
    return _uniform(rng, np.sqrt(6 / sum(shape)), shape)


def _orthonormal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Draw orthonormal columns; the shape has no more columns than rows."""
    Q, R = np.linalg.qr(rng.standard_normal(shape))
    signed: Array = Q * np.sign(np.diag(R))
    return signed
