"""The rows of a file that have a prompt and a readable image, held in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dori_fast.errors import UsageError
from dori_fast.models.files.hashes import tensors_sha256
from dori_fast.runs.budget import Failure, require_rows
from dori_fast.runs.methods.image_files import open_images
from dori_fast.runs.settings import checked
from dori_fast.runs.sources.memory.values import prompts_path
from dori_fast.runs.sources.open import input_sha256, open_prompts
from dori_fast.runs.sources.rows import limited
from dori_fast.runs.sources.where import Selection
from dori_fast.runs.store.record import Counts

_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class PromptImageRows:
    """P prompts with their images.

    Attributes:
        rows: positions [P] in the file, from 0.
        prompts: [P].
        images: uint8 [P, H, W, 3].
        refused: the other rows as plain JSON: ``row_id``, ``prompt`` and ``error``.
        file_sha256: sha256 of the file, in hexadecimal.
        selection: how the file was read, if other than usual, as plain JSON.
    """

    rows: list[int]
    prompts: list[str]
    images: NDArray[np.uint8]
    refused: list[dict[str, Any]]
    file_sha256: str
    selection: dict[str, Any] = field(default_factory=dict)

    @property
    def counts(self) -> Counts:
        """Number of rows that were read, by outcome."""
        ok, refused = len(self.rows), len(self.refused)
        return Counts(rows=ok + refused, ok=ok, quarantined=refused)

    @property
    def first_failure(self) -> Failure | None:
        """The first of the other rows and its reason."""
        return (self.refused[0]["row_id"], self.refused[0]["error"]) if self.refused else None

    def config(self) -> dict[str, Any]:
        """The digests of file and images, the number of rows and the selection, as plain JSON."""
        pictures = tensors_sha256({"pictures": torch.from_numpy(self.images)})
        found = {"sha256": self.file_sha256, "pictures": pictures, "rows": len(self.rows)}
        return {**found, **self.selection}


def read_prompt_images(
    path: str | Path,
    images: str | Path | Mapping[str, NDArray[np.uint8]],
    size: tuple[int, int],
    *,
    column: str | None = None,
    header: bool | None = None,
    image_column: str = "image",
    limit: int | None = None,
    refuse: Callable[[int], str | None] = lambda row: None,
) -> PromptImageRows:
    """Read a file of prompts with its images.

    Args:
        path: the file, as in a scan.
        images: a folder, or images by prompt; see :func:`open_images`.
        size: (H, W) of the model's images.
        column: the prompt column; default: the first usual name.
        header: True if .csv and .tsv files begin with column names, False if not; as in a scan.
        image_column: column of file names relative to the folder; default ``image``.
        limit: number of rows to read; default: all.
        refuse: function that returns ``"code: message"`` for the number of a row to be left out,
            else None; default: none.

    Raises:
        UsageError: no such file, folder or column, or a file without rows.
    """
    path, selection = prompts_path(path, "finetune"), Selection.of(header=header)
    reader = open_prompts(path, column, selection)
    require_rows(reader, path)
    image_of = open_images(images, reader, image_column, size)
    settings = checked(
        "finetune", seeds=1, steps=1, batch_size="auto", limit=limit, shard_size=_AT_ONCE
    )
    rows: list[int] = []
    prompts: list[str] = []
    found_images: list[NDArray[np.uint8]] = []
    refused: list[dict[str, Any]] = []
    for part in limited(reader, settings.shard_size, settings.limit):
        for place, prompt in enumerate(part.prompts):
            found = part.errors[place] or refuse(part.first + place) or image_of(part, place)
            if prompt is None or isinstance(found, str):
                row = {"row_id": part.first + place, "prompt": prompt, "error": found}
                refused.append(row)
                continue
            rows.append(part.first + place)
            prompts.append(prompt)
            found_images.append(found)
    if not rows and not refused:
        raise UsageError(f"{path}: limit={limit} leaves no row to read; raise it")
    stacked = np.stack(found_images) if rows else np.zeros((0, *size, 3), np.uint8)
    how = selection.config()
    return PromptImageRows(rows, prompts, stacked, refused, input_sha256(path), how)
