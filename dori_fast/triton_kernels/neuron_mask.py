"""Per-sample, per-neuron scaling of activations."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dori_fast.triton_kernels._common import ACCUMULATE, block_of, launch, row_and_block

_LARGEST_BLOCK = 1024


@triton.jit
def _neuron_mask_kernel(
    x_ptr,
    scale_ptr,
    y_ptr,
    T,
    N,
    x_stride_b,
    x_stride_t,
    scale_stride_b,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program per 1024 neurons of one (sample, token), which divides once, not once per element,
    # and loads its scales as vectors.
    row, block = row_and_block(N, BLOCK)
    b = (row // T).to(tl.int64)
    t = (row % T).to(tl.int64)
    n = block * BLOCK + tl.arange(0, BLOCK)
    inside = n < N
    x = tl.load(x_ptr + b * x_stride_b + t * x_stride_t + n, mask=inside).to(ACC)
    # a stride of 0 gives all samples one scale
    scale = tl.load(scale_ptr + b * scale_stride_b + n, mask=inside).to(ACC)
    # y is contiguous; the product is rounded once
    tl.store(y_ptr + row.to(tl.int64) * N + n, (x * scale).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _neuron_mask_in_place_kernel(
    x_ptr,
    indices_ptr,
    offsets_ptr,
    factor: tl.float64,  # an unannotated float would arrive as float32
    T,
    N,
    K,
    most,
    stride_b,
    stride_t,
    stride_n,
    indices_stride,
    offsets_stride,
    HAS_OFFSETS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program per (sample, token) and 1024 places of its list, which has `most` places at most.
    row, block = row_and_block(most, BLOCK)
    b = (row // T).to(tl.int64)
    t = (row % T).to(tl.int64)
    # without offsets, every sample owns the whole list of K neurons
    first = tl.zeros([], tl.int64)
    last = first + K
    if HAS_OFFSETS:
        last = tl.minimum(last, tl.load(offsets_ptr + (b + 1) * offsets_stride))
        first = tl.maximum(first, tl.load(offsets_ptr + b * offsets_stride))
    k = first + block * BLOCK + tl.arange(0, BLOCK)
    listed = k < last
    # A wrong index or offset touches nothing. They are not checked on the host: reading the list
    # there would wait for the device.
    n = tl.load(indices_ptr + k * indices_stride, mask=listed, other=-1)
    written = listed & (n >= 0) & (n < N)
    # no neuron is listed twice in a sample, so no two lanes write one element
    element_ptr = x_ptr + b * stride_b + t * stride_t + n * stride_n
    x = tl.load(element_ptr, mask=written).to(ACC)
    tl.store(
        element_ptr, (x * tl.full([BLOCK], factor, ACC)).to(x_ptr.dtype.element_ty), mask=written
    )


def neuron_mask_triton(x: Tensor, scale: Tensor) -> Tensor:
    """Launch the kernel; arguments and result as in `neuron_mask_reference`."""
    batch, tokens, neurons = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    x = x if x.stride(2) == 1 else x.contiguous()
    scale = scale if scale.stride(-1) == 1 else scale.contiguous()
    block = block_of(neurons, _LARGEST_BLOCK)
    launch(
        _neuron_mask_kernel,
        batch * tokens * triton.cdiv(neurons, block),
        x,
        x,
        scale,
        y,
        tokens,
        neurons,
        x.stride(0),
        x.stride(1),
        scale.stride(0) if scale.dim() == 2 else 0,
        ACC=ACCUMULATE[x.dtype],
        BLOCK=block,
    )
    return y


def neuron_mask_in_place_triton(
    x: Tensor, indices: Tensor, offsets: Tensor | None, factor: float
) -> None:
    """Launch the kernel; arguments as in `neuron_mask_in_place_reference`."""
    batch, tokens, neurons = x.shape
    listed = indices.numel()
    if x.numel() == 0 or listed == 0:
        return
    # a sample lists no neuron twice
    most = min(listed, neurons)
    block = block_of(most, _LARGEST_BLOCK)
    launch(
        _neuron_mask_in_place_kernel,
        batch * tokens * triton.cdiv(most, block),
        x,
        x,
        indices,
        indices if offsets is None else offsets,
        factor,
        tokens,
        neurons,
        listed,
        most,
        *x.stride(),
        *indices.stride(),
        0 if offsets is None else offsets.stride(0),
        HAS_OFFSETS=offsets is not None,
        ACC=ACCUMULATE[x.dtype],
        BLOCK=block,
    )
