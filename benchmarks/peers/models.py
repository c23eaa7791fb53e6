"""Small models and an import path for the peers' released code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import dori_fast as df


@contextmanager
def checkout(folder: Path) -> Iterator[None]:
    """Import a checkout's modules first, as a script there does; forget them afterwards."""
    sys.path.insert(0, str(folder))
    known = set(sys.modules)
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - known:
            if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


def base() -> Any:
    """The embedded model as a stock pipeline."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(df.demo.path())
    pipe.text_encoder.requires_grad_(False)
    return pipe


def sd_unet(width: int, side: int, text: int, values: float = 1.0) -> Any:
    """A random UNet with SD 1.x's blocks; `values` scales its value projections."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=side,
        block_out_channels=(width, width, 2 * width, 2 * width),
        layers_per_block=2,
        attention_head_dim=2,
        cross_attention_dim=text,
        norm_num_groups=8,
    ).eval()
    with torch.no_grad():
        for name, module in unet.named_modules():
            if name.endswith("attn2.to_v"):
                module.weight.mul_(values)
        if values != 1:
            unet.conv_out.weight.mul_(20)
    return unet


def unfused(flag: bool, device: Any) -> None:
    """SAIL's `_jvp_mode` for a CPU: fused attention has no forward derivative there."""
    torch.backends.cuda.enable_flash_sdp(not flag)
