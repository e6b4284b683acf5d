"""The flat parameter vector: its layout, its named views, its initialisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from lstm_ext.checks import Array, as_choice, as_size, make_generator

LAYOUT_VERSION = 1
"""The version of `parameter_layout`: a change of names, order or shapes changes it."""

SIZES = ("input_dim", "hidden_dim", "output_dim")
"""A network's sizes, in the order of every signature; a cell and a layer have the first two."""

GATES = ("i", "f", "C", "o")
"""The order of the gates in storage, by the article's names (C is the candidate, elsewhere called g)."""


def parameter_layout(
    input_dim: int, hidden_dim: int, output_dim: int | None = None
) -> dict[str, tuple[int, tuple[int, int]]]:
    """Return where each weight lives in the flat parameter vector.

    Parameters
    ----------
    input_dim, hidden_dim : int
        The cell's sizes.
    output_dim : int, optional
        The head's size; without it, the layout of a cell or a layer.

    Returns
    -------
    dict
        Name to (offset in elements, shape), in storage order and without gaps: W_i, W_f, W_C, W_o, each
        (hidden, hidden + input) with columns [h | x]; b_i, b_f, b_C, b_o, each (hidden, 1); W_y (output, hidden), b_y
        (output, 1).
    """
    input_dim, hidden_dim = as_size("input_dim", input_dim), as_size("hidden_dim", hidden_dim)
    shapes = {f"W_{gate}": (hidden_dim, hidden_dim + input_dim) for gate in GATES}
    shapes |= {f"b_{gate}": (hidden_dim, 1) for gate in GATES}
    if output_dim is not None:
        output_dim = as_size("output_dim", output_dim)
        shapes |= {"W_y": (output_dim, hidden_dim), "b_y": (output_dim, 1)}
    layout, offset = {}, 0
    for name, shape in shapes.items():
        layout[name] = (offset, shape)
        offset += shape[0] * shape[1]
    return layout


def parameter_count(input_dim: int, hidden_dim: int, output_dim: int | None = None) -> int:
    """Return the length of the flat parameter vector."""
    count = 4 * hidden_dim * (hidden_dim + input_dim + 1)
    return count if output_dim is None else count + output_dim * (hidden_dim + 1)


def parameter_views(vector: Array, input_dim: int, hidden_dim: int, output_dim: int | None = None) -> dict[str, Array]:
    """Return the named weights as views of `vector`."""
    layout = parameter_layout(input_dim, hidden_dim, output_dim)
    return {
        name: vector[offset : offset + shape[0] * shape[1]].reshape(shape) for name, (offset, shape) in layout.items()
    }


def initialize(views: dict[str, Array], init: str, seed: int | None) -> None:
    """Draw the weights in place.

    ``"glorot"``: uniform in +-sqrt(6 / (fan_in + fan_out)) for the columns of x and for W_y (Glorot and Bengio 2010),
    orthogonal for the columns of h of each gate (Saxe et al. 2014), biases 0 but b_f = 1 (Jozefowicz et al. 2015),
    drawn from `seed`.
    ``"reference"``: the article's: standard normal from NumPy's global generator, in the article's order, biases 0.
    """
    if as_choice("init", init, ("glorot", "reference")) == "reference":
        if seed is not None:
            raise ValueError(
                f"seed is {seed!r}; expected None with init='reference', which draws from numpy.random's global state"
            )
        for name in ("W_f", "W_i", "W_C", "W_o", "W_y"):
            if name in views:
                views[name][...] = np.random.randn(*views[name].shape)
    else:
        _initialize_glorot(views, make_generator(seed))


def _initialize_glorot(views: dict[str, Array], rng: np.random.Generator) -> None:
    for gate in GATES:
        W = views[f"W_{gate}"]
        hidden_dim = W.shape[0]
        input_dim = W.shape[1] - hidden_dim
        W[:, hidden_dim:] = _glorot(rng, hidden_dim, input_dim)
        Q, R = np.linalg.qr(rng.standard_normal((hidden_dim, hidden_dim)))
        W[:, :hidden_dim] = Q * np.sign(np.diag(R))
    views["b_f"][...] = 1
    if "W_y" in views:
        views["W_y"][...] = _glorot(rng, *views["W_y"].shape)


def _glorot(rng: np.random.Generator, fan_out: int, fan_in: int) -> Array:
    limit: Any = np.sqrt(6 / (fan_in + fan_out))
    return rng.uniform(-limit, limit, (fan_out, fan_in))
