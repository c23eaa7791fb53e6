"""The attack over a file of prompts and their images: a row per image, resumable by block."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import save_file

from dori_fast.attack import Dori
from dori_fast.errors import IntegrityError, UsageError
from dori_fast.evaluate import CopySimilarity, SmallImages, replication
from dori_fast.models import NeuronMask, WeightMask
from dori_fast.models.schedules.vp import DDIM_STEPS
from dori_fast.runs.budget import MAX_ERRORS, require_rows
from dori_fast.runs.methods.image_files import ImageOfRow, open_images
from dori_fast.runs.methods.prune import EMBEDDINGS, MASKS
from dori_fast.runs.methods.row_runs import RowRunResult, run_rows
from dori_fast.runs.progress import Progress
from dori_fast.runs.sources.open import open_prompts, prompts_on_disk
from dori_fast.runs.sources.rows import Rows
from dori_fast.runs.store.directory import Resume
from dori_fast.runs.store.durable import write_durably

if TYPE_CHECKING:
    from dori_fast.models import Denoiser

_COLUMNS = pa.schema(
    {
        "image_sha256": pa.string(),
        "attack_steps": pa.int32(),
        "evaluations": pa.int64(),
        "losses": pa.list_(pa.float32()),
        "similarity_before": pa.list_(pa.float32()),
        "similarity": pa.list_(pa.float32()),
        "embedding": pa.binary(),
    }
)


@dataclass(frozen=True)
class Judging:
    """How found embeddings are judged: images drawn from them are compared with the original.

    Attributes:
        seeds: number of images per embedding, drawn from the seeds 0, 1, ...
        steps: DDIM steps.
        guidance: guidance scale.
        measure: measure of replication, None for the descriptor of small images.
    """

    seeds: int = 10
    steps: int = DDIM_STEPS
    guidance: float = 7.5
    measure: CopySimilarity | None = None

    def config(self) -> dict[str, Any]:
        """The settings as plain JSON."""
        measure = (self.measure or SmallImages()).config()
        how = {"seeds": self.seeds, "steps": self.steps, "guidance": self.guidance}
        return {**how, "measure": measure}


@dataclass(frozen=True)
class AttackRun:
    """A finished run.

    Attributes:
        run: the run, its rows, and its ``state``.
        threshold: similarity above which an image counts as replicated.
    """

    run: RowRunResult
    threshold: float


def read_masks(path: str | Path) -> NeuronMask | WeightMask:
    """The masks in a localization's run directory, or in a file.

    Raises:
        UsageError: no such file.
        IntegrityError: the file holds no masks.
    """
    path = Path(path)
    file = path / MASKS if path.is_dir() else path
    if not file.exists():
        raise UsageError(
            f"{file}: no such file; give the run directory of a finished dori-fast prune that"
            " localized a row, or its masks.safetensors"
        )
    try:
        return NeuronMask.load(file)
    except IntegrityError:
        return WeightMask.load(file)


def without_mask(masks: NeuronMask | WeightMask, row: int) -> str | None:
    """``"mask: ..."`` if a row of an input has a mask of its own and that is missing, else None."""
    if len(masks) > 1 and row in masks.missing:
        return "mask: the localization has none for this row, which it quarantined"
    return None


def masked_rows(
    model: Denoiser,
    masks: NeuronMask | WeightMask,
    ids: Sequence[int],
    command: str,
    remedy: str = "",
) -> Denoiser:
    """A view for rows of an input: each under its own mask, or all under a single one.

    Raises:
        UsageError: the input has more rows than there are masks, or a mask is missing.
    """
    count = len(masks)
    if max(ids) >= count > 1:
        raise UsageError(
            f"{command}: {count} masks, but the input has a row {max(ids)}; give the prompts that"
            f" the masks were made for{remedy}"
        )
    return model.masked(masks.take([i % count for i in ids]))


def attack(
    model: Denoiser,
    prompts: str | Path | Iterable[object],
    images: str | Path | Mapping[str, NDArray[np.uint8]],
    *,
    out: str | Path,
    method: Dori,
    start: str = "prompt",
    masks: NeuronMask | WeightMask | None = None,
    in_turn: bool = False,
    judging: Judging | None = None,
    column: str | None = None,
    image_column: str = "image",
    block: int = 16,
    limit: int | None = None,
    resume: Resume = "auto",
    max_errors: float = MAX_ERRORS,
    on_progress: Callable[[Progress], None] | None = None,
) -> AttackRun:
    """Attack every row's image into a run directory, resumable block by block.

    Args:
        model: the denoiser, without the masks.
        prompts: as in a scan; rows without a prompt, a readable image or a mask of their own are
            quarantined.
        images: a folder, or images by prompt; see :func:`open_images`. An image is read when its
            row is computed, and the row keeps its sha256.
        out: the run directory: a row per image in ``shards/``, and all embeddings in
            ``embeddings.safetensors`` (``embeddings`` [N, T, D], ``row_id`` [N]), which is left
            out if there are none.
        method: the attack; its random streams are numbered by row.
        start: ``"prompt"`` or ``"gaussian"``.
        masks: one mask for all rows, or one per row of the input, as ``dori-fast prune`` wrote.
        in_turn: reuse the masks from the first on if there are more rows than masks, without
            those that are missing; for controls, which have no masks of their own.
        judging: settings for drawing and comparing images; default ``Judging()``.
        column: the prompt column; default: the first usual name.
        image_column: column of file names relative to the folder; default ``image``.
        block: rows per block, without effect on the results; default 16.
        limit: number of rows to read; default: all.
        resume: as in a scan.
        max_errors: as in a scan; ``run.state`` is then ``"over_budget"``.
        on_progress: called after each shard.

    Raises:
        UsageError: wrong arguments, no rows, or more rows than masks.
        IntegrityError, StorageError, ScanInterrupted: as in a scan.
    """
    judging = judging or Judging()
    if in_turn and masks is None:
        raise UsageError("attack: in_turn is about masks, but there are none; give masks")
    with prompts_on_disk(prompts) as path:
        reader = open_prompts(path, column)
        require_rows(reader, prompts)
        image_of = open_images(images, reader, image_column, model.image_size)
        attacks = _Attacks(model, method, start, masks, in_turn, judging, image_of)
        run = run_rows(
            model,
            reader,
            path,
            out=Path(out),
            method=attacks.config(),
            columns=_COLUMNS,
            compute=attacks,
            at_once=block,
            limit=limit,
            resume=resume,
            max_errors=max_errors,
            on_progress=on_progress,
        )
    if run.counts.ok:
        write_durably(run.out / EMBEDDINGS, lambda file: _save_embeddings(model, run, file))
    else:
        (run.out / EMBEDDINGS).unlink(missing_ok=True)
    return AttackRun(run, (judging.measure or SmallImages()).threshold)


@dataclass(frozen=True)
class _Attacks:
    """Attacks on rows; the ``compute`` of :func:`run_rows`."""

    model: Denoiser
    method: Dori
    start: str
    masks: NeuronMask | WeightMask | None
    in_turn: bool
    judging: Judging
    image_of: ImageOfRow

    def config(self) -> dict[str, Any]:
        return {
            **self.method.config(),
            "start": self.start,
            "masks": self.masks and self.masks.sha256(),
            "in_turn": self.in_turn,
            "judging": self.judging.config(),
        }

    def __call__(self, rows: Rows, places: Sequence[int]) -> list[dict[str, Any] | str]:
        originals = {place: self._image(rows, place) for place in places}
        images = {p: image for p, image in originals.items() if not isinstance(image, str)}
        found = iter(self._attack(rows, images) if images else [])
        return [image if isinstance(image, str) else next(found) for image in originals.values()]

    def _image(self, rows: Rows, place: int) -> NDArray[np.uint8] | str:
        masks = None if self.in_turn else self.masks
        lacking = None if masks is None else without_mask(masks, rows.first + place)
        return lacking or self.image_of(rows, place)

    def _attack(self, rows: Rows, images: Mapping[int, NDArray[np.uint8]]) -> list[dict[str, Any]]:
        ids = [rows.first + place for place in images]
        prompts, originals = [rows.prompts[place] or "" for place in images], [*images.values()]
        view, stacked = self._view(ids), np.stack(originals)
        found = self.method.run(view, prompts, stacked, start=self.start, ids=ids)
        how = vars(self.judging)
        before = replication(view, view.encode(prompts), stacked, **how).similarity
        after = replication(view, found.condition(view), stacked, **how).similarity
        embeddings = found.embeddings.float().cpu().numpy()
        return [
            {
                "image_sha256": hashlib.sha256(originals[i].tobytes()).hexdigest(),
                "attack_steps": int(found.steps[i]),
                "evaluations": int(found.evaluations[i]),
                "losses": found.losses[: int(found.steps[i]), i].tolist(),
                "similarity_before": before[i],
                "similarity": after[i],
                "embedding": embeddings[i].tobytes(),
            }
            for i in range(len(ids))
        ]

    def _view(self, ids: Sequence[int]) -> Denoiser:
        if self.masks is None:
            return self.model
        if self.in_turn:
            return self.model.masked(self.masks.in_turn(ids))
        return masked_rows(self.model, self.masks, ids, "attack", ", or --in-turn for controls")


def _save_embeddings(model: Denoiser, run: RowRunResult, path: Path) -> None:
    """All rows' embeddings in one file, float32 for every model dtype."""
    rows = [(row["row_id"], row["embedding"]) for row in run.rows() if row["embedding"]]
    shape = model.unconditional.unique.shape[1:]
    found = [np.frombuffer(embedding, np.float32).reshape(shape) for _, embedding in rows]
    ids = np.array([row_id for row_id, _ in rows], np.int64)
    save_file({"embeddings": np.stack(found), "row_id": ids}, path)
