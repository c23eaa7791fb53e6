"""A prompt has the same bits at every place of a batch, among any neighbors.

On a CPU that is a promise. On a GPU it holds if all kernels of one shape treat every row alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import dori_fast as df
from tests.tiny_model import save_tiny_sd

PROMPT, BATCH = "the cat in the hat", 8
OTHERS = [f"{'very ' * i}thin hen {i}" for i in range(5)]
SWITCHES: list[dict[str, bool]] = [
    {},
    {"channels_last": True},
    {"compile": True},
    {"cuda_graphs": True},
    {"share": False},
]
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(scope="module")
def wide_directory(tmp_path_factory: Any) -> Path:
    """Two resolutions with the widths and heads of SD 1.4, at 64 x 64 latents."""
    sizes = {"block_out_channels": (320, 640), "attention_head_dim": 8, "sample_size": 64}
    return save_tiny_sd(tmp_path_factory.mktemp("wide") / "model", norm_num_groups=32, **sizes)


def at_every_place(model: Any) -> list[torch.Tensor]:
    """Epsilon [S, C, H, W] of the prompt at each place of a batch, each time with new neighbors."""
    found = []
    for place in range(BATCH):
        others = [OTHERS[(place + i) % len(OTHERS)] for i in range(BATCH - 1)]
        prompts = [*others[:place], PROMPT, *others[place:]]
        with torch.no_grad():
            found.append(model.epsilon(model.encode(prompts), model.noise([3]), 500)[place])
    return found


def check(model: Any) -> None:
    first, *rest = at_every_place(model)
    assert [torch.equal(first, other) for other in rest] == [True] * (BATCH - 1)
    alone = model.epsilon(model.encode([PROMPT]), model.noise([3]), 500)[0]
    assert torch.equal(first, alone.detach())


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_tiny(tiny_directory: Path, device: str, dtype: str) -> None:
    check(df.load(tiny_directory, device=device, dtype=dtype, batch_size=BATCH))


@pytest.mark.gpu
@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "-".join(s) or "plain")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_wide(wide_directory: Path, dtype: str, switches: dict[str, Any]) -> None:
    check(df.load(wide_directory, device="cuda", dtype=dtype, batch_size=BATCH, **switches))


@pytest.mark.gpu
@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "-".join(s) or "plain")
def test_sdxl(tiny_sdxl_directory: Path, switches: dict[str, Any]) -> None:
    check(
        df.load(tiny_sdxl_directory, device="cuda", dtype="float16", batch_size=BATCH, **switches)
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_two_models_give_the_same_bits(wide_directory: Path, dtype: str) -> None:
    """What a worker's self-test and ``verify`` rely on."""
    how = {"device": "cuda", "dtype": dtype, "batch_size": BATCH}
    one, two = (at_every_place(df.load(wide_directory, **how))[0] for _ in range(2))
    assert torch.equal(one, two)
