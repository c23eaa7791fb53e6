"""The embedded model: a miniature Stable Diffusion that truly memorizes two dozen photographs.

    import dori_fast as df
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(df.demo.path())
    pairs = df.demo.pairs("memorized")

MODEL_CARD.md beside this file describes its training and behavior.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from dori_fast.errors import IntegrityError, UsageError

__all__ = ["SPLITS", "DemoImage", "images", "pairs", "path", "sample_prompts"]

ROOT = Path(__file__).parent
SPLITS = ("memorized", "ordinary", "held_out")


@dataclass(frozen=True)
class DemoImage:
    """One shipped image with its caption and origin.

    Attributes:
        prompt: Caption.
        kind: "photograph" (repeated exactly in training), "template" (a frame that was always the
            same around a center that was not), "composition" (drawn from emoji), or "control" (a
            photograph or drawing that no training step ever opened).
        duplication: Repetitions in training relative to the rarest memorized image; 1 for ordinary
            images, 0 for held-out ones.
        source: File that the image was cut from, or the objects that it was drawn from.
        licence: License and author.
        image: uint8 [64, 64, 3], sRGB.
    """

    prompt: str
    kind: str
    duplication: int
    source: str
    licence: str
    image: np.ndarray


def path() -> Path:
    """The embedded model as a plain diffusers directory, for `StableDiffusionPipeline` or `load`.

    Raises:
        IntegrityError: the weights are missing, as in a checkout without its large files.
    """
    model = ROOT / "model"
    if not (model / "model_index.json").is_file():
        raise IntegrityError(f"no embedded model in {model}; reinstall dori-fast")
    return model


def sample_prompts() -> Path:
    """A CSV (prompt, kind) of memorized, ordinary, held-out and real web prompts, to scan."""
    return ROOT / "sample_prompts.csv"


def pairs(split: str) -> list[tuple[str, np.ndarray]]:
    """Prompts and their images: [(prompt, uint8 [64, 64, 3]), ...].

    Args:
        split: "memorized" (repeated in training), "ordinary" (part of the rest of the training
            set) or "held_out" (neither the images nor the objects they show were trained on).

    Raises:
        UsageError: no such split.
    """
    return [(found.prompt, found.image.copy()) for found in images(split)]


@cache
def images(split: str) -> tuple[DemoImage, ...]:
    """The images of a split with kind, duplication, source and license; see `pairs`.

    Raises:
        UsageError: no such split.
    """
    if split not in SPLITS:
        raise UsageError(f"demo has no split {split!r}; choose one of {', '.join(SPLITS)}")
    from PIL import Image

    rows = json.loads((ROOT / "images" / f"{split}.json").read_text(encoding="utf-8"))
    with Image.open(ROOT / "images" / f"{split}.webp") as sheet:
        arrays = np.asarray(sheet.convert("RGB")).reshape(-1, 64, 64, 3)
    arrays.setflags(write=False)
    return tuple(DemoImage(**row, image=array) for row, array in zip(rows, arrays, strict=True))
