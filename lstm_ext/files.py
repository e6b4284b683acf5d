"""Model files, and atomic writing of any file.

- The format is safetensors, so other programs find each weight by its name. The safetensors package writes the file.
- Everything else is one JSON text in the file's metadata: version, architecture, scaler, details, and a SHA-256
  checksum of these and of the weights.
- Loading runs no code, and takes memory in proportion to the file's size. The file is read, not memory-mapped: a
  process that reads a mapped file dies if another process truncates it.
- A file is written under a temporary name (its *part*) and then renamed. The writer holds a lock on the part. A part
  without a lock was left by a killed process; the next save to the same path removes it.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from types import NoneType
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from lstm_ext._version import __version__
from lstm_ext.checks import Array, as_path, short_list, short_repr
from lstm_ext.options import SIZES, Architecture, Options, as_architecture
from lstm_ext.parameters import LAYOUT_VERSION, check_weights, layout, parameter_count, parameter_views
from lstm_ext.scaling import SequenceScaler

METADATA_KEY = "lstm_ext"
FORMAT_VERSION = 3  # 1 had no options, 2 no readout
_KEYS = {
    "": {"version", "written_by", "architecture", "options", "parameter_layout", "scaler", "details", "checksum"},
    "architecture": {*SIZES, "readout"},
    "options": {field.name for field in fields(Options)},
    "scaler": {"mean", "scale"},
}
"""The known keys of the metadata ("") and of the objects in them."""
_MAX_HEADER_BYTES = 100_000_000  # the limit of the format
_NO_MODEL = "is not a model file of lstm_ext, or is cut short or damaged"


class ModelFileError(ValueError):
    """The file is not a model file of lstm_ext, is damaged, or was written by a newer version."""


class Contents(NamedTuple):
    """The contents of a model file."""

    architecture: Architecture
    parameters: Array
    scaler: SequenceScaler | None
    details: dict[str, Any]


def write_model(
    path: str | os.PathLike[str],
    architecture: Architecture,
    parameters: Array,
    scaler: SequenceScaler | None,
    details: Mapping[str, Any] | None,
) -> None:
    """Write a model file atomically; the arguments and errors are those of `LSTMNetwork.save`."""
    path = as_path("path", path)
    if not isinstance(scaler, (SequenceScaler, NoneType)):
        raise TypeError(f"scaler is {short_repr(scaler)}; expected a SequenceScaler or None")
    library = _safetensors()
    parameters = parameters.copy()  # another thread may be training them
    check_weights(parameters, architecture)
    tensors = parameter_views(parameters, architecture)
    metadata = {
        "version": FORMAT_VERSION,
        "written_by": __version__,
        "architecture": {name: getattr(architecture, name) for name in (*SIZES, "readout")},
        "options": asdict(architecture.options),
        "parameter_layout": LAYOUT_VERSION,
        "scaler": None if scaler is None else scaler.to_dict(),
        "details": _as_details(details),
    }
    metadata["checksum"] = _checksum(metadata, tensors)
    try:
        content = library.numpy.save(tensors, {METADATA_KEY: _dump(metadata)})
    except library.SafetensorError as error:  # the header is too long
        raise ValueError(f"details cannot be kept: {error}") from None
    write_whole(path, lambda file: file.write(content))


def read_model(path: str | os.PathLike[str]) -> Contents:
    """Return the contents of a model file; the errors are those of `load_model`."""
    path = as_path("path", path)
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe would block
        raise ModelFileError(f"{path} is not a regular file")
    with path.open("rb") as file:  # an OSError passes through
        try:
            return _read(file, os.fstat(file.fileno()).st_size)
        except ModelFileError as error:
            raise ModelFileError(f"{path} {error}") from None
        except KeyError as error:
            raise ModelFileError(f"{path} is damaged: its metadata lack {error}") from None
        except (TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]  # the message may quote the file
            raise ModelFileError(f"{path} is damaged: {reason}") from None


def write_whole(path: Path, write: Callable[[BinaryIO], Any], then: Callable[[], Any] | None = None) -> None:
    """Write a file atomically: after a crash, `path` holds either the old file or the new one.

    `write` fills a temporary file in the same folder, which is then renamed. `then()` runs just before the rename; if
    it raises, the old file stays. Links and the permissions of an existing file are kept.

    Raises
    ------
    OSError
        If the file cannot be written. An existing file is unchanged.
    """
    path = Path(os.path.realpath(path))
    with _open_part(path) as (part, file):
        with _naming(path):
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if then is not None:
            then()
        with _naming(path):
            if sys.platform == "win32":  # Windows does not rename open files
                file.close()
            part.replace(path)
    _sync_folder(path.parent)


def check_writable(path: Path) -> None:
    """Raise OSError if `write_whole` cannot write a file to this path."""
    with _open_part(Path(os.path.realpath(path))):
        pass


@contextmanager
def _open_part(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Create and open a part of `path`, with its permissions; on exit, remove the part unless it was renamed."""
    with _naming(path):
        mode = _writable_mode(path)
        prefix = _part_prefix(path.name)
        _remove_stale_parts(path.parent, prefix)
        part, file = _create_part(path.parent, prefix)
    try:
        if mode is not None:
            with _naming(path):
                part.chmod(mode)
        yield part, file
    finally:
        with suppress(OSError):  # what counts has been synced
            file.close()
        with suppress(OSError):  # it has been renamed
            part.unlink()


