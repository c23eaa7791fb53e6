"""A tiny Stable Diffusion in which some inputs lead to NaN: prompts with a z, and noisy images."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.tiny_model import byte_tokenizer

GOOD, BAD = "a cup of coffee", "a zoo"


def nan_for_z(source: Path, directory: Path) -> Path:
    """A copy whose text encoder returns NaN for every prompt with a z; all weights are finite."""
    root = shutil.copytree(source, directory)
    path, vocabulary = root / "text_encoder" / "model.safetensors", byte_tokenizer().get_vocab()
    state = load_file(path)
    (name,) = [name for name in state if name.endswith("token_embedding.weight")]
    # their sum overflows in the first layer norm
    state[name][[vocabulary["z"], vocabulary["z</w>"]]] = 3e38
    save_file(state, path, {"format": "pt"})
    return root


def overflowing_encoder(source: Path, directory: Path) -> Path:
    """A copy whose VAE overflows float16 when it reads noise, but not when it reads gray."""
    root = shutil.copytree(source, directory)
    path = root / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["encoder.conv_in.weight"] *= 2e5
    save_file(state, path, {"format": "pt"})
    return root
