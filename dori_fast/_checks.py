"""Argument checks of the public functions, and what every room needs of dtypes and devices.

Messages read `<op>: <argument> must be <expected>, got <actual>` and are made only when a check
fails: TypeError for a wrong type, ValueError for a wrong shape, dtype, device or value.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence, Set
from numbers import Integral
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dori_fast.errors import NonFiniteError, UsageError

_FLOATING = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to sum or optimize in: float64 for float64, otherwise float32."""
    return torch.promote_types(dtype, torch.float32)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, without waiting for the device.

    A plain copy from pageable memory to a GPU first waits until the GPU has done everything that
    it was given. This one goes through pinned memory, and torch keeps that until the copy is made.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def reject(op: str, argument: str, expected: str, got: object) -> NoReturn:
    """Raise ValueError in the common format."""
    raise ValueError(f"{op}: {argument} must be {expected}, got {got}")


def floating_tensor(op: str, argument: str, value: Any) -> None:
    """Require a tensor of float32, float64, bfloat16 or float16.

    Raises:
        TypeError: not a tensor.
        ValueError: another dtype.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {argument} must be a tensor, got {type(value).__name__}")
    if value.dtype not in _FLOATING:
        expected = "float32, float64, bfloat16 or float16"
        reject(op, argument, expected, str(value.dtype).removeprefix("torch."))


def same_device(op: str, argument: str, value: Tensor, like: str, other: Tensor) -> None:
    """Require the device of the argument named `like`; raises ValueError."""
    if value.device != other.device:
        reject(op, argument, f"on {like}'s device {other.device}", value.device)


def same_dtype(op: str, argument: str, value: Tensor, like: str, other: Tensor) -> None:
    """Require the dtype of the argument named `like`; raises ValueError."""
    if value.dtype != other.dtype:
        reject(op, argument, f"of {like}'s dtype {other.dtype}", value.dtype)


def same_dtype_and_device(op: str, argument: str, value: Tensor, like: str, other: Tensor) -> None:
    """Require the dtype and the device of the argument named `like`; raises ValueError."""
    same_dtype(op, argument, value, like, other)
    same_device(op, argument, value, like, other)


def writable(op: str, argument: str, value: Tensor) -> None:
    """Require that no two elements share memory by a stride of 0; raises ValueError."""
    if any(
        stride == 0 and size > 1 for stride, size in zip(value.stride(), value.shape, strict=True)
    ):
        reject(op, argument, "free of repeated memory to be written", "an expanded tensor")


def constant(op: str, argument: str, value: Tensor) -> None:
    """Reject a tensor whose gradient would be lost while gradients are recorded; ValueError."""
    if value.requires_grad and torch.is_grad_enabled():
        reject(op, argument, "without gradient (detach it, or use torch.no_grad)", "requires_grad")


def finite_number(where: str, argument: str, value: float) -> float:
    """The number as a float; raises UsageError if it is NaN or infinite."""
    if not math.isfinite(value):
        raise UsageError(f"{where}: {argument} must be a finite number, got {value}")
    return float(value)


def threshold_number(where: str, value: float) -> float:
    """A threshold as a float; raises UsageError for NaN, above which nothing would be."""
    if math.isnan(value):
        raise UsageError(f"{where}: threshold must be a number, got {value}")
    return float(value)


def require_finite(command: str, what: str, values: Tensor, dtype: torch.dtype) -> None:
    """Raise NonFiniteError if values that a verdict depends on are NaN or infinite.

    Args:
        command: name at the start of the message.
        what: plural noun for the values.
        values: the values; reading them waits for the device.
        dtype: dtype in which the model computed them.
    """
    bad = int((~values.isfinite()).sum())
    if bad:
        name = str(dtype).removeprefix("torch.")
        raise NonFiniteError(
            f"{command}: {bad} of {values.numel()} {what} are NaN or Inf in {name}; load the model"
            " with a wider dtype, or check its weights"
        )


def finite_similarities(found: NDArray[np.float64], threshold: float = 0.0) -> NDArray[np.float64]:
    """Similarities that a threshold will judge: NaN would count as no copy.

    Raises:
        NonFiniteError: a similarity is NaN or infinite.
        UsageError: the threshold is NaN.
    """
    bad = int((~np.isfinite(found)).sum())
    if bad:
        raise NonFiniteError(
            f"copies: {bad} of {np.size(found)} similarities are NaN or Inf; check the measure of"
            " copying"
        )
    threshold_number("copies", threshold)
    return found


def seed_tuple(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """The seeds 0..n-1 of a number n, or the given seeds.

    Raises:
        UsageError: neither; a text would be a sequence of digits, and a float would be cut.
    """
    if isinstance(seeds, Integral) and not isinstance(seeds, bool):
        return tuple(range(int(seeds)))
    each: Any = seeds
    try:
        if isinstance(each, bool | str | bytes | Mapping | Set):
            raise TypeError
        return tuple(map(operator.index, each))
    except TypeError:
        raise UsageError(f"seeds must be a whole number or a list of them, got {seeds!r}") from None


def shape_of(value: Tensor) -> list[int]:
    """Return the shape as messages print it."""
    return list(value.shape)
