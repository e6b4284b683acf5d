"""A frozen training: its losses and its last parameters keep their bits, whatever the machine and the version.

Data and weights come from the bit generator's raw integers, divided by powers of two: exact everywhere, which no
initialisation by LAPACK is. After a change that is meant to alter bits: ``python tests/test_trace.py``.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from lstm_ext import SGD, Adam, LSTMNetwork, train

FROZEN = Path(__file__).parent / "traces" / "training.json"
N, T, I, H, O = 23, 9, 5, 17, 3  # no multiple of a vector, of a tile or of the batch
# Without fused multiply-adds there are as many roundings more.
BASELINE = {"float32": 1e-5, "float64": 1e-13}
TRAININGS = {
    "every step, Adam": {"target": "steps", "loss": "mse", "optimizer": lambda: Adam(0.01), "clip_norm": 0.25},
    "last step, SGD": {"target": "last", "loss": "cross_entropy", "optimizer": lambda: SGD(0.5, momentum=0.75)},
}


def trace(training, dtype):
    """Train for ten epochs, and return the losses to full precision and the SHA-256 of the parameters."""
    raw = np.random.PCG64(5).random_raw

    def numbers(*shape, scale):
        """Return multiples of scale / 2^11 in [-scale, scale), which float32 holds exactly."""
        return ((raw(shape) >> 52).astype(np.int64) - 2048) * (scale / 2048)

    network = LSTMNetwork(I, H, O, dtype=dtype)
    network.parameters = numbers(network.parameters.size, scale=0.25)
    X, Y = numbers(N, T, I, scale=2), numbers(N, T, O, scale=1)
    if training["loss"] == "cross_entropy":
        Y = Y[:, -1].argmax(axis=1)
    options = training | {"optimizer": training["optimizer"]()}
    history = train(network, X, Y, batch_size=7, epochs=10, seed=3, verbose=False, **options)
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


if __name__ == "__main__":
    traces = {name: {dtype: trace(training, dtype) for dtype in BASELINE} for name, training in TRAININGS.items()}
    FROZEN.write_text(json.dumps(traces, indent=4) + "\n", encoding="utf-8")
