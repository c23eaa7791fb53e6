"""What a benchmark case is, and what the files of cases share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, ...]
Inputs = tuple[Any, ...]
DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class BenchCase:
    """One operation in one mode of use.

    `ours(backend, *inputs)` and `eager(*inputs)` compute the same from `make(shape, dtype,
    device)`; `traffic(shape, element_size)` and `flops(shape)` are the least bytes and operations;
    `goals` are speed-ups over eager that this project promises for a (shape, dtype) on one thread;
    `dtypes` are those in which eager is as accurate as ours, so that both may be compared;
    `eager_error` is the relative error that eager may have where it is less accurate in all.
    """

    op: str
    mode: str
    shapes: tuple[Shape, ...]
    make: Callable[[Shape, torch.dtype, str], Inputs]
    eager: Callable[..., Tensor]
    ours: Callable[..., Tensor]
    traffic: Callable[[Shape, int], int]
    flops: Callable[[Shape], int]
    goals: dict[tuple[Shape, torch.dtype], float]
    dtypes: tuple[torch.dtype, ...] = DTYPES
    eager_error: float = 0.0


def randn(shape: Shape, dtype: torch.dtype, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)


def goals(shapes: tuple[Shape, ...], fp32: float, bf16: float) -> dict[Any, float]:
    return {(s, d): g for s in shapes for d, g in zip(DTYPES, (fp32, bf16), strict=True)}
