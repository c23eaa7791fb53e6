"""Hashes of files and tensors, and a check that weights are finite."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def variant_of(weights: Path) -> str | None:
    """``fp16`` of ``model.fp16.safetensors`` and of its shards, None of ``model.safetensors``."""
    return weights.stem.partition(".")[2].partition("-")[0] or None


def chosen_variant(folder: Path, variant: str | None) -> str | None:
    """The variant whose weights diffusers' pipelines read in a part's folder.

    A part without the wanted variant has its plain weights, if another part has the variant.
    """
    found = {variant_of(path) for path in folder.glob("*.safetensors")}
    if variant in found or None not in found:
        return variant
    elsewhere = map(variant_of, folder.parent.glob("*/*.safetensors"))
    return None if variant in elsewhere else variant


def file_hashes(
    directory: Path, parts: Iterable[str], variant: str | None = None
) -> dict[str, str]:
    """sha256 of every file of the named parts, by path relative to ``directory``.

    Hash config, tokenizer and scheduler files too, since changing any of them changes the model.
    Weight files of other variants are skipped.
    """
    hashes = {}
    for part in parts:
        chosen = chosen_variant(directory / part, variant)
        for path in sorted((directory / part).iterdir()):
            weights = path.suffix == ".safetensors" and variant_of(path) == chosen
            if weights or path.suffix in (".json", ".txt"):
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                hashes[f"{part}/{path.name}"] = digest
    return hashes


def with_unet_weights(hashes: Mapping[str, str], unet: Any) -> dict[str, str]:
    """A model's hashes by file or part, with another UNet's weights in place of its own."""
    others = {
        name: sha
        for name, sha in hashes.items()
        if name not in ("unet", "unet_weights")
        and not (name.startswith("unet/") and name.endswith(".safetensors"))
    }
    return {**others, "unet": tensors_sha256(unet.state_dict())}


def text_sha256(text: str) -> str:
    """sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of names, dtypes, shapes and bytes of tensors, in order of name."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def first_nonfinite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor that holds a NaN or an infinity, or None."""
    for name, value in tensors:
        # the sum of a network's finite values is finite; it costs one pass and no mask
        if not torch.isfinite(value.detach().sum(dtype=torch.float64)):
            return name
    return None
