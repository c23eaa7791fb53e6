"""Images that a fine-tuning run draws before training, cached in its run directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from dori_fast.errors import IntegrityError
from dori_fast.finetune import Surrogates
from dori_fast.models.files.tensor_file import read_tensors
from dori_fast.runs.store.durable import write_durably

SURROGATES, RETAINED = "surrogates.safetensors", "retained.safetensors"
Pairs = list[tuple[str, NDArray[np.uint8]]]
_FORMAT = "dori_fast.drawn/1"


@dataclass(frozen=True)
class DrawnPairs:
    """Retained pairs of prompt and image that are drawn instead of read.

    Attributes:
        config: facts besides the model that the pairs depend on, as plain JSON.
        draw: function that returns the pairs, each image uint8 [H, W, 3].
    """

    config: dict[str, Any]
    draw: Callable[[], Pairs]


def cached_surrogates(folder: Path, run_hash: str, draw: Callable[[], Surrogates]) -> Surrogates:
    """The surrogates of a run, drawn if its directory does not hold them yet."""

    def drawn() -> tuple[dict[str, Tensor], list[str]]:
        found = draw()
        own, similarity = torch.from_numpy(found.own), torch.from_numpy(found.similarity)
        return {"pictures": found.images, "own": own, "similarity": similarity}, []

    tensors, _ = _cached(folder / SURROGATES, run_hash, drawn)
    own, similarity = tensors["own"].numpy(), tensors["similarity"].numpy()
    return Surrogates(tensors["pictures"], own, similarity)


def cached_pairs(folder: Path, run_hash: str, draw: Callable[[], Pairs]) -> Pairs:
    """The retained pairs of a run, drawn if its directory does not hold them yet."""

    def drawn() -> tuple[dict[str, Tensor], list[str]]:
        found = draw()
        images = torch.from_numpy(np.stack([image for _, image in found]))
        return {"pictures": images}, [prompt for prompt, _ in found]

    tensors, prompts = _cached(folder / RETAINED, run_hash, drawn)
    return list(zip(prompts, tensors["pictures"].numpy(), strict=True))


def _cached(
    path: Path, run_hash: str, draw: Callable[[], tuple[dict[str, Tensor], list[str]]]
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors and prompts of a file that belongs to a run, read back even when just written."""
    if not path.exists():
        tensors, prompts = draw()
        owned = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        header = {"format": _FORMAT, "run": run_hash, "prompts": json.dumps(prompts)}
        write_durably(path, lambda file: save_file(owned, file, header))
    tensors, header = read_tensors(path, _FORMAT, "images that a fine-tuning run drew")
    if header["run"] != run_hash:
        raise IntegrityError(f"{path}: drawn by another run; use another --out")
    return tensors, json.loads(header["prompts"])
