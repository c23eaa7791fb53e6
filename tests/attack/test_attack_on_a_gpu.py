"""An attack on a GPU: which steps wait for the device, and what repeats."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import dori_fast as df
from dori_fast.attack import Dori
from dori_fast.attack.dori import _Embeddings
from dori_fast.models import NeuronMask, WeightMask

PROMPTS = ["a cup of coffee", "the cat on the mat", "another the in an on"]
KINDS = ("plain", "neurons", "own neurons", "weights", "own weights")


def view(model: Any, kind: str) -> Any:
    """The model, or a view with one mask for all prompts or one for each."""
    if kind == "plain":
        return model
    count = len(PROMPTS) if kind.startswith("own") else 1
    if kind.endswith("neurons"):
        widths = model.engine.value_widths
        return model.masked(NeuronMask({n: torch.rand(count, w) for n, w in widths.items()}))
    layers = model.engine.second_linears
    shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items()}
    return model.masked(WeightMask({n: torch.rand(count, *s) < 0.1 for n, s in shapes.items()}))


@contextmanager
def no_waiting(on: bool) -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error" if on else "default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("xl", [False, True], ids=["sd", "sdxl"])
def test_no_step_waits_for_the_device(
    tiny_directory: Path,
    tiny_sdxl_directory: Path,
    monkeypatch: Any,
    kind: str,
    xl: bool,
) -> None:
    model = df.load(tiny_sdxl_directory if xl else tiny_directory, device="cuda", batch_size=8)
    update, steps = _Embeddings.update, []

    def strict(state: _Embeddings, step: int) -> None:
        # the first step also sets up kernels and workspaces
        with no_waiting(step > 0):
            update(state, step)
        steps.append(step)

    monkeypatch.setattr(_Embeddings, "update", strict)
    images = torch.randint(0, 256, (3, *model.image_size, 3), dtype=torch.uint8)
    Dori(steps=4, draws=4).run(view(model, kind), PROMPTS, images)
    assert steps == [0, 1, 2, 3]


def embeddings(model: Any, images: torch.Tensor) -> torch.Tensor:
    return Dori(steps=5, draws=4).run(model, PROMPTS, images).embeddings


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_two_runs_agree_to_the_bit_without_atomics(
    tiny_directory: Path, images: torch.Tensor, dtype: str
) -> None:
    """Only the backward passes of fused attention and of cuDNN may add in any order."""
    model = df.load(tiny_directory, device="cuda", dtype=dtype, batch_size=8)
    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(deterministic=True):
        assert torch.equal(embeddings(model, images), embeddings(model, images))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_two_runs_agree(
    tiny_directory: Path, images: torch.Tensor, dtype: str, record_property: Any
) -> None:
    """Losses agree up to rounding; whether all bits do is written to the report of the tests."""
    model = df.load(tiny_directory, device="cuda", dtype=dtype, batch_size=8)
    one, two = (Dori(steps=5, draws=4).run(model, PROMPTS, images) for _ in range(2))
    record_property("bitwise", torch.equal(one.embeddings, two.embeddings))
    # losses are sums of squares of unit size in float32, of predictions with rounding eps
    eps = torch.finfo(getattr(torch, dtype)).eps
    torch.testing.assert_close(one.losses, two.losses, rtol=32 * eps, atol=0)
