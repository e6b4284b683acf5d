"""Checks of arguments: each raises an error that names the argument, the given value and the expected one."""

from __future__ import annotations

import itertools
import math
import operator
import os
import reprlib
from collections.abc import Collection, Sequence
from contextlib import suppress
from mmap import mmap
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from lstm_ext import _kernels

Array: TypeAlias = NDArray[Any]
Index: TypeAlias = NDArray[np.intp]
Shape: TypeAlias = tuple[int | str, ...]
"""A name stands for any length."""
Data: TypeAlias = ArrayLike | Sequence[ArrayLike]
"""One array, or a list of arrays of different lengths."""

_MANTISSA_BITS = {"float32": 24, "float64": 53}
_DTYPES = tuple(map(np.dtype, _MANTISSA_BITS))
_MAX_NAMES = 20  # in the list of an error
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


def short_repr(value: Any) -> str:
    """Return a short one-line repr for error messages."""
    try:
        text = _REPR.repr(value)
    except Exception:  # Python refuses to print an int of some thousand digits
        text = f"<{type(value).__name__}>"
    return _in_one_line(text)


def short_list(names: Collection[Any]) -> str:
    """Return the first names, each shortened, in one line for error messages."""
    shown = []
    for name in itertools.islice(names, _MAX_NAMES):
        text = _in_one_line(str(name))
        shown.append(text if len(text) <= _REPR.maxstring else f"{text[: _REPR.maxstring]}...")
    return ", ".join([*shown, "..."] if len(names) > _MAX_NAMES else shown)


def _in_one_line(text: str) -> str:
    return " ".join(text.split())


class NonFiniteError(ArithmeticError):
    """A loss, a gradient or the result of an update is NaN or infinite; the parameters are those before that update.

    Parameters
    ----------
    message : str
        What is not finite, and where.
    step : int
        The index of the pass in the epoch, from 0: usually that of the batch. Kept as an attribute.
    """

    def __init__(self, message: str, step: int = 0) -> None:
        super().__init__(message)
        self.step = step


def as_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return `dtype` as a NumPy dtype; float32 and float64 are compiled."""
    try:
        result = None if dtype is None else np.dtype(dtype)
    except Exception:  # NumPy raises TypeError, ValueError, SyntaxError, ...
        result = None
    if result is None or result.name not in _MANTISSA_BITS:
        raise ValueError(f"dtype is {short_repr(dtype)}; expected float32 or float64")
    return result.newbyteorder("=")


def as_size(name: str, value: Any, low: int = 1) -> int:
    """Return a size as an int of at least `low`."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        size = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {short_repr(value)}; expected an integer") from None
    if size < low:
        raise ValueError(f"{name} is {short_repr(size)}; expected at least {low}")
    return size


def as_path(name: str, value: Any) -> Path:
    """Return `value` as a Path; NUL bytes and lone surrogates are refused."""
    try:
        path = Path(value)
        if b"\0" not in os.fsencode(path):
            return path
    except TypeError:
        raise TypeError(f"{name} is {short_repr(value)}; expected a str or a Path") from None
    except UnicodeEncodeError:
        pass
    raise ValueError(f"{name} is {short_repr(str(value))}; expected no NUL and no lone surrogates")


def as_seed(name: str, value: Any) -> int | None:
    """Return the seed of masks, an int from 0 to 2^64 - 1, or None."""
    if value is None:
        return None
    seed = as_size(name, value, 0)
    if seed >= 2**64:
        raise ValueError(f"{name} is {short_repr(seed)}; expected less than 2**64")
    return seed


def make_generator(seed: Any) -> np.random.Generator:
    """Return a generator for a seed: None, or an integer of at least 0."""
    if seed is not None and (isinstance(seed, (bool, np.bool_)) or not isinstance(seed, (int, np.integer))):
        raise TypeError(f"seed is {short_repr(seed)}; expected an integer or None")
    if seed is not None and seed < 0:
        raise ValueError(f"seed is {short_repr(seed)}; expected at least 0")
    return np.random.default_rng(seed)


