"""Losses: the subclasses of `CompiledLoss` here run in compiled code, a callable as `Loss` describes in Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from lstm_ext import _kernels
from lstm_ext.checks import Array, Data, as_array, as_number, as_positive, as_real, short_repr


class Loss(Protocol):
    """The contract of a loss written in Python: a callable ``loss(outputs, targets)`` that returns (value, gradient).

    Any callable will do: a function, or an object with `__call__`. `lstm_ext.check_gradient` checks its gradient.
    """

    def __call__(self, outputs: Any, targets: Any, /) -> tuple[float, Any]:
        """Return the loss of a batch and its derivative with respect to the outputs.

        With ``tbptt`` of `train` a batch is a chunk: the sequences that end in it, or the steps in it.

        Parameters
        ----------
        outputs : ndarray or list of ndarray
            The network's outputs for B sequences, in the network's dtype. An array (B, output_dim), one row for each
            sequence. With readout "steps" an array (B, T, output_dim) if X is one array without `lengths` and `mask`;
            otherwise always a list of B arrays (T_n, output_dim), even where all T_n are equal. The loss owns them and
            may write to them.
        targets : object
            The entries of Y for these sequences, in the same order: an array if Y is one and outputs is one, else a
            list. For ``"steps"`` without padding; with `tbptt` only the steps of the chunk. If output_dim is 1, floats
            given without the last axis get it, as the outputs have it; integers are passed as given.

        Returns
        -------
        value : float
            The loss. For `History`, the mean over the batch: an epoch's loss is the average of its batches.
        gradient : ndarray or list of ndarray
            The derivative of `value` with respect to `outputs`, in the same form.
        """


class CompiledLoss:
    """A loss that runs in compiled code.

    Attributes
    ----------
    name : str
        The name as an argument of `train`, and of the kernel.
    kind : int
        The kernel's index.
    takes_labels : bool
        Whether the target of a row of outputs is an integer class, not numbers.
    settings : ndarray of float64
        What the kernel reads, in its order.
    """

    name: ClassVar[str]
    kind: ClassVar[int]
    takes_labels: ClassVar[bool]
    settings: NDArray[np.float64] = np.empty(0)

    def __init_subclass__(cls, *, name: str | None = None) -> None:
        if name is not None:  # a user's subclass has none
            cls.name, cls.kind = name, _kernels.LOSSES[name]
            cls.takes_labels = _kernels.takes_labels(cls.kind)


class MSE(CompiledLoss, name="mse"):
    """Mean squared error: the mean of (y - target)^2 over every element of the batch."""


class MAE(CompiledLoss, name="mae"):
    """Mean absolute error: the mean of abs(y - target) over every element of the batch; its slope at 0 is 0."""


class CrossEntropy(CompiledLoss, name="cross_entropy"):
    """Softmax cross-entropy: the mean of -log softmax(y)[class] over the batch; targets are integer classes."""


LOSSES: dict[str, type[CompiledLoss]] = {loss.name: loss for loss in (MSE, MAE, CrossEntropy)}


def is_compiled(loss: Any) -> TypeGuard[CompiledLoss]:
    """Return whether a loss runs in compiled code; a subclass does not, because it may change anything."""
    return type(loss) in LOSSES.values()


def as_loss(loss: str | CompiledLoss | Loss) -> CompiledLoss | Loss:
    """Return a loss given by name or as an object."""
    if isinstance(loss, str) and loss in LOSSES:
        return LOSSES[loss]()
    if is_compiled(loss):
        return loss
    if callable(loss) and not isinstance(loss, type):
        return loss
    if isinstance(loss, type):
        raise ValueError(f"loss is {loss!r}; expected an object: {loss.__name__}()")
    raise ValueError(f"loss is {short_repr(loss)}; expected one of {', '.join(map(repr, LOSSES))}, or a callable")


def read_result(result: Any) -> tuple[float, Any]:
    """Return value and gradient that a loss in Python returned."""
    try:
        value, gradient = result
    except (TypeError, ValueError):
        raise _wrong_result(result) from None
    try:
        number = as_array("the loss's value", value)
    except ValueError:
        raise _wrong_result(result) from None
    if number.ndim > 0 or number.dtype.kind not in "fiub":
        raise _wrong_result(result)
    return float(number), gradient


def _wrong_result(result: Any) -> TypeError:
    return TypeError(f"loss returned {short_repr(result)}; expected (value, gradient)")


def check_gradient(loss: Loss, outputs: Data, targets: Any, *, tolerance: float = 1e-6, spacing: float = 6e-6) -> float:
    """Compare the gradient of a loss written in Python with central differences, in float64.

    Parameters
    ----------
    loss : callable
        As `lstm_ext.training.losses.Loss` describes.
    outputs : array_like, or list of arrays
        Where to compare: an array (B, output_dim) or (B, T, output_dim), or a list of arrays (T_n, output_dim). Random
        numbers will do. Near a point where the loss has no derivative the comparison means nothing.
    targets : object
        Passed to the loss as given; in training, floats for a single output have the shape of `outputs`.
    tolerance : float
        The largest error allowed, relative to the gradient's largest element.
    spacing : float
        Step of the differences, relative for outputs above 1 in magnitude; above 0.

    Returns
    -------
    float
        The largest error of any element, relative to the gradient's largest element.

    Raises
    ------
    TypeError, ValueError
        If an element of the gradient is wrong, naming the worst; if the loss returns another form than a finite number
        and a gradient shaped as the outputs; or if an argument is not as above.

    Examples
    --------
    >>> import numpy as np
    >>> import lstm_ext
    >>> def mean_absolute_error(outputs, targets):
    ...     error = outputs - targets
    ...     return np.abs(error).mean(), np.sign(error) / error.size
    >>> outputs, targets = np.random.default_rng(0).standard_normal((2, 5, 3))
    >>> lstm_ext.check_gradient(mean_absolute_error, outputs, targets) < 1e-6
    True
    """
    if is_compiled(loss) or isinstance(loss, type) or not callable(loss):
        raise TypeError(f"loss is {short_repr(loss)}; expected a loss in Python: a function of outputs and targets")
    tolerance, spacing = as_number("tolerance", tolerance, low=0), as_positive("spacing", spacing)
    is_list = isinstance(outputs, (list, tuple))
    points = _parts("outputs", outputs, is_list)

    def evaluate() -> tuple[float, Any]:
        copies = [part.copy() for part in points]
        value, gradient = read_result(loss(copies if is_list else copies[0], targets))
        if not math.isfinite(value):
            raise ValueError(f"loss returned the value {value}; expected a finite number")
        return value, gradient

    gradient = _parts("the loss's gradient", evaluate()[1], is_list)
    if _shapes(gradient) != _shapes(points):
        raise ValueError(f"the loss's gradient has the shape {_shapes(gradient)}; expected {_shapes(points)}")
    expected = _central_differences(lambda: evaluate()[0], points, spacing)
    largest = max(float(np.abs(part).max()) for part in gradient + expected) or 1.0
    errors = [np.abs(ours - theirs) / largest for ours, theirs in zip(gradient, expected, strict=True)]
    worst = int(np.argmax([part.max() for part in errors]))
    index = tuple(int(j) for j in np.unravel_index(errors[worst].argmax(), errors[worst].shape))
    if errors[worst][index] > tolerance:
        place = f"outputs{f'[{worst}]' if is_list else ''}[{', '.join(map(str, index))}]"
        raise ValueError(
            f"the loss's gradient at {place} is {gradient[worst][index]:.6g}; expected {expected[worst][index]:.6g}, "
            f"the central difference; the relative error is {errors[worst][index]:.1e}, more than {tolerance:g}"
        )
    return float(errors[worst][index])


def _parts(name: str, value: Any, is_list: bool) -> list[Array]:
    """Return copies in float64 of a list of arrays, or a list of the one array."""
    dtype = np.dtype(np.float64)
    if not is_list:
        return [as_real(name, value, dtype).copy()]
    if not isinstance(value, (list, tuple)) or not value:
        raise TypeError(f"{name} is {short_repr(value)}; expected a list of arrays")
    return [as_real(f"{name}[{n}]", part, dtype).copy() for n, part in enumerate(value)]


def _shapes(parts: list[Array]) -> str:
    return ", ".join(str(part.shape) for part in parts)


def _central_differences(value: Callable[[], float], points: list[Array], spacing: float) -> list[Array]:
    """Return the derivatives of `value`, which reads `points`."""
    slopes = [np.empty_like(part) for part in points]
    for part, slope in zip(points, slopes, strict=True):
        for index in np.ndindex(part.shape):
            middle = float(part[index])
            low, high = (middle + sign * spacing * max(1.0, abs(middle)) for sign in (-1, 1))
            if not low < high:
                raise ValueError(f"spacing is {spacing}; expected a larger one: {middle} does not change by it")
            part[index] = high
            above = value()
            part[index] = low
            slope[index] = (above - value()) / (high - low)
            part[index] = middle
    return slopes
