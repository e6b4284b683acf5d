"""Model files: what is saved comes back to the bit; what is damaged says so; what fails leaves the old file."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from lstm_ext import LSTMNetwork, SequenceScaler, persistence


@pytest.fixture
def network():
    return LSTMNetwork(3, 13, 2, seed=1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip_to_the_bit(tmp_path, dtype):
    network = LSTMNetwork(3, 13, 2, dtype=dtype, seed=1)
    scaler = SequenceScaler().fit(np.random.default_rng(0).standard_normal((4, 5, 3)))
    persistence.save(tmp_path / "model", network, scaler=scaler, details={"note": [1, 2.5, "three"]})
    model = persistence.load(tmp_path / "model")
    assert model.network.dtype == dtype
    assert np.array_equal(model.network.parameters, network.parameters)
    assert model.scaler.to_dict() == scaler.to_dict()
    assert model.details == {"note": [1, 2.5, "three"]}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_others_can_read_the_tensors_by_name(tmp_path, network):
    persistence.save(tmp_path / "model", network)
    with safe_open(str(tmp_path / "model"), framework="numpy") as file:
        assert np.array_equal(file.get_tensor("W_f"), network.lstm_cell.W_f)
        assert np.array_equal(file.get_tensor("b_y"), network.b_y)


@pytest.mark.parametrize("fails", ["write", "replace"])
def test_a_failure_leaves_the_old_file(tmp_path, network, monkeypatch, fails):
    path = tmp_path / "model"
    persistence.save(path, network)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(type(path), {"write": "write_bytes", "replace": "replace"}[fails], fail)
    with pytest.raises(OSError, match="disk full"):
        persistence.save(path, LSTMNetwork(1, 1, 1, seed=0))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_every_truncation_is_an_error(tmp_path, network):
    path = tmp_path / "model"
    persistence.save(path, network)
    content = path.read_bytes()
    for length in range(0, len(content), 13):
        path.write_bytes(content[:length])
        with pytest.raises(persistence.ModelFileError, match="model"):
            persistence.load(path)


def header_of(network, tmp_path):
    persistence.save(tmp_path / "whole", network)
    with safe_open(str(tmp_path / "whole"), framework="numpy") as file:
        return json.loads(file.metadata()["lstm_ext"])


def tensors_of(network):
    return {name: weight.copy() for name, weight in network.named_parameters().items()}


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"format": "other"}, "not an lstm_ext model"),
        ({"lstm_ext": "{"}, "metadata"),
        ({"lstm_ext": "[]"}, "metadata"),
        ({"lstm_ext": "{}"}, "metadata"),
        ({"lstm_ext": '{"version": 1}'}, "metadata"),
        ({"lstm_ext": '{"version": 2}'}, "version 2"),
    ],
)
def test_metadata_that_is_not_ours(tmp_path, network, metadata, words):
    save_file(tensors_of(network), tmp_path / "model", metadata)
    with pytest.raises(persistence.ModelFileError, match=words):
        persistence.load(tmp_path / "model")


def test_tensors_must_fit_the_architecture(tmp_path, network):
    metadata = {"lstm_ext": json.dumps(header_of(network, tmp_path))}
    tensors = tensors_of(network)
    for wrong in (
        {**tensors, "W_f": tensors["W_f"][:, 1:].copy()},
        {**tensors, "W_f": tensors["W_f"].astype(np.float64)},
        {name: tensor for name, tensor in tensors.items() if name != "b_o"},
    ):
        save_file(wrong, tmp_path / "model", metadata)
        with pytest.raises(persistence.ModelFileError):
            persistence.load(tmp_path / "model")


def test_a_huge_architecture_is_refused_before_memory_is_taken(tmp_path, network):
    header = header_of(network, tmp_path)
    header["architecture"]["hidden_dim"] = 10**6
    save_file(tensors_of(network), tmp_path / "model", {"lstm_ext": json.dumps(header)})
    with pytest.raises(persistence.ModelFileError, match="shape"):
        persistence.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"network": None}, "network is None"),
        ({"scaler": 5}, "scaler is 5"),
        ({"details": [1]}, "details is"),
        ({"details": {"a": object()}}, "JSON serializable"),
    ],
)
def test_bad_arguments_write_nothing(tmp_path, network, arguments, words):
    with pytest.raises(TypeError, match=words):
        persistence.save(tmp_path / "model", **{"network": network, **arguments})
    assert list(tmp_path.iterdir()) == []


def test_a_link_stays_a_link(tmp_path, network):
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    persistence.save(tmp_path / "link", network)
    assert (tmp_path / "link").is_symlink()
    assert persistence.load(tmp_path / "target").network.sizes == network.sizes


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        persistence.load(tmp_path / "none")
