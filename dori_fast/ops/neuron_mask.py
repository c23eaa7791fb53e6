"""Scale neurons, each sample of a batch its own way.

    y[b, t, n] = x[b, t, n] * scale[b, n]

The blocking of NeMo (Hintersdorf et al., "Finding NeMo: Localizing Neurons Responsible For
Memorization in Diffusion Models", NeurIPS 2024) with factor 0; per-sample scales let many candidate
masks share one batch. B samples, T tokens, N neurons.
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
from dori_fast._library import define_op
from dori_fast.reference import accumulate_dtype
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


def _triton(x: Tensor, scale: Tensor) -> Tensor:
    from dori_fast.triton_kernels.neuron_mask import neuron_mask_triton

    return neuron_mask_triton(x, scale)


def _in_place_triton(x: Tensor, indices: Tensor, offsets: Tensor | None, factor: float) -> None:
    from dori_fast.triton_kernels.neuron_mask import neuron_mask_in_place_triton

    neuron_mask_in_place_triton(x, indices, offsets, factor)


_OP = define_op(
    "neuron_mask",
    "(Tensor x, Tensor scale) -> Tensor",
    reference=neuron_mask_reference,
    triton=_triton,
    fake=_fake,
)
_IN_PLACE = define_op(
    "neuron_mask_",
    "(Tensor(a!) x, Tensor indices, Tensor? offsets, float factor) -> ()",
    reference=neuron_mask_in_place_reference,
    triton=_in_place_triton,
    fake=_in_place_fake,
)


def _compute(x: Tensor, scale: Tensor, backend: str) -> Tensor:
    """The operator itself, on the scale that its kernels take."""
    dtype = accumulate_dtype(x.dtype)
    y: Tensor = select(_OP, backend, x)(x, scale if scale.dtype is dtype else scale.to(dtype))
    return y


class _NeuronMask(torch.autograd.Function):
    """dy/dx is the same mask; dy/dscale sums over everything that shared the scale."""

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
            dtype = accumulate_dtype(x.dtype)
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
        x: [B, T, N] activations, float32, bfloat16, float16 or float64, any strides.
        scale: [N] or [B, N], any floating dtype, same device. 0 blocks a neuron, 1 leaves it.
        backend: "auto", or an implementation by name, which then answers or raises.

    Returns:
        [B, T, N] in the dtype of x, contiguous, differentiable in x and scale. The product is taken
        in float32 (float64 for float64 x) and rounded once.

    Raises:
        TypeError: an input is not a tensor.
        ValueError: shape, dtype or device do not fit, or the backend is unknown.
        RuntimeError: the backend asked for cannot serve; says why.
    """
    _check(x, scale)
    if (x.requires_grad or scale.requires_grad) and torch.is_grad_enabled():
        masked: Tensor = _NeuronMask.apply(x, scale, backend)
        return masked
    return _compute(x, scale, backend)


@dataclass(frozen=True)
class NeuronIndices:
    """Lists of neurons, checked and on their device, to be used many times.

    `indices` is int64 [K]. `offsets`, int64 [B + 1], gives sample b
    `indices[offsets[b]:offsets[b + 1]]`; None gives all of them to every sample. `largest` is the
    largest index, -1 where there is none.
    """

    indices: Tensor
    offsets: Tensor | None
    largest: int


def _neurons(entries: Iterable[SupportsIndex]) -> list[int]:
    """Sorted and without duplicates: a neuron listed twice is still scaled once."""
    try:
        found = sorted({operator.index(entry) for entry in entries})
    except TypeError as error:
        raise TypeError(f"neuron_mask_: indices must be integers: {error}") from error
    if found and found[0] < 0:
        _checks.reject("neuron_mask_", "indices", "0 or more", found[0])
    return found


def pack_indices(indices: Indices, *, device: torch.device | str = "cpu") -> NeuronIndices:
    """Check lists of neurons and bring them to a device, once for many calls of `neuron_mask_`.

    Args:
        indices: one list of ints (or int64 [K]) for all samples, or one such list per sample (or
            int64 [B, K]).
        device: where the activations are.

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
    if any(stride == 0 and size > 1 for stride, size in zip(x.stride(), shape, strict=True)):
        _checks.reject(op, "x", "free of repeated memory to be written", "an expanded tensor")
    if listed.largest >= shape[2]:
        _checks.reject(op, "indices", f"below N = {shape[2]}", listed.largest)
    if listed.offsets is not None and len(listed.offsets) != shape[0] + 1:
        expected = f"one list, or one per sample (B = {shape[0]})"
        _checks.reject(op, "indices", expected, f"{len(listed.offsets) - 1} lists")
    _checks.same_device(op, "indices", listed.indices, "x", x)


class _NeuronMaskInPlace(torch.autograd.Function):
    """The gradient passes through the same mask; nothing of x needs to be kept."""

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
    """Multiply the listed neurons of x by a factor, in place, touching nothing else.

    Args:
        x: [B, T, N] activations, float32, bfloat16, float16 or float64, any strides; written.
        indices: one list of neurons in [0, N) for all samples, or one list per sample; from
            `pack_indices` where the same lists serve many calls. A neuron listed twice counts once.
        factor: multiplier; 0 blocks the neurons.
        backend: "auto", or an implementation by name, which then answers or raises.

    Returns:
        x itself; gradients flow through it.

    Raises:
        TypeError: x is not a tensor, or an index not an integer.
        ValueError: shape, dtype, device, index or number of lists do not fit, x repeats memory
            (expanded), or the backend is unknown.
        RuntimeError: the backend asked for cannot serve; says why.
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
    if not torch.compiler.is_compiling():
        # Tells autograd that x has changed, in case another operation has kept it.
        torch.autograd.graph.increment_version(x)
    return x
