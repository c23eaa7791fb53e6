"""The embedded model: a miniature Stable Diffusion that truly memorizes two dozen photographs.

    import dori_fast as df
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(df.demo.path())
    pairs = df.demo.pairs("memorized")

How it was made and how it behaves is in MODEL_CARD.md beside this file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from dori_fast.errors import IntegrityError, UsageError

__all__ = ["SPLITS", "Picture", "pairs", "path", "pictures", "sample_prompts"]

ROOT = Path(__file__).parent
SPLITS = ("memorized", "ordinary", "held_out")


@dataclass(frozen=True)
class Picture:
    """One shipped picture and what is known about it.

    Attributes:
        prompt: Its caption.
        kind: "photograph" (repeated exactly in training), "template" (a frame that was always the
            same around a centre that was not), "composition" (drawn from emoji), or "control" (a
            photograph or drawing that no training step ever opened).
        duplication: How often it was repeated in training against the rarest memorized one; 1 for
            ordinary pictures, 0 for held-out ones.
        source: The file it was cut from, or what it was drawn from.
        licence: Licence and author.
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
        IntegrityError: the weights are not there, as in a checkout without its large files.
    """
    model = ROOT / "model"
    if not (model / "model_index.json").is_file():
        raise IntegrityError(f"no embedded model in {model}; reinstall dori-fast")
    return model


def sample_prompts() -> Path:
    """A CSV (prompt, kind) of memorized, ordinary, held-out and real web prompts, to scan."""
    return ROOT / "sample_prompts.csv"


def pairs(split: str) -> list[tuple[str, np.ndarray]]:
    """Prompts and their pictures: [(prompt, uint8 [64, 64, 3]), ...].

    Args:
        split: "memorized" (repeated in training), "ordinary" (some of the rest of the training
            set) or "held_out" (never trained on, neither the pictures nor what they show).

    Raises:
        UsageError: no such split.
    """
    return [(p.prompt, p.image.copy()) for p in pictures(split)]


@cache
def pictures(split: str) -> tuple[Picture, ...]:
    """The pictures of a split with kind, duplication, source and licence; see `pairs`.

    Raises:
        UsageError: no such split.
    """
    if split not in SPLITS:
        raise UsageError(f"demo has no split {split!r}; choose one of {', '.join(SPLITS)}")
    from PIL import Image

    rows = json.loads((ROOT / "images" / f"{split}.json").read_text(encoding="utf-8"))
    with Image.open(ROOT / "images" / f"{split}.webp") as sheet:
        images = np.asarray(sheet.convert("RGB")).reshape(-1, 64, 64, 3)
    images.setflags(write=False)
    return tuple(Picture(**row, image=image) for row, image in zip(rows, images, strict=True))
