"""Frozen trainings: their losses and last parameters keep their bits, whatever the machine and the version.

Data and weights come from the bit generator's raw integers, divided by powers of two: exact everywhere, which no
initialisation by LAPACK is. After a change that is meant to alter bits: ``python tests/test_trace.py``. It leaves the
losses of the first version as they are.
"""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

from lstm_ext import SGD, Adam, LSTMNetwork, train

FROZEN = Path(__file__).parent / "traces" / "training.json"
FIRST_VERSION = FROZEN.with_name("first_version.json")
N, T, I, O = 23, 9, 5, 3  # no multiple of a vector, of a tile or of the batch
# Without fused multiply-adds there are as many roundings more.
BASELINE = {"float32": 1e-5, "float64": 1e-13}
TRAININGS = {
    "every step, Adam": {"readout": "steps", "loss": "mse", "optimizer": lambda: Adam(0.01), "clip_norm": 0.25},
    "last step, SGD": {"readout": "last", "loss": "cross_entropy", "optimizer": lambda: SGD(0.5, momentum=0.75)},
    "batch in the lanes": {"readout": "last", "optimizer": lambda: Adam(0.01), "hidden_dim": 5, "batch_size": 16},
    "options": {
        "readout": "max",
        "optimizer": lambda: SGD(0.25),
        "lengths": 1 + np.arange(N) % T,
        "network": {
            "num_layers": 2,
            "bidirectional": "concat",
            "proj_size": 6,
            "peephole": True,
            "layer_norm": True,
            "coupled_gates": True,
            "cell_clip": 0.5,
            "gate_activation": "hard_sigmoid",
            "learn_initial_state": True,
            "dropout": 0.25,
            "recurrent_dropout": 0.125,
            "zoneout": (0.125, 0.25),
            "weight_dropout": 0.125,
        },
    },
}


def trace(training, dtype):
    """Train for ten epochs, and return the losses to full precision and the SHA-256 of the parameters."""
    raw = np.random.PCG64(5).random_raw

    def numbers(*shape, scale):
        """Return multiples of scale / 2^11 in [-scale, scale), which float32 holds exactly."""
        return ((raw(shape) >> 52).astype(np.int64) - 2048) * (scale / 2048)

    options = {"loss": "mse", "batch_size": 7} | training | {"optimizer": training["optimizer"]()}
    hidden_dim, how = options.pop("hidden_dim", 17), options.pop("network", {})
    network = LSTMNetwork(I, hidden_dim, O, readout=options.pop("readout"), dtype=dtype, **how)
    network.parameters = numbers(network.parameters.size, scale=0.25)
    X, Y = numbers(N, T, I, scale=2), numbers(N, T, O, scale=1)
    if network.readout != "steps":
        Y = Y[:, -1]
    if options["loss"] == "cross_entropy":
        Y = Y.argmax(axis=1)
    history = train(network, X, Y, epochs=10, seed=3, verbose=False, **options)
    parameters = network.parameters.astype(np.dtype(dtype).newbyteorder("<"))
    return {
        "losses": [loss.hex() for loss in history.loss],
        "parameters": hashlib.sha256(parameters.tobytes()).hexdigest(),
    }


@pytest.mark.parametrize("dtype", BASELINE)
@pytest.mark.parametrize("name", TRAININGS)
def test_the_training_keeps_its_bits(name, dtype, isa):
    ours, frozen = trace(TRAININGS[name], dtype), json.loads(FROZEN.read_text(encoding="utf-8"))[name][dtype]
    if isa != "baseline":
        assert ours == frozen
    losses, expected = ([float.fromhex(loss) for loss in each["losses"]] for each in (ours, frozen))
    assert losses == pytest.approx(expected, rel=BASELINE[dtype], abs=0)
    assert losses[-1] < losses[0]


def fraction(*shape):
    """Return numbers in (-1, 1) that every machine computes alike."""
    k = np.arange(math.prod(shape))
    return ((k * 37 + 11) % 101 / 50.5 - 1).reshape(shape)


@pytest.mark.parametrize(
    ("name", "optimizer", "readout"),
    [("momentum", lambda: SGD(0.1, momentum=0.9), "steps"), ("adam", lambda: Adam(0.02), "last")],
)
def test_the_training_has_the_bits_of_the_first_version(name, optimizer, readout, isa):
    network = LSTMNetwork(3, 13, 2, readout=readout, dtype="float64")
    network.parameters = 0.4 * fraction(network.parameters.size)
    X, Y = fraction(17, 9, 3), fraction(17, 9, 2)
    if readout == "last":
        Y = Y[:, -1]
    how = {"batch_size": 17, "epochs": 10, "shuffle": False, "clip_norm": 0.05, "verbose": False}
    losses = train(network, X, Y, optimizer=optimizer(), **how).loss
    expected = [float.fromhex(loss) for loss in json.loads(FIRST_VERSION.read_text(encoding="utf-8"))[name]]
    assert losses == pytest.approx(expected, rel=BASELINE["float64"] if isa == "baseline" else 0, abs=0)


if __name__ == "__main__":
    traces = {name: {dtype: trace(training, dtype) for dtype in BASELINE} for name, training in TRAININGS.items()}
    FROZEN.write_text(json.dumps(traces, indent=4) + "\n", encoding="utf-8")
