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


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NotImplementedError("No operator found for d=32\n  cutlassF: not built"), "for d=32$"),
        (OSError("libcudart.so.12: cannot open shared object file"), "libcudart"),
        (NotImplementedError(), "NotImplementedError"),
    ],
)
def test_an_installed_xformers_that_cannot_answer_is_refused_with_its_reason(
    monkeypatch, error, reason
):
    def attention(q, k, v):
        raise error

    install_xformers(monkeypatch, attention)
    assert choose("auto", LooksLikeCuda(), FP32) == ("sdpa", sdpa)
    with pytest.raises(UsageError, match=f"unavailable: xformers finds no operator: .*{reason}"):
        choose("xformers", LooksLikeCuda(), FP32)


def test_an_installed_xformers_that_answers_is_used(monkeypatch):
    called = []

    def attention(q, k, v):
        called.append(q.shape)
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(
            1, 2
        )

    install_xformers(monkeypatch, attention)
    assert "no attention for cpu" in why_not_xformers(CPU, FP32)
    name, kernel = choose("auto", LooksLikeCuda(), FP32)
    assert name == "xformers" and called
    q = torch.randn(1, 4, 2, 8)
    torch.testing.assert_close(kernel(q, q, q), sdpa(q, q, q))


@pytest.mark.gpu
def test_xformers_equals_sdpa():
    pytest.importorskip("xformers")
    device = torch.device("cuda")
    reason = why_not_xformers(device, torch.float16)
    if reason:
        pytest.skip(reason)
    q, k, v = (torch.randn(2, n, 8, 40, device=device, dtype=torch.float16) for n in (64, 77, 77))
    _, kernel = choose("xformers", device, torch.float16)
    torch.testing.assert_close(kernel(q, k, v), sdpa(q, k, v), rtol=2e-3, atol=2e-3)
