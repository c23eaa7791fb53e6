"""The benchmark case, and helpers that all files of cases share."""

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

    Attributes:
        make: `make(shape, dtype, device)` returns the inputs.
        eager: `eager(*inputs)`, the baseline.
        ours: `ours(backend, *inputs)`, which computes the same.
        traffic: `traffic(shape, element_size)`, the fewest bytes to move.
        flops: `flops(shape)`, the fewest operations.
        goals: promised speed-ups over eager by (shape, dtype), on one thread.
        dtypes: dtypes in which eager is as accurate as ours, so that both can be compared.
        eager_error: relative error allowed to an eager baseline that is less accurate in every
            dtype; 0 if it is held to the oracle's tolerance.
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
