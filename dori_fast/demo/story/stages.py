"""Stages of the story. Each writes one result and is skipped if the result exists."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dori_fast.demo import DemoImage, images, sample_prompts
from dori_fast.demo.facts import GENERATION, reproduced
from dori_fast.demo.story.settings import METHODS, Settings
from dori_fast.errors import IntegrityError
from dori_fast.evaluate import replication
from dori_fast.models import Denoiser, NeuronMask, WeightMask
from dori_fast.runs.methods.prune import prune
from dori_fast.runs.scan import scan
from dori_fast.runs.store.durable import write_durably, write_text_durably
from dori_fast.runs.store.record import differences, model_identity

RECORD, ORIGINALS, FINETUNED = "story.json", "originals.npz", "finetuned.json"
SETS = ("memorized", "control")


def chosen(settings: Settings) -> dict[str, list[DemoImage]]:
    """The story's images by set."""
    controls = [image for image in images("held_out") if image.kind == "control"]
    return {
        "memorized": reproduced()[: settings.images],
        "control": controls[: settings.controls],
    }


def begin(out: Path, model: Denoiser, settings: Settings) -> None:
    """Write the story's settings and originals, or refuse a folder that holds another story.

    Raises:
        IntegrityError: the folder is of other settings, or of another model.
    """
    sets = chosen(settings)
    record = {
        "setting": settings.config(),
        "model": model_identity(model.config()),
        **{name: [image.prompt for image in listed] for name, listed in sets.items()},
    }
    same_or_new(out / RECORD, record)
    save(out / ORIGINALS, {name: stacked(listed) for name, listed in sets.items()})


def stacked(listed: list[DemoImage]) -> NDArray[np.uint8]:
    """uint8 [P, H, W, 3] of P images."""
    return np.stack([image.image for image in listed])


def scan_prompts(out: Path, model: Denoiser, settings: Settings) -> None:
    """Score the sample prompts."""
    scan(model, sample_prompts(), out=out / "scan", limit=settings.prompts)


def localize(out: Path, model: Denoiser, settings: Settings, name: str) -> NeuronMask | WeightMask:
    """A mask for each memorized prompt; resumed prompt by prompt."""
    prompts = [image.prompt for image in chosen(settings)["memorized"]]
    return prune(model, prompts, out=out / name, method=METHODS[name]).masks


def draw(out: Path, model: Denoiser, settings: Settings) -> None:
    """Draw images for the memorized prompts with the unpruned model."""

    def compute() -> dict[str, NDArray[Any]]:
        memorized = chosen(settings)["memorized"]
        condition = model.encode([image.prompt for image in memorized])
        return _judged(model, condition, memorized, settings.seeds, 0)

    once(out / "memorized-unpruned.npz", compute)


def attack(
    out: Path,
    model: Denoiser,
    settings: Settings,
    name: str,
    which: str,
    masks: NeuronMask | WeightMask | None = None,
) -> None:
    """Attack a set of images from their prompts, and judge images drawn at each budget.

    Args:
        out: Folder of the story.
        model: Model to attack.
        settings: Size of the story.
        name: Name of the model in file names.
        which: Set of images.
        masks: One mask per memorized prompt; controls take these masks in turn.
    """

    def compute() -> dict[str, NDArray[Any]]:
        attacked = chosen(settings)[which]
        view = model if masks is None else model.masked(masks.in_turn(len(attacked)))
        prompts = [image.prompt for image in attacked]
        ids = [f"{which} {row}" for row in range(len(attacked))]
        found = settings.attack().run(view, prompts, stacked(attacked), ids=ids)
        results: dict[str, NDArray[Any]] = {}
        for step in settings.steps:
            condition = found.condition(view, step) if step else view.encode(prompts)
            results |= _judged(view, condition, attacked, settings.seeds, step)
        return results

    once(out / f"{which}-{name}.npz", compute)


def same_or_new(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record, or compare it with the existing one.

    Raises:
        IntegrityError: the existing record differs or is damaged.
    """
    record = json.loads(json.dumps(record))
    if path.exists():
        try:
            existing = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise IntegrityError(f"{path}: damaged; use another --out") from error
        if existing != record:
            raise IntegrityError(
                f"{path.parent}: holds results of another setting"
                f" ({differences(existing, record)}); use another --out, or the earlier settings"
            )
    text = json.dumps(record, indent=1) + "\n"
    write_text_durably(path, text)


def once(path: Path, compute: Callable[[], dict[str, NDArray[Any]]]) -> None:
    """Compute and save arrays, unless the file exists."""
    if not path.exists():
        save(path, compute())


def save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Save arrays by one rename."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **dict(arrays))

    write_durably(path, write)


def _judged(
    model: Denoiser, condition: Any, originals: list[DemoImage], seeds: int, step: int
) -> dict[str, NDArray[Any]]:
    """Similarities [P, S] and the first seed's images [P, H, W, 3], named by the step."""
    found = replication(
        model, condition, stacked(originals), seeds=seeds, keep_images=True, **GENERATION
    )
    drawn = found.images
    assert drawn is not None  # noqa: S101
    return {f"similarity {step}": found.similarity, f"pictures {step}": drawn[:, 0]}
