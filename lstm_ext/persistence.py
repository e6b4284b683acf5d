"""Model files: what is in them, how they are read, and how any file is put in place whole.

- The format is safetensors, by the package of that name: others find each weight by its name.
- All else is one JSON text in its metadata: version, architecture, scaler, details, and a SHA-256 over these and the
  weights. A changed bit is found by it.
- Loading runs no code, and takes memory in proportion to the file.
"""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from reprlib import repr as short_repr
from types import NoneType
from typing import Any, NamedTuple

import numpy as np

from lstm_ext._version import __version__
from lstm_ext.checks import Array
from lstm_ext.data import SequenceScaler
from lstm_ext.options import SIZES, Architecture, Options, as_architecture
from lstm_ext.parameters import LAYOUT_VERSION, layout, parameter_count, parameter_views

METADATA_KEY = "lstm_ext"
FORMAT_VERSION = 2  # 1 had no options
_DTYPES = ({"F32"}, {"F64"})


class ModelFileError(ValueError):
    """A file is not a model of this library, is damaged, or was written by a newer version."""


class Contents(NamedTuple):
    """What a model file holds."""

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
    """Write a model file, whole or not at all; the arguments and errors are those of `LSTMNetwork.save`."""
    path = _as_path(path)
    if not isinstance(scaler, (SequenceScaler, NoneType)):
        raise TypeError(f"scaler is {scaler!r}; expected a SequenceScaler or None")
    library = _safetensors()
    tensors = {name: weight.copy() for name, weight in parameter_views(parameters, architecture).items()}
    metadata = {
        "version": FORMAT_VERSION,
        "written_by": __version__,
        "architecture": {name: getattr(architecture, name) for name in SIZES},
        "options": _kept_options(architecture.options),
        "parameter_layout": LAYOUT_VERSION,
        "scaler": None if scaler is None else scaler.to_dict(),
        "details": _as_details(details),
    }
    metadata["checksum"] = _checksum(metadata, tensors)
    try:
        content = library.numpy.save(tensors, {METADATA_KEY: _dump(metadata)})
    except library.SafetensorError as error:  # a header can be too long
        raise ValueError(f"details cannot be kept: {error}") from None
    write_whole(path, lambda part: part.write_bytes(content))


def read_model(path: str | os.PathLike[str]) -> Contents:
    """Return what a model file holds; the errors are those of `load_model`."""
    path = _as_path(path)
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe would wait for its other end
        raise ModelFileError(f"{path} is not a regular file")
    library = _safetensors()
    with path.open("rb"):
        pass  # what cannot be read is an OSError of its own name
    try:
        return _read(library, path)
    except library.SafetensorError:
        raise ModelFileError(f"{path} is not a model file of lstm_ext, or is cut short or damaged") from None
    except ModelFileError as error:
        raise ModelFileError(f"{path} {error}") from None
    except KeyError as error:
        raise ModelFileError(f"{path} is damaged: its metadata lack {error}") from None
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]  # it may quote the file
        raise ModelFileError(f"{path} is damaged: {reason}") from None


def write_whole(path: Path, write: Callable[[Path], Any], then: Callable[[], Any] | None = None) -> None:
    """Let `write` fill a file beside `path`, then put it in place: a crash leaves the old file or the new one.

    `then` is called before that, when nothing is left to go wrong: what it raises leaves the old file. A link stays a
    link, and an existing file's permissions stay what they were.

    Raises
    ------
    OSError
        If the file cannot be written; an older one stays as it was.
    """
    path = Path(os.path.realpath(path))
    with _part_beside(path) as part:
        with _naming(path):
            write(part)
            with part.open("ab") as file:  # some systems sync only what is open for writing
                os.fsync(file.fileno())
        if then is not None:
            then()
        with _naming(path):
            part.replace(path)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        with _naming(path):
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def check_writable(path: Path) -> None:
    """Raise OSError if `write_whole` could not put a file there."""
    with _part_beside(Path(os.path.realpath(path))):
        pass


