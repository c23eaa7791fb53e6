"""Scaling of neurons, with one scale for all samples or one per sample.

Per-sample scales let many candidate masks share one batch. B samples, T tokens, N neurons.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from dori_fast import _checks
from dori_fast._backend import select
from dori_fast._library import define_op, mark_written
from dori_fast.reference.neuron_mask import (
    neuron_mask_in_place_reference,
    neuron_mask_reference,
)

__all__ = ["NeuronIndices", "neuron_mask", "neuron_mask_", "pack_indices"]

Indices = Sequence[int] | Sequence[Sequence[int] | Tensor] | Tensor


def _fake(x: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _in_place_fake(x: Tensor, indices: Tensor, offsets: Tensor | None, factor: float) -> None:
    return None


_OP = define_op(
    "neuron_mask",
    "(Tensor x, Tensor scale) -> Tensor",
    reference=neuron_mask_reference,
    fake=_fake,
    triton="dori_fast.triton_kernels.neuron_mask:neuron_mask_triton",
)
_IN_PLACE = define_op(
    "neuron_mask_",
    "(Tensor(a!) x, Tensor indices, Tensor? offsets, float factor) -> ()",
    reference=neuron_mask_in_place_reference,
    fake=_in_place_fake,
    triton="dori_fast.triton_kernels.neuron_mask:neuron_mask_in_place_triton",
)


def _compute(x: Tensor, scale: Tensor, backend: str) -> Tensor:
    """Call the op with the scale in the dtype that kernels take."""
    dtype = _checks.accumulate_dtype(x.dtype)
    y: Tensor = select(_OP, backend, x)(x, scale if scale.dtype is dtype else scale.to(dtype))
    return y


class _NeuronMask(torch.autograd.Function):
    """dy/dx is the same mask; dy/dscale sums over all elements that share the scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, backend: str) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.backend = backend
        return _compute(x, scale, backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, scale = ctx.saved_tensors
        to_x = neuron_mask(grad, scale, backend=ctx.backend) if ctx.needs_input_grad[0] else None
        to_scale = None
        if ctx.needs_input_grad[1]:
            dtype = _checks.accumulate_dtype(x.dtype)
            shared_by = (0, 1) if scale.dim() == 1 else (1,)
            to_scale = (grad.to(dtype) * x.to(dtype)).sum(shared_by).to(scale.dtype)
        return to_x, to_scale, None


def _check(x: Tensor, scale: Tensor) -> None:
    op = "neuron_mask"
    _checks.floating_tensor(op, "x", x)
    _checks.floating_tensor(op, "scale", scale)
    shape = x.shape
    if len(shape) != 3:
        _checks.reject(op, "x", "[B, T, N]", _checks.shape_of(x))
    batch, _, neurons = shape
    if scale.shape != (batch, neurons) and scale.shape != (neurons,):
        expected = f"[{neurons}] or [{batch}, {neurons}] for x {list(shape)}"
        _checks.reject(op, "scale", expected, _checks.shape_of(scale))
    _checks.same_device(op, "scale", scale, "x", x)


def neuron_mask(x: Tensor, scale: Tensor, *, backend: str = "auto") -> Tensor:
    """Return x with every neuron scaled, by one scale for all samples or one per sample.

    Args:
        x: [B, T, N] activations.
        scale: [N] or [B, N], any floating dtype; 0 blocks a neuron, 1 leaves it.
        backend: implementation; see `dori_fast.ops`.

    Returns:
        [B, T, N] in the dtype of x, contiguous; differentiable in x and scale.
    """
    _check(x, scale)
    if (x.requires_grad or scale.requires_grad) and torch.is_grad_enabled():
        masked: Tensor = _NeuronMask.apply(x, scale, backend)
        return masked
    return _compute(x, scale, backend)


@dataclass(frozen=True)
class NeuronIndices:
    """Lists of neurons, checked and on their device, for many calls of `neuron_mask_`.

    Attributes:
        indices: int64 [K], all lists one after the other.
        offsets: int64 [B + 1]; sample b owns `indices[offsets[b]:offsets[b + 1]]`. None: every
            sample owns all of them.
        largest: largest index; -1 without any.
    """

    indices: Tensor
    offsets: Tensor | None
    largest: int


def _neurons(entries: Iterable[SupportsIndex]) -> list[int]:
    """Return the entries sorted, without duplicates: a neuron listed twice is scaled once."""
    try:
        found = sorted({operator.index(entry) for entry in entries})
    except TypeError as error:
        raise TypeError(f"neuron_mask_: indices must be integers: {error}") from error
    if found and found[0] < 0:
        _checks.reject("neuron_mask_", "indices", "0 or more", found[0])
    return found


def pack_indices(indices: Indices, *, device: torch.device | str = "cpu") -> NeuronIndices:
    """Check lists of neurons and copy them to a device, once for many calls of `neuron_mask_`.

    Args:
        indices: one list of ints (or int64 [K]) for all samples, or one such list per sample (or
            int64 [B, K]).
        device: device of the activations; default "cpu".

    Raises:
        TypeError: an index is not an integer.
        ValueError: an index is negative.
    """
    entries: Sequence[Any] = indices.tolist() if isinstance(indices, Tensor) else indices
    vectors: list[Any] = [
        entry.tolist() if isinstance(entry, Tensor) and entry.dim() == 1 else entry
        for entry in entries
    ]
    per_sample = any(isinstance(entry, Sequence) for entry in vectors)
    lists = [_neurons(entry) for entry in vectors] if per_sample else [_neurons(vectors)]
    flat = [index for entry in lists for index in entry]
    ends = [0, *itertools.accumulate(len(entry) for entry in lists)]
    return NeuronIndices(
        indices=torch.tensor(flat, dtype=torch.int64, device=device),
        offsets=torch.tensor(ends, dtype=torch.int64, device=device) if per_sample else None,
        largest=max(flat, default=-1),
    )


def _check_in_place(x: Tensor, listed: NeuronIndices) -> None:
    op = "neuron_mask_"
    _checks.floating_tensor(op, "x", x)
    shape = x.shape
    if len(shape) != 3:
        _checks.reject(op, "x", "[B, T, N]", _checks.shape_of(x))
    _checks.writable(op, "x", x)
    if listed.largest >= shape[2]:
        _checks.reject(op, "indices", f"below N = {shape[2]}", listed.largest)
    if listed.offsets is not None and len(listed.offsets) != shape[0] + 1:
        expected = f"one list, or one per sample (B = {shape[0]})"
        _checks.reject(op, "indices", expected, f"{len(listed.offsets) - 1} lists")
    _checks.same_device(op, "indices", listed.indices, "x", x)


class _NeuronMaskInPlace(torch.autograd.Function):
    """The gradient passes through the same mask; x need not be saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, listed: NeuronIndices, factor: float, backend: str) -> Tensor:
        ctx.mark_dirty(x)
        ctx.rest = (listed, factor, backend)
        select(_IN_PLACE, backend, x)(x, listed.indices, listed.offsets, factor)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        listed, factor, backend = ctx.rest
        return neuron_mask_(grad.clone(), listed, factor, backend=backend), None, None, None


def neuron_mask_(
    x: Tensor, indices: Indices | NeuronIndices, factor: float = 0.0, *, backend: str = "auto"
) -> Tensor:
    """Multiply the listed neurons of x by a factor in place; nothing else is touched.

    Args:
        x: [B, T, N] activations, written.
        indices: one list of neurons in [0, N) for all samples, or one list per sample; packed by
            `pack_indices` if the same lists serve many calls. A neuron listed twice counts once.
        factor: multiplier; default 0, which blocks the neurons.
        backend: implementation; see `dori_fast.ops`.

    Returns:
        x itself; gradients flow through it.

    Raises:
        TypeError: an index is not an integer.
        ValueError: an index or the number of lists does not fit, or x is expanded, so that a write
            would be repeated.
    """
    listed = (
        indices if isinstance(indices, NeuronIndices) else pack_indices(indices, device=x.device)
    )
    _check_in_place(x, listed)
    compute = select(_IN_PLACE, backend, x)
    if x.requires_grad and torch.is_grad_enabled():
        written: Tensor = _NeuronMaskInPlace.apply(x, listed, factor, backend)
        return written
    compute(x, listed.indices, listed.offsets, factor)
    mark_written(x)
    return x
