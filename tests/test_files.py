"""Model files: they keep every bit, damage is reported, and a failed save leaves the old file."""

import contextlib
import dis
import errno
import functools
import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from helpers import run_python

import lstm_ext
from lstm_ext import (
    LSTMNetwork,
    Model,
    ModelFileError,
    Options,
    SequenceScaler,
    files,
    load,
    load_model,
    parameter_layout,
)

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = {"float32": 5e-6, "float64": 1e-12}
LARGE = LSTMNetwork(6000, 20, 2, seed=0)  # 1.9 MB
DETAILS = {"note": [1, 2.5, "three", None, True], "nested": {"b": {}, "a": "Grüße\n"}}

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX only")


@pytest.fixture
def network():
    return LSTMNetwork(3, 13, 2, seed=1)


@pytest.fixture
def scaler():
    return SequenceScaler().fit(np.random.default_rng(0).standard_normal((4, 5, 3)))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model"


@pytest.fixture
def small(path):
    """Return a file of about 1 kB with a scaler and details."""
    scaler = SequenceScaler().fit(np.array([[[0.1], [0.7]]]))
    LSTMNetwork(1, 2, 1, seed=0).save(path, scaler=scaler, details={"seed": 0, "rmse": 0.25, "name": "é"})
    return path


def assert_same(model, other):
    assert model.network.sizes == other.network.sizes
    assert model.network.dtype == other.network.dtype
    assert model.network.parameters.tobytes() == other.network.parameters.tobytes()
    assert (model.scaler and model.scaler.to_dict()) == (other.scaler and other.scaler.to_dict())
    assert model.details == other.details


def refusal(path):
    """Return the error for a file that must not load: one line that names the file."""
    with pytest.raises(ModelFileError) as caught:
        load_model(path)
    message = str(caught.value)
    assert type(caught.value) is ModelFileError
    assert message.startswith(f"{path} ")
    assert len(message.splitlines()) == 1
    assert len(message) < len(str(path)) + 300
    return message


# --- saving and loading ---


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip_to_the_bit(path, dtype, scaler):
    network = LSTMNetwork(3, 13, 2, dtype=dtype, seed=1)
    network.parameters[:3] = -0.0, np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max
    network.save(path, scaler=scaler, details=DETAILS)
    model = load_model(path)
    assert model.network.dtype == dtype
    assert model.network.parameters.tobytes() == network.parameters.tobytes()
    assert model.scaler.to_dict() == scaler.to_dict()
    assert model.details == DETAILS
    assert list(model.details["nested"]) == ["b", "a"]
    assert load(path).parameters.tobytes() == network.parameters.tobytes()
    assert [file.name for file in path.parent.iterdir()] == ["model"]


EVERY_KIND = [
    {"num_layers": 2, "bidirectional": "concat", "proj_size": 3, "dropout": 0.5, "zoneout": (0.25, 0.1)},
    {"go_backwards": True, "coupled_gates": True, "peephole": True, "use_bias": False, "cell_clip": 2.5},
    {"layer_norm": True, "learn_initial_state": True, "forget_bias": -3, "cell_activation": "identity"},
    {"gate_activation": "hard_sigmoid", "recurrent_dropout": 0.1, "weight_dropout": 0.2},
]


@pytest.mark.parametrize("options", EVERY_KIND, ids=lambda options: next(iter(options)))
@pytest.mark.parametrize("output_dim", [None, 2])
def test_options_come_back(path, options, output_dim):
    network = LSTMNetwork(3, 5, output_dim, seed=1, **options)
    network.save(path)
    model = load_model(path)
    assert_same(model, Model(network, None, {}))
    assert model.network.architecture == network.architecture
    assert model.network.options.changed() == network.options.changed() != {}
    first = path.read_bytes()
    model.network.save(path)
    assert path.read_bytes() == first
    tensors = safetensors.numpy.load_file(path)
    assert tensors.keys() == network.named_parameters().keys()


def test_a_loaded_network_can_be_trained(path, network):
    network.save(path)
    model = load_model(str(path))
    assert model.scaler is None
    assert model.details == {}
    model.network.lstm_cell.W_f[0, 0] = 5
    assert 5 in model.network.parameters
    X = np.ones((2, 5, 3))
    assert not np.array_equal(model.network.predict(X), network.predict(X))
    assert load(path).parameters.tobytes() == network.parameters.tobytes()


def test_details_come_back_as_json_has_them(path, network):
    network.save(path, details={1: (2, 3.0), "a": {None: np.float64(0.1)}})
    assert load_model(path).details == {"1": [2, 3.0], "a": {"null": 0.1}}


def test_the_same_model_gives_the_same_bytes(path, network, scaler):
    network.save(path, scaler=scaler, details=DETAILS)
    first = path.read_bytes()
    model = load_model(path)
    model.network.save(path, scaler=model.scaler, details=model.details)
    assert path.read_bytes() == first


