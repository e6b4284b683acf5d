"""The contestants of the scoreboard, and the worker process that runs one of them.

Each contestant takes its best reasonable form: its data are in its own layout and memory beforehand, weights that need
no gradient have none, denormals are flushed if possible (lstm_ext does so inside its kernels), and results are not
copied. Its package is imported when it is created, in a process for which scoreboard.py has set CPUs and thread counts.
The two processes exchange lines of JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rows import LEARNING_RATE, Problem, Row

Arrays = dict[str, Any]


class Contestant:
    """One package on one row.

    `run(n)` runs at least n iterations and returns their number. `predict()` returns the outputs of the first batch
    with the current weights; for a stream, those of its 16 steps.
    """

    packages: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("train", "infer", "stream")
    dtypes: tuple[str, ...] = ("float32", "float64")
    run: Callable[[int], int]
    predict: Callable[[], Any]

    def __init__(self, row: Row, threads: int) -> None:
        raise NotImplementedError

    @classmethod
    def enters(cls, row: Row) -> bool:
        """Return whether this package can run the row."""
        return ("train" if row.task == "epoch" else row.task) in cls.tasks and row.dtype in cls.dtypes

    def seconds(self, count: int) -> float:
        """Return the mean seconds of `count` iterations, after one that warms caches and threads."""
        self.run(1)
        started = time.perf_counter()
        done = self.run(count)
        return (time.perf_counter() - started) / done


def repeated(iterate: Callable[[], Any]) -> Callable[[int], int]:
    """Return `run` for a contestant with one iteration per call."""

    def run(count: int) -> int:
        for _ in range(count):
            iterate()
        return count

    return run


class Ours(Contestant):
    """lstm_ext through its public functions; `train` lays out its data again in every slot, untimed."""

    packages = ("lstm_ext",)

    def __init__(self, row: Row, threads: int) -> None:
        import lstm_ext

        lstm_ext.set_num_threads(threads)
        self.row, problem = row, Problem(row)
        self.network = network = lstm_ext.LSTMNetwork(row.input_dim, row.hidden_dim, 1, dtype=row.dtype)
        network.parameters = problem.flat()
        X = problem.X[0]
        self.predict = lambda: network.predict(X)
        self.run = repeated(self.predict)
        if row.trains:
            self.train, self.sgd = lstm_ext.train, lstm_ext.SGD(LEARNING_RATE)
            self.X, self.Y = problem.X.reshape(-1, row.steps, row.input_dim), problem.Y.reshape(-1, 1)
            self.run = self._run_updates
        elif row.task == "stream":
            xs, state = [x[0] for x in problem.X], network.initial_state()
            inputs = itertools.cycle(xs)
            self.run = repeated(lambda: network.step(next(inputs), state))
            self.predict = lambda: self._stream(xs)

    def _stream(self, xs: list[Any]) -> Any:
        state = self.network.initial_state()
        return np.concatenate([self.network.step(x, state)[0] for x in xs])

    def _run_updates(self, count: int) -> int:
        """Train on the first `count` batches, or for whole epochs."""
        batches = min(self.row.batches, count)
        self._epochs(batches, -(-count // batches))
        return -(-count // batches) * batches

    def _epochs(self, batches: int, epochs: int) -> list[float]:
        """Train, and return when each epoch ended."""
        ends: list[float] = []
        sequences = batches * self.row.batch
        self.train(
            self.network,
            self.X[:sequences],
            self.Y[:sequences],
            optimizer=self.sgd,
            batch_size=self.row.batch,
            epochs=epochs,
            shuffle=False,
            verbose=False,
            callbacks=[lambda *_: ends.append(time.perf_counter())],
        )
        return ends

    def seconds(self, count: int) -> float:
        if not self.row.trains:
            return super().seconds(count)
        batches = self.row.batches
        ends = self._epochs(batches, 1 + -(-count // batches))
        return (ends[-1] - ends[0]) / (batches * (len(ends) - 1))


class Oracle(Contestant):
    """The NumPy oracle as it is; every other contestant is checked against it."""

    packages = ("numpy",)

    def __init__(self, row: Row, threads: int) -> None:
        from lstm_ext import reference

        problem = Problem(row)
        network = reference.LSTMNetwork(row.input_dim, row.hidden_dim, 1, dtype=row.dtype)
        network.parameters = problem.flat()
        self.predict = lambda: network.predict(problem.X[0])
        self.run = repeated(self.predict)
        if row.trains:
            batches = itertools.cycle(zip(problem.X, problem.Y, strict=True))

            def update() -> None:
                _, gradient = network.gradient(*next(batches))
                network.parameters = network.parameters - LEARNING_RATE * gradient

            self.run = repeated(update)
        elif row.task == "stream":
            xs = problem.X[:, 0, 0]
            inputs, state = itertools.cycle(xs), [np.zeros((row.hidden_dim, 1), row.dtype) for _ in "hC"]

            def step() -> Any:
                state[:] = network.lstm_cell.forward(next(inputs), *state)
                return network.W_y @ state[0] + network.b_y

            self.run = repeated(step)
            self.predict = lambda: np.concatenate(network.forward(xs))


class Blas(Contestant):
    """The oracle's algorithm on scipy's BLAS: one product for all gates, sums in place, nothing computed twice."""

    packages = ("scipy",)
    tasks = ("train", "infer")

    def __init__(self, row: Row, threads: int) -> None:
        from scipy.linalg import blas
        from scipy.special import expit

        self.gemm = blas.sgemm if row.dtype == "float32" else blas.dgemm
        self.expit = expit
        self.row, problem = row, Problem(row)
        H, slots = row.hidden_dim, row.steps if row.trains else 1
        self.X, self.Y = problem.time_major(), problem.Y
        self.W, self.b, self.W_y, self.b_y = problem.W, problem.b, problem.W_y, problem.b_y
        empty = {"dtype": row.dtype}
        self.hx = np.zeros((row.steps + 1 if row.trains else 1, row.batch, H + row.input_dim), **empty)
        self.C = np.zeros((slots + 1, row.batch, H), **empty)
        self.gates = np.empty((slots, row.batch, 4 * H), **empty)
        self.dW = np.empty_like(self.W)
        self.predict = lambda: self._forward(self.X[0])
        self.run = repeated(self.predict)
        if row.trains:
            batches = itertools.cycle(zip(self.X, self.Y, strict=True))
            self.run = repeated(lambda: self._update(*next(batches)))

    def _product(self, a: Any, b: Any, c: Any, *, beta: float, **transposed: int) -> None:
        """Compute c = a b + beta c in place; every operand is transposed, because BLAS stores columns."""
        result = self.gemm(1.0, b.T, a.T, beta=beta, c=c.T, overwrite_c=1, **transposed)
        assert np.shares_memory(result, c)

    def _forward(self, X: Any) -> Any:
        H, hx, C, gates = self.row.hidden_dim, self.hx, self.C, self.gates
        hx[0, :, :H] = 0
        C[0] = 0
        for t, x in enumerate(X):
            now, after = (t, t + 1) if self.row.trains else (0, 0)
            before, latest = (t, t + 1) if self.row.trains else (t % 2, (t + 1) % 2)
            hx[now, :, H:] = x
            gates[now] = self.b
            self._product(hx[now], self.W, gates[now], beta=1.0, trans_a=1)
            i, f, g, o = np.split(gates[now], 4, axis=1)
            self.expit(gates[now, :, : 2 * H], out=gates[now, :, : 2 * H])
            np.tanh(g, out=g)
            self.expit(o, out=o)
            np.multiply(f, C[before], out=C[latest])
            C[latest] += i * g
            np.multiply(o, np.tanh(C[latest]), out=hx[after, :, :H])
        return hx[-1, :, :H] @ self.W_y.T + self.b_y

    def _update(self, X: Any, Y: Any) -> None:
        H, hx, C = self.row.hidden_dim, self.hx, self.C
        dy = 2 * (self._forward(X) - Y) / len(Y)
        dh, dC = dy @ self.W_y, np.zeros_like(C[0])
        dW_y, db_y, db = dy.T @ hx[-1, :, :H], dy.sum(axis=0), np.zeros_like(self.b)
        W_h, dz = self.W[:, :H].copy(), np.empty_like(self.gates[0])
        self.dW[...] = 0
        for t in reversed(range(len(X))):
            i, f, g, o = np.split(self.gates[t], 4, axis=1)
            tanh_C = np.tanh(C[t + 1])
            dC += dh * o * (1 - tanh_C * tanh_C)
            np.multiply(dC * g, i * (1 - i), out=dz[:, :H])
            np.multiply(dC * C[t], f * (1 - f), out=dz[:, H : 2 * H])
            np.multiply(dC * i, 1 - g * g, out=dz[:, 2 * H : 3 * H])
            np.multiply(dh * tanh_C, o * (1 - o), out=dz[:, 3 * H :])
            self._product(dz.T, hx[t], self.dW, beta=1.0)
            db += dz.sum(axis=0)
            self._product(dz, W_h, dh, beta=0.0)
            dC *= f
        for weight, gradient in ((self.W, self.dW), (self.b, db), (self.W_y, dW_y), (self.b_y, db_y)):
            weight -= LEARNING_RATE * gradient


class Torch(Contestant):
    """PyTorch, eager, in the layout that its kernels prefer; its second bias stays zero."""

    packages = ("torch",)

    def __init__(self, row: Row, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        torch.set_flush_denormal(True)
        problem, dtype = Problem(row), getattr(torch, row.dtype)
        layer = torch.nn.LSTMCell if row.task == "stream" else torch.nn.LSTM
        lstm = layer(row.input_dim, row.hidden_dim, dtype=dtype)
        head = torch.nn.Linear(row.hidden_dim, 1, dtype=dtype)
        own = [*lstm.parameters(), *head.parameters()]
        with torch.no_grad():
            zeros = np.zeros_like(problem.b)
            for parameter, value in zip(
                own, (problem.W_x, problem.W_h, problem.b, zeros, problem.W_y, problem.b_y), strict=True
            ):
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
        own.pop(3).requires_grad_(False)
        X, Y = torch.from_numpy(problem.time_major()), torch.from_numpy(problem.Y)
        first, inference = X[0], torch.inference_mode()  # entered once per run

        def outputs(x: Any) -> Any:
            return head(lstm(x)[1][0][0])

        self.predict = inference(lambda: outputs(first))
        self.run = inference(repeated(lambda: outputs(first)))
        if row.trains:
            optimizer = torch.optim.SGD(own, lr=LEARNING_RATE)
            batches = itertools.cycle(list(zip(X, Y, strict=True)))

            def update() -> None:
                x, y = next(batches)
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(outputs(x), y).backward()
                optimizer.step()

            self.run = repeated(update)
        elif row.task == "stream":
            xs = [x[0] for x in X]
            inputs, state = itertools.cycle(xs), None

            def step() -> Any:
                nonlocal state
                state = lstm(next(inputs), state)
                return head(state[0])

            self.run = inference(repeated(step))
            self.predict = inference(lambda: torch.cat([step() for _ in xs]))  # called once, before the first run


class Jax(Contestant):
    """JAX: lax.scan under jit with donated weights, and the faster of two forms of the cell."""

    packages = ("jax", "jaxlib")

    def __init__(self, row: Row, threads: int) -> None:
        import jax

        self.jax, self.row, problem = jax, row, Problem(row)
        weights = {"b": problem.b, "W_y": problem.W_y.T, "b_y": problem.b_y}
        weights |= {"W_h": problem.W_h.T, "W_x": problem.W_x.T}
        fresh = lambda: {name: jax.numpy.array(value) for name, value in weights.items()}  # noqa: E731
        self.weights, self.position = fresh(), 0
        self.X, self.Y = jax.numpy.array(problem.time_major()), jax.numpy.array(problem.Y)
        if row.task == "stream":
            self._set_up_stream()
            return
        forms = (self._together, self._apart)
        makers = {"train": self._updates, "epoch": self._epochs, "infer": self._predictions}
        self.run = self._faster([makers[row.task](form) for form in forms])
        self.weights, self.position = fresh(), 0  # undo the updates of the trials
        predict = jax.jit(lambda weights, X: self._outputs(self._together, weights, X))
        self.predict = lambda: predict(self.weights, self.X[0])

    def _together(self, weights: Any, h: Any, x: Any) -> Any:
        """Return the gates' sums with one product; XLA hoists the concatenation of the weights out of the loop."""
        jnp = self.jax.numpy
        W = jnp.concatenate([weights["W_h"], weights["W_x"]])
        return jnp.concatenate([h, x], axis=-1) @ W + weights["b"]

    @staticmethod
    def _apart(weights: Any, h: Any, x: Any) -> Any:
        """Return the gates' sums with two products."""
        return h @ weights["W_h"] + (x @ weights["W_x"] + weights["b"])

    def _cell(self, form: Any, weights: Any, state: Any, x: Any) -> Any:
        jax = self.jax
        h, C = state
        i, f, g, o = jax.numpy.split(form(weights, h, x), 4, axis=-1)
        C = jax.nn.sigmoid(f) * C + jax.nn.sigmoid(i) * jax.numpy.tanh(g)
        return jax.nn.sigmoid(o) * jax.numpy.tanh(C), C

    def _outputs(self, form: Any, weights: Any, X: Any) -> Any:
        zeros = self.jax.numpy.zeros((X.shape[1], self.row.hidden_dim), self.row.dtype)
        (h, _), _ = self.jax.lax.scan(lambda state, x: (self._cell(form, weights, state, x), None), (zeros, zeros), X)
        return h @ weights["W_y"] + weights["b_y"]

    def _updated(self, form: Any, weights: Any, X: Any, Y: Any) -> Any:
        loss = lambda weights: self.jax.numpy.mean((self._outputs(form, weights, X) - Y) ** 2)  # noqa: E731
        gradients = self.jax.grad(loss)(weights)
        return self.jax.tree.map(lambda weight, gradient: weight - LEARNING_RATE * gradient, weights, gradients)

    def _updates(self, form: Any) -> Callable[[int], int]:
        update = self.jax.jit(lambda weights, X, Y: self._updated(form, weights, X, Y), donate_argnums=0)
        batches = list(zip(self.X, self.Y, strict=True))

        def run(count: int) -> int:
            for _ in range(count):
                self.weights = update(self.weights, *batches[self.position])
                self.position = (self.position + 1) % len(batches)
            self.jax.block_until_ready(self.weights)
            return count

        return run

    def _epochs(self, form: Any) -> Callable[[int], int]:
        def epoch(weights: Any, X: Any, Y: Any) -> Any:
            return self.jax.lax.scan(lambda weights, xy: (self._updated(form, weights, *xy), None), weights, (X, Y))[0]

        compiled = self.jax.jit(epoch, donate_argnums=0)

        def run(count: int) -> int:
            epochs = -(-count // len(self.X))
            for _ in range(epochs):
                self.weights = self.jax.block_until_ready(compiled(self.weights, self.X, self.Y))
            return epochs * len(self.X)

        return run

    def _predictions(self, form: Any) -> Callable[[int], int]:
        predict = self.jax.jit(lambda weights, X: self._outputs(form, weights, X))
        X = self.X[0]
        return repeated(lambda: predict(self.weights, X).block_until_ready())

    def _faster(self, runs: list[Callable[[int], int]]) -> Callable[[int], int]:
        times = []
        for run in runs:
            run(1)
            started = time.perf_counter()
            done = run(1)
            count = max(1, int(0.03 * done / (time.perf_counter() - started)))
            started = time.perf_counter()
            done = run(count)
            times.append((time.perf_counter() - started) / done)
        return runs[times.index(min(times))]

    def _set_up_stream(self) -> None:
        weights, zeros = self.weights, self.jax.numpy.zeros((1, self.row.hidden_dim), self.row.dtype)

        @self.jax.jit
        def step(state: Any, x: Any) -> Any:
            h, C = self._cell(self._together, weights, state, x)
            return h @ weights["W_y"] + weights["b_y"], (h, C)

        xs = [x[0] for x in self.X]
        inputs, self.state = itertools.cycle(xs), (zeros, zeros)

        def advance() -> None:
            y, self.state = step(self.state, next(inputs))
            y.block_until_ready()

        def predict() -> Any:
            state, ys = (zeros, zeros), []
            for x in xs:
                y, state = step(state, x)
                ys.append(y)
            return self.jax.numpy.concatenate(ys)

        self.run, self.predict = repeated(advance), predict


def onnx_model(row: Row, problem: Problem) -> bytes:
    """Return an ONNX model with the LSTM operator: (x, h, C) to (y, h, C) for a stream, otherwise X to y."""
    from onnx import TensorProto, helper, numpy_helper

    H, B = row.hidden_dim, row.batch

    def reordered(array: Any) -> Any:
        i, f, g, o = np.split(array, 4)
        return np.concatenate([i, o, f, g])[None]

    b = reordered(problem.b)
    initializers = {
        "W": reordered(problem.W_x),
        "R": reordered(problem.W_h),
        "B": np.concatenate([b, np.zeros_like(b)], axis=1),
        "W_y": problem.W_y,
        "b_y": problem.b_y,
        "first": np.array([0]),
    }
    streams = row.task == "stream"
    states_in, states_out = (["h", "C"], ["h_next", "C_next"]) if streams else ([], ["h_next"])
    nodes = [
        helper.make_node("LSTM", ["X", "W", "R", "B", *([""] if streams else []), *states_in], ["", *states_out]),
        helper.make_node("Squeeze", ["h_next", "first"], ["h_rows"]),
        helper.make_node("Gemm", ["h_rows", "W_y", "b_y"], ["y"], transB=1),
    ]
    nodes[0].attribute.append(helper.make_attribute("hidden_size", H))

    def value(name: str, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "network",
        [value("X", row.steps, B, row.input_dim), *(value(name, 1, B, H) for name in states_in)],
        [value("y", B, 1), *(value(name, 1, B, H) for name in states_out if streams)],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


class Served(Contestant):
    """A runtime for ONNX models, on arrays bound once; a stream alternates between two steps that swap states."""

    tasks = ("infer", "stream")
    dtypes = ("float32",)

    def __init__(self, row: Row, threads: int) -> None:
        problem = Problem(row)
        bind = self._load(onnx_model(row, problem), threads)
        X, y = problem.time_major(), np.empty((row.batch, 1), "float32")
        if row.task == "infer":
            infer = bind({"X": X[0]}, {"y": y})
            self.run, self.predict = repeated(infer), lambda: infer() or y
            self.bound = X, y  # ONNX Runtime keeps only addresses
            return
        x = np.empty_like(X[0])
        states = [{name: np.zeros((1, 1, row.hidden_dim), "float32") for name in "hC"} for _ in range(2)]
        self.bound = x, y, states
        steps = itertools.cycle(
            bind({"X": x, **before}, {"y": y, "h_next": after["h"], "C_next": after["C"]})
            for before, after in (states, states[::-1])
        )
        inputs = itertools.cycle(X)

        def step() -> Any:
            x[...] = next(inputs)
            next(steps)()
            return y

        self.run = repeated(step)
        self.predict = lambda: np.concatenate([step().copy() for _ in X])  # called once, before the first run

    def _load(self, model: bytes, threads: int) -> Callable[[Arrays, Arrays], Callable[[], None]]:
        """Return a function that binds inputs and outputs by name, and returns a function that runs the model."""
        raise NotImplementedError


class OnnxRuntime(Served):
    """ONNX Runtime's LSTM operator."""

    packages = ("onnxruntime", "onnx")

    def _load(self, model: bytes, threads: int) -> Callable[[Arrays, Arrays], Callable[[], None]]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

        def bind(inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
            binding = session.io_binding()
            for add, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
                for name, array in arrays.items():
                    add(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
            return lambda: session.run_with_iobinding(binding)

        return bind


class OpenVino(Served):
    """OpenVINO's CPU plugin, tuned for latency, in float32 (its default would be bfloat16 where the CPU has it)."""

    packages = ("openvino", "onnx")

    def _load(self, model: bytes, threads: int) -> Callable[[Arrays, Arrays], Callable[[], None]]:
        import openvino

        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "CPU_DENORMALS_OPTIMIZATION": True,
        }
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(model), "CPU", config)

        def bind(inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
            request = compiled.create_infer_request()
            for name, array in (inputs | outputs).items():
                request.set_tensor(name, openvino.Tensor(array, shared_memory=True))

            def infer() -> None:
                request.infer(share_outputs=True)

            return infer

        return bind


class Peak(Contestant):
    """A gauge of the core: the seconds of one float32 operation, in fused multiply-adds."""

    loop, per_pass = "multiply_adds", 16 * 2  # operations of one lane

    def __init__(self, row: Row, threads: int) -> None:
        from lstm_ext import _kernels

        lanes = {"avx512": 16, "avx2": 8}.get(_kernels.isa(), 4)
        size = cache_bytes(2) // 2
        command = [os.environ.get("CC", "cc"), "-O2", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "peak.so"
            command += [f"-DLANES={lanes}", f"-DBYTES={size}", str(Path(__file__).with_name("peak.c"))]
            subprocess.run([*command, "-o", str(library)], check=True, capture_output=True)
            loaded = ctypes.CDLL(str(library))
        loaded.fill_buffer()
        function = getattr(loaded, self.loop)
        function.argtypes = [ctypes.c_long]
        unit = self.per_pass * lanes if self.loop == "multiply_adds" else size
        passes = -(-1_000_000 // unit)

        def run(count: int) -> int:
            loops = -(-count // (passes * unit))
            function(loops * passes)
            return loops * passes * unit

        self.run, self.predict = run, lambda: np.zeros(0)

    def seconds(self, count: int) -> float:
        return min(super(Peak, self).seconds(-(-count // 4)) for _ in range(4))


class Bandwidth(Peak):
    """A gauge of the second-level cache: the seconds to load one byte, from a buffer of half the cache's size."""

    loop = "stream_buffer"


def cache_bytes(level: int) -> int:
    """Return the size of a data cache of the first CPU, or a plausible one if the system does not give it."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        caches = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")
        cache = next(
            path
            for path in caches
            if int((path / "level").read_text()) == level and (path / "type").read_text().strip() != "Instruction"
        )
        return int((cache / "size").read_text().strip().removesuffix("K")) * 1024
    return {1: 32 * 1024, 2: 512 * 1024}[level]


CONTESTANTS: dict[str, type[Contestant]] = {
    "lstm_ext": Ours,
    "torch": Torch,
    "jax": Jax,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "scipy": Blas,
    "oracle": Oracle,
    "peak": Peak,
    "bandwidth": Bandwidth,
}


# --- the worker process ---


class Worker:
    """One contestant in this process: answers the requests of scoreboard.py."""

    def __init__(self, name: str, threads: int) -> None:
        self.kind, self.threads = CONTESTANTS[name], threads
        self.contestant: Contestant | None = None
        self.count = 1

    def about(self) -> dict[str, Any]:
        """Import the packages; return their versions and, if known, the instruction set.

        A tiny row is run first, so that lazy imports do not count as memory of the first row.
        """
        from lstm_ext import _kernels

        versions = {name: importlib.import_module(name).__version__ for name in self.kind.packages}
        isa = {"lstm_ext": _kernels.isa}.get(next(iter(versions), ""), lambda: None)()
        if "torch" in versions:
            isa = sys.modules["torch"].backends.cpu.get_cpu_capability().lower()
        tiny = Row("train" if "train" in self.kind.tasks else "infer", 2, 1, 1, 2)
        self.kind(tiny, self.threads).run(1)
        return {"versions": versions, "instruction_set": isa}

    def prepare(self, row: list[Any], updates: int) -> dict[str, Any]:
        """Set up a row; return its outputs and, for training, how much some updates change them."""
        release_memory()  # memory left by earlier rows would hide that of this one
        self.resident = status_mb("VmRSS")
        self.count = 1
        self.contestant = self.kind(Row(*row), self.threads)
        before = np.array(self.contestant.predict(), "float64").ravel()
        result = {"outputs": before.tolist()}
        if updates:
            done = self.contestant.run(updates)
            assert done == updates, (done, updates)
            result["change"] = (np.array(self.contestant.predict(), "float64").ravel() - before).tolist()
        release_memory()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # reset the peak of the memory
        return result

    def seconds(self, slot: float) -> float:
        """Run for about `slot` seconds; return the seconds of one iteration."""
        assert self.contestant is not None
        seconds = self.contestant.seconds(self.count)
        if self.count == 1:  # find the number of iterations that fill a slot
            while seconds * self.count < slot / 3:
                self.count = int(slot / seconds)
                seconds = self.contestant.seconds(self.count)
        self.count = max(1, int(slot / seconds))  # a slow slot does not lengthen the run
        return seconds

    def finish(self) -> float | None:
        """Release the row; return its peak memory in MB, beyond the memory of the process before it."""
        peak = status_mb("VmHWM")
        self.contestant = None
        gc.collect()
        return None if peak is None or self.resident is None else peak - self.resident


def release_memory() -> None:
    """Return freed memory to the system."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def status_mb(field: str) -> float | None:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024
    return None


def serve(name: str, threads: int) -> None:
    """Answer requests, {"do": method, ...arguments}, one line each, until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of a package must not mix with the answers
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: a stopped worker must not outlive scoreboard.py
    worker = Worker(name, threads)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": getattr(worker, request.pop("do"))(**request)}
        except ImportError as error:
            answer = {"missing": str(error)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
