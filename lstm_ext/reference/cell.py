"""The oracle's cell: one step with every option, forward and backward, and the masks of dropout."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from lstm_ext.reference.activations import CELL_ACTIVATIONS, GATE_ACTIVATIONS
from lstm_ext.reference.parameters import (
    Architecture,
    Array,
    Parametrised,
    Seed,
    Weights,
    as_architecture,
    as_array,
    cell_weights,
)


def _clip(x: Array, limit: float) -> Array:
    return np.where(x.real > limit, limit, np.where(x.real < -limit, -limit, x)).astype(x.dtype)


def _norm(v: Array) -> Array:
    """Return (v - mean) / sqrt(var + 1e-5), for each column."""
    centred = v - v.mean(axis=0)
    return np.asarray(centred / np.sqrt((centred**2).mean(axis=0) + 1e-5))


def _norm_back(v: Array, du: Array) -> Array:
    """Return dL/dv, given dL/du for u = _norm(v)."""
    u = _norm(v)
    scale = 1 / np.sqrt(((v - v.mean(axis=0)) ** 2).mean(axis=0) + 1e-5)
    return np.asarray(scale * (du - du.mean(axis=0) - u * (du * u).mean(axis=0)))


# --- the masks of dropout: every element has a counter of its own, so masks do not depend on the order of drawing ---


def philox(counter: Iterable[ArrayLike], key: Iterable[int]) -> Array:
    """Return the four output words of Philox 4x32-10 (Salmon et al. 2011).

    Parameters
    ----------
    counter : sequence of array_like
        The four words of the counter, integers, broadcast against each other.
    key : sequence of int
        The two words of the key.

    Returns
    -------
    ndarray
        The words, uint64 below 2**32: (4, ...) for counters of shape (...).
    """
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    k0, k1 = (int(word) for word in key)
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ np.uint64(k0), p1 & low, (p0 >> half) ^ c3 ^ np.uint64(k1), p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3))


class Key(NamedTuple):
    """The Philox key of one update's masks."""

    word0: int
    word1: int

    @classmethod
    def of(cls, dropout_seed: int | None, update: int) -> Key | None:
        """Return the key for an update under a seed; None (inference) without a seed."""
        if dropout_seed is None:
            return None
        if not isinstance(dropout_seed, int | np.integer) or isinstance(dropout_seed, bool):
            raise TypeError(f"dropout_seed must be None or an integer, got {dropout_seed!r}")
        if not 0 <= dropout_seed < 2**64:
            raise ValueError(f"dropout_seed must be at least 0 and below 2**64, got {dropout_seed}")
        seed = int(dropout_seed)
        words = philox((update & 0xFFFFFFFF, update >> 32, 0, 0), (seed & 0xFFFFFFFF, seed >> 32))
        return cls(int(words[0]), int(words[1]))

    def dropped(self, p: float, kind: int, cell: int, j: Array, n: Array | int, t: Array | int) -> Array:
        """Return whether elements are dropped, each with probability `p`; the indices broadcast."""
        words = np.choose(j % 4, philox((j // 4, n, t, 8 * cell + kind), self))
        return np.asarray(words < np.uint64(int(p * 2**32)))

    def mask(self, dtype: np.dtype[Any], p: float, *place: Any) -> Array:
        """Return 0 for dropped elements, and 1 / (1 - p) for the others."""
        return np.where(self.dropped(p, *place), 0, 1 / (1 - p)).astype(dtype)


class Masks(NamedTuple):
    """The masks of a cell for a whole batch or, from `at`, for one step; None for no mask."""

    h: Any = None  # recurrent_dropout, (R, N)
    W: Any = None  # weight_dropout, (gates * H, R)
    zone_h: Any = None  # zoneout of h, (S, R, N), for one step (R, N); in inference its expectation, a number
    zone_C: Any = None  # zoneout of C, with H for R

    @classmethod
    def draw(
        cls, architecture: Architecture, dtype: np.dtype[Any], key: Key | None, cell: int, steps: int, rows: int
    ) -> Masks:
        """Return the masks of cell number `cell` for `steps` steps and `rows` rows; without a key, for inference."""
        options, R, H = architecture.options, architecture.state_dim, architecture.hidden_dim
        zone_h: Any = options.zoneout[0] or None
        zone_C: Any = options.zoneout[1] or None
        if key is None:
            return cls(None, None, zone_h, zone_C)
        h, W, n, s = None, None, np.arange(rows), np.arange(steps)[:, None, None]
        if options.recurrent_dropout:
            h = key.mask(dtype, options.recurrent_dropout, 1, cell, np.arange(R)[:, None], n, 0)
        if zone_h:
            zone_h = key.dropped(zone_h, 2, cell, np.arange(R)[:, None], n, s).astype(dtype)
        if zone_C:
            zone_C = key.dropped(zone_C, 3, cell, np.arange(H)[:, None], n, s).astype(dtype)
        if options.weight_dropout:
            row = np.arange(len(architecture.gates) * H)[:, None]
            W = key.mask(dtype, options.weight_dropout, 4, cell, np.arange(R), row, 0)
        return cls(h, W, zone_h, zone_C)

    def at(self, s: int, rows: Array) -> Masks:
        """Return the masks of step `s`, for some of the rows."""
        h = None if self.h is None else self.h[:, rows]
        zones = (zone[s][:, rows] if isinstance(zone, np.ndarray) else zone for zone in (self.zone_h, self.zone_C))
        return Masks(h, self.W, *zones)


# --- one step of one cell ---


class Step(NamedTuple):
    """The inputs, intermediate results and outputs of a step, in columns (dim, N)."""

    x: Array
    h_prev: Array
    C_prev: Array
    masks: Masks
    z_x: Array  # W_x x_t
    z_h: Array  # W_h h_{t-1}
    i: Array
    f: Array
    C_tilde: Array
    o: Array
    raw: Array  # f_t * C_{t-1} + i_t * C~_t, before cell_clip
    c: Array  # C_t before zoneout
    a: Array  # act(c); with layer_norm, act of the normalised c
    h: Array
    C: Array


def forward_step(w: Weights, architecture: Architecture, x: Array, h_prev: Array, C_prev: Array, masks: Masks) -> Step:
    """Take one step of a cell."""
    options, R = architecture.options, architecture.state_dim
    gate, _ = GATE_ACTIVATIONS[options.gate_activation]
    act, _ = CELL_ACTIVATIONS[options.cell_activation]

    z_x = w.W[:, R:] @ x
    z_h = masked(w.W[:, :R], masks.W) @ masked(h_prev, masks.h)
    stacked = w.gain_x * _norm(z_x) + w.gain_h * _norm(z_h) if options.layer_norm else z_x + z_h
    z = _by_gate(stacked + w.b if options.use_bias else stacked, architecture.gates)
    p = _by_gate(w.p, architecture.peepholes) if options.peephole else {}
    for name in p.keys() - {"o"}:
        z[name] = z[name] + p[name] * C_prev

    i = gate(z["i"])
    f = 1 - i if options.coupled_gates else gate(z["f"])
    C_tilde = act(z["C"])
    raw = f * C_prev + i * C_tilde
    c = raw if options.cell_clip is None else _clip(raw, options.cell_clip)
    o = gate(z["o"] + p["o"] * c if options.peephole else z["o"])
    a = act(w.gain_C * _norm(c) + w.shift_C if options.layer_norm else c)
    r = w.W_r @ (o * a) if options.proj_size else o * a
    h, C = _zoned(masks.zone_h, h_prev, r), _zoned(masks.zone_C, C_prev, c)
    return Step(x, h_prev, C_prev, masks, z_x, z_h, i, f, C_tilde, o, raw, c, a, h, C)


def backward_step(
    w: Weights, g: Weights, architecture: Architecture, step: Step, dh: Array, dC: Array
) -> tuple[Array, Array, Array]:
    """Return dx, dh_prev and dC_prev, given dL/dh_t and dL/dC_t; add the weights' gradient to `g`."""
    options, R, masks = architecture.options, architecture.state_dim, step.masks
    _, gate_slope = GATE_ACTIVATIONS[options.gate_activation]
    _, slope = CELL_ACTIVATIONS[options.cell_activation]
    C_prev, c, a, i, f, C_tilde, o = step.C_prev, step.c, step.a, step.i, step.f, step.C_tilde, step.o
    p = _by_gate(w.p, architecture.peepholes) if options.peephole else {}

    dh_kept, dr = _zoned_back(masks.zone_h, dh)
    dC_kept, dc = _zoned_back(masks.zone_C, dC)
    dm = w.W_r.T @ dr if options.proj_size else dr  # m = o * a
    dn = dm * o * slope(a)  # C_t acts through h_t, C_{t+1} and the peephole of the output gate
    dz = {"o": dm * a * gate_slope(o)}
    dc = dc + (_norm_back(c, w.gain_C * dn) if options.layer_norm else dn)
    dc = dc + p["o"] * dz["o"] if options.peephole else dc
    draw = dc if options.cell_clip is None else dc * (np.abs(step.raw.real) <= options.cell_clip)

    df = draw * C_prev
    di = draw * C_tilde - df if options.coupled_gates else draw * C_tilde
    dz |= {"i": di * gate_slope(i), "f": df * gate_slope(f), "C": draw * i * slope(C_tilde)}
    stacked = np.vstack([dz[gate] for gate in architecture.gates])
    dz_x = _norm_back(step.z_x, w.gain_x * stacked) if options.layer_norm else stacked
    dz_h = _norm_back(step.z_h, w.gain_h * stacked) if options.layer_norm else stacked

    g.W[:, R:] += dz_x @ step.x.T
    g.W[:, :R] += masked(dz_h @ masked(step.h_prev, masks.h).T, masks.W)
    if options.use_bias:
        g.b[...] += row_sums(stacked)
    if options.peephole:
        g.p[...] += row_sums(np.vstack([dz[gate] * (c if gate == "o" else C_prev) for gate in p]))
    if options.layer_norm:
        g.gain_x[...] += row_sums(stacked * _norm(step.z_x))
        g.gain_h[...] += row_sums(stacked * _norm(step.z_h))
        g.gain_C[...] += row_sums(dn * _norm(c))
        g.shift_C[...] += row_sums(dn)
    if options.proj_size:
        g.W_r[...] += dr @ (o * a).T

    dx = w.W[:, R:].T @ dz_x
    dh_prev = dh_kept + masked(masked(w.W[:, :R], masks.W).T @ dz_h, masks.h)
    dC_prev = dC_kept + draw * f + sum(p[gate] * dz[gate] for gate in p if gate != "o")
    return dx, dh_prev, dC_prev


def masked(value: Array, mask: Array | None) -> Array:
    """Multiply by a mask, if there is one; the gradient is masked in the same way."""
    return value if mask is None else value * mask


def row_sums(columns: Array) -> Array:
    """Return the sum over the batch, one column."""
    return np.asarray(columns.sum(axis=1, keepdims=True))


def _by_gate(stacked: Array, gates: tuple[str, ...]) -> dict[str, Array]:
    return dict(zip(gates, stacked.reshape(len(gates), -1, stacked.shape[1]), strict=True))


def _zoned(zone: Any, old: Array, new: Array) -> Array:
    """Mix the old state and the new one, by zoneout's mask or its expectation."""
    return new if zone is None else np.asarray(zone * old + (1 - zone) * new)


def _zoned_back(zone: Any, d: Array) -> tuple[Array, Array]:
    """Return the gradients of the old state and of the new state."""
    return (np.zeros_like(d), d) if zone is None else (zone * d, (1 - zone) * d)


# --- the article's cell ---


class CellGradients(NamedTuple):
    """The gradients of one step: dx (input_dim, 1), dh_prev and dC_prev (hidden_dim, 1); `parameters` is flat."""

    dx: Array
    dh_prev: Array
    dC_prev: Array
    parameters: Array


class LSTMCell(Parametrised):
    """One step of an LSTM.

    Parameters
    ----------
    input_dim, hidden_dim : int
        Sizes of x_t and of h_t.
    dtype : {"float32", "float64", "complex128"}
        Dtype of parameters and results; complex128 is only for complex-step derivatives.
    init : {"glorot", "keras", "pytorch", "reference"}
        "glorot": for each gate, uniform columns for x and orthogonal columns for h; biases are 0, except b_f = 1.
        "keras": the same for all gates together. "pytorch": weights and biases uniform in +-1/sqrt(hidden_dim).
        "reference": the article's draws from NumPy's global generator; biases are 0.
    seed : int or numpy.random.Generator, optional
        Seed of the initial weights, or the generator to draw them from; None with "reference".

    Attributes
    ----------
    W_f, W_i, W_C, W_o : ndarray (hidden_dim, hidden_dim + input_dim)
        Columns [h | x].
    b_f, b_i, b_C, b_o : ndarray (hidden_dim, 1)
        Biases.

    Raises
    ------
    TypeError, ValueError
        If an argument, here or in a method, has a wrong type, value or shape; the message names it.
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
        self._build(as_architecture(input_dim, hidden_dim, None, {}), dtype, init, seed)

    def forward(self, x_t: ArrayLike, h_prev: ArrayLike, C_prev: ArrayLike) -> tuple[Array, Array]:
        """Return (h_t, C_t), columns (hidden_dim, 1), from x_t, (input_dim, 1) or (input_dim,)."""
        step = self._step(*self._columns(x_t, h_prev=h_prev, C_prev=C_prev))
        return step.h, step.C

    def backward(
        self, x_t: ArrayLike, h_prev: ArrayLike, C_prev: ArrayLike, dh_t: ArrayLike, dC_t: ArrayLike
    ) -> CellGradients:
        """Return the gradients of a loss, given the arguments of `forward` and dL/dh_t, dL/dC_t."""
        *columns, dh, dC = self._columns(x_t, h_prev=h_prev, C_prev=C_prev, dh_t=dh_t, dC_t=dC_t)
        gradient = np.zeros_like(self.parameters)
        (w,), (g,) = (cell_weights(vector, self._architecture) for vector in (self.parameters, gradient))
        return CellGradients(*backward_step(w, g, self._architecture, self._step(*columns), dh, dC), gradient)

    def _step(self, x: Array, h_prev: Array, C_prev: Array) -> Step:
        (w,) = cell_weights(self.parameters, self._architecture)
        return forward_step(w, self._architecture, x, h_prev, C_prev, Masks())

    def _columns(self, x_t: ArrayLike, **states: ArrayLike) -> list[Array]:
        shapes = (self.input_dim, 1), (self.input_dim,)
        x = as_array("x_t", x_t, self.dtype, *shapes).reshape(self.input_dim, 1)
        shape = (self.hidden_dim, 1)
        return [x] + [as_array(name, state, self.dtype, shape) for name, state in states.items()]
