"""Masks of neurons: one scale per sample and neuron, and lists of neurons in place."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from benchmarks.ops.cases.case import BenchCase, Inputs, Shape, goals, randn
from dori_fast import ops


def _mask_inputs(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    return randn(shape, dtype, device), randn((shape[0], shape[2]), dtype, device)


def _mask_eager(x: Tensor, scale: Tensor) -> Tensor:
    return x * scale[:, None, :]


def _mask_ours(backend: str, x: Tensor, scale: Tensor) -> Tensor:
    return ops.neuron_mask(x, scale, backend=backend)


# With -1 the numbers keep their magnitude over many timed calls and never become subnormal.
_FACTOR = -1.0


def _some_neurons(count: int, of: int, seed: int) -> list[int]:
    return torch.randperm(of, generator=torch.Generator().manual_seed(seed))[:count].tolist()


def _list_inputs(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    """Ten neurons shared by all samples: a tensor for eager, packed for ours."""
    listed = _some_neurons(10, shape[2], 0)
    packed = ops.pack_indices(listed, device=device)
    return randn(shape, dtype, device), torch.tensor(listed, device=device), packed


def _list_eager(x: Tensor, listed: Tensor, packed: ops.NeuronIndices) -> Tensor:
    x[:, :, listed] *= _FACTOR
    return x


def _lists_inputs(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    """Ten neurons of each sample: tensors for eager, packed for ours."""
    lists = [_some_neurons(10, shape[2], seed) for seed in range(shape[0])]
    tensors = [torch.tensor(listed, device=device) for listed in lists]
    return randn(shape, dtype, device), tensors, ops.pack_indices(lists, device=device)


def _lists_eager(x: Tensor, lists: list[Tensor], packed: ops.NeuronIndices) -> Tensor:
    for sample, listed in zip(x, lists, strict=True):
        sample[:, listed] *= _FACTOR
    return x


def _in_place_ours(backend: str, x: Tensor, eager_form: Any, packed: ops.NeuronIndices) -> Tensor:
    return ops.neuron_mask_(x, packed, _FACTOR, backend=backend)


_VALUES = ((32, 77, 1280), (32, 77, 640), (32, 77, 320), (4, 77, 768))


# Scaling in float32 moves the same bytes as eager, so it cannot be faster; checking the arguments
# costs about a microsecond more. In bfloat16, eager pays for its conversions.
_NOT_SLOWER = 0.9


CASES = (
    BenchCase(
        op="neuron_mask",
        mode="per_sample",
        shapes=_VALUES,
        make=_mask_inputs,
        eager=_mask_eager,
        ours=_mask_ours,
        # read x and the scales, write y
        traffic=lambda s, e: 2 * math.prod(s) * e + s[0] * s[2] * e,
        flops=lambda s: math.prod(s),
        goals=goals(_VALUES, _NOT_SLOWER, 1.0),
    ),
    BenchCase(
        op="neuron_mask_",
        mode="one_list",
        shapes=_VALUES,
        make=_list_inputs,
        eager=_list_eager,
        ours=_in_place_ours,
        # read and write ten neurons of every token
        traffic=lambda s, e: 2 * 10 * s[0] * s[1] * e,
        flops=lambda s: 10 * s[0] * s[1],
        goals=goals(_VALUES, 1.0, 1.0),
    ),
    BenchCase(
        op="neuron_mask_",
        mode="list_per_sample",
        shapes=_VALUES,
        make=_lists_inputs,
        eager=_lists_eager,
        ours=_in_place_ours,
        # read and write ten neurons of every token
        traffic=lambda s, e: 2 * 10 * s[0] * s[1] * e,
        flops=lambda s: 10 * s[0] * s[1],
        goals=goals(_VALUES, 1.0, 1.0),
    ),
)
