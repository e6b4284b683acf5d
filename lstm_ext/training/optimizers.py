"""Optimizers. SGD and Adam run in compiled code; any object with `update(parameters, gradient)` runs from Python.

An optimizer keeps its state from one call of `train` to the next, so training goes on where it stopped; use a new one
for a new network.
"""

from __future__ import annotations

import copy
from array import array
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, TypeGuard, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lstm_ext import _kernels, _updates
from lstm_ext._threads import ExclusiveUse
from lstm_ext.checks import (
    Array,
    NonFiniteError,
    as_number,
    as_positive,
    as_real,
    as_shape,
    check_output,
    check_shape,
    float_dtype,
    short_repr,
)
from lstm_ext.options import hinting
from lstm_ext.threads import thread_count


def _limits(dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return the smallest normal and the largest number."""
    info = np.finfo(dtype)
    return float(info.tiny), float(info.max)


_LIMITS = {dtype: _limits(dtype) for dtype in (np.dtype(np.float32), np.dtype(np.float64))}


class Optimizer(Protocol):
    """The contract of an optimizer written in Python.

    If an update raises an exception or writes a number that is not finite, `train` puts the parameters back as they
    were before it. It does not restore the optimizer's own state.
    """

    def update(self, parameters: Array, gradient: Array) -> None:
        """Change the flat `parameters` in place, given the (clipped) gradient of the same layout."""


def _as_rate(name: str, value: Any) -> float:
    return as_number(name, value, low=0)


def _as_decay(name: str, value: Any) -> float:
    return as_number(name, value, low=0, high=1)


class _Setting:
    """A number of an optimizer, checked when it is assigned; the next update uses it."""

    def __init__(self, index: int, check: Callable[[str, Any], float]) -> None:
        self._index, self._check = index, check

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, optimizer: None, owner: Any = None) -> _Setting: ...
    @overload
    def __get__(self, optimizer: _Compiled, owner: Any = None) -> float: ...
    def __get__(self, optimizer: _Compiled | None, owner: Any = None) -> _Setting | float:
        return self if optimizer is None else optimizer._settings[self._index]

    def __set__(self, optimizer: _Compiled, value: float) -> None:
        optimizer._settings[self._index] = self._check(self.name, value)


class _Compiled:
    """The settings and the state of an optimizer that runs in compiled code.

    The state is the moments (rows, parameters) and a few numbers, the powers.
    """

    __slots__ = ("__weakref__", "_moments", "_powers", "_settings")
    name: ClassVar[str]  # as an argument of `train`, and of the kernel
    kind: ClassVar[int]  # the kernel's index
    _min_rows: ClassVar[int]  # of the moments; how many there are depends on the settings
    _max_rows: ClassVar[int]
    _power_count: ClassVar[int]
    _square_rows: ClassVar[tuple[int, ...]] = ()  # the moments that are means of squares
    _fields: ClassVar[tuple[_Setting, ...]]  # in the kernel's order
    _settings: array[float]
    _powers: NDArray[np.float64]
    _moments: Array | None

    def __init_subclass__(cls, *, name: str | None = None) -> None:
        if name is not None:  # a user's subclass has none
            cls.name, cls.kind = name, _kernels.OPTIMIZERS[name]
            cls._min_rows, cls._max_rows, cls._power_count = _kernels.optimizer_sizes(cls.kind)

    def __init__(self, *settings: float) -> None:
        self._settings = array("d", bytes(8 * len(settings)))
        for field, value in zip(self._fields, settings, strict=True):
            field.__set__(self, value)
        self._powers, self._moments = np.ones(self._power_count), None

    def __copy__(self) -> _Compiled:
        return copy.deepcopy(self)  # a copy shares no state

    def __repr__(self) -> str:
        settings = zip(self._fields, self._settings, strict=True)
        return f"{type(self).__name__}({', '.join(f'{field.name}={value}' for field, value in settings)})"

    @property
    def moments(self) -> Array | None:
        """The moments, one in each row: velocity, or m and v; None before the first update.

        A read-only array; assign a new one to change it.
        """
        return None if self._moments is None else _read_only(self._moments)

    @moments.setter
    def moments(self, value: Array | None) -> None:
        self._moments = None if value is None else self._read_moments(value)

    @property
    def _rows(self) -> int:
        """The number of moments to keep, which may depend on the settings."""
        return self._max_rows

    def _read_moments(self, value: Any) -> Array:
        """Return a copy of moments that a user assigns."""
        if not isinstance(value, np.ndarray) or value.dtype != float_dtype(value):
            raise TypeError(f"moments is {short_repr(value)}; expected an array of float32 or float64, or None")
        fits = value.ndim > 0 and self._min_rows <= len(value) <= self._max_rows
        rows = len(value) if fits else self._rows
        check_shape("moments", value.shape, (rows, "n"))
        if rows == 0:
            return value.copy()
        moments = as_real("moments", value, value.dtype).copy()
        for row in self._square_rows:
            if moments[row].min() < 0:
                raise ValueError(f"moments[{row}] holds {moments[row].min()}; expected means of squares, at least 0")
        return moments

    def check(self, parameters: Array) -> None:
        """Raise an error if `parameters` cannot be updated, or the settings or the state do not fit them.

        Parameters
        ----------
        parameters : ndarray (n,)
            The parameters to update: float32 or float64 in native byte order, C-contiguous, aligned, writable.

        Raises
        ------
        TypeError, ValueError
            If `parameters` is not as above, its dtype cannot hold the settings, or the state is for other parameters.
        """
        check_output("parameters", parameters)
        if parameters.ndim != 1 or parameters.size == 0:
            raise ValueError(f"parameters has shape {parameters.shape}; expected (n,), n at least 1")
        self._check_settings(parameters.dtype)
        kept = self._moments
        if kept is not None and kept.size and (kept.dtype, kept.shape[1]) != (parameters.dtype, parameters.size):
            raise ValueError(
                f"optimizer holds the state of {kept.shape[1]} {kept.dtype} parameters; expected "
                f"{parameters.size} {parameters.dtype}: use a new optimizer for a new network"
            )

    def _check_settings(self, dtype: np.dtype[Any]) -> None:
        """Raise if `dtype` cannot hold the settings."""
        largest = _LIMITS[dtype][1]
        if max(self._settings) > largest:
            name, value = next(
                (field.name, value)
                for field, value in zip(self._fields, self._settings, strict=True)
                if value > largest
            )
            raise ValueError(f"{name} is {value}; {dtype} holds numbers up to {largest:.2g}")

    def update(self, parameters: Array, gradient: ArrayLike) -> None:
        """Make one update, for models built on `LSTM`; `train` makes its own in the compiled loop.

        Parameters
        ----------
        parameters : ndarray (n,)
            The parameters to change in place, as for `check`.
        gradient : array_like (n,)
            The gradient of the loss with respect to `parameters`.

        Raises
        ------
        NonFiniteError
            If a parameter or a moment would not be finite afterwards. Nothing has changed then.
        TypeError, ValueError
            If an argument is not as above, or the optimizer holds the state of other parameters; nothing has changed
            then.
        RuntimeError
            If another thread is updating or training with the optimizer; nothing has changed then.
        """
        with ExclusiveUse(self, "optimizer is being used by another call; expected one at a time", nests=True):
            self.check(parameters)
            gradient = as_shape("gradient", gradient, parameters.dtype, parameters.shape)
            if np.may_share_memory(parameters, gradient):
                gradient = gradient.copy()
            before, backup = self._moments, new_backup(self, parameters)
            state = self._settings, self._powers, self._begin(parameters)
            if not _updates.update_parameters(
                _kernels.current(), thread_count(None), self.kind, *state, parameters, gradient, backup
            ):
                self._moments = before
                raise NonFiniteError(NOT_FINITE_MESSAGE)

    def _begin(self, parameters: Array) -> Array:
        """Return the moments to be changed; the compiled loop calls it."""
        kept = self._moments
        if kept is None or kept.size == 0 or len(kept) < self._rows:  # nothing kept may be of other parameters
            self._moments = kept = np.zeros((self._rows, parameters.size), parameters.dtype)
        return kept


class SGD(_Compiled, name="sgd"):
    """Stochastic gradient descent with momentum.

    v = momentum * v + g;  p = p - learning_rate * v   (as in PyTorch).

    Parameters
    ----------
    learning_rate : float
        Above or equal to 0.
    momentum : float
        In [0, 1).

    Attributes
    ----------
    learning_rate, momentum : float
        The settings. They may be set at any time; the next update uses the new values.
    """

    __slots__ = ()
    learning_rate = _Setting(0, _as_rate)
    momentum = _Setting(1, _as_decay)
    _fields = (learning_rate, momentum)

    @hinting
    def __init__(self, learning_rate: float = 0.01, momentum: float = 0.0) -> None:
        super().__init__(learning_rate, momentum)

    @property
    def _rows(self) -> int:
        return 1 if self.momentum > 0 else 0


class Adam(_Compiled, name="adam"):
    """Adam (Kingma and Ba 2015, algorithm 1, epsilon outside the bias-corrected root).

    m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
    p = p - learning_rate * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon).

    Parameters
    ----------
    learning_rate : float
        Above or equal to 0.
    beta1, beta2 : float
        Decay rates in [0, 1).
    epsilon : float
        Above 0.

    Attributes
    ----------
    learning_rate, beta1, beta2, epsilon : float
        The settings. They may be set at any time; the next update uses the new values.
    """

    __slots__ = ()
    learning_rate = _Setting(0, _as_rate)
    beta1 = _Setting(1, _as_decay)
    beta2 = _Setting(2, _as_decay)
    epsilon = _Setting(3, as_positive)
    _fields = (learning_rate, beta1, beta2, epsilon)
    _square_rows = (1,)

    @hinting
    def __init__(
        self, learning_rate: float = 0.001, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, epsilon)

    @property
    def powers(self) -> NDArray[np.float64]:
        """The products of beta1 and of beta2 over all updates, two numbers in [0, 1].

        A read-only array; assign a new one to change it.
        """
        return _read_only(self._powers)

    @powers.setter
    def powers(self, value: ArrayLike) -> None:
        powers = as_shape("powers", value, np.dtype(np.float64), (2,))
        if powers.min() < 0 or powers.max() > 1:
            raise ValueError(f"powers is {powers.tolist()}; expected numbers in [0, 1]")
        self._powers = powers.copy()

    def _check_settings(self, dtype: np.dtype[Any]) -> None:
        super()._check_settings(dtype)
        smallest = _LIMITS[dtype][0]
        if self.epsilon < smallest:
            raise ValueError(f"epsilon is {self.epsilon}; expected at least {smallest:.2g} in {dtype}")


NOT_FINITE_MESSAGE = "the update leads to numbers that are not finite"


def new_backup(optimizer: Optimizer | None, parameters: Array) -> Array:
    """Return an empty backup for an update: a row for the parameters and one for each compiled moment."""
    rows = 1 + optimizer._max_rows if isinstance(optimizer, _Compiled) else int(optimizer is not None)
    return np.empty((rows, parameters.size), parameters.dtype)


def _read_only(values: Array) -> Array:
    view = values.view()
    view.flags.writeable = False
    return view


OPTIMIZERS: dict[str, type[_Compiled]] = {optimizer.name: optimizer for optimizer in (SGD, Adam)}


def is_compiled(optimizer: Any) -> TypeGuard[_Compiled]:
    """Return whether an optimizer's updates run in the compiled loop; a subclass's do not."""
    return type(optimizer) in OPTIMIZERS.values()


def as_optimizer(optimizer: str | Optimizer) -> Optimizer:
    """Return an optimizer given by name (with its defaults) or as an object."""
    if isinstance(optimizer, str) and optimizer in OPTIMIZERS:
        return OPTIMIZERS[optimizer]()
    if not isinstance(optimizer, (str, type, Mapping)) and callable(getattr(optimizer, "update", None)):
        return optimizer
    if isinstance(optimizer, type) and hasattr(optimizer, "update"):
        raise ValueError(f"optimizer is {optimizer!r}; expected an object: {optimizer.__name__}()")
    raise ValueError(
        f"optimizer is {short_repr(optimizer)}; expected one of {', '.join(map(repr, OPTIMIZERS))}, or an object "
        "with update()"
    )
