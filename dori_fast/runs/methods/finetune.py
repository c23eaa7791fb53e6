"""Fine-tuning over a file of prompts and their pictures, in a folder from which it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dori_fast.errors import UsageError
from dori_fast.evaluate import CopySimilarity, SmallImages
from dori_fast.finetune import Adversarial, Checkpoint, StepReport, Surrogates, surrogates
from dori_fast.finetune.adversarial import check_model
from dori_fast.models import NeuronMask, WeightMask
from dori_fast.runs.methods.attack import masked_rows
from dori_fast.runs.methods.cached_images import Drawn, Pairs, kept_pairs, kept_surrogates
from dori_fast.runs.store.durable import write_durably, write_folder_durably
from dori_fast.runs.methods.prompt_image_rows import Pictured, read_pictured
from dori_fast.runs.store.record import (
    SCHEMA_VERSION,
    RunRecord,
    hash_identity,
    library_versions,
    model_identity,
)
from dori_fast.runs.store.run_folder import Resume, RunFolder
from dori_fast.runs.methods.step_log import Scalars
from dori_fast.runs.signals import Interrupts, interruptible

if TYPE_CHECKING:
    from dori_fast.models import Denoiser

CHECKPOINT, SCALARS, QUARANTINE = "checkpoint.safetensors", "scalars.jsonl", "quarantine.jsonl"
MODEL = "model"


@dataclass(frozen=True)
class Drawing:
    """How the pruned model draws surrogates; see :func:`dori_fast.finetune.surrogates`.

    Attributes:
        count: surrogates per prompt, the first ones of twice as many that are no copies.
        steps: DDIM steps.
        guidance: scale of classifier-free guidance.
        measure: of copying; the descriptor for small pictures if None.
    """

    count: int = 4
    steps: int = 50
    guidance: float = 7.5
    measure: CopySimilarity | None = None

    def config(self) -> dict[str, Any]:
        """As plain JSON."""
        measure = (self.measure or SmallImages()).config()
        how = {"count": self.count, "steps": self.steps, "guidance": self.guidance}
        return {**how, "measure": measure}


@dataclass(frozen=True)
class FineTuned:
    """A finished run.

    Attributes:
        out: its folder; the model is in ``model/``.
        memorized: pictures that were trained away.
        retained: pairs whose quality was to be kept.
        quarantined: rows of both files that were left out.
        surrogates: :meth:`dori_fast.finetune.Surrogates.summary`.
        steps: done by this call; the others were there already.
        seconds: time of this call.
    """

    out: Path
    memorized: int
    retained: int
    quarantined: int
    surrogates: dict[str, Any]
    steps: int
    seconds: float

    def scalars(self) -> list[dict[str, Any]]:
        """The figures of every step."""
        return [json.loads(line) for line in (self.out / SCALARS).read_text().splitlines()]


def fine_tune(
    model: Denoiser,
    prompts: str | Path,
    images: str | Path | Mapping[str, NDArray[np.uint8]],
    *,
    out: str | Path,
    method: Adversarial,
    masks: NeuronMask | WeightMask,
    retained: str | Path | Drawn,
    retained_images: str | Path | None = None,
    drawing: Drawing | None = None,
    column: str | None = None,
    image_column: str = "image",
    limit: int | None = None,
    checkpoint_every: int = 25,
    resume: Resume = "auto",
    on_stage: Callable[[str], None] | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> FineTuned:
    """Train memorized pictures out of a copy of the model, or go on where a run was ended.

    Args:
        model: the original one, in float32, without masks.
        prompts: as in a scan; rows without a prompt or a readable picture are left out and
            written to ``quarantine.jsonl`` with the reason.
        images: the memorized pictures, a folder or by prompt; see
            :func:`dori_fast.runs.methods.image_files.open_originals`.
        out: the folder: ``run.json``, ``surrogates.safetensors``, ``checkpoint.safetensors``,
            ``scalars.jsonl`` (the figures of a step a line) and in the end ``model/``, a diffusers
            directory.
        method: the method.
        masks: that hide the pictures; one for all rows of ``prompts`` or one for each.
        retained: pairs whose quality is to be kept: a file of prompts whose pictures the column
            ``image`` names, or what is drawn.
        retained_images: the folder of the file's pictures; the file's own if not given.
        drawing: of the surrogates.
        column: the prompt column of ``prompts``; found by itself if it has a usual name.
        image_column: of file names relative to the folder ``images``.
        limit: read only the first rows of ``prompts``.
        checkpoint_every: steps that a kill costs at most. It does not change the weights.
        resume: as in a scan.
        on_stage: is told what is done before the training.
        on_step: is told about every step.

    Raises:
        UsageError: wrong arguments, or no row is left.
        IntegrityError: ``out`` holds a run with other settings, pictures or model.
        StorageError, ScanInterrupted: as in a scan; the same call goes on.
    """
    if checkpoint_every < 1:
        raise UsageError(f"finetune: checkpoint_every must be at least 1, got {checkpoint_every}")
    check_model(model)
    began, say = perf_counter(), on_stage or (lambda text: None)
    drawing, size = drawing or Drawing(), model.picture_size
    memorized = read_pictured(
        prompts, images, size, column=column, image_column=image_column, limit=limit
    )
    kept = (
        retained if isinstance(retained, Drawn) else _read_retained(retained, retained_images, size)
    )
    run = _Run(Path(out), Path(prompts), model, method, masks, drawing, memorized, kept)
    with interruptible() as interrupts, RunFolder(run.out, run.record, resume) as folder:
        run.record.state = "interrupted"
        try:
            run.write_quarantine()
            pairs = run.retained(say)
            others = run.surrogates(say)
            steps = 0
            if not (run.out / MODEL).exists():
                steps = run.train(others, pairs, checkpoint_every, on_step, interrupts)
            run.record.state = "done"
        finally:
            run.record.seconds += perf_counter() - began
            folder.save_record()
    counts = (len(memorized.rows), len(pairs), len(run.refused))
    return FineTuned(run.out, *counts, others.summary(), steps, perf_counter() - began)


def _read_retained(path: str | Path, folder: str | Path | None, size: tuple[int, int]) -> Pictured:
    return read_pictured(path, Path(path).parent if folder is None else folder, size)


class _Run:
    """One call: what its results depend on, and its stages."""

    def __init__(
        self,
        out: Path,
        prompts: Path,
        model: Denoiser,
        method: Adversarial,
        masks: NeuronMask | WeightMask,
        drawing: Drawing,
        memorized: Pictured,
        kept: Pictured | Drawn,
    ) -> None:
        self.out, self._model, self._method = out, model, method
        self._drawing, self._memorized, self._kept = drawing, memorized, kept
        self._masks = masks
        described = model.config()
        identity: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "fine_tuning": method.config(),
            "surrogates": {**drawing.config(), "masks": masks.sha256()},
            "memorized": memorized.config(),
            "retained": kept.config if isinstance(kept, Drawn) else kept.config(),
            "model": model_identity(described),
        }
        if model.device.type == "cpu":
            # sums are split among threads, so that weights are the same for the same number only
            identity["threads"] = torch.get_num_threads()
        self.refused = [{"file": "prompts", **row} for row in memorized.refused]
        if isinstance(kept, Pictured):
            self.refused += [{"file": "retained", **row} for row in kept.refused]
        self.record = RunRecord(
            run_hash=hash_identity(identity),
            identity=identity,
            input_path=str(prompts),
            model=described,
            batch_size=model.batch_size,
            versions=library_versions(),
        )
        counts = self.record.counts
        counts.ok, counts.quarantined = len(memorized.rows), len(memorized.refused)
        counts.rows = counts.ok + counts.quarantined

    def write_quarantine(self) -> None:
        """The rows that are left out, one a line."""
        text = "".join(json.dumps(row) + "\n" for row in self.refused)
        write_durably(self.out / QUARANTINE, lambda file: _write(file, text))

    def retained(self, say: Callable[[str], None]) -> Pairs:
        """The pairs to keep."""
        kept = self._kept
        if isinstance(kept, Pictured):
            return list(zip(kept.prompts, kept.images, strict=True))

        def draw() -> Pairs:
            say("drawing retained pairs")
            return kept.draw()

        return kept_pairs(self.out, self.record.run_hash, draw)

    def surrogates(self, say: Callable[[str], None]) -> Surrogates:
        """What the pruned model draws instead of the memorized pictures."""
        chosen, how = self._memorized, self._drawing

        def draw() -> Surrogates:
            say(f"drawing surrogates of {len(chosen.rows):,} pictures")
            return surrogates(
                masked_rows(self._model, self._masks, chosen.rows, "finetune"),
                chosen.prompts,
                chosen.images,
                measure=how.measure or SmallImages(),
                count=how.count,
                steps=how.steps,
                guidance=how.guidance,
            )

        return kept_surrogates(self.out, self.record.run_hash, draw)

    def train(
        self,
        others: Surrogates,
        pairs: Pairs,
        checkpoint_every: int,
        on_step: Callable[[StepReport], None] | None,
        interrupts: Interrupts,
    ) -> int:
        """Train from the last checkpoint on and write the model; returns the steps done."""
        path = self.out / CHECKPOINT
        last = Checkpoint.load(path) if path.exists() else None
        begun = 0 if last is None else last.step
        scalars = Scalars(self.out / SCALARS, begun)
        due: list[Checkpoint] = []

        def told(report: StepReport) -> None:
            scalars.append(report.summary())
            if due:
                # only now, so that the file of figures is never behind the checkpoint
                scalars.sync()
                write_durably(path, due.pop().save)
            if on_step is not None:
                on_step(report)
            interrupts.check()

        tuned = self._method.run(
            self._model,
            self._memorized.prompts,
            self._memorized.images,
            surrogates=others,
            retained=pairs,
            on_step=told,
            on_checkpoint=due.append,
            checkpoint_every=checkpoint_every,
            resume=last,
        )
        write_folder_durably(self.out / MODEL, tuned.save_pretrained)
        return self._method.steps - begun


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
