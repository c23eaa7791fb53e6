"""The stages of the story. Each writes a file, and is left out when its file is there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dori_fast.demo import Picture, pictures, sample_prompts
from dori_fast.demo.story.settings import BATCH, METHODS, Settings
from dori_fast.errors import IntegrityError
from dori_fast.evaluate import replication
from dori_fast.finetune import StepReport
from dori_fast.models import Denoiser, NeuronMask, WeightMask, load
from dori_fast.runs.methods.prune import prune
from dori_fast.runs.scan import scan
from dori_fast.runs.store.durable import write_durably
from dori_fast.runs.store.record import differences, model_identity
from recipes.training.finetuned import HOW, reproduced, retrain

RECORD, ORIGINALS, FINETUNED = "story.json", "originals.npz", "finetuned.json"
SETS = ("memorized", "control")


def chosen(settings: Settings) -> dict[str, list[Picture]]:
    """The story's pictures by set."""
    controls = [picture for picture in pictures("held_out") if picture.kind == "control"]
    found = {
        "memorized": reproduced()[: settings.pictures],
        "control": controls[: settings.controls],
    }
    return found


def begin(out: Path, model: Denoiser, settings: Settings) -> None:
    """Write what the story is about, or refuse a folder that holds another one.

    Raises:
        IntegrityError: other settings, or another model.
    """
    sets = chosen(settings)
    record = {
        "setting": settings.config(),
        "model": model_identity(model.config()),
        **{name: [picture.prompt for picture in of] for name, of in sets.items()},
    }
    same_or_new(out / RECORD, record)
    images = {name: np.stack([picture.image for picture in of]) for name, of in sets.items()}
    save(out / ORIGINALS, images)


def scan_prompts(out: Path, model: Denoiser, settings: Settings) -> None:
    """Score the sample prompts."""
    scan(model, sample_prompts(), out=out / "scan", limit=settings.prompts)


def localize(out: Path, model: Denoiser, settings: Settings, name: str) -> NeuronMask | WeightMask:
    """A mask for each memorized prompt; resumed prompt by prompt."""
    prompts = [picture.prompt for picture in chosen(settings)["memorized"]]
    return prune(model, prompts, out=out / name, method=METHODS[name]).masks


def draw(out: Path, model: Denoiser, settings: Settings) -> None:
    """What the model itself draws for the memorized prompts."""

    def compute() -> dict[str, NDArray[Any]]:
        of = chosen(settings)["memorized"]
        condition = model.encode([picture.prompt for picture in of])
        return _judged(model, condition, of, settings.seeds, 0)

    once(out / "memorized-unpruned.npz", compute)


def attack(
    out: Path,
    model: Denoiser,
    settings: Settings,
    name: str,
    which: str,
    masks: NeuronMask | WeightMask | None = None,
) -> None:
    """Attack a set of pictures from their prompts, and judge what is drawn on the way.

    Args:
        out: the story's folder.
        model: the one to attack.
        settings: of the story.
        name: what the model is called.
        which: the set.
        masks: one for each memorized prompt; controls, which have none, take them in turn.
    """

    def compute() -> dict[str, NDArray[Any]]:
        of = chosen(settings)[which]
        view = (
            model
            if masks is None
            else model.masked(masks.take([row % len(masks) for row in range(len(of))]))
        )
        prompts, images = [p.prompt for p in of], np.stack([p.image for p in of])
        ids = [f"{which} {row}" for row in range(len(of))]
        found = settings.attack().run(view, prompts, images, ids=ids)
        results: dict[str, NDArray[Any]] = {}
        for step in settings.steps:
            condition = found.condition(view, step) if step else view.encode(prompts)
            results |= _judged(view, condition, of, settings.seeds, step)
        return results

    once(out / f"{which}-{name}.npz", compute)


def fine_tune(out: Path, settings: Settings, say: Callable[[str], None], **how: Any) -> Denoiser:
    """Train the story's photographs away, or load what an earlier call trained.

    Args:
        out: the story's folder.
        settings: of the story.
        say: is told about some steps.
        how: ``how`` and ``drawn`` of :func:`recipes.training.finetuned.retrain`.
    """
    folder = out / "finetuned"
    if not (folder / "model_index.json").exists():

        def told(step: StepReport) -> None:
            if step.step % 10 == 0 or step.step == step.steps:
                say(f"fine-tuning: step {step.step} of {step.steps}")

        of = chosen(settings)["memorized"]
        retrain(out / "training", of, on_step=told, **how).save_pretrained(folder)
    return load(folder, batch_size=BATCH)


def same_or_new(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record, or compare with the one that is there.

    Raises:
        IntegrityError: another one is there, or a damaged one.
    """
    record = json.loads(json.dumps(record))
    if path.exists():
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise IntegrityError(f"{path}: damaged — use another --out") from error
        if there != record:
            raise IntegrityError(
                f"{path.parent}: holds results of another setting ({differences(there, record)})"
                " — use another --out, or the earlier settings"
            )
    text = json.dumps(record, indent=1) + "\n"
    write_durably(path, lambda file: _write_text(file, text))


def once(path: Path, compute: Callable[[], dict[str, NDArray[Any]]]) -> None:
    """Compute and save arrays, unless they are there."""
    if not path.exists():
        save(path, compute())


def save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Save arrays by one rename."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **dict(arrays))

    write_durably(path, write)


def _judged(
    model: Denoiser, condition: Any, of: list[Picture], seeds: int, step: int
) -> dict[str, NDArray[Any]]:
    """Similarities [P, S] and the first seed's pictures [P, H, W, 3], named by the step."""
    images = np.stack([picture.image for picture in of])
    found = replication(model, condition, images, seeds=seeds, keep_images=True, **HOW)
    drawn = found.images
    assert drawn is not None  # noqa: S101
    return {f"similarity {step}": found.similarity, f"pictures {step}": drawn[:, 0]}


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
