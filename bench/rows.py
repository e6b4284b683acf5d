"""The scoreboard's rows: sizes, data and weights, and the arithmetic, traffic and memory that they require."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

LEARNING_RATE = 0.05
TILE_ROWS = 6  # sequences that share one read of the weights in lstm_ext's forward and recurrent backward passes
CHUNK_ROWS = 256  # rows (steps x sequences) that share one read of the weight gradient


class Row(NamedTuple):
    """One line of a table: a task and its sizes.

    Tasks: "train", one update (forward, mean squared error of the last step's output, backward, SGD); "epoch", an
    update for every sequence of a data set, timed per sequence; "infer", the last step's outputs of a batch; "stream",
    one step of one stream, called from Python.
    """

    task: str
    steps: int
    batch: int
    input_dim: int
    hidden_dim: int
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """The name that `--rows` matches, such as train-50-32-8-32 or train-50-32-8-32-float64."""
        fields = self if self.dtype != "float32" else self[:-1]
        return "-".join(map(str, fields))

    @property
    def trains(self) -> bool:
        """Whether the weights change."""
        return self.task in ("train", "epoch")

    @property
    def batches(self) -> int:
        """The number of batches in the data: several if an update is short compared with the overhead of an epoch.

        The shortest update has one batch: the task "epoch" times it within an epoch, "train" one call at a time.
        """
        if self.task == "epoch":
            return 1000
        return 20 if self.task == "train" and 1e5 < self.operations() < 1e9 else 1

    def operations(self) -> int:
        """Return the required floating-point operations of one iteration, without those of the head."""
        H, K = self.hidden_dim, self.input_dim + self.hidden_dim
        forward, recurrent = 8 * H * K, 8 * H * H
        return (2 * forward + recurrent if self.trains else forward) * self.steps * self.batch

    def traffic(self, first_level_bytes: int = 32 * 1024) -> int:
        """Return the bytes that one iteration reads from the second-level cache, by a simple model.

        Every step reads all weights, once for each block of six sequences: W forward, W_h backward. The weight gradient
        is read and written once per 256 rows. Activations are not counted. Weights that fit into the first-level cache
        are free; those that do not fit into the second level are counted as if they did.
        """
        size = np.dtype(self.dtype).itemsize
        W = 4 * self.hidden_dim * (self.input_dim + self.hidden_dim) * size
        W_h = 4 * self.hidden_dim * self.hidden_dim * size
        if first_level_bytes >= W:
            return 0
        passes = self.steps * -(-self.batch // TILE_ROWS)
        if not self.trains:
            return passes * W
        return passes * (W + W_h) + 2 * W * -(-self.steps * self.batch // CHUNK_ROWS)

    def given_bytes(self) -> int:
        """Return the bytes of the data and the parameters, which every contestant holds once."""
        parameters = 4 * self.hidden_dim * (self.hidden_dim + self.input_dim + 1) + self.hidden_dim + 1
        data = self.batches * self.batch * (self.steps * self.input_dim + 1)
        return (parameters + data) * np.dtype(self.dtype).itemsize

    def training_bytes(self) -> int:
        """Return the bytes that lstm_ext needs for training, beyond data and parameters (see training_numbers)."""
        itemsize = np.dtype(self.dtype).itemsize
        return itemsize * training_numbers(*self[1:5], 1, per_line=64 // itemsize)


def training_numbers(T: int, B: int, I: int, H: int, O: int, per_line: int = 16) -> int:
    """Return how many numbers lstm_ext holds for training, beyond data and parameters.

    About T B (I + 6 H) are kept from forward to backward. The packed W and W_h, the gradient and the backup of the
    parameters are about 12 H (I + H) + 4 H^2. The rest is for one chunk of the weight gradient. They are the arrays of
    src/lstm_ext/_stack.pyx, with `per_line` numbers in a cache line and in a vector. Not counted are the optimizer's
    moments and their backup (four numbers per parameter for Adam), and the head's few numbers per sequence.
    """

    def padded(columns: int) -> int:
        return -(-columns // per_line) * per_line

    def stride(columns: int) -> int:
        return (-(-columns // per_line) | 1) * per_line  # an odd number of cache lines

    kept = (T + 1) * B * (stride(I + H) + H) + T * B * 4 * H  # ws_hx, ws_C, ws_gates
    packed = padded(H) * 4 * (1 + I + H) + 4 * H * padded(H)  # W for the forward, W_h for the backward pass
    gradient = backup = 4 * H * (I + H + 1) + O * (H + 1)
    chunk = max(1, min(T, CHUNK_ROWS // B)) * B * stride(4 * H) + CHUNK_ROWS * padded(I + H)  # dz, panels of [h | x]
    scratch = 0
    if padded(H) >= H + H // 8 and per_line <= B:  # the batch goes into the lanes
        scratch = min(-(-B // 16), 64) * per_line * max(6 * H, 2 * (H + I + 4) + max(64, I))
    return kept + packed + gradient + backup + chunk + 2 * B * H + scratch  # and dh, dC


SIZES = (
    (10, 1, 3, 5),
    (10, 100, 3, 5),
    (50, 32, 8, 32),
    (100, 1, 16, 64),
    (100, 64, 32, 128),
    (200, 32, 64, 256),
    (50, 64, 256, 512),
    (25, 128, 1024, 1024),
)
ROWS = (
    Row("epoch", *SIZES[0]),
    *(Row("train", *sizes) for sizes in SIZES),
    Row("train", *SIZES[2], "float64"),
    Row("train", *SIZES[4], "float64"),
    *(Row("infer", *sizes) for sizes in SIZES),
    Row("stream", 1, 1, 8, 32),
)
QUICK = {"epoch-10-1-3-5", "stream-1-1-8-32"} | {
    f"{task}-{sizes}" for task in ("train", "infer") for sizes in ("50-32-8-32", "100-64-32-128")
}


class Problem:
    """The data and the weights of a row, the same for all contestants.

    Attributes
    ----------
    X, Y : ndarray (batches, batch, steps, input_dim) and (batches, batch, 1)
        For a stream, 16 batches of one step.
    W, b : ndarray (4 hidden_dim, hidden_dim + input_dim) and (4 hidden_dim,)
        Columns [h | x], gates in the order i, f, g, o.
    W_y, b_y : ndarray (1, hidden_dim) and (1,)
    """

    def __init__(self, row: Row) -> None:
        rng = np.random.default_rng(0)
        H, I = row.hidden_dim, row.input_dim
        batches = 16 if row.task == "stream" else row.batches
        self.X = rng.standard_normal((batches, row.batch, row.steps, I)).astype(row.dtype)
        self.Y = rng.standard_normal((batches, row.batch, 1)).astype(row.dtype)
        shapes = (4 * H, H + I), (4 * H,), (1, H), (1,)
        bound = H**-0.5  # PyTorch's default
        self.W, self.b, self.W_y, self.b_y = (rng.uniform(-bound, bound, shape).astype(row.dtype) for shape in shapes)

    @property
    def W_h(self) -> Any:
        """The columns of W for h."""
        return self.W[:, : self.W_y.shape[1]]

    @property
    def W_x(self) -> Any:
        """The columns of W for x."""
        return self.W[:, self.W_y.shape[1] :]

    def flat(self) -> Any:
        """Return all weights, in the order of lstm_ext's parameter vector."""
        return np.concatenate([part.ravel() for part in (self.W, self.b, self.W_y, self.b_y)])

    def time_major(self) -> Any:
        """Return X as contiguous (batches, steps, batch, input_dim)."""
        return np.ascontiguousarray(self.X.swapaxes(1, 2))
