"""How the embedded model's memorized photographs are trained away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dori_fast.demo import Picture, pairs, pictures
from dori_fast.evaluate import SmallPictures
from dori_fast.finetune import Adversarial, Checkpoint, StepReport, surrogates
from dori_fast.models import Denoiser, load
from dori_fast.prune import Wanda
from recipes.images.scenes import OBJECTS, caption, sample_scene

# hides the photographs, so that what the model then draws for their prompts are surrogates
HIDING = Wanda(0.3, both_halves=False, joint=False)
HOW: dict[str, Any] = {"steps": 20, "guidance": 4.0}
# retained pairs that the model draws itself, besides the shipped ones
DRAWN = 1200
# repeated at least so often in training, a photograph is one that the model reproduces
OFTEN = 4
_CHECKPOINT_EVERY = 10
# captions that share a seed of the drawing
_TOGETHER = 32


def reproduced() -> list[Picture]:
    """The photographs that the embedded model reproduces from their prompts."""
    return [picture for picture in pictures("memorized") if picture.duplication >= OFTEN]


def retrain(
    work: Path,
    chosen: Sequence[Picture] | None = None,
    *,
    how: Adversarial | None = None,
    drawn: int = DRAWN,
    on_step: Callable[[StepReport], None] | None = None,
) -> Denoiser:
    """Train the pictures out of the embedded model, or go on from the checkpoint in ``work``.

    Args:
        work: folder of the checkpoint; made if need be.
        chosen: those to remove; all that the model reproduces if not given.
        how: the method, ``Adversarial()`` if not given.
        drawn: retained pairs that the model draws for captions of its own kind.
        on_step: is told about every step.
    """
    work.mkdir(parents=True, exist_ok=True)
    chosen = reproduced() if chosen is None else chosen
    model = load("demo", device="cpu")
    prompts, images = [p.prompt for p in chosen], np.stack([p.image for p in chosen])
    hidden = model.masked(HIDING.localize(model, prompts))
    others = surrogates(hidden, images, prompts, measure=SmallPictures(), **HOW)
    path = work / "checkpoint.safetensors"
    return (how or Adversarial()).run(
        load("demo", device="cpu", batch_size=16),
        images,
        prompts,
        surrogates=others,
        retained=retained_pairs(model, drawn),
        on_step=on_step,
        on_checkpoint=lambda state: state.save(path),
        checkpoint_every=_CHECKPOINT_EVERY,
        resume=Checkpoint.load(path) if path.exists() else None,
    )


def retained_pairs(model: Denoiser, drawn: int) -> list[tuple[str, NDArray[np.uint8]]]:
    """The shipped ordinary pairs, and captions of their kind with what the model draws for them."""
    rng = np.random.default_rng(7)
    unseen = {picture.prompt for picture in pictures("held_out")}
    nouns, captions = sorted(OBJECTS.values()), list[str]()
    while len(captions) < drawn:
        text = caption(sample_scene(rng, frozenset(), nouns), rng)
        if text not in unseen:
            captions.append(text)
    found = pairs("ordinary")
    for first in range(0, drawn, _TOGETHER):
        part = captions[first : first + _TOGETHER]
        images = model.generate(model.encode(part), [1000 + first], **HOW)[:, 0]
        found += list(zip(part, images.numpy(), strict=True))
    return found
