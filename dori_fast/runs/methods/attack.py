"""The attack over a file of prompts and their images: a row per image, resumable by block."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from dori_fast.attack import Dori
from dori_fast.attack.starts import STARTS
from dori_fast.errors import IntegrityError, NonFiniteError, UsageError
from dori_fast.evaluate import CopySimilarity, SmallImages, replication
from dori_fast.models import NeuronMask, TextCondition, WeightMask
from dori_fast.models.schedules.vp import DDIM_STEPS
from dori_fast.runs.budget import MAX_ERRORS, require_rows
from dori_fast.runs.methods.image_files import ImageOfRow, open_images
from dori_fast.runs.methods.prune import EMBEDDINGS, MASKS
from dori_fast.runs.methods.row_runs import RowRunResult, run_rows
from dori_fast.runs.progress import Progress
from dori_fast.runs.sources.memory.values import described
from dori_fast.runs.sources.open import open_prompts, prompts_on_disk
from dori_fast.runs.sources.rows import Rows
from dori_fast.runs.sources.where import Selection
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
    header: bool | None = None,
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
        prompts: as in a scan. Rows without a prompt, a readable image or a mask of their own are
            quarantined, and so are rows whose latents, losses or images are NaN or infinite.
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
        header: True if .csv and .tsv files begin with column names, False if not; as in a scan.
        image_column: column of file names relative to the folder; default ``image``.
        block: rows per block, without effect on the results; default 16.
        limit: number of rows to read; default: all.
        resume: as in a scan.
        max_errors: as in a scan; ``run.state`` is then ``"over_budget"``.
        on_progress: called after each shard.

    Raises:
        UsageError: wrong arguments, no rows, a model without an autoencoder, or more rows than
            masks.
        IntegrityError, StorageError, ScanInterrupted: as in a scan.
    """
    if not isinstance(method, Dori):
        raise UsageError(f"attack: method must be a df.attack.Dori, got {method!r}")
    if start not in STARTS:
        raise UsageError(f"attack: start must be one of {', '.join(STARTS)}, got {start!r}")
    if in_turn and masks is None:
        raise UsageError("attack: in_turn is about masks, but there are none; give masks")
    model.autoencoder.require()
    judging, selection = judging or Judging(), Selection.of(header=header)
    with prompts_on_disk(prompts) as path:
        reader = open_prompts(path, column, selection)
        require_rows(reader, described(prompts))
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
            selection=selection,
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

    def _attack(
        self, rows: Rows, images: Mapping[int, NDArray[np.uint8]]
    ) -> list[dict[str, Any] | str]:
        ids = [rows.first + place for place in images]
        prompts, originals = [rows.prompts[place] or "" for place in images], [*images.values()]
        view, stacked = self._view(ids), np.stack(originals)
        try:
            found = self.method.run(view, prompts, stacked, start=self.start, ids=ids)
        except NonFiniteError as error:
            # an image without finite latents, which the attack meets before its first step
            if len(ids) == 1:
                return [f"nonfinite: {error}"]
            return [self._attack(rows, {place: images[place]})[0] for place in images]
        before = self._similarities(view, view.encode(prompts), stacked)
        embedded = view.condition(found.embeddings, found.pooled)
        after = self._similarities(view, embedded, stacked)
        embeddings, steps = found.embeddings.float().cpu().numpy(), found.evaluations
        results: list[dict[str, Any] | str] = []
        for i, (one, two) in enumerate(zip(before, after, strict=True)):
            if i in found.failures:
                dtype = str(self.model.dtype).removeprefix("torch.")
                results.append(f"nonfinite: attack: {found.failures[i]} in {dtype}")
                continue
            if isinstance(one, str) or isinstance(two, str):
                results.append(one if isinstance(one, str) else str(two))
                continue
            results.append(
                {
                    "image_sha256": hashlib.sha256(originals[i].tobytes()).hexdigest(),
                    "attack_steps": int(found.steps[i]),
                    "evaluations": int(found.evaluations[i]),
                    # a step may have had a loss but no update
                    "losses": found.losses[: int(steps[i]) // self.method.draws, i].tolist(),
                    "similarity_before": one,
                    "similarity": two,
                    "embedding": embeddings[i].tobytes(),
                }
            )
        return results

    def _similarities(
        self, view: Denoiser, condition: TextCondition, originals: NDArray[np.uint8]
    ) -> list[NDArray[np.float64] | str]:
        """Similarities [S] of each row, or ``"nonfinite: message"`` for a row without an image."""
        try:
            return [*replication(view, condition, originals, **vars(self.judging)).similarity]
        except NonFiniteError as error:
            if len(originals) == 1:
                return [f"nonfinite: {error}"]
        alone = torch.arange(len(originals)).split(1)
        return [self._similarities(view, condition[i], originals[i.numpy()])[0] for i in alone]

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