def as_flag(name: str, value: Any) -> bool:
    """Return a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is {short_repr(value)}; expected True or False")
    return bool(value)


def as_number(name: str, value: Any, *, low: float = -math.inf, high: float = math.inf) -> float:
    """Return a finite float in [low, high)."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} is {short_repr(value)}; expected a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and low <= number < high):
        lower = "" if math.isinf(low) else f" of at least {low:g}"
        upper = "" if math.isinf(high) else f" and below {high:g}"
        raise ValueError(f"{name} is {number}; expected a finite number{lower}{upper}")
    return number


def as_positive(name: str, value: Any) -> float:
    """Return a finite float above 0."""
    number = as_number(name, value, low=0)
    if number == 0:
        raise ValueError(f"{name} is {number}; expected a finite number above 0")
    return number


def as_choice(name: str, value: Any, choices: Collection[str]) -> str:
    """Return `value` if it is one of `choices`."""
    if not (isinstance(value, str) and value in choices):
        raise ValueError(f"{name} is {short_repr(value)}; expected one of {', '.join(map(repr, choices))}")
    return str(value)  # not an np.str_


def check_length(name: str, value: Any, length: int) -> None:
    """Raise unless `value` is a sequence with one entry for each sequence of X."""
    try:
        given = len(value)
        if isinstance(value, (str, bytes)) or not hasattr(value, "__getitem__"):
            raise TypeError
    except TypeError:
        raise TypeError(
            f"{name} is {short_repr(value)}; expected a sequence of length {length}, one entry for each sequence of X"
        ) from None
    if given != length:
        raise ValueError(f"{name} has length {given}; expected {length}, one entry for each sequence of X")


def as_real(name: str, value: Any, dtype: np.dtype[Any], shape: Shape | None = None) -> Array:
    """Return `value` as an aligned C-contiguous array of `dtype` with the same numbers, without a copy if possible.

    `shape` is used only in error messages.

    Raises
    ------
    TypeError
        If it does not hold real numbers.
    ValueError
        If it is ragged or empty, holds NaN or Inf, or a number that `dtype` cannot hold.
    """
    array = without_conversion(value, dtype)
    if array is not None and _kernels.is_finite(array):  # the usual case is quick
        return array
    return convert(name, as_numbers(name, value, shape), dtype)


def convert(name: str, source: Array, dtype: np.dtype[Any]) -> Array:
    """Return numbers as `as_real` does."""
    if source.dtype.kind in "iu":
        limit = 2 ** _MANTISSA_BITS[dtype.name]
        largest = max(int(source.max()), -int(source.min()))
        if largest > limit:
            raise ValueError(
                f"{name} holds the integer {largest} in magnitude; {dtype} is exact to {limit} only: "
                "convert it to floating point yourself if rounding is meant"
            )
    with np.errstate(all="ignore"):  # tiny numbers become 0; large ones raise an error below
        result = np.ascontiguousarray(source, dtype)
    if not result.flags.aligned:
        result = result.copy()
    _check_finite(name, source, result)
    return result.reshape(source.shape)


def without_conversion(value: Any, dtype: np.dtype[Any]) -> Array | None:
    """Return `value` as an array if it is one that needs no conversion to `dtype`, memory-mapped or not; else None."""
    if type(value) is not np.ndarray:
        if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
            return None
        value = np.asarray(value)
    flags = value.flags
    if value.dtype != dtype or value.size == 0 or not (flags.c_contiguous and flags.aligned):
        return None
    array: Array = value
    return array


def is_mapped(value: Any) -> bool:
    """Return whether an array is memory-mapped: an `np.memmap`, or a view of one."""
    while isinstance(value, np.ndarray):
        value = value.base
    return isinstance(value, mmap)


