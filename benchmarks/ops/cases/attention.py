"""Attention with its forward derivative, at the sizes of real networks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.ops.cases.case import BenchCase, Inputs, Shape, goals, randn
from dori_fast import ops


def _inputs(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    """q, k, v, tq, tk, tv for (B, H, Tq, Tk, D), laid out [B, T, H, D] as in a network."""
    batch, heads, queries, keys, width = shape
    numbers = randn((batch, 2 * queries + 4 * keys, heads, width), dtype, device)
    lengths = (queries, keys, keys) * 2
    return tuple(x.contiguous().transpose(1, 2) for x in numbers.split(lengths, dim=1))


def _unfused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Unfused attention: the form that torch needs for forward differentiation."""
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v


def _self_eager(q: Tensor, k: Tensor, v: Tensor, tq: Tensor, tk: Tensor, tv: Tensor) -> Tensor:
    tangent: Tensor = torch.func.jvp(_unfused, (q, k, v), (tq, tk, tv))[1]
    return tangent


def _self_ours(
    backend: str, q: Tensor, k: Tensor, v: Tensor, tq: Tensor, tk: Tensor, tv: Tensor
) -> Tensor:
    return ops.sdpa_jvp(q, k, v, tq, tk, tv, backend=backend)[1]


def _cross_eager(q: Tensor, k: Tensor, v: Tensor, tq: Tensor, tk: Tensor, tv: Tensor) -> Tensor:
    tangent: Tensor = torch.func.jvp(lambda x: _unfused(x, k, v), (q,), (tq,))[1]
    return tangent


def _cross_ours(
    backend: str, q: Tensor, k: Tensor, v: Tensor, tq: Tensor, tk: Tensor, tv: Tensor
) -> Tensor:
    return ops.sdpa_jvp(q, k, v, tq, None, None, backend=backend)[1]


def _self_traffic(shape: Shape, element: int) -> int:
    """Read three inputs and their tangents, write output and tangent."""
    batch, heads, queries, keys, width = shape
    return batch * heads * width * (4 * queries + 4 * keys) * element


def _cross_traffic(shape: Shape, element: int) -> int:
    """Read q, its tangent, k and v, write output and tangent."""
    batch, heads, queries, keys, width = shape
    return batch * heads * width * (4 * queries + 2 * keys) * element


# Sizes of the embedded model, Stable Diffusion and SDXL; fewer heads where one thread is slow.
_SELF = (
    (16, 2, 256, 256, 24),
    (16, 2, 64, 64, 48),
    (1, 1, 4096, 4096, 40),
    (1, 4, 1024, 1024, 80),
    (2, 8, 256, 256, 160),
    (1, 4, 1024, 1024, 64),
)
_CROSS = (
    (16, 2, 256, 77, 24),
    (16, 2, 64, 77, 48),
    (2, 8, 4096, 77, 40),
    (2, 8, 1024, 77, 80),
    (2, 8, 256, 77, 160),
    (1, 10, 1024, 77, 64),
)

CASES = (
    BenchCase(
        op="sdpa_jvp",
        mode="self_attention",
        shapes=_SELF,
        make=_inputs,
        eager=_self_eager,
        ours=_self_ours,
        traffic=_self_traffic,
        # q k^T, tq k^T, q tk^T; p v, p ds v, p tv
        flops=lambda s: 12 * math.prod(s),
        goals=goals(_SELF, 1.0, 1.0),
        # in bfloat16, eager rounds every score
        dtypes=(torch.float32,),
    ),
    BenchCase(
        op="sdpa_jvp",
        mode="cross_attention",
        shapes=_CROSS,
        make=_inputs,
        eager=_cross_eager,
        ours=_cross_ours,
        traffic=_cross_traffic,
        # q k^T, tq k^T; p v, p ds v
        flops=lambda s: 8 * math.prod(s),
        goals=goals(_CROSS, 1.0, 1.0),
        dtypes=(torch.float32,),
    ),
)