def _part_prefix(name: str) -> str:
    """Return the prefix of a file's parts; a hash, because the name may have the maximum length already."""
    import hashlib

    return f".lstm_ext-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}-"


def _create_part(folder: Path, prefix: str) -> tuple[Path, BinaryIO]:
    """Create and open a part, and hold its lock until it is closed."""
    while True:
        part = folder / f"{prefix}{os.urandom(8).hex()}.part"
        file = part.open("xb")
        if _lock_part(part, file):
            return part, file
        file.close()


def _lock_part(part: Path, file: BinaryIO) -> bool:
    """Lock a part; return False if another save removed it first."""
    try:
        _lock(file)
    except BlockingIOError:
        return False
    except OSError:
        pass  # the file system has no locks, so no other save removes the part
    return part.exists()


def _remove_stale_parts(folder: Path, prefix: str) -> None:
    """Remove the parts that no process has locked."""
    with suppress(OSError):  # the folder may not be readable
        for part in [folder / name for name in os.listdir(folder) if name.startswith(prefix)]:
            with suppress(OSError):
                if sys.platform == "win32":  # Windows does not remove open files
                    part.unlink()
                else:
                    with part.open("r+b") as file:
                        _lock(file)
                        part.unlink()


def _lock(file: BinaryIO) -> None:
    """Lock a file until it is closed; raise BlockingIOError if it is locked already."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sync_folder(folder: Path) -> None:
    """Sync a folder; errors are ignored, since the file is already in place."""
    opened: list[int] = []
    with suppress(OSError):
        try:
            opened.extend(map(os.open, [folder], [os.O_RDONLY]))  # one call, so that no interrupt loses the descriptor
            os.fsync(*opened)
        finally:
            for descriptor in opened:
                os.close(descriptor)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Make an OSError say that `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno or errno.EIO, f"{path} cannot be written: {error.strerror or error}") from None


def _writable_mode(path: Path) -> int | None:
    """Return the permissions of the file to replace; None if it does not exist."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return stat.S_IMODE(mode)