def test_others_can_read_the_tensors_by_name(path, network):
    network.save(path)
    tensors = safetensors.numpy.load_file(path)
    assert tensors.keys() == network.named_parameters().keys()
    for name, weight in network.named_parameters().items():
        assert tensors[name].dtype == weight.dtype
        assert np.array_equal(tensors[name], weight)


@pytest.mark.parametrize("golden", sorted(GOLDEN.glob("*.safetensors")), ids=lambda golden: golden.stem)
def test_golden_files(golden, path, monkeypatch):
    expected = json.loads(golden.with_suffix(".json").read_text(encoding="utf-8"))
    dtype = golden.stem.rpartition("-")[2]
    model = load_model(golden)
    assert list(model.network.sizes) == expected["sizes"]
    assert model.network.options.changed() == expected.get("options", {})
    assert model.network.dtype == dtype
    assert model.network.parameters.tolist() == expected["parameters"]
    assert model.scaler.to_dict() == expected["scaler"]
    assert model.details == expected["details"]
    assert model.network.readout == expected.get("readout", "last")
    every_step = {} if "readout" in expected else {"readout": "steps"}
    outputs, oracle = model.network.predict(expected["X"], **every_step), np.array(expected["outputs"])
    assert np.linalg.norm(outputs - oracle) <= TOLERANCE[dtype] * np.linalg.norm(oracle)
    if f"-v{files.FORMAT_VERSION}-" in golden.stem:  # the writer has not changed, but for its own version
        monkeypatch.setattr(files, "__version__", read_raw(golden)[0]["written_by"])
        model.network.save(path, scaler=model.scaler, details=model.details)
        assert path.read_bytes() == golden.read_bytes()


def test_every_format_version_has_golden_files():
    names = {f"model-v{n + 1}-{dtype}" for n in range(files.FORMAT_VERSION) for dtype in TOLERANCE}
    assert {golden.stem for golden in GOLDEN.glob("*.safetensors")} == names


def test_the_package_safetensors_is_needed_to_write_alone(path, network, monkeypatch):
    network.save(path)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    assert load(path).parameters.tobytes() == network.parameters.tobytes()
    with pytest.raises(ImportError, match=r'^model files need .* \(extra "models"\): pip install safetensors'):
        network.save(path)


# --- damaged, foreign and newer files ---


def test_every_changed_bit_is_found(small):
    """Every bit at both ends and of the weights, and one bit of each byte between."""
    original = load_model(small)
    content = small.read_bytes()
    assert 1000 < len(content) < 1600
    first_weight = len(content) - original.network.parameters.nbytes
    one_each = np.random.default_rng(0).integers(8, size=len(content))
    harmless = []
    for place in range(len(content)):
        everywhere = place < 64 or place >= first_weight
        for bit in range(8) if everywhere else [int(one_each[place])]:
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            try:
                found = files._read(io.BytesIO(changed), len(changed))
            except (KeyError, TypeError, ValueError):  # what `read_model` makes a ModelFileError of
                continue
            network = LSTMNetwork(*found.architecture.sizes)
            network.parameters = found.parameters
            assert_same(Model(network, found.scaler, found.details), original)
            harmless.append(place)
    assert len(harmless) < 10  # such as the case of a digit in \u00e9, or the last of 17 digits


def test_a_changed_bit_names_the_file(small):
    content = small.read_bytes()
    for place in range(0, len(content), 37):
        changed = bytearray(content)
        changed[place] ^= 16
        small.write_bytes(changed)
        refusal(small)


def test_every_truncation_is_found(small):
    content = small.read_bytes()
    for length in [*range(64), *range(64, len(content) - 64, 7), *range(len(content) - 64, len(content))]:
        small.write_bytes(content[:length])
        refusal(small)
    for more in (b"\0", b" ", content):
        small.write_bytes(content + more)
        refusal(small)


def test_garbage_is_refused(small):
    content = small.read_bytes()
    rng = np.random.default_rng(0)
    for n in range(300):
        garbage = bytearray(rng.bytes(rng.integers(300)))
        if n % 2:  # a header of plausible length
            garbage[:8] = int(rng.integers(len(garbage) + 1)).to_bytes(8, "little")
        small.write_bytes(garbage)
        refusal(small)
    for _ in range(200):  # pieces out, in, and in other places
        a, b, c = sorted(rng.integers(0, len(content) + 1, 3))
        for pieces in ((content[:a], content[b:]), (content[:b], content[a:]), (content[b:c], content[a:b])):
            changed = b"".join(pieces)
            if changed != content:
                small.write_bytes(changed)
                refusal(small)


def write_raw(path, header, data=b""):
    """Write a safetensors file with any header: a text, or an object, which is dumped as JSON."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode("utf-8", "surrogatepass")
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def read_raw(path):
    """Return the metadata, the tensors' table and the data of a file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    tensors = json.loads(content[8 : 8 + length])
    return json.loads(tensors.pop("__metadata__")["lstm_ext"]), tensors, content[8 + length :]


