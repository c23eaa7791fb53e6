"""Images of a scan's highest-scored prompts, kept in its run directory for the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.runs.store.durable import write_durably
from dori_fast.runs.store.record import differences

if TYPE_CHECKING:
    from dori_fast.models import Denoiser
    from dori_fast.runs.store.reopen import StoredRun

IMAGES = "pictures.safetensors"


def draw_top_images(
    model: Denoiser, run: StoredRun, rows: int, seeds: Sequence[int], **how: Any
) -> None:
    """Draw the highest-scored rows' prompts into ``pictures.safetensors``.

    Args:
        model: the scanned model; its dtype and device may differ.
        run: the scan.
        rows: number of prompts.
        seeds: seeds of the initial noises.
        how: ``steps`` and ``guidance`` of :meth:`Denoiser.generate`.

    Raises:
        UsageError: no row was scored, or the model has no autoencoder.
        NonFiniteError: images that are NaN or infinite.
        IntegrityError: ``model`` is another one.
    """
    model.autoencoder.require()
    now, then = ({"files": of.get("files")} for of in (model.config(), run.record.model))
    if now != then:
        raise IntegrityError(
            f"{run.root}: scanned another model ({differences(then, now)}); pass the same --model"
        )
    scored: list[tuple[float, int, str]] = []
    for part in run.tables("row_id", "prompt", "score"):
        columns = (part[name].to_pylist() for name in ("score", "row_id", "prompt"))
        found = [(-s, i, p) for s, i, p in zip(*columns, strict=True) if s is not None]
        scored = sorted([*scored, *found])[:rows]
    if not scored:
        raise UsageError(
            f"{run.root}: no row was scored, so there is nothing to draw; leave out --images"
        )
    prompts = [prompt for _, _, prompt in scored]
    drawn = model.generate(model.encode(prompts), seeds, **how).numpy()
    kept = {"drawn": drawn, "row_id": np.array([row_id for _, row_id, _ in scored])}
    write_durably(run.root / IMAGES, lambda file: save_file(kept, file))


def read_top_images(root: Path) -> dict[int, NDArray[np.uint8]]:
    """The images of :func:`draw_top_images`, uint8 [S, H, W, 3] by row; empty if there are none.

    Raises:
        IntegrityError: the file is damaged.
    """
    path = root / IMAGES
    if not path.is_file():
        return {}
    try:
        saved = load_file(path)
        return dict(zip(saved["row_id"].tolist(), saved["drawn"], strict=True))
    except (SafetensorError, OSError, KeyError) as error:
        raise IntegrityError(f"{path}: damaged; draw it again with --images") from error