def _as_details(details: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the details as JSON returns them."""
    if not isinstance(details, (Mapping, NoneType)):
        raise TypeError(f"details is {short_repr(details)}; expected a mapping or None")
    try:
        return _parse(_dump(dict(details or {})))
    except TypeError as error:
        raise TypeError(f"details cannot be kept as JSON: {error}") from None
    except ValueError as error:
        raise ValueError(f"details cannot be kept as JSON: {error}") from None


def _safetensors() -> Any:
    try:
        import safetensors.numpy  # here, like hashlib and json below, to keep `import lstm_ext` quick
    except ImportError as error:
        raise ImportError(
            'model files need the package safetensors (extra "models"): pip install safetensors'
        ) from error
    return safetensors


def _read(file: BinaryIO, size: int) -> Contents:
    """Return the contents of a file of `size` bytes; the caller puts the file's name before a ModelFileError."""
    metadata, tensors = _read_header(file, size)
    _check_version(metadata)
    unknown = _unknown_keys(metadata)
    try:
        architecture = _architecture(metadata)
        parameters = _read_parameters(file, tensors, architecture)
        if metadata.pop("checksum") != _checksum(metadata, parameter_views(parameters, architecture)):
            raise ValueError("its checksum does not match its contents")
    except ValueError:
        if not unknown:
            raise
        raise ModelFileError(f"is damaged, or {_newer(metadata, unknown)}") from None
    if unknown:
        raise ModelFileError(_newer(metadata, unknown))
    if metadata["parameter_layout"] != LAYOUT_VERSION:
        raise ValueError(f"parameter_layout is {short_repr(metadata['parameter_layout'])}; expected {LAYOUT_VERSION}")
    try:
        check_weights(parameters, architecture)
    except ValueError as error:
        raise ModelFileError(f"cannot be used: {error}") from None
    scaler = None if metadata["scaler"] is None else SequenceScaler.from_dict(metadata["scaler"])
    return Contents(architecture, parameters, scaler, dict(metadata["details"]))


def _read_header(file: BinaryIO, size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return our metadata and the tensors' table of a safetensors file, and leave the file at the tensors' data."""
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, _MAX_HEADER_BYTES):
        raise ModelFileError(_NO_MODEL)
    try:
        tensors = _parse(file.read(length).decode())
        texts = tensors.pop("__metadata__", None) or {}
        if not all(isinstance(text, str) for text in texts.values()):
            raise ValueError
        end = 0
        for first, last in sorted(tensor["data_offsets"] for tensor in tensors.values()):
            if first != end:
                raise ValueError
            end = last
        if end != size - 8 - length:
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ModelFileError(_NO_MODEL) from None
    if METADATA_KEY not in texts:
        raise ModelFileError("is a safetensors file, but not a model of lstm_ext")
    return _parse(texts[METADATA_KEY]), tensors


def _architecture(metadata: dict[str, Any]) -> Architecture:
    """Return the architecture; unknown options are left out."""
    input_dim, hidden_dim, output_dim = (metadata["architecture"][name] for name in SIZES)
    given = {} if metadata["version"] < 2 else {**metadata["options"]}
    readout = "last" if metadata["version"] < 3 else metadata["architecture"]["readout"]
    options: Any = {name: value for name, value in given.items() if name in _KEYS["options"]}
    try:
        return as_architecture(input_dim, hidden_dim, output_dim, options, readout)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ModelFileError(
            f"was written by lstm_ext {short_repr(metadata.get('written_by'))} for an architecture that lstm_ext "
            f"{__version__} does not accept: {reason}"
        ) from None


def _read_parameters(file: BinaryIO, tensors: dict[str, Any], architecture: Architecture) -> Array:
    """Return the parameter vector; it is allocated only after the tensors' table has been checked."""
    data, count = file.tell(), parameter_count(architecture)
    size = sum(last - first for first, last in (tensor["data_offsets"] for tensor in tensors.values()))
    code, dtype = {4 * count: ("F32", "float32"), 8 * count: ("F64", "float64")}.get(size, ("", ""))
    found = {name: (tensor.get("dtype"), tensor.get("shape")) for name, tensor in tensors.items()}
    # The size is compared first: a damaged number of layers would make the layout huge.
    if not code or found != {name: (code, [*shape]) for name, (_, shape) in layout(architecture).items()}:
        raise ValueError("its tensors do not match its architecture")
    parameters = np.empty(count, dtype)
    for name, weight in parameter_views(parameters, architecture).items():
        first, last = tensors[name]["data_offsets"]
        file.seek(data + first)
        if last - first != weight.nbytes or file.readinto(weight.data) != weight.nbytes:  # type: ignore[attr-defined]
            raise ModelFileError(_NO_MODEL)
    return parameters


def _check_version(metadata: dict[str, Any]) -> None:
    version = metadata.get("version")
    if type(version) is not int or version < 1:
        raise ValueError(f"version is {short_repr(version)}; expected an integer of at least 1")
    for what, known in (("version", FORMAT_VERSION), ("parameter_layout", LAYOUT_VERSION)):
        found = metadata.get(what)
        if type(found) is int and found > known:
            name = "format version" if what == "version" else what
            writer = short_repr(metadata.get("written_by"))
            raise ModelFileError(
                f"has {name} {short_repr(found)}, written by lstm_ext {writer}; this is lstm_ext {__version__}, which "
                f"reads {name} {known}: upgrade lstm_ext to load it"
            )


def _unknown_keys(metadata: dict[str, Any]) -> list[str]:
    """Return the keys that this version does not know, such as "options.gates"."""
    found = []
    for name, known in _KEYS.items():
        part = metadata.get(name) if name else metadata
        if isinstance(part, dict):
            found += [f"{name}.{key}".lstrip(".") for key in part if key not in known]
    return sorted(found)


def _newer(metadata: dict[str, Any], unknown: list[str]) -> str:
    return (
        f"was written by a newer lstm_ext, {short_repr(metadata.get('written_by'))}; this is lstm_ext {__version__}, "
        f"which does not know {short_list(unknown)}: upgrade lstm_ext to load it"
    )


def _checksum(metadata: dict[str, Any], tensors: dict[str, Array]) -> str:
    import hashlib

    table = [[name, tensor.dtype.name, *tensor.shape] for name, tensor in tensors.items()]
    digest = hashlib.sha256(_dump([metadata, table]).encode())
    for tensor in tensors.values():
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()


def _dump(value: Any) -> str:
    """Return a value as compact JSON in ASCII; equal values give equal texts."""
    import json

    try:
        return json.dumps(value, separators=(",", ":"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _parse(text: str) -> dict[str, Any]:
    """Return the object in a text of strict JSON."""
    import json

    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("its JSON is not an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("its JSON has a key twice")
    return result


def _refuse(constant: str) -> None:
    raise ValueError(f"its JSON holds {constant}")