def write_signed(path, change):
    """Change the metadata, the tensors' table or the data of a file, and update its checksum."""
    metadata, tensors, old_data = read_raw(path)
    del metadata["checksum"]
    data = change(metadata, tensors)
    data = old_data if data is None else data
    arrays = {}
    with contextlib.suppress(TypeError, KeyError, ValueError):  # only arrays can be signed
        for name in parameter_layout(1, 2, 1):
            dtype = {"F32": np.float32, "F64": np.float64}[tensors[name]["dtype"]]
            first, last = tensors[name]["data_offsets"]
            arrays[name] = np.frombuffer(data[first:last], dtype).reshape(tensors[name]["shape"])
    metadata["checksum"] = files._checksum(metadata, arrays)
    write_raw(path, {"__metadata__": {"lstm_ext": json.dumps(metadata)}, **tensors}, data)


def test_a_file_signed_by_hand_loads(small):
    """The next tests change one thing in a file written by hand."""
    original = load_model(small)
    write_signed(small, lambda metadata, tensors: None)
    assert_same(load_model(small), original)


def test_a_file_of_version_1_has_no_options(small):
    original = load_model(small)

    def as_version_1(metadata, _):
        metadata["version"] = 1
        del metadata["options"]

    write_signed(small, as_version_1)
    assert_same(load_model(small), original)
    assert load_model(small).network.options == Options()


@pytest.mark.parametrize("readout", ["last", "steps", "mean", "max"])
def test_the_readout_comes_back(path, readout):
    network = LSTMNetwork(3, 5, 2, readout=readout, seed=0)
    network.save(path)
    loaded, X = load(path), np.random.default_rng(0).standard_normal((4, 7, 3))
    assert (loaded.readout, loaded.architecture) == (readout, network.architecture)
    assert np.array_equal(loaded.predict(X), network.predict(X))


@pytest.mark.parametrize("forget_bias", [None, 1.0, 2.0])
def test_forget_bias_comes_back(path, forget_bias):
    network = LSTMNetwork(1, 2, 1, seed=0, forget_bias=forget_bias)
    network.save(path)
    assert load(path).architecture == network.architecture
    with safetensors.safe_open(path, "numpy") as file:
        kept = json.loads(file.metadata()["lstm_ext"])["options"]
    assert kept["forget_bias"] == forget_bias


ARCHITECTURE = {"input_dim": 1, "hidden_dim": 2, "output_dim": 1, "readout": "last"}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("version", 0, "version is 0"),
        ("version", -1, "version is -1"),
        ("version", "x" * 10**6, "version is 'xxx"),
        ("version", True, "version is True"),
        ("version", None, "version is None"),
        ("version", 1.0, "version is 1.0"),
        ("version", [[1] * 1000] * 1000, "version is"),
        ("parameter_layout", 2, f"has parameter_layout 2, written by lstm_ext '{lstm_ext.__version__}'; this is"),
        ("parameter_layout", 0, "parameter_layout is 0"),
        ("architecture", None, "damaged"),
        ("architecture", [1, 2, 1], "damaged"),
        ("architecture", {"input_dim": 1, "hidden_dim": 2}, "lack 'output_dim'"),
        ("architecture", {"input_dim": 1, "hidden_dim": 2, "output_dim": 1}, "lack 'readout'"),
        ("architecture", ARCHITECTURE | {"output_dim": 0}, "output_dim is 0"),
        ("architecture", ARCHITECTURE | {"hidden_dim": True}, "hidden_dim is True"),
        ("architecture", ARCHITECTURE | {"hidden_dim": "x" * 10**6}, "hidden_dim is 'xxx"),
        ("architecture", ARCHITECTURE | {"hidden_dim": 10**9}, "tensors"),
        ("architecture", ARCHITECTURE | {"input_dim": 10**4000, "hidden_dim": 10**4000}, "tensors"),
        ("architecture", ARCHITECTURE | {"output_dim": None}, "tensors"),
        (
            "architecture",
            ARCHITECTURE | {"readout": "unknown"},
            "does not accept: readout is 'unknown'; expected one of 'last', 'steps'",
        ),
        ("architecture", ARCHITECTURE | {"readout": None}, "readout is None"),
        ("architecture", ARCHITECTURE | {"readout": ["last"]}, "readout is ['last']"),
        ("options", None, "damaged"),
        ("options", [], "damaged"),
        ("options", {"layers": 2}, "does not know options.layers"),
        ("options", {"num_layers": 0}, "num_layers is 0"),
        ("options", {"num_layers": 2}, "tensors"),
        ("options", {"num_layers": 2**16}, "tensors"),
        ("options", {"num_layers": 10**4000}, "num_layers is 1000"),
        ("options", {"bidirectional": "both"}, "bidirectional is 'both'"),
        ("options", {"use_bias": False}, "tensors"),
        ("options", {"use_bias": 0}, "use_bias is 0"),
        ("options", {"proj_size": 2}, "proj_size is 2"),
        ("options", {"zoneout": [0.5]}, "zoneout is [0.5]"),
        ("options", {"zoneout": "x" * 10**6}, "zoneout is 'xxx"),
        ("options", {"dropout": 0.5}, "dropout is 0.5 and num_layers is 1"),
        ("scaler", 5, "state is 5"),
        ("scaler", {}, "keys"),
        ("scaler", {"mean": [0.0]}, "keys"),
        ("scaler", {"mean": [0.0], "scale": [0.0]}, "above 0"),
        ("scaler", {"mean": ["x"], "scale": [1.0]}, "mean"),
        ("scaler", {"mean": [[0.0]], "scale": [[1.0]]}, "shape"),
        ("scaler", {"mean": [10**4000], "scale": [1.0]}, "mean"),
        ("details", None, "damaged"),
        ("details", [1], "damaged"),
        ("details", "text", "damaged"),
    ],
)
def test_metadata_must_make_sense(small, key, value, words):
    write_signed(small, lambda metadata, tensors: metadata.update({key: value}))
    assert words in refusal(small)


