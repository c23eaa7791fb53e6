"""A Stable Diffusion with random weights, small enough to build and run in a test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WIDTH = 32
TOKENS = 77


def save_tiny_sd(directory: str | Path, seed: int = 0, **unet_overrides: Any) -> Path:
    """Write a diffusers Stable Diffusion directory with weights drawn from `seed`.

    It has the layout of SD 1.x (UNet2DConditionModel, AutoencoderKL, CLIPTextModel,
    CLIPTokenizer, DDIMScheduler, model_index.json), 4-channel 8x8 latents, 32-wide text
    embeddings of 77 tokens. `unet_overrides` replace entries of the UNet's configuration.
    A stock StableDiffusionPipeline loads it. Returns the directory.
    """
    root = Path(directory)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _unet(**unet_overrides).save_pretrained(root / "unet")
        _vae().save_pretrained(root / "vae")
        tokenizer = byte_tokenizer()
        _text_encoder(len(tokenizer)).save_pretrained(root / "text_encoder")
    tokenizer.save_pretrained(root / "tokenizer")
    _scheduler().save_pretrained(root / "scheduler")
    (root / "model_index.json").write_text(json.dumps(_MODEL_INDEX, indent=2))
    return root


MERGES = (("t", "h"), ("th", "e</w>"), ("i", "n"), ("a", "n"), ("o", "n</w>"), ("e", "r</w>"))


def byte_tokenizer(merges: Sequence[tuple[str, str]] = MERGES, **options: Any) -> CLIPTokenizer:
    """A CLIPTokenizer whose vocabulary is the 256 bytes (inside and at the end of a word) and
    a few merges, so that every text has a tokenization and long texts exceed 77 tokens."""
    letters = _byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(m) for m in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=list(merges), model_max_length=TOKENS, **options)


def _byte_letters() -> list[str]:
    """The printable stand-in of every byte in byte-level BPE, in byte order (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    stand_in = {byte: chr(byte) for byte in printable}
    stand_in |= {byte: chr(256 + index) for index, byte in enumerate(hidden)}
    return [stand_in[byte] for byte in range(256)]


def _unet(**overrides: Any) -> UNet2DConditionModel:
    config: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**(config | overrides))


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )


def _text_encoder(vocabulary: int) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    return CLIPTextModel(config)


def _scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


_MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.30.0",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
