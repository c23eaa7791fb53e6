"""Weights whose importance for given prompts is among the largest of their row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dori_fast.triton_kernels._common import ACCUMULATE, block_of, launch

# Triton's largest tile; a program holds a whole row
_MOST_COLUMNS = 1 << 20


@triton.jit
def _wanda_mask_kernel(
    weight_ptr,
    act_norm_ptr,
    base_ptr,
    mask_ptr,
    N,
    count,
    weight_stride_o,
    HAS_BASE: tl.constexpr,
    ACC: tl.constexpr,
    KEY: tl.constexpr,
    NAN_KEY: tl.constexpr,
    TOP_BIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program per row. The row stays in registers, so that the search below reads memory once.
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < N
    weight = tl.load(weight_ptr + row * weight_stride_o + i, mask=inside, other=0.0).to(ACC)
    act_norm = tl.load(act_norm_ptr + i, mask=inside, other=0.0).to(ACC)
    score = tl.abs(weight * act_norm)
    # Bits of non-negative floats order as the floats do. Every NaN gets one key above infinity's;
    # places beyond the row get -1, which no cut reaches.
    key = tl.where(score == score, score.to(KEY, bitcast=True), NAN_KEY)
    key = tl.where(inside, key, -1)

    # The largest key that at least `count` keys reach, found bit by bit from the top: 31 counts
    # over the row (63 for float64) instead of a sort.
    cut = tl.zeros([], KEY)
    one = cut + 1
    for bit in range(TOP_BIT, -1, -1):
        raised = cut | (one << bit)
        reached = tl.sum((key >= raised).to(tl.int32))
        cut = tl.where(reached >= count, raised, cut)

    # fewer than `count` keys are above the cut; keys equal to it fill the room, lowest column first
    above = key > cut
    ties = (key == cut).to(tl.int32)
    room = count - tl.sum(above.to(tl.int32))
    pruned = above | ((ties == 1) & (tl.cumsum(ties, 0) <= room))
    if HAS_BASE:
        base = tl.load(base_ptr + i, mask=inside, other=0.0).to(ACC)
        # strictly, so that a NaN exceeds nothing
        pruned = pruned & (score > tl.abs(weight * base))
    tl.store(mask_ptr + row * N + i, pruned.to(tl.int8), mask=inside)


def wanda_mask_triton(
    weight: Tensor, act_norm: Tensor, base_act_norm: Tensor | None, count: int
) -> Tensor:
    """Launch the kernel; arguments and result as in `wanda_mask_reference`.

    Raises:
        ValueError: rows too long for one program.
    """
    rows, columns = weight.shape
    if columns > _MOST_COLUMNS:
        raise ValueError(
            f"wanda_mask: the Triton kernel takes rows of at most {_MOST_COLUMNS} weights, got"
            f" {columns}; use backend='reference'"
        )
    mask = torch.empty(rows, columns, dtype=torch.bool, device=weight.device)
    if count == 0:
        return mask.zero_()
    if mask.numel() == 0:
        return mask
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    act_norm = act_norm.contiguous()
    block = block_of(columns, _MOST_COLUMNS)
    launch(
        _wanda_mask_kernel,
        rows,
        weight,
        weight,
        act_norm,
        act_norm if base_act_norm is None else base_act_norm.contiguous(),
        mask.view(torch.int8),
        columns,
        count,
        weight.stride(0),
        HAS_BASE=base_act_norm is not None,
        **_constants(wide=weight.dtype == torch.float64),
        ACC=ACCUMULATE[weight.dtype],
        BLOCK=block,
        num_warps=_warps(block),
    )
    return mask


def _constants(wide: bool) -> dict[str, object]:
    """Return integer type, key of NaN and highest bit of a key, for float64 or float32 scores."""
    if wide:
        return {"KEY": tl.int64, "NAN_KEY": 0x7FF0000000000001, "TOP_BIT": 62}
    return {"KEY": tl.int32, "NAN_KEY": 0x7F800001, "TOP_BIT": 30}


def _warps(block: int) -> int:
    """Return warps such that a thread holds at most 16 elements, up to 32 warps."""
    return max(4, min(32, block // 512))