def add_unknown_option(metadata, tensors):
    metadata["options"]["attention"] = None


def add_other_unknown_keys(metadata, tensors):
    metadata.update(written_by="7.1.0", streams=[])
    metadata["architecture"]["depth"] = metadata["scaler"]["median"] = 1


def add_unknown_option_with_weights(metadata, tensors):
    metadata["options"]["attention"] = 2
    tensors["W_q"] = {"dtype": "F32", "shape": [2, 1], "data_offsets": [140, 148]}
    return bytes(148)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (add_unknown_option, f"model was written by a newer lstm_ext, '{lstm_ext.__version__}'; this is"),
        (
            add_unknown_option,
            f"this is lstm_ext {lstm_ext.__version__}, which does not know options.attention: upgrade",
        ),
        (add_other_unknown_keys, "model was written by a newer lstm_ext, '7.1.0'"),
        (add_other_unknown_keys, "does not know architecture.depth, scaler.median, streams: upgrade lstm_ext"),
        (add_unknown_option_with_weights, "model is damaged, or was written by a newer lstm_ext"),
        (add_unknown_option_with_weights, "does not know options.attention: upgrade lstm_ext to load it"),
        (
            lambda metadata, _: metadata.update(written_by="7.1.0", options={"cell_activation": "unknown"}),
            f"by lstm_ext '7.1.0' for an architecture that lstm_ext {lstm_ext.__version__} does not accept: cell_",
        ),
        (lambda metadata, _: metadata.update({"k" * 10**6: 1, "a\nb": 2}), "does not know a b, kkk"),
    ],
)
def test_what_a_newer_version_added_is_not_called_damage(small, change, words):
    write_signed(small, change)
    assert words in refusal(small)


def test_an_unknown_option_without_the_right_checksum_is_not_believed(small):
    small.write_bytes(small.read_bytes().replace(b"peephole", b"peephale"))
    assert "model is damaged, or was written by a newer" in refusal(small)


@pytest.mark.parametrize("key", ["version", "parameter_layout", "architecture", "options", "scaler", "details"])
def test_metadata_must_be_complete(small, key):
    write_signed(small, lambda metadata, tensors: metadata.pop(key) and None)
    assert key in refusal(small)