def check_live(name: str, array: Array, lengths: Index, members: Index | None = None) -> None:
    """Raise unless an array's live steps are finite; padding is not read.

    Parameters
    ----------
    name : str
        The array's name.
    array : ndarray (N, T, width) or (N, width)
        C-contiguous, of float32 or float64.
    lengths : ndarray of int (N,)
        The number of live steps of each sequence; 1 without an axis of steps.
    members : ndarray of int, optional
        The sequences to check; all by default.
    """
    rows = array.reshape(-1, array.shape[-1])
    first = np.arange(0, len(rows), len(rows) // len(array), dtype=np.intp)
    if members is not None:
        first, lengths = first[members], lengths[members]
    row = _kernels.find_not_finite(rows, first, lengths)
    if row >= 0:
        index = row * rows.shape[1] + np.flatnonzero(~np.isfinite(rows[row]))[0]
        element = ", ".join(map(str, np.unravel_index(index, array.shape)))
        raise ValueError(f"{name}[{element}] is {array.flat[index]}; expected finite numbers")


def as_numbers(name: str, value: Any, shape: Shape | None = None) -> Array:
    """Return `value` as an array of real numbers with no axis of length 0."""
    source = as_array(name, value, shape)
    if source.dtype.kind not in "fiub":
        raise TypeError(f"{name} has dtype {source.dtype}; expected real numbers")
    if source.size == 0:
        raise ValueError(f"{name} has shape {source.shape}; expected no axis of length 0")
    return source


def as_array(name: str, value: Any, shape: Shape | None = None) -> Array:
    """Return `value` as an array; ragged lists and masked elements are refused."""
    if np.ma.is_masked(value):
        raise ValueError(f"{name} has masked elements; expected none: fill or drop them first")
    try:
        array = np.asarray(value)
    except MemoryError:
        raise
    except Exception as error:  # an object's own conversion may raise anything
        if unlike := _unlike_array(name, value):
            raise TypeError(unlike) from None
        kind = ValueError if isinstance(error, ValueError) else TypeError
        reason = f"is not an array: {short_repr(value)} gives {type(error).__name__} ({error})"
        if "inhomogeneous" in str(error):  # NumPy's word for it
            reason = f"is a {type(value).__name__} of {len(value)} entries that differ in shape"
        raise kind(f"{name} {reason}; expected {_expected(shape)}") from None
    if array.dtype == object and array.ndim == 0 and (unlike := _unlike_array(name, value)):
        raise TypeError(unlike)
    return array


def _unlike_array(name: str, value: Any) -> str:
    """Return how to pass a tensor of another package that NumPy cannot take, or that a list holds; "" for others."""
    parts = {name: value}
    if isinstance(value, (list, tuple)):
        parts = {f"{name}[{n}]": part for n, part in enumerate(value)}
    for part_name, part in parts.items():
        with suppress(Exception):  # an object's own attributes may raise anything
            if not _is_taken(part) and (unlike := _conversion(part_name, part)):
                return unlike
    return ""


def _is_taken(value: Any) -> bool:
    """Return whether NumPy can make an array of a value, not of objects."""
    try:
        return bool(np.asarray(value).dtype != object)
    except Exception:
        return False


def _conversion(name: str, value: Any) -> str:
    device = str(getattr(value, "device", "cpu")).lower()
    layout, dtype = (str(getattr(value, attribute, "")) for attribute in ("layout", "dtype"))
    is_nested = getattr(value, "is_nested", False) is True
    needed = {
        "detach": getattr(value, "requires_grad", False) is True,
        "dequantize": getattr(value, "is_quantized", False) is True,
        "to_dense": "sparse" in layout or "mkldnn" in layout,
        "cpu": not device.startswith("cpu"),
        "get": "cuda" in device,
        "float": "bfloat16" in dtype or "float8" in dtype,
        "toarray": True,
        "unbind": is_nested,
        "numpy": not is_nested,
    }
    calls = "".join(f".{method}()" for method, is_needed in needed.items() if is_needed and hasattr(value, method))
    kind = type(value)
    package = kind.__module__.partition(".")[0]
    return f"{name} is a {package}.{kind.__qualname__} that NumPy cannot take; pass {name}{calls}" if calls else ""


def float_dtype(value: Any) -> np.dtype[Any]:
    """Return float32 for an array of float32 in any byte order, float64 for everything else."""
    dtype = getattr(value, "dtype", None)
    single = isinstance(dtype, np.dtype) and dtype.kind == "f" and dtype.itemsize == 4
    return np.dtype(np.float32 if single else np.float64)


def _check_finite(name: str, source: Array, converted: Array) -> None:
    if _kernels.is_finite(converted):
        return
    index = tuple(int(j) for j in np.argwhere(~np.isfinite(converted).reshape(source.shape))[0])
    given = source[index]
    element = f"{name}[{', '.join(map(str, index))}]" if index else name
    if np.isfinite(given):
        raise ValueError(f"{element} is {given}; {converted.dtype} holds no number of that size")
    raise ValueError(f"{element} is {given}; expected finite numbers")


def as_shape(name: str, value: Any, dtype: np.dtype[Any], shape: Shape) -> Array:
    """Return `as_real` of a `value` whose shape is `shape`; a name in it stands for any length."""
    result = as_real(name, value, dtype, shape)
    check_shape(name, result.shape, shape)
    return result


def check_shape(name: str, given: tuple[int, ...], shape: Shape) -> None:
    """Raise unless an array's shape is `shape`; a name in it stands for any length."""
    fits = len(given) == len(shape)
    if fits:
        for wanted, length in zip(shape, given, strict=True):
            fits = fits and (wanted == length or isinstance(wanted, str))
    if not fits:
        raise ValueError(f"{name} has shape {given}; expected {_expected(shape)}")


def _expected(shape: Shape | None) -> str:
    """Return the expected shape as an error names it; None: an array of any shape."""
    if shape is None:
        return "an array"
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def check_output(name: str, value: Any, dtype: np.dtype[Any] | None = None, shape: Shape | None = None) -> None:
    """Raise unless results can be written to `value` without a conversion.

    Without `dtype` it may be float32 or float64, and without `shape` it may have any shape. A name in `shape` stands
    for any length.
    """
    if type(value) is not np.ndarray:
        raise TypeError(f"{name} is {short_repr(value)}; expected an ndarray")
    dtypes = _DTYPES if dtype is None else (dtype,)
    if value.dtype not in dtypes:
        raise TypeError(
            f"{name} has dtype {value.dtype}; expected {' or '.join(map(str, dtypes))} in native byte order"
        )
    if shape is not None:
        check_shape(name, value.shape, shape)
    if not value.flags.carray:
        raise ValueError(f"{name} is read-only, not C-contiguous or unaligned; expected an array to write to as it is")


def as_column(name: str, value: Any, dtype: np.dtype[Any], length: int) -> Array:
    """Return a column (length, 1), given in this shape or as (length,)."""
    result = as_real(name, value, dtype, (length, 1))
    if result.shape not in ((length,), (length, 1)):
        raise ValueError(f"{name} has shape {result.shape}; expected ({length}, 1) or ({length},)")
    return result.reshape(length, 1)


def as_targets(name: str, value: Any, dtype: np.dtype[Any], shape: tuple[int, ...], width: int) -> Array:
    """Return real targets (*shape, width), given in this shape or, for a single output, as `shape`."""
    result = as_real(name, value, dtype, (*shape, width))
    if result.shape == shape:
        if width == 1:
            return result.reshape(*shape, 1)
        if as_array(name, value).dtype.kind in "iu":
            raise ValueError(
                f"{name} has shape {shape}; expected {(*shape, width)}, or loss='cross_entropy' for integer classes"
            )
    check_shape(name, result.shape, (*shape, width))
    return result


def as_labels(name: str, value: Any, shape: tuple[int, ...], classes: int) -> NDArray[np.intp]:
    """Return class labels of a given shape as a contiguous copy of integers in [0, classes)."""
    source = as_array(name, value, shape)
    if source.dtype.kind not in "iu":
        hint = f": number them with numpy.unique({name}, return_inverse=True)" if source.dtype.kind in "US" else ""
        raise TypeError(f"{name} has dtype {source.dtype}; expected integer classes{hint}")
    if source.shape != shape:
        raise ValueError(f"{name} has shape {source.shape}; expected {shape}")
    wrong = (source < 0) | (source >= classes)
    if wrong.any():
        index = tuple(int(j) for j in np.argwhere(wrong)[0])
        element = f"{name}[{', '.join(map(str, index))}]"
        if classes == 1:
            raise ValueError(
                f"{element} is {source[index]} and the network has one output; the cross-entropy needs one for each "
                "class: output_dim=2 for two classes"
            )
        raise ValueError(
            f"{element} is {source[index]}; expected a class from 0 to {classes - 1}, one for each output of the "
            "network"
        )
    return np.array(source, np.intp, order="C")
