"""Pruning: Wanda's choice of weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.ops.cases.case import BenchCase, Inputs, Shape, goals, randn
from dori_fast import ops

_SPARSITY = 0.01


def _wanda_inputs(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    """Weights, and float32 norms on target and base prompts.

    The sort is not stable, so no row may have a tie at the end of its selection.
    """
    weight = randn(shape, dtype, device)
    target, base = randn((2, shape[1]), torch.float32, device).abs()
    largest = (weight.abs() * target).topk(int(_SPARSITY * shape[1]) + 1).values
    tied = largest[:, -1] == largest[:, -2]
    weight[tied] = weight[tied].roll(1, dims=1)
    return weight, target, base


def _wanda_eager(
    largest: Callable[[Tensor, int], Tensor],
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The released code's selection; `largest` finds the columns of the largest scores."""

    def eager(weight: Tensor, target: Tensor, base: Tensor) -> Tensor:
        scores, base_scores = weight.abs() * target, weight.abs() * base
        chosen = largest(scores, int(_SPARSITY * scores.shape[1]))
        mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, chosen, True)
        return mask & (scores > base_scores)

    return eager


def _by_sort(scores: Tensor, count: int) -> Tensor:
    return torch.sort(scores, dim=1, descending=True)[1][:, :count]


def _by_topk(scores: Tensor, count: int) -> Tensor:
    return torch.topk(scores, count, dim=1)[1]


def _wanda_ours(backend: str, weight: Tensor, target: Tensor, base: Tensor) -> Tensor:
    return ops.wanda_mask(weight, target, _SPARSITY, base_act_norm=base, backend=backend)


_FEED_FORWARD = ((1280, 5120), (640, 2560), (320, 1280))


def _wanda_case(mode: str, largest: Callable[[Tensor, int], Tensor], promised: float) -> BenchCase:
    return BenchCase(
        op="wanda_mask",
        mode=mode,
        shapes=_FEED_FORWARD,
        make=_wanda_inputs,
        eager=_wanda_eager(largest),
        ours=_wanda_ours,
        # read the weights and both norms, write a byte per weight
        traffic=lambda s, e: math.prod(s) * (e + 1) + 2 * s[1] * 4,
        # two products and three comparisons; the selection's own work is not counted
        flops=lambda s: 5 * math.prod(s),
        goals=goals(_FEED_FORWARD[:1], promised, promised),
    )


CASES = (
    _wanda_case("against_sort", _by_sort, 8.0),
    _wanda_case("against_topk", _by_topk, 0.9),
)
