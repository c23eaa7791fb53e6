"""Tiny pipelines in memory, whose own ``encode_prompt`` the tests compare with."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from tests.tiny_model import _scheduler, _text_encoder, _unet, _vae, byte_tokenizer
from tests.tiny_sdxl import POOLED, tiny_unet

WIDTH = 32


def sd(**parts: Any) -> StableDiffusionPipeline:
    """SD 1.x; ``parts`` replace its own."""
    tokenizer = parts.pop("tokenizer", None) or byte_tokenizer()
    own: dict[str, Any] = {
        "unet": _unet(),
        "vae": _vae(),
        "tokenizer": tokenizer,
        "text_encoder": _text_encoder(len(byte_tokenizer())),
        "scheduler": _scheduler(),
    }
    none = dict.fromkeys(("safety_checker", "feature_extractor"))
    return StableDiffusionPipeline(**{**own, **parts}, **none, requires_safety_checker=False)


def sdxl(**parts: Any) -> StableDiffusionXLPipeline:
    """SDXL; ``parts`` replace its own."""
    config = _text_encoder(len(byte_tokenizer())).config
    config.projection_dim = POOLED
    own: dict[str, Any] = {
        "unet": tiny_unet(),
        "vae": _vae(),
        "tokenizer": byte_tokenizer(),
        "tokenizer_2": byte_tokenizer(pad_token="!</w>"),
        "text_encoder": CLIPTextModel(deepcopy(config)),
        "text_encoder_2": CLIPTextModelWithProjection(config),
        "scheduler": _scheduler(),
    }
    return StableDiffusionXLPipeline(**{**own, **parts}, add_watermarker=False)


def invert(pipe: Any, word: str, vectors: int, which: str = "") -> None:
    """Add a textual inversion to a pipeline's first (``""``) or second (``"_2"``) text encoder."""
    pipe.load_textual_inversion(
        {word: torch.randn(vectors, WIDTH)},
        token=word,
        tokenizer=getattr(pipe, f"tokenizer{which}"),
        text_encoder=getattr(pipe, f"text_encoder{which}"),
    )
