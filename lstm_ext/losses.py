"""Losses: those of this module run in compiled code, any callable with the signature of `Loss` from Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeGuard

from lstm_ext.checks import Array

Loss: TypeAlias = Callable[[Array, Any], tuple[float, Array]]
"""A loss in Python: ``loss(outputs, targets) -> (value, gradient)``.

`outputs` is (B, output_dim), or for every step (B, T, output_dim); a list of arrays (T_n, output_dim) where the
sequences of the batch have different lengths. `targets` is what Y holds for these sequences, in the same order; `value`
is the mean over the batch, `gradient` its derivative with respect to `outputs`, of the same form.

With a `tbptt` of `train`, the batch is a chunk: the sequences that end in it, or the steps of it.
"""


class MSE:
    """Mean squared error: the mean of (y - target)^2 over every element of the batch."""

    takes_labels = False


class CrossEntropy:
    """Softmax cross-entropy: the mean of -log softmax(y)[class] over the batch; targets are integer classes."""

    takes_labels = True


LOSSES: dict[str, MSE | CrossEntropy] = {"mse": MSE(), "cross_entropy": CrossEntropy()}


def is_compiled(loss: Any) -> TypeGuard[MSE | CrossEntropy]:
    """Return whether a loss runs in compiled code; a subclass does not, for it may change anything."""
    return type(loss) in (MSE, CrossEntropy)


def as_loss(loss: str | MSE | CrossEntropy | Loss) -> MSE | CrossEntropy | Loss:
    """Return a loss given by name or as an object."""
    if isinstance(loss, str) and loss in LOSSES:
        return LOSSES[loss]
    if is_compiled(loss) or (callable(loss) and not isinstance(loss, type)):
        return loss
    raise ValueError(f"loss is {loss!r}; expected one of {', '.join(map(repr, LOSSES))}, or a callable")
