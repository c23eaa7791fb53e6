"""Scaled dot-product attention with its forward derivative: launcher and choice of tiles."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dori_fast.triton_kernels._common import ACCUMULATE, INTERPRETING, launch
from dori_fast.triton_kernels._sdpa_jvp_kernels import sdpa_jvp_kernel

_TYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}
_WARPS = 4
_VECTOR = 16  # bytes
# Most columns of a result that 128 threads hold in registers together with its tangent, by size of
# an element: if a head is one slice, and if it has several.
_WIDEST = {2: (80, 80), 4: (64, 32), 8: (32, 16)}


def sdpa_jvp_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Launch the kernel; arguments and result as in `sdpa_jvp_reference`."""
    batch, heads, queries, width = q.shape
    keys = k.shape[2]
    out, tangent = torch.empty_like(q), torch.empty_like(q)
    if out.numel() == 0 or keys == 0:
        return out.zero_(), tangent.zero_()
    slices, tile = _slices(width, q.dtype.itemsize)
    unit = _VECTOR // q.dtype.itemsize
    tensors = [_aligned(q if x is None else x) for x in (q, k, v, tq, tk, tv)]
    results = [x if _is_aligned(x) else _padded(x) for x in (out, tangent)]
    grid = (batch * heads * triton.cdiv(queries, tile["BLOCK_M"]), slices)
    launch(
        sdpa_jvp_kernel,
        grid,
        q,
        *tensors,
        *results,
        heads,
        slices,
        queries,
        keys,
        width,
        scale,
        *(stride // unit for x in (*tensors, results[0]) for stride in x.stride()[:3]),
        HAS_TQ=tq is not None,
        HAS_TK=tk is not None,
        HAS_TV=tv is not None,
        DTYPE=tl.float32 if INTERPRETING and q.dtype == torch.bfloat16 else _TYPES[q.dtype],
        ACC=ACCUMULATE[q.dtype],
        UNIT=unit,
        **tile,
        num_warps=_WARPS,
        **_options(q.dtype.itemsize),
    )
    for x, result in zip((out, tangent), results, strict=True):
        if result is not x:
            x.copy_(result)
    if tq is None and tk is None and tv is None:
        # exactly 0, even where out is not finite
        tangent.zero_()
    return out, tangent


def _is_aligned(x: Tensor) -> bool:
    """Return whether rows are contiguous and begin at multiples of 16 bytes."""
    unit = _VECTOR // x.dtype.itemsize
    starts_at_one = x.data_ptr() % _VECTOR == 0 and x.stride(3) == 1
    return starts_at_one and all(stride % unit == 0 for stride in x.stride()[:3])


def _padded(x: Tensor) -> Tensor:
    """Return empty memory for x whose rows begin at multiples of 16 bytes."""
    unit = _VECTOR // x.dtype.itemsize
    width = triton.cdiv(x.shape[3], unit) * unit
    return x.new_empty(*x.shape[:3], width)[..., : x.shape[3]]


def _aligned(x: Tensor) -> Tensor:
    """Return x or an aligned copy: loads without vectors are slow and need too many registers."""
    return x if _is_aligned(x) else _padded(x).copy_(x)


def _slices(width: int, itemsize: int) -> tuple[int, dict[str, int]]:
    """Return the number of slices of a head and the tile; no width in use spills with them."""
    one, several = _WIDEST[itemsize]
    slices = 1 if width <= one else triton.cdiv(width, several)
    head, tail = _head_and_tail(triton.cdiv(width, slices))
    half = itemsize == 2
    narrow = not half or (slices > 1 and head + tail > 64)
    return slices, {
        "HEAD": head,
        "TAIL": tail,
        "BLOCK_M": 64 if half else 32,
        "BLOCK_N": 16 if narrow else 32,
    }


def _head_and_tail(columns: int) -> tuple[int, int]:
    """Return the least sum of one or two powers of two from 16 on that covers the columns."""
    whole = max(16, triton.next_power_of_2(columns))
    tail = max(16, triton.next_power_of_2(columns - whole // 2))
    return (whole // 2, tail) if whole > 16 and tail < whole // 2 else (whole, 0)


def _options(itemsize: int) -> dict[str, int]:
    """Return options of the compiler.

    Two stages let loads run ahead of tensor cores; without these, arithmetic takes longer than the
    loads. Without `maxnreg` the assembler spills a little to reach 128 registers.
    """
    return {"num_stages": 2 if itemsize == 2 else 1, "maxnreg": 255}
