"""Fine-tuning over a file of prompts and their images, in a run directory that can be resumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dori_fast.errors import UsageError
from dori_fast.evaluate import SmallImages
from dori_fast.finetune import Adversarial, Checkpoint, StepReport, Surrogates, surrogates
from dori_fast.finetune.adversarial import check_model
from dori_fast.models import NeuronMask, WeightMask
from dori_fast.runs.budget import MAX_ERRORS, require_within
from dori_fast.runs.errors import OverBudgetError
from dori_fast.runs.methods.attack import masked_rows, without_mask
from dori_fast.runs.methods.cached_images import DrawnPairs, Pairs, cached_pairs, cached_surrogates
from dori_fast.runs.methods.drawing import Drawing
from dori_fast.runs.methods.prompt_image_rows import PromptImageRows, read_prompt_images
from dori_fast.runs.methods.step_log import StepLog
from dori_fast.runs.progress import Progress
from dori_fast.runs.scoring.spent import Spent
from dori_fast.runs.signals import Interrupts, interruptible
from dori_fast.runs.sources.memory.values import prompts_path
from dori_fast.runs.store import durable
from dori_fast.runs.store.directory import LockedDirectory, Resume
from dori_fast.runs.store.record import (
    SCHEMA_VERSION,
    RunRecord,
    hash_identity,
    library_versions,
    model_identity,
)

if TYPE_CHECKING:
    from dori_fast.models import Denoiser

CHECKPOINT, SCALARS, QUARANTINE = "checkpoint.safetensors", "scalars.jsonl", "quarantine.jsonl"
MODEL = "model"


@dataclass(frozen=True)
class FineTuned:
    """A finished run.

    Attributes:
        out: the run directory; the model is in ``model/``.
        memorized: number of images trained away.
        retained: number of retained pairs.
        quarantined: number of rows of both files that were left out.
        surrogates: :meth:`dori_fast.finetune.Surrogates.summary`.
        steps: steps done by this call, without those of earlier calls.
        seconds: duration of this call.
        evaluations: UNet sample evaluations of this call, without padding.
        rows_computed: UNet rows that this call computed: samples, padding, parts of the network.
    """

    out: Path
    memorized: int
    retained: int
    quarantined: int
    surrogates: dict[str, Any]
    steps: int
    seconds: float
    evaluations: int = 0
    rows_computed: int = 0

    def scalars(self) -> list[dict[str, Any]]:
        """The logged values of every step."""
        return [json.loads(line) for line in (self.out / SCALARS).read_text().splitlines()]


def fine_tune(
    model: Denoiser,
    prompts: str | Path,
    images: str | Path | Mapping[str, NDArray[np.uint8]],
    *,
    out: str | Path,
    method: Adversarial,
    masks: NeuronMask | WeightMask,
    retained: str | Path | DrawnPairs,
    retained_images: str | Path | None = None,
    drawing: Drawing | None = None,
    column: str | None = None,
    header: bool | None = None,
    image_column: str = "image",
    limit: int | None = None,
    checkpoint_every: int = 25,
    resume: Resume = "auto",
    max_errors: float = MAX_ERRORS,
    on_stage: Callable[[str], None] | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> FineTuned:
    """Train memorized images out of a copy of the model, or resume an interrupted run.

    Args:
        model: the original model, in float32, without masks.
        prompts: as in a scan; rows without a prompt, a readable image or a mask of their own are
            written to ``quarantine.jsonl`` with the reason, and left out.
        images: the memorized images, a folder or images by prompt; see
            :func:`dori_fast.runs.methods.image_files.open_images`.
        out: the run directory: ``run.json``, ``surrogates.safetensors``,
            ``checkpoint.safetensors``, ``scalars.jsonl`` (a line per step) and in the end
            ``model/``, a diffusers directory.
        method: the method.
        masks: masks that hide the images; one for all rows of ``prompts``, or one per row.
        retained: pairs whose quality is kept: a file of prompts whose column ``image`` names the
            images, or pairs to draw.
        retained_images: folder of the file's images; default: the file's own folder.
        drawing: settings for drawing surrogates; default ``Drawing()``.
        column: the prompt column of ``prompts``; default: the first usual name.
        header: True if ``prompts`` begins with column names, False if not; as in a scan. The file
            of retained prompts always does.
        image_column: column of file names relative to the folder ``images``; default ``image``.
        limit: number of rows of ``prompts`` to read; default: all.
        checkpoint_every: steps between checkpoints, without effect on the weights; default 25.
        resume: as in a scan.
        max_errors: allowed rows that are left out, of ``prompts`` and of ``retained`` each: a
            fraction if below 1, else a number of rows. Checked before anything is computed.
        on_stage: called with the name of each stage before the training.
        on_step: called with the report of each step.
        on_progress: called after every step.

    Raises:
        UsageError: wrong arguments, a model without an autoencoder, or a file without rows.
        OverBudgetError: more rows are left out than allowed; only ``quarantine.jsonl`` is written.
        NonFiniteError: surrogates, losses or weights that are NaN or infinite.
        IntegrityError: ``out`` holds a run with other settings, images or model.
        StorageError, ScanInterrupted: as in a scan; repeat the call to resume.
    """
    if checkpoint_every < 1:
        raise UsageError(f"finetune: checkpoint_every must be at least 1, got {checkpoint_every}")
    if isinstance(retained, DrawnPairs) and retained_images is not None:
        raise UsageError(
            "finetune: retained_images is for a file of pairs, but pairs are drawn; leave it out"
        )
    if not isinstance(method, Adversarial):
        raise UsageError(f"finetune: method must be a df.finetune.Adversarial, got {method!r}")
    check_model(model)
    model.autoencoder.require()
    began, say = perf_counter(), on_stage or (lambda text: None)
    size = model.image_size
    memorized = read_prompt_images(
        prompts,
        images,
        size,
        column=column,
        header=header,
        image_column=image_column,
        limit=limit,
        refuse=lambda row: without_mask(masks, row),
    )
    if isinstance(retained, DrawnPairs):
        kept: PromptImageRows | DrawnPairs = retained
    else:
        retained = prompts_path(retained, "finetune")
        folder = retained.parent if retained_images is None else retained_images
        kept = read_prompt_images(retained, folder, size)
    drawing, spent = drawing or Drawing(), Spent(model)
    run = _Run(Path(out), model, method, masks, drawing, memorized, kept, say, spent)
    run.check_budget(((prompts, memorized), (retained, kept)), max_errors)
    record = run.record(Path(prompts))
    with interruptible() as interrupts, LockedDirectory(run.out, record, resume) as directory:
        record.state = "interrupted"
        try:
            run.write_quarantine()
            pairs = run.retained(record.run_hash)
            others = run.surrogates(record.run_hash)
            steps = 0
            if not (run.out / MODEL).exists():
                steps = run.train(others, pairs, checkpoint_every, on_step, on_progress, interrupts)
            record.state = "done"
            record.add_spent(*spent.both)
        except BaseException:
            record.evaluations = record.rows_computed = None
            raise
        finally:
            record.seconds += perf_counter() - began
            directory.save_record()
    counts = (len(memorized.rows), len(pairs), len(run.refused))
    return FineTuned(run.out, *counts, others.summary(), steps, perf_counter() - began, *spent.both)


@dataclass(frozen=True)
class _Run:
    """The inputs of one call, and its stages."""

    out: Path
    model: Denoiser
    method: Adversarial
    masks: NeuronMask | WeightMask
    drawing: Drawing
    memorized: PromptImageRows
    kept: PromptImageRows | DrawnPairs
    say: Callable[[str], None]
    spent: Spent

    def record(self, prompts: Path) -> RunRecord:
        """The record of a new run, with everything that the weights depend on."""
        described, kept = self.model.config(), self.kept
        identity: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "fine_tuning": self.method.config(),
            "surrogates": {**self.drawing.config(), "masks": self.masks.sha256()},
            "memorized": self.memorized.config(),
            "retained": kept.config if isinstance(kept, DrawnPairs) else kept.config(),
            "model": model_identity(described),
        }
        if self.model.device.type == "cpu":
            # sums are split among threads, so equal weights need an equal number of them
            identity["threads"] = torch.get_num_threads()
        record = RunRecord(
            run_hash=hash_identity(identity),
            identity=identity,
            input_path=str(prompts),
            model=described,
            reading=list(self.model.reading),
            batch_size=self.model.batch_size,
            execution=asdict(self.model.engine.execution),
            versions=library_versions(),
        )
        record.counts = self.memorized.counts
        return record

    def check_budget(self, files: Iterable[tuple[Any, Any]], max_errors: float) -> None:
        """Raise OverBudgetError if too many rows of a file are left out, and write them down.

        Args:
            files: the names of the files, and their rows.
            max_errors: the budget of each.
        """
        see = f"see {self.out / QUARANTINE}, and correct the input"
        try:
            for name, part in files:
                if isinstance(part, PromptImageRows):
                    require_within(name, part.counts, max_errors, part.first_failure, see)
        except OverBudgetError:
            # a run that is here keeps its own list
            if not (self.out / "run.json").exists():
                self.out.mkdir(parents=True, exist_ok=True)
                self.write_quarantine()
            raise

    @property
    def refused(self) -> list[dict[str, Any]]:
        """The rows of both files that are left out."""
        kept = self.kept.refused if isinstance(self.kept, PromptImageRows) else []
        refused = {"prompts": self.memorized.refused, "retained": kept}
        return [{"file": file, **row} for file, rows in refused.items() for row in rows]

    def write_quarantine(self) -> None:
        """Write the rows that are left out, one per line."""
        text = "".join(json.dumps(row) + "\n" for row in self.refused)
        durable.write_text_durably(self.out / QUARANTINE, text)

    def retained(self, run_hash: str) -> Pairs:
        """The retained pairs."""
        kept = self.kept
        if isinstance(kept, PromptImageRows):
            return list(zip(kept.prompts, kept.images, strict=True))

        def draw() -> Pairs:
            self.say("drawing retained pairs")
            return kept.draw()

        return cached_pairs(self.out, run_hash, draw)

    def surrogates(self, run_hash: str) -> Surrogates:
        """The images that the pruned model draws instead of the memorized ones."""
        chosen, how = self.memorized, self.drawing

        def draw() -> Surrogates:
            self.say(f"drawing surrogates of {len(chosen.rows):,} images")
            return surrogates(
                masked_rows(self.model, self.masks, chosen.rows, "finetune"),
                chosen.prompts,
                chosen.images,
                measure=how.measure or SmallImages(),
                count=how.count,
                steps=how.steps,
                guidance=how.guidance,
            )

        return cached_surrogates(self.out, run_hash, draw)

    def train(
        self,
        others: Surrogates,
        pairs: Pairs,
        checkpoint_every: int,
        on_step: Callable[[StepReport], None] | None,
        on_progress: Callable[[Progress], None] | None,
        interrupts: Interrupts,
    ) -> int:
        """Train from the last checkpoint, write the model and return the number of steps done."""
        path = self.out / CHECKPOINT
        last = Checkpoint.load(path) if path.exists() else None
        begun = 0 if last is None else last.step
        log = StepLog(self.out / SCALARS, begun)
        due: list[Checkpoint] = []
        began = perf_counter()

        def step_done(report: StepReport) -> None:
            log.append(report.summary())
            if due:
                # after the log, which must not be behind the checkpoint
                log.sync()
                durable.write_durably(path, due.pop().save)
            if on_step is not None:
                on_step(report)
            if on_progress is not None:
                on_progress(self._progress(report, begun, perf_counter() - began))
            interrupts.check()

        tuned = self.method.run(
            self.model,
            self.memorized.prompts,
            self.memorized.images,
            surrogates=others,
            retained=pairs,
            on_step=step_done,
            on_checkpoint=due.append,
            checkpoint_every=checkpoint_every,
            resume=last,
        )
        durable.write_folder_durably(self.out / MODEL, tuned.save_pretrained)
        self.spent.add(tuned)
        return self.method.steps - begun

    def _progress(self, report: StepReport, begun: int, seconds: float) -> Progress:
        computed = report.step - begun
        return Progress(
            done=report.step,
            quarantined=len(self.refused),
            computed=computed,
            seconds=seconds,
            total=report.steps,
            remaining=seconds / computed * (report.steps - report.step),
        )
