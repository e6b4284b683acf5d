"""Networks as files: safetensors with the tensors by name and everything else as JSON in the metadata.

Loading runs no code. Needs the package `safetensors` (``pip install "lstm_ext[models]"``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

import numpy as np

from lstm_ext.checks import Array, as_size
from lstm_ext.data import SequenceScaler
from lstm_ext.network import LSTMNetwork
from lstm_ext.parameters import LAYOUT_VERSION, parameter_layout

METADATA_KEY = "lstm_ext"
FORMAT_VERSION = 1


class ModelFileError(ValueError):
    """A file is not a model of this library, is damaged, or is of a newer version."""


class Model(NamedTuple):
    """What `load` returns."""

    network: LSTMNetwork
    scaler: SequenceScaler | None
    details: dict[str, Any]


def save(
    path: str | os.PathLike[str],
    network: LSTMNetwork,
    *,
    scaler: SequenceScaler | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Write a network to a file, whole or not at all.

    Parameters
    ----------
    path : path-like
        Replaced if it exists.
    network : LSTMNetwork
    scaler : SequenceScaler, optional
        A fitted one.
    details : mapping, optional
        Anything that JSON holds, returned by `load`.

    Raises
    ------
    OSError
        If the file cannot be written; an older one stays as it was.
    TypeError, ValueError
        If an argument is not as above, or `details` is not what JSON holds.
    RuntimeError
        If the scaler is not fitted.
    """
    import json  # here and below, so that `import lstm_ext` is quick

    library = _safetensors()
    if not isinstance(network, LSTMNetwork):
        raise TypeError(f"network is {network!r}; expected an LSTMNetwork")
    if not isinstance(scaler, (SequenceScaler, NoneType)):
        raise TypeError(f"scaler is {scaler!r}; expected a SequenceScaler or None")
    if not isinstance(details, (Mapping, NoneType)):
        raise TypeError(f"details is {details!r}; expected a mapping or None")
    input_dim, hidden_dim, output_dim = network.sizes
    header = {
        "version": FORMAT_VERSION,
        "architecture": {"input_dim": input_dim, "hidden_dim": hidden_dim, "output_dim": output_dim},
        "parameter_layout": LAYOUT_VERSION,
        "scaler": None if scaler is None else scaler.to_dict(),
        "details": dict(details or {}),
    }
    tensors = {name: np.array(weight) for name, weight in network.named_parameters().items()}
    content = library.numpy.save(tensors, {METADATA_KEY: json.dumps(header)})
    write_whole(Path(path), lambda part: part.write_bytes(content))


def load(path: str | os.PathLike[str]) -> Model:
    """Read a network that `save` wrote.

    Raises
    ------
    ModelFileError
        If the file is not such a model, is damaged, or is of a newer version.
    OSError
        If the file cannot be read.
    """
    library = _safetensors()
    with Path(path).open("rb"):
        pass  # an unreadable file is an OSError by its own name
    try:
        with library.safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            header = _header(path, metadata)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return _model(path, header, tensors)
    except library.SafetensorError as error:
        raise ModelFileError(f"{path} is not a whole safetensors file: {error}") from None


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file beside `path`, then put it in place: a crash leaves the old file or the new one."""
    path = path.resolve()  # a link stays a link
    check_writable(path)
    part = _part(path)
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError('model files need the package safetensors: pip install "lstm_ext[models]"') from error
    return safetensors


def check_writable(path: Path) -> None:
    """Raise OSError if `write_whole` could not put a file there."""
    if path.is_dir() or not path.name:
        raise IsADirectoryError(f"{path} is a folder; expected the name of a file")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{path} cannot be written")
    probe = _part(path)
    try:
        probe.touch()
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        probe.unlink(missing_ok=True)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")


def _header(path: str | os.PathLike[str], metadata: Mapping[str, str]) -> dict[str, Any]:
    import json

    if METADATA_KEY not in metadata:
        raise ModelFileError(f"{path} is not an lstm_ext model: its metadata holds {sorted(metadata)}")
    try:
        header = json.loads(metadata[METADATA_KEY])
        version = header["version"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ModelFileError(f"{path} has damaged metadata: {error}") from None
    if version != FORMAT_VERSION:
        raise ModelFileError(f"{path} has model version {version!r}; this lstm_ext reads {FORMAT_VERSION}")
    return dict(header)


def _model(path: str | os.PathLike[str], header: dict[str, Any], tensors: dict[str, Array]) -> Model:
    try:
        sizes = [as_size(name, header["architecture"][name]) for name in ("input_dim", "hidden_dim", "output_dim")]
        layout = parameter_layout(*sizes)
        if header["parameter_layout"] != LAYOUT_VERSION:
            raise ValueError(f"parameter_layout is {header['parameter_layout']!r}; expected {LAYOUT_VERSION}")
        scaler = None if header["scaler"] is None else SequenceScaler.from_dict(header["scaler"])
        details = dict(header["details"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path} has damaged metadata: {error}") from None
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    expected = {name: shape for name, (_, shape) in layout.items()}
    dtypes = {str(tensor.dtype) for tensor in tensors.values()}
    if shapes != expected or len(dtypes) != 1 or not dtypes <= {"float32", "float64"}:
        raise ModelFileError(f"{path} holds tensors of shapes {shapes} and {sorted(dtypes)}; expected {expected}")
    vector = np.concatenate([tensors[name].reshape(-1) for name in layout])
    return Model(LSTMNetwork._from_parameters(vector, *sizes), scaler, details)