@contextmanager
def _part_beside(path: Path) -> Iterator[Path]:
    """Create the file that may replace `path`, with its permissions; no part is left."""
    part = path.parent / f".{path.name}.{os.urandom(4).hex()}.part"
    try:
        with _naming(path):
            mode = _writable_mode(path)
            part.touch()
            if mode is not None:
                part.chmod(mode)
        yield part
    finally:
        with suppress(OSError):  # it is in place, or was never made
            part.unlink()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Have an OSError say that `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno or errno.EIO, f"{path} cannot be written: {error.strerror or error}") from None


def _writable_mode(path: Path) -> int | None:
    """Return the permissions of a file that may be replaced, None if there is none."""
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


def _as_path(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path)
    except TypeError:
        raise TypeError(f"path is {path!r}; expected a str or a Path") from None


def _as_details(details: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the details as they will come back from JSON."""
    if not isinstance(details, (Mapping, NoneType)):
        raise TypeError(f"details is {details!r}; expected a mapping or None")
    try:
        return _parse(_dump(dict(details or {})))
    except TypeError as error:
        raise TypeError(f"details cannot be kept as JSON: {error}") from None
    except ValueError as error:
        raise ValueError(f"details cannot be kept as JSON: {error}") from None


def _safetensors() -> Any:
    try:
        import safetensors.numpy  # here, like hashlib and json below, so that `import lstm_ext` is quick
    except ImportError as error:
        raise ImportError('model files need the package safetensors: pip install "lstm_ext[models]"') from error
    return safetensors


def _read(library: Any, path: Path) -> Contents:
    """Return what a file holds; a ModelFileError is to be completed by the file's name."""
    with library.safe_open(str(path), framework="numpy") as file:
        try:
            metadata = _parse(file.metadata()[METADATA_KEY])
        except (LookupError, TypeError):
            raise ModelFileError("is a safetensors file, but not a model of lstm_ext") from None
        _check_version(metadata)
        input_dim, hidden_dim, output_dim = (metadata["architecture"][name] for name in SIZES)
        options: Any = {} if metadata["version"] == 1 else _read_options(metadata["options"])
        architecture = as_architecture(input_dim, hidden_dim, output_dim, options)
        parameters = _read_parameters(file, architecture)
    if metadata.pop("checksum") != _checksum(metadata, parameter_views(parameters, architecture)):
        raise ValueError("its checksum is not that of its contents")
    if metadata["parameter_layout"] != LAYOUT_VERSION:
        raise ValueError(f"parameter_layout is {short_repr(metadata['parameter_layout'])}; expected {LAYOUT_VERSION}")
    scaler = None if metadata["scaler"] is None else SequenceScaler.from_dict(metadata["scaler"])
    return Contents(architecture, parameters, scaler, dict(metadata["details"]))


def _kept_options(options: Options) -> dict[str, Any]:
    """Return what a file says of the options: without a forget_bias of None, which earlier versions do not know."""
    kept = asdict(options)
    if options.forget_bias is None:
        del kept["forget_bias"]
    return kept


def _read_options(kept: Any) -> Any:
    """Return the arguments of `Options`: files of earlier versions have a forget_bias where there is no b_f, too."""
    without_b_f = isinstance(kept, dict) and (kept.get("coupled_gates") is True or kept.get("use_bias") is False)
    return {name: kept[name] for name in kept if name != "forget_bias"} if without_b_f else kept


def _read_parameters(file: Any, architecture: Architecture) -> Array:
    """Return the parameter vector; nothing is allocated before the tensors are known to fit."""
    found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    dtypes = {tensor.get_dtype() for tensor in found.values()}
    shapes = {name: tuple(tensor.get_shape()) for name, tensor in found.items()}
    count = parameter_count(architecture)  # compared first: a layout has as many names as there are layers
    fits = sum(map(math.prod, shapes.values())) == count and dtypes in _DTYPES
    if not fits or shapes != {name: shape for name, (_, shape) in layout(architecture).items()}:
        raise ValueError("its tensors are not those of its architecture")
    parameters = np.empty(count, "float32" if dtypes == {"F32"} else "float64")
    for name, weight in parameter_views(parameters, architecture).items():
        weight[...] = file.get_tensor(name)
    return parameters


def _check_version(metadata: dict[str, Any]) -> None:
    version = metadata.get("version")
    if type(version) is not int or version < 1:
        raise ValueError(f"version is {short_repr(version)}; expected an integer of at least 1")
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"has format version {short_repr(version)}, written by lstm_ext {short_repr(metadata.get('written_by'))}; "
            f"this is lstm_ext {__version__}, which reads format version {FORMAT_VERSION}: upgrade lstm_ext to load it"
        )


def _checksum(metadata: dict[str, Any], tensors: dict[str, Array]) -> str:
    import hashlib

    table = [[name, tensor.dtype.name, *tensor.shape] for name, tensor in tensors.items()]
    digest = hashlib.sha256(_dump([metadata, table]).encode())
    for tensor in tensors.values():
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()


def _dump(value: Any) -> str:
    """Return the one JSON text, in ASCII, of a value."""
    import json

    try:
        return json.dumps(value, separators=(",", ":"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _parse(text: str) -> dict[str, Any]:
    """Return the object that a text of strict JSON holds."""
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
