"""Parts that kernels of several ops share."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Triton's interpreter silently computes wrong numbers in bfloat16: kernels convert every float to
# this type as soon as it is loaded.
ACCUMULATE = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.float32,
    torch.float16: tl.float32,
    torch.float64: tl.float64,
}
# it also multiplies matrices in bfloat16 wrongly
INTERPRETING = bool(triton.knobs.runtime.interpret)


def launch(
    kernel: Any, grid: int | tuple[int, int], on: Tensor, *arguments: Any, **options: Any
) -> None:
    """Launch a kernel on the device of the tensor `on`; every launch goes through here.

    Triton launches on the current device, whatever device the arguments are on.

    Args:
        kernel: Triton kernel.
        grid: number of programs; two numbers give two axes. The first axis has room for 2^31 - 1
            programs, the second for 65,535.
        on: tensor whose device runs the kernel.
        arguments: positional arguments of the kernel.
        options: constexprs of the kernel and options of the launch.
    """
    with torch.cuda.device_of(on):
        kernel[grid if isinstance(grid, tuple) else (grid,)](*arguments, **options)


@triton.jit
def row_and_block(length, BLOCK: tl.constexpr):
    """Return row and block of this program, where each row has cdiv(length, BLOCK) programs.

    All programs are on the first axis: the second ends at 65,535. The division is of 32 bits.
    """
    blocks = tl.cdiv(length, BLOCK)
    program = tl.program_id(0)
    return program // blocks, (program % blocks).to(tl.int64)


@triton.jit
def root(x):
    """Return the correctly rounded square root; tl.sqrt approximates it for float32."""
    return tl.sqrt(x) if x.dtype == tl.float64 else tl.sqrt_rn(x)


@triton.jit
def quotient(x, y):
    """Return x / y correctly rounded, in the type of x; `/` approximates it for float32."""
    y = tl.cast(y, x.dtype)
    return x / y if x.dtype == tl.float64 else tl.div_rn(x, y)


@triton.jit
def sum_of(x):
    """Return the sum of a block, pairs of neighbors first, then pairs of pairs, and so on.

    tl.sum adds in the order in which threads hold the elements. That depends on the width of loads,
    and so on the alignment of the tensor. Two numbers have the same sum in either order.
    """
    # 16 halvings are enough for 65,536 elements
    for _ in tl.static_range(16):
        if x.shape[0] > 1:
            x = tl.sum(tl.reshape(x, [x.shape[0] // 2, 2]), 1)
    return tl.sum(x, 0)


def block_of(length: int, largest: int) -> int:
    """Return the power of two that covers `length`, at least 16 and at most `largest`."""
    return max(16, min(largest, triton.next_power_of_2(length)))


def rows(x: Tensor, leading: int) -> Tensor:
    """Return x with its dimensions from `leading` on as one, copied unless that is contiguous."""
    flat = x.unsqueeze(-1).flatten(leading)
    return flat if flat.stride(-1) == 1 else flat.contiguous()
