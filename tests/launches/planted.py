"""Launches with one mistake each, by which the tests show that they would see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _root_kernel(x_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(x_ptr + i, tl.sqrt(tl.load(x_ptr + i)) / tl.load(x_ptr + i + BLOCK))


@triton.jit
def _stride_kernel(x_ptr, stride):
    # a launch passes a stride of 1 as a constant of Python, which has no `to`
    tl.store(x_ptr + stride.to(tl.int64), 1.0)


@triton.jit
def _spilling_kernel(x_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    tl.store(x_ptr + i, tl.cumsum(x, 0) + tl.sum(x))


@dataclass(frozen=True)
class Planted:
    """A launch; `op` is the mistake."""

    op: str
    launch: Callable[[Tensor], Any]
    use: str = ""

    def __str__(self) -> str:
        return f"planted {self.op}"

    def call(self) -> None:
        """Launch inside a guard, except where its absence is the mistake."""
        x = torch.empty(1 << 14, device="meta")
        if self.op == "unguarded":
            self.launch(x)
            return
        with torch.cuda.device_of(x):
            self.launch(x)


def planted() -> Iterator[Planted]:
    """One launch for each mistake."""
    yield Planted("approximate", lambda x: _root_kernel[(1,)](x, BLOCK=128))
    yield Planted("unguarded", lambda x: _root_kernel[(1,)](x, BLOCK=128))
    yield Planted("uncompilable", lambda x: _stride_kernel[(1,)](x, 1))
    yield Planted("spilling", lambda x: _spilling_kernel[(1,)](x, BLOCK=8192, maxnreg=32))