TENSORS = {
    "missing": lambda tensors: tensors.pop("b_o"),
    "none": lambda tensors: tensors.clear(),
    "extra": lambda tensors: tensors.update(extra={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}),
    "renamed": lambda tensors: tensors.update(W_z=tensors.pop("W_f")),
    "overlapping": lambda tensors: tensors["W_f"].update(data_offsets=tensors["W_i"]["data_offsets"]),
    "zero size": lambda tensors: tensors["W_f"].update(shape=[0, 3]),
    "transposed": lambda tensors: tensors["W_f"].update(shape=[3, 2]),
    "flat": lambda tensors: tensors["W_f"].update(shape=[6]),
    "10^12 elements": lambda tensors: tensors["W_f"].update(shape=[10**6, 10**6], data_offsets=[24, 4 * 10**12]),
    "no table": lambda tensors: tensors.update(W_f=None),
    "no dtype": lambda tensors: tensors["W_f"].pop("dtype"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_must_fit_the_architecture(small, name):
    write_signed(small, lambda metadata, tensors: TENSORS[name](tensors) and None)
    message = refusal(small)
    assert "tensors do not match" in message or "not a model file" in message or "checksum" in message


@pytest.mark.parametrize("dtype", ["F64", "F16", "BF16", "I64", "U8", "", "x", None])
def test_other_dtypes_are_refused(small, dtype):
    def change(_, tensors):
        for table in tensors.values():
            table["dtype"] = dtype

    write_signed(small, change)
    message = refusal(small)
    assert "tensors" in message or "not a model file" in message


@pytest.mark.parametrize("count", [0, 1, 139, 141, 280])
def test_the_data_must_fit_the_architecture(small, count):
    write_signed(small, lambda metadata, tensors: bytes(count))
    assert "not a model file" in refusal(small)


OURS = '{"__metadata__": {"lstm_ext": %s}}'


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("", "not a model file"),
        ("[]", "not a model file"),
        ("{", "not a model file"),
        ("\ud800", "not a model file"),
        ("[" * 10**6, "not a model file"),
        ('{"a":' * 10**5 + "1" + "}" * 10**5, "not a model file"),
        ('{"a": 1, "a": 1}', "not a model file"),
        ('{"a": NaN}', "not a model file"),
        ('{"a": ' + "9" * 10**4 + "}", "not a model file"),
        ("{}", "not a model of lstm_ext"),
        ('{"__metadata__": {"format": "pt"}}', "not a model of lstm_ext"),
        ('{"__metadata__": null}', "not a model of lstm_ext"),
        ('{"__metadata__": "lstm_ext"}', "not a model file"),
        ('{"__metadata__": ["lstm_ext"]}', "not a model file"),
        (OURS % "5", "not a model file"),
        (OURS % "null", "not a model file"),
        (OURS % '""', "damaged"),
        (OURS % '"[]"', "not an object"),
        (OURS % '"{}"', "version is None"),
        (OURS % json.dumps("[" * 10**6), "nested too deeply"),
        (OURS % json.dumps('{"version": 1, "version": 1}'), "twice"),
        (OURS % json.dumps('{"version": Infinity}'), "Infinity"),
        (OURS % json.dumps('{"version": 1}'), "lack 'architecture'"),
        (OURS % json.dumps('{"version": 1, "details": 1e999, "checksum": ""}'), "damaged"),
    ],
)
def test_headers_of_any_other_kind(path, header, words):
    write_raw(path, header)
    assert words in refusal(path)


@pytest.mark.parametrize("length", [0, 1, 9, 2**31, 2**63 - 1, 2**64 - 1])
def test_the_length_of_the_header_is_checked(path, length):
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    refusal(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\3\4" + bytes(100), b"\x89HDF\r\n\x1a\n" + bytes(100), b"\x80\x04K\x01.", b"\x93NUMPY", b"{}\n"],
    ids=["empty", "zip", "HDF5", "pickle", "npy", "JSON"],
)
def test_files_of_other_kinds(path, content):
    path.write_bytes(content)
    assert "not a model file of lstm_ext" in refusal(path)


def test_a_model_of_another_library(path):
    safetensors.numpy.save_file({"weight": np.zeros(3, np.float32)}, path, {"format": "pt"})
    assert "is a safetensors file, but not a model of lstm_ext" in refusal(path)


@pytest.mark.parametrize(
    ("written_by", "words"),
    [
        ({"written_by": "7.1.0"}, "lstm_ext '7.1.0'"),
        ({}, "lstm_ext None"),
        ({"written_by": "x\n" * 10**6}, "upgrade"),
        ({"written_by": [5]}, "upgrade"),
    ],
)
@pytest.mark.parametrize("version", [files.FORMAT_VERSION + 1, 10**4000])
def test_a_newer_format_is_refused_by_name(path, version, written_by, words):
    metadata = {"version": version, **written_by}
    write_raw(path, {"__metadata__": {"lstm_ext": json.dumps(metadata)}})
    message = refusal(path)
    assert words in message
    assert f"has format version {str(version)[:2]}"[:20] in message
    assert f"reads format version {files.FORMAT_VERSION}: upgrade lstm_ext" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(small, monkeypatch, value):
    network = load(small)
    before = small.read_bytes()
    network.lstm_cell.W_C[1, 2] = value
    named = f"network has {value} in W_C[1, 2]; expected finite weights"
    with pytest.raises(ValueError, match=f"^{re.escape(named)}$"):
        network.save(small)
    assert small.read_bytes() == before
    assert os.listdir(small.parent) == [small.name]
    monkeypatch.setattr(files, "check_weights", lambda vector, architecture: None)
    network.save(small)
    monkeypatch.undo()
    assert f"model cannot be used: {named}" in refusal(small)


def peak_of(call):
    tracemalloc.start()
    try:
        result = call()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_loading_takes_the_memory_of_the_file(path, small):
    load(small)  # imports
    LARGE.save(path)
    _, peak = peak_of(lambda: load(path))
    assert peak < 1.5 * path.stat().st_size  # the network


@posix
def test_a_large_file_of_another_kind_is_not_read(path):
    with path.open("wb") as file:
        file.write((10**9).to_bytes(8, "little") + b"{")
        file.truncate(2 * 10**9)  # a hole: it takes no space
    _, peak = peak_of(lambda: refusal(path))
    assert peak < 200_000


def test_what_a_small_file_claims_takes_no_memory(small):
    content = small.read_bytes()
    for length in (len(content) - 7, 9 * 10**7):
        small.write_bytes(length.to_bytes(8, "little") + content[8:])
        _, peak = peak_of(lambda: refusal(small))
        assert peak < 200_000


