"""Facts about weights that an audit needs: what was read, and whether it is sane."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor


def variant_of(weights: Path) -> str | None:
    """``fp16`` of ``model.fp16.safetensors`` and of its shards, None of ``model.safetensors``."""
    return weights.stem.partition(".")[2].partition("-")[0] or None


def file_hashes(
    directory: Path, parts: Iterable[str], variant: str | None = None
) -> dict[str, str]:
    """sha256 of every file of the named parts, by path relative to ``directory``.

    Of the weights only those of the variant, which are the ones that are read.

    Not of the weights alone: another tokenizer, configuration or noise schedule is another model.
    """
    hashes = {}
    for part in parts:
        for path in sorted((directory / part).iterdir()):
            weights = path.suffix == ".safetensors" and variant_of(path) == variant
            if weights or path.suffix in (".json", ".txt"):
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                hashes[f"{part}/{path.name}"] = digest
    return hashes


def text_sha256(text: str) -> str:
    """sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes of tensors, in order of name."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def first_nonfinite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor that holds a NaN or an infinity, or None."""
    for name, value in tensors:
        # the sum of finite values of a network is finite; it costs one pass and no mask
        if not torch.isfinite(value.detach().sum(dtype=torch.float64)):
            return name
    return None
