"""Forward derivatives of fused kernels equal torch's own of the unfused computation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dori_fast.models.engine.forward_mode import FusedDerivatives

F64 = torch.float64


def along(function: Any, *inputs: Any) -> Any:
    directions = tuple(x.flip(-1).sin() for x in inputs)
    return torch.func.jvp(function, inputs, directions)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(2, 6, 5, 3), (3, 6, 7), (2, 6)])
def test_group_norms(shape, affine):
    norm = nn.GroupNorm(3, 6, affine=affine, dtype=F64)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(shape, dtype=F64)
    expected = along(norm, x)
    with FusedDerivatives():
        torch.testing.assert_close(along(norm, x), expected)
        if x.dim() == 4:
            # torch has no rule for this memory layout
            inner = along(norm, x.contiguous(memory_format=torch.channels_last))
            torch.testing.assert_close(inner, expected)


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norms(affine):
    norm = nn.LayerNorm(6, elementwise_affine=affine, dtype=F64)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 5, 6, dtype=F64)
    expected = along(norm, x)
    with FusedDerivatives():
        torch.testing.assert_close(along(norm, x), expected)


def test_norms_under_autocast_are_taken_in_float32() -> None:
    """As under CUDA's autocast, where activations are float32 and weights are not."""
    norm = nn.GroupNorm(3, 6, dtype=torch.bfloat16)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 6, 5, 3)
    wide = nn.GroupNorm(3, 6)
    wide.load_state_dict(norm.state_dict())
    expected = along(wide, x)
    with FusedDerivatives(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(along(norm, x), expected)


@pytest.mark.parametrize("moving", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_attention(moving, masked):
    inputs = [torch.randn(2, 3, n, 8, dtype=F64) for n in (5, 7, 7)]
    mask = torch.rand(5, 7) > 0.3 if masked else None

    def attention(*moved: Any) -> Any:
        return F.scaled_dot_product_attention(*moved, *inputs[moving:], attn_mask=mask)

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = along(attention, *inputs[:moving])
        with FusedDerivatives():
            torch.testing.assert_close(along(attention, *inputs[:moving]), expected)
    if not masked:
        # torch's fused attention has no rule
        with FusedDerivatives():
            torch.testing.assert_close(along(attention, *inputs[:moving]), expected)


def test_attention_without_heads_is_left_to_torch():
    inputs = [torch.randn(2, n, 8, dtype=F64) for n in (5, 7, 7)]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = along(F.scaled_dot_product_attention, *inputs)
        with FusedDerivatives():
            torch.testing.assert_close(along(F.scaled_dot_product_attention, *inputs), expected)


def test_without_tangents_nothing_changes():
    x = torch.randn(2, 6, 5, 3)
    expected = F.group_norm(x, 3)
    with FusedDerivatives():
        assert F.group_norm(x, 3).equal(expected)