CUT_WHILE_IT_IS_READ = """
import os, sys, lstm_ext
from lstm_ext import files
check_version = files._check_version
def cut(metadata):
    os.truncate(sys.argv[1], 4096)
    check_version(metadata)
files._check_version = cut
try:
    lstm_ext.load(sys.argv[1])
except lstm_ext.ModelFileError as error:
    print(error)
"""


def test_a_file_that_is_cut_while_it_is_read(path):
    """A process that had mapped the file would die of SIGBUS, so the test runs another process."""
    LARGE.save(path)
    done = run_python("-c", CUT_WHILE_IT_IS_READ, path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{path} is not a model file of lstm_ext, or is cut short or damaged\n"


def test_a_file_that_is_written_in_place_while_it_is_read(path):
    """The result is one of the models or a ModelFileError."""
    networks = [LSTMNetwork(3, 50, 2, seed=seed) for seed in (0, 1)]
    known = {network.parameters.tobytes() for network in networks}
    files = []
    for network in networks:
        network.save(path)
        files.append(path.read_bytes())
    done = threading.Event()

    def write():
        while not done.is_set():
            for content in files:
                path.write_bytes(content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(100):
            with contextlib.suppress(ModelFileError):
                assert load(path).parameters.tobytes() in known
    finally:
        done.set()
        writer.join()


# --- files that cannot be read ---


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        load(tmp_path / "none")
    with pytest.raises(IsADirectoryError if os.name == "posix" else PermissionError, match=tmp_path.name):
        load(tmp_path)
    with pytest.raises(TypeError, match="path is 5; expected"):
        load(5)


@pytest.mark.parametrize("name", ["mod\0el", "mod\ud800el", "\0" * 10**6])
def test_names_that_no_file_can_have(name, network):
    for use in (network.save, load, load_model, lstm_ext.Forecaster.load):
        with pytest.raises(ValueError, match=r"^path is '.*expected no NUL and no lone surrogates") as caught:
            use(name)
        assert type(caught.value) is ValueError
        assert len(str(caught.value)) < 200


@posix
def test_pipes_and_devices_are_not_waited_for(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero"), Path("/dev/null")):
        assert "not a regular file" in refusal(path)
    with pytest.raises(OSError, match="pipe cannot be written: it is not a regular file"):
        LSTMNetwork(1, 1, 1).save(pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


# --- bad arguments ---


def circular():
    details = {}
    details["self"] = details
    return details


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"path": 5}, TypeError, "path is 5"),
        ({"path": None}, TypeError, "path is None"),
        ({"scaler": 5}, TypeError, "scaler is 5"),
        ({"scaler": SequenceScaler()}, RuntimeError, "not fitted"),
        ({"details": [1]}, TypeError, "details is"),
        ({"details": {"a": object()}}, TypeError, "details .* not JSON serializable"),
        ({"details": {"a": np.zeros(2)}}, TypeError, "details .* not JSON serializable"),
        ({"details": {"a": float("nan")}}, ValueError, "details"),
        ({"details": {"a": float("inf")}}, ValueError, "details"),
        ({"details": {1: "a", "1": "b"}}, ValueError, "details .* twice"),
        ({"details": {(1, 2): "a"}}, TypeError, "details .* keys"),
        ({"details": {"a": 10**5000}}, ValueError, "details"),
        ({"details": circular()}, ValueError, "details"),
    ],
)
def test_bad_arguments_write_nothing(path, network, arguments, error, words):
    with pytest.raises(error, match=words):
        network.save(**{"path": path, **arguments})
    assert list(path.parent.iterdir()) == []


def test_details_that_are_nested_too_deeply(path, network):
    details = {}
    for _ in range(10**5):
        details = {"a": details}
    with pytest.raises(ValueError, match=r"details .* nested too deeply"):
        network.save(path, details=details)
    assert list(path.parent.iterdir()) == []


def test_details_that_no_reader_would_take(path, network):
    with pytest.raises(ValueError, match=r"details cannot be kept: .*header"):
        network.save(path, details={"a": "x" * 10**8})
    assert list(path.parent.iterdir()) == []


# --- whole or not at all ---


