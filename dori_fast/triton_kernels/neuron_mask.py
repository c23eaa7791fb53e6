"""Per-sample, per-neuron scaling of activations."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dori_fast.triton_kernels._common import ACCUMULATE, CompileCase, block_of

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
    # One program per block of one row; y is contiguous.
    row = tl.program_id(0).to(tl.int64)
    b = row // T
    t = row % T
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = n < N
    x = tl.load(x_ptr + b * x_stride_b + t * x_stride_t + n, mask=inside).to(ACC)
    scale = tl.load(scale_ptr + b * scale_stride_b + n, mask=inside).to(ACC)
    tl.store(y_ptr + row * N + n, (x * scale).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _neuron_mask_in_place_kernel(
    x_ptr,
    indices_ptr,
    offsets_ptr,
    factor: tl.float64,  # an unannotated float would arrive as float32
    T,
    N,
    K,
    stride_b,
    stride_t,
    stride_n,
    HAS_OFFSETS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program per row and block of the list; a wrong index touches nothing.
    row = tl.program_id(0).to(tl.int64)
    b = row // T
    t = row % T
    first = tl.zeros([], tl.int64)
    last = first + K
    if HAS_OFFSETS:
        first = tl.load(offsets_ptr + b)
        last = tl.load(offsets_ptr + b + 1)
    k = first + tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    listed = k < last
    n = tl.load(indices_ptr + k, mask=listed, other=-1)
    written = listed & (n >= 0) & (n < N)
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
    with torch.cuda.device_of(x):
        _neuron_mask_kernel[(batch * tokens, triton.cdiv(neurons, block))](
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
    block = block_of(min(listed, neurons), _LARGEST_BLOCK)
    with torch.cuda.device_of(x):
        _neuron_mask_in_place_kernel[(batch * tokens, triton.cdiv(min(listed, neurons), block))](
            x,
            indices,
            indices if offsets is None else offsets,
            factor,
            tokens,
            neurons,
            listed,
            *x.stride(),
            HAS_OFFSETS=offsets is not None,
            ACC=ACCUMULATE[x.dtype],
            BLOCK=block,
        )


def _compile_case(element: str, aligned: bool) -> CompileCase:
    wide = element == "fp64"
    strides = ("x_stride_b", "x_stride_t", "scale_stride_b")
    pointers = {
        "x_ptr": f"*{element}",
        "scale_ptr": "*fp64" if wide else "*fp32",
        "y_ptr": f"*{element}",
    }
    return CompileCase(
        name=f"neuron_mask-{element}-{'aligned' if aligned else 'any'}",
        kernel=_neuron_mask_kernel,
        signature={
            **pointers,
            "T": "i32",
            "N": "i32",
            **dict.fromkeys(strides, "i64"),
            "ACC": "constexpr",
            "BLOCK": "constexpr",
        },
        constexprs={"ACC": tl.float64 if wide else tl.float32, "BLOCK": _LARGEST_BLOCK},
        aligned=(*pointers, "N", *strides) if aligned else (),
        vector_loads=aligned,
    )


def _in_place_compile_case(element: str, has_offsets: bool) -> CompileCase:
    return CompileCase(
        name=f"neuron_mask_-{element}-{'lists' if has_offsets else 'list'}",
        kernel=_neuron_mask_in_place_kernel,
        signature={
            "x_ptr": f"*{element}",
            "indices_ptr": "*i64",
            "offsets_ptr": "*i64",
            "factor": "fp64",
            **dict.fromkeys(("T", "N", "K"), "i32"),
            **dict.fromkeys(("stride_b", "stride_t", "stride_n"), "i64"),
            **dict.fromkeys(("HAS_OFFSETS", "ACC", "BLOCK"), "constexpr"),
        },
        constexprs={
            "HAS_OFFSETS": has_offsets,
            "ACC": tl.float64 if element == "fp64" else tl.float32,
            "BLOCK": 64,
        },
        vector_loads=False,
    )


_ELEMENTS = ("fp32", "bf16", "fp16", "fp64")
COMPILE_CASES = (
    *(_compile_case(e, aligned) for e in _ELEMENTS for aligned in (True, False)),
    *(_in_place_compile_case(e, has_offsets) for e in _ELEMENTS for has_offsets in (True, False)),
)
