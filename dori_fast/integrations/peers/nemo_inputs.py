"""Inputs of the UNet as the released NeMo code makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def layers(unet: Any) -> dict[str, Any]:
    """The seven cross-attentions of the released code, by name."""
    names = [f"down_blocks.{block}.attentions.{i}" for block in range(3) for i in range(2)]
    return {
        f"{name}.transformer_blocks.0.attn2": unet.get_submodule(name).transformer_blocks[0].attn2
        for name in [*names, "mid_block.attentions.0"]
    }


def autocast(unet: Any) -> Any:
    """The released code's autocast, which has no effect on a CPU."""
    return torch.autocast("cuda", torch.float16, enabled=unet.device.type == "cuda")


def draw(prompts: int, unet: Any, seed: int) -> Tensor:
    """Initial latents [N, C, 64, 64] from torch's global generator, seeded as released."""
    shape = (prompts, unet.config.in_channels, 64, 64)
    return torch.randn(shape, generator=torch.manual_seed(seed))


def encode(prompts: Sequence[str], tokenizer: Any, text_encoder: Any) -> Tensor:
    """Embeddings [P, T, D]; the released code encodes one copy per seed."""
    ids = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    embeddings: Tensor = text_encoder(ids.to(text_encoder.device))[0]
    return embeddings


def chosen(index: Any, count: int) -> list[int]:
    """The rows of ``count`` that an index selects: a mask, numbers, or None for all."""
    rows = torch.arange(count)
    if index is not None:
        rows = rows[index.cpu() if isinstance(index, Tensor) else index]
    listed: list[int] = rows.reshape(-1).tolist()
    return listed