def test_the_new_file_is_on_the_disk_before_it_takes_the_place(path, network, monkeypatch):
    network.save(path)
    events = []
    fsync, replace = os.fsync, Path.replace

    def spy_fsync(descriptor):
        mode = os.fstat(descriptor).st_mode
        events.append("folder" if stat.S_ISDIR(mode) else "file")
        if stat.S_ISREG(mode):
            assert os.write(descriptor, b"") == 0  # open for writing
            events.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    def spy_replace(part, target):
        events.append("replace")
        assert part.parent == target.parent
        return replace(part, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    network.save(path)
    assert events == ["file", path.stat().st_size, "replace"] + ["folder"] * (os.name == "posix")


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupted(*_, **__):
    raise KeyboardInterrupt


STAGES = {"create": (Path, "open"), "sync": (os, "fsync"), "replace": (Path, "replace")}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("failure", [full, interrupted])
def test_a_failure_leaves_the_old_file(path, network, monkeypatch, stage, failure):
    network.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(*STAGES[stage], failure)
    with pytest.raises((OSError, KeyboardInterrupt)) as caught:
        LSTMNetwork(1, 1, 1, seed=0).save(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["model"]
    if failure is full:
        assert caught.value.errno == errno.ENOSPC
        assert f"{path} cannot be written: {os.strerror(errno.ENOSPC)}" in str(caught.value)


@pytest.mark.parametrize("failure", [full, interrupted])
def test_a_failing_write_leaves_the_old_file(path, failure):
    path.write_bytes(b"old")
    with pytest.raises((OSError, KeyboardInterrupt)):
        files.write_whole(path, failure)
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["model"]


@posix
@pytest.mark.parametrize("operation", ["open", "fsync", "close", "listdir"])
def test_a_folder_that_refuses_is_no_failure(path, network, monkeypatch, operation):
    """A folder may be writable but not readable (mode 0333), and some file systems cannot sync folders."""
    genuine = getattr(os, operation)

    def refuse(what, *arguments):
        is_folder = isinstance(what, Path) or (isinstance(what, int) and stat.S_ISDIR(os.fstat(what).st_mode))
        if not is_folder or operation == "close":
            genuine(what, *arguments)
        if is_folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, operation, refuse)
    network.save(path)
    monkeypatch.undo()
    assert os.listdir(path.parent) == ["model"]
    assert load(path).parameters.tobytes() == network.parameters.tobytes()


def leave_a_part(path):
    """Have a process end while it writes a file."""
    code = (
        "import os, pathlib, sys; from lstm_ext import files\n"
        "files.write_whole(pathlib.Path(sys.argv[1]), lambda file: os._exit(7))"
    )
    assert run_python("-c", code, path).returncode == 7


def test_the_next_save_removes_what_a_killed_one_left(path, network):
    other = path.with_name("other")
    for left in (path, other):
        leave_a_part(left)
    parts = os.listdir(path.parent)
    assert len(parts) == 2
    assert all(name.startswith(".lstm_ext-") for name in parts)
    network.save(path)
    assert len(os.listdir(path.parent)) == 2  # the other's stays
    files.check_writable(other)
    assert os.listdir(path.parent) == ["model"]


def test_a_save_leaves_the_parts_of_others_that_go_on(path, network):
    def save_another(file):
        network.save(path)
        assert len(os.listdir(path.parent)) == 2
        file.write(b"new")

    files.write_whole(path, save_another)
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["model"]


@posix
@pytest.mark.parametrize("error", [None, BlockingIOError, OSError])
def test_a_part_that_is_swept_before_it_is_locked(path, network, monkeypatch, error):
    calls, lock = [], files._lock

    def sweep(file):
        calls.append(file)
        if len(calls) > 1:
            lock(file)
            return
        if error is not OSError:
            Path(file.name).unlink()
        if error is not None:
            raise error

    monkeypatch.setattr(files, "_lock", sweep)
    network.save(path)
    assert len(calls) == (1 if error is OSError else 2)
    assert os.listdir(path.parent) == ["model"]
    assert load(path).parameters.tobytes() == network.parameters.tobytes()


@pytest.mark.parametrize("name", ["x" * 241, "x" * 255, "é" * 127])
def test_names_as_long_as_the_system_allows(path, network, name):
    files.check_writable(path.with_name(name))
    network.save(path.with_name(name))
    assert os.listdir(path.parent) == [name]
    assert load(path.with_name(name)).sizes == network.sizes


def interrupt_after_call(number):
    """Return a tracer that raises KeyboardInterrupt after a given call, where Python checks for signals."""
    left, in_call = [number], {}

    def trace(frame, event, argument):
        frame.f_trace_opcodes = True
        if event == "call":
            in_call[id(frame)] = False  # frames themselves would keep what they hold
        elif event == "opcode":
            left[0] -= in_call.get(id(frame), False)
            in_call[id(frame)] = operations(frame.f_code).get(frame.f_lasti, "").startswith("CALL")
            if left[0] == 0:
                left[0] = -1
                raise KeyboardInterrupt
        return trace

    return trace


@functools.cache
def operations(code):
    return {instruction.offset: instruction.opname for instruction in dis.get_instructions(code)}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no list of descriptors")
def test_an_interrupt_leaks_no_descriptor(path):
    opened = len(os.listdir("/proc/self/fd"))
    interrupts = 0
    for number in range(1, 2000):
        before = sys.gettrace()
        try:
            sys.settrace(interrupt_after_call(number))
            files.write_whole(path, lambda file: file.write(b"new"))
        except KeyboardInterrupt:
            interrupts += 1
        else:
            break
        finally:
            sys.settrace(before)
        assert len(os.listdir("/proc/self/fd")) == opened, number
    assert 50 < interrupts < 1900
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["model"]


@posix
def test_a_file_that_may_not_grow(path, network):
    """A file size limit of the process makes the write fail in the middle, for root too."""
    import resource

    network.save(path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="model cannot be written: File too large"):
            LARGE.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["model"]


def test_a_full_disk(small_disk, network):
    path = small_disk / "model"
    network.save(path)
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(OSError, match="model cannot be written: No space left on device") as caught:
            LARGE.save(path)
        assert caught.value.errno == errno.ENOSPC
        assert path.read_bytes() == before
        assert os.listdir(small_disk) == ["model"]
    network.save(path)


@posix
def test_a_read_only_folder(path, network):
    path.parent.chmod(0o555)
    if os.access(path.parent, os.W_OK):
        pytest.skip("permissions do not hold for root")
    try:
        with pytest.raises(PermissionError, match="model cannot be written"):
            network.save(path)
    finally:
        path.parent.chmod(0o755)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("missing/model", FileNotFoundError),
        ("file/model", NotADirectoryError if os.name == "posix" else FileNotFoundError),
        ("folder", IsADirectoryError),
        ("folder/", IsADirectoryError),
        ("/proc/lstm_ext", OSError),  # no file can be made there, not even by root
        ("/", IsADirectoryError),
        ("x" * 300, OSError),
    ],
)
def test_places_where_nothing_can_be_written(tmp_path, network, place, error):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for put in (network.save, files.check_writable):
        with pytest.raises(error) as caught:
            put(tmp_path / place)
        assert str(tmp_path / place) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert sorted(file.name for file in tmp_path.rglob("*")) == ["file", "folder"]


