"""The choice of the attention kernel: an explicit request is met or refused."""

from __future__ import annotations

import importlib.util
import sys
import types

import pytest
import torch
import torch.nn.functional as F

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.models.engine.attention import choose, forward_mode, sdpa, why_not_xformers

CPU, FP32 = torch.device("cpu"), torch.float32


def test_sdpa_is_attention():
    q, k, v = (torch.randn(2, n, 3, 8, dtype=torch.float64) for n in (5, 7, 7))
    weights = (torch.einsum("nqhd,nkhd->nhqk", q, k) / 8**0.5).softmax(-1)
    torch.testing.assert_close(sdpa(q, k, v), torch.einsum("nhqk,nkhd->nqhd", weights, v))


@pytest.mark.parametrize("moving", ["query", "all", "none"])
def test_forward_mode_takes_tangents_along(moving):
    q, k, v = (torch.randn(2, n, 3, 8, dtype=torch.float64) for n in (5, 7, 7))
    directions = tuple(torch.randn_like(x) for x in (q, k, v))

    def unfused(q, k, v):
        weights = (torch.einsum("nqhd,nkhd->nhqk", q, k) / 8**0.5).softmax(-1)
        return torch.einsum("nhqk,nkhd->nqhd", weights, v)

    count = {"query": 1, "all": 3, "none": 0}[moving]
    found, expected = (
        torch.func.jvp(
            lambda extra, *x, how=how: how(*x, *(q, k, v)[count:]) + extra,
            (torch.zeros(5, 3, 8, dtype=torch.float64), *(q, k, v)[:count]),
            (torch.ones(5, 3, 8, dtype=torch.float64), *directions[:count]),
        )
        for how in (forward_mode, unfused)
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_on_a_cpu_auto_is_sdpa_and_xformers_is_refused_with_the_reason(tiny_directory):
    model = df.load(tiny_directory, device="cpu")
    assert model.engine.execution.attention == "sdpa"
    with pytest.raises(UsageError, match="'xformers' is unavailable: xformers"):
        df.load(tiny_directory, device="cpu", attention="xformers")
    with pytest.raises(UsageError, match="one of auto, sdpa, xformers"):
        df.load(tiny_directory, device="cpu", attention="flash")


def test_without_sharing_the_models_own_attention_runs(tiny_directory):
    assert df.load(tiny_directory, device="cpu", share=False).engine.execution.attention == "own"


class LooksLikeCuda:
    type = "cuda"


def install_xformers(monkeypatch, attention):
    """A stand-in for xformers, to test dispatch; the kernel itself is tested on a GPU."""
    ops = types.ModuleType("xformers.ops")
    ops.memory_efficient_attention = attention
    package = types.ModuleType("xformers")
    package.__spec__ = importlib.util.spec_from_loader("xformers", loader=None)
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    monkeypatch.setattr(torch, "zeros", lambda *size, **_: torch.ones(*size))


SD14_HEADS = (40, 80, 160)


def attend(q, k, v):
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NotImplementedError("No operator found\n  cutlassF: not built"), "No operator found"),
        (OSError("libcudart.so.12: cannot open shared object file"), "libcudart.*"),
        (NotImplementedError(), "NotImplementedError"),
        (ValueError("head dim too large"), "head dim too large"),
    ],
)
def test_an_installed_xformers_that_cannot_answer_is_refused_with_its_reason(
    monkeypatch, error, reason
):
    def attention(q, k, v):
        if q.shape[-1] == 160:
            raise error
        return attend(q, k, v)

    install_xformers(monkeypatch, attention)
    expected = f"no operator for heads of 160 values in float32: {reason}; use attention='sdpa'$"
    with pytest.raises(UsageError, match=expected):
        choose("xformers", LooksLikeCuda(), FP32, SD14_HEADS)
    assert choose("xformers", LooksLikeCuda(), FP32, (40, 80))[0] == "xformers"


def test_an_xformers_without_a_backward_pass_is_refused(monkeypatch):
    class ForwardOnly(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v):
            return attend(q, k, v)

        @staticmethod
        def backward(ctx, grad):
            raise NotImplementedError("No operator found for `memory_efficient_attention_backward`")

    install_xformers(monkeypatch, ForwardOnly.apply)
    with torch.no_grad(), pytest.raises(UsageError, match="heads of 40 .*_backward`; use"):
        choose("xformers", LooksLikeCuda(), FP32, SD14_HEADS)


def test_an_installed_xformers_is_used_where_it_is_asked_for(monkeypatch):
    called = []

    def attention(q, k, v):
        called.append(q.shape[-1])
        return attend(q, k, v)

    install_xformers(monkeypatch, attention)
    assert choose("auto", LooksLikeCuda(), FP32, SD14_HEADS) == ("sdpa", sdpa)
    assert not called
    assert "no attention for cpu" in why_not_xformers(CPU, FP32, SD14_HEADS)
    name, kernel = choose("xformers", LooksLikeCuda(), FP32, SD14_HEADS)
    assert name == "xformers" and called == [*SD14_HEADS]
    q = torch.randn(1, 4, 2, 8)
    torch.testing.assert_close(kernel(q, q, q), sdpa(q, q, q))


def test_the_widths_of_heads_are_those_that_attention_is_called_with(model):
    seen = set()

    def attention(q, k, v):
        seen.add(q.shape[-1])
        return sdpa(q, k, v)

    backbone = model.engine.backbone
    program = backbone.program(attention)
    latents, text, pooled = backbone.zeros(1)
    program.suffix(program.prefix(latents, 0), program.text_part(text, pooled), 0)
    assert sorted(seen) == backbone.head_sizes


@pytest.mark.gpu
def test_xformers_equals_sdpa():
    pytest.importorskip("xformers")
    device = torch.device("cuda")
    reason = why_not_xformers(device, torch.float16, [40])
    if reason:
        pytest.skip(reason)
    q, k, v = (torch.randn(2, n, 8, 40, device=device, dtype=torch.float16) for n in (64, 77, 77))
    _, kernel = choose("xformers", device, torch.float16, [40])
    torch.testing.assert_close(kernel(q, k, v), sdpa(q, k, v), rtol=2e-3, atol=2e-3)
