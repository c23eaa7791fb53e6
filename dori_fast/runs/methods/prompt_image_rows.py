"""All rows of a file that have a prompt and a readable picture, and why the others are left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dori_fast.errors import UsageError
from dori_fast.models.files.hashes import tensors_sha256
from dori_fast.runs.methods.image_files import open_originals
from dori_fast.runs.settings import checked, limited
from dori_fast.runs.sources.open import input_sha256, open_prompts

_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Pictured:
    """Prompts with their pictures, in memory.

    Attributes:
        rows: positions [P] in the file, from 0.
        prompts: [P].
        images: uint8 [P, H, W, 3].
        refused: the other rows as plain JSON: ``row_id``, ``prompt`` and ``error``.
        file_sha256: of the file.
    """

    rows: list[int]
    prompts: list[str]
    images: NDArray[np.uint8]
    refused: list[dict[str, Any]]
    file_sha256: str

    def config(self) -> dict[str, Any]:
        """What tells these rows from others, as plain JSON."""
        pictures = tensors_sha256({"pictures": torch.from_numpy(self.images)})
        return {"sha256": self.file_sha256, "pictures": pictures, "rows": len(self.rows)}


def read_pictured(
    path: str | Path,
    images: str | Path | Mapping[str, NDArray[np.uint8]],
    size: tuple[int, int],
    *,
    column: str | None = None,
    image_column: str = "image",
    limit: int | None = None,
) -> Pictured:
    """Read a file of prompts with the pictures at a size (H, W).

    Args:
        path: as in a scan.
        images: a folder, or pictures by prompt; see :func:`open_originals`.
        size: of the model's pictures.
        column: the prompt column; found by itself if it has a usual name.
        image_column: of file names relative to the folder.
        limit: read only the first rows.

    Raises:
        UsageError: the file, folder or column is not there, or no row is left.
    """
    reader = open_prompts(path, column)
    original = open_originals(images, reader, image_column, size)
    settings = checked(
        "pictures", seeds=1, steps=1, batch_size="auto", limit=limit, shard_size=_AT_ONCE
    )
    rows: list[int] = []
    prompts: list[str] = []
    pictures: list[NDArray[np.uint8]] = []
    refused: list[dict[str, Any]] = []
    for part in limited(reader, settings):
        for place, prompt in enumerate(part.prompts):
            found = part.errors[place] if prompt is None else original(part, place)
            if prompt is None or found is None or isinstance(found, str):
                row = {"row_id": part.first + place, "prompt": prompt, "error": found}
                refused.append(row)
                continue
            rows.append(part.first + place)
            prompts.append(prompt)
            pictures.append(found)
    if not rows:
        why = f"; the first one: {refused[0]['error']}" if refused else ""
        raise UsageError(f"{path}: no row with a prompt and a readable picture{why}")
    return Pictured(rows, prompts, np.stack(pictures), refused, input_sha256(path))