@posix
def test_permissions_stay(path, network):
    mask = os.umask(0o027)
    try:
        network.save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        for mode in (0o600, 0o666, 0o755):
            path.chmod(mode)
            network.save(path)
            assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        os.umask(mask)


@posix
def test_a_private_file_is_never_readable_by_others(path):
    path.touch()
    path.chmod(0o600)
    modes = []
    files.write_whole(path, lambda file: modes.append(stat.S_IMODE(os.fstat(file.fileno()).st_mode)))
    assert modes == [0o600]


def test_check_writable_changes_nothing(path):
    files.check_writable(path)
    assert list(path.parent.iterdir()) == []
    path.write_bytes(b"old")
    files.check_writable(path)
    assert path.read_bytes() == b"old"


@posix
def test_a_link_stays_a_link(tmp_path, network):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "target").touch()
    (tmp_path / "link").symlink_to(Path("folder") / "target")
    (tmp_path / "dangling").symlink_to(Path("folder") / "new")
    for link, target in (("link", "target"), ("dangling", "new")):
        network.save(tmp_path / link)
        assert (tmp_path / link).is_symlink()
        assert load(tmp_path / "folder" / target).sizes == network.sizes
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop cannot be written: Too many levels"):
        network.save(tmp_path / "loop")


def test_a_kill_leaves_the_old_file_or_the_new_one(path):
    code = (
        "import sys, lstm_ext\n"
        "networks = [lstm_ext.LSTMNetwork(1000, 20, 2, seed=seed) for seed in (0, 1)]\n"
        "while True:\n"
        "    for network in networks:\n"
        "        network.save(sys.argv[1])\n"
    )
    known = {LSTMNetwork(1000, 20, 2, seed=seed).parameters.tobytes() for seed in (0, 1)}
    rng = np.random.default_rng()
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
        try:
            while not path.exists():
                assert writer.poll() is None
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.02))
        finally:
            os.kill(writer.pid, signal.SIGKILL) if os.name == "posix" else writer.kill()
            writer.wait()
        assert load(path).parameters.tobytes() in known
        LSTMNetwork(1, 1, 1).save(path)
        assert os.listdir(path.parent) == ["model"]
        path.unlink()


def test_a_file_can_be_read_while_it_is_replaced(path):
    networks = [LSTMNetwork(3, 50, 2, seed=seed) for seed in (0, 1)]
    known = {network.parameters.tobytes() for network in networks}
    networks[0].save(path)
    done = threading.Event()

    def read():
        while not done.is_set():
            seen.append(load(path).parameters.tobytes() in known)

    seen = []
    reader = threading.Thread(target=read)
    reader.start()
    try:
        for n in range(50):
            networks[n % 2].save(path)
    finally:
        done.set()
        reader.join()
    assert len(seen) > 0
    assert all(seen)


def test_a_network_can_be_saved_while_it_is_changed(path):
    """The file is a snapshot of one moment, or at least complete."""
    network = LSTMNetwork(1000, 20, 2, seed=0)
    done = threading.Event()

    def change():
        while not done.is_set():
            network.parameters += 1

    writer = threading.Thread(target=change)
    writer.start()
    try:
        for _ in range(10):
            network.save(path)
            load(path)
    finally:
        done.set()
        writer.join()
