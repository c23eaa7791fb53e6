"""Train the embedded model's memorized photographs away.

    python -m recipes.training.finetuned --work WORK --out DIR

DIR becomes a diffusers directory, for `dori-fast demo --finetuned DIR`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dori_fast.demo import DemoImage
from dori_fast.demo.facts import GENERATION, HIDING, reproduced
from dori_fast.demo.retained import DRAWN, retained_pairs
from dori_fast.evaluate import SmallImages
from dori_fast.finetune import Adversarial, Checkpoint, StepReport, surrogates
from dori_fast.models import Denoiser, load
from dori_fast.runs.store.durable import write_durably

_CHECKPOINT_EVERY = 10


def retrain(
    work: Path,
    chosen: Sequence[DemoImage] | None = None,
    *,
    how: Adversarial | None = None,
    drawn: int = DRAWN,
    on_step: Callable[[StepReport], None] | None = None,
) -> Denoiser:
    """Train the images out of the embedded model, or continue from the checkpoint in ``work``.

    Args:
        work: Folder of the checkpoint; created if missing.
        chosen: Images to remove; default: all that the model reproduces.
        how: The method; default: ``Adversarial()``.
        drawn: Number of retained pairs whose images the model draws; the shipped ones are added.
        on_step: Called after every step.
    """
    work.mkdir(parents=True, exist_ok=True)
    chosen = reproduced() if chosen is None else chosen
    model = load("demo", device="cpu")
    prompts, images = [p.prompt for p in chosen], np.stack([p.image for p in chosen])
    hidden = model.masked(HIDING.localize(model, prompts))
    others = surrogates(hidden, prompts, images, measure=SmallImages(), **GENERATION)
    path = work / "checkpoint.safetensors"
    return (how or Adversarial()).run(
        load("demo", device="cpu", batch_size=16),
        prompts,
        images,
        surrogates=others,
        retained=retained_pairs(model, drawn),
        on_step=on_step,
        on_checkpoint=lambda state: write_durably(path, state.save),
        checkpoint_every=_CHECKPOINT_EVERY,
        resume=Checkpoint.load(path) if path.exists() else None,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of this step."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.training.finetuned", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="diffusers directory to write")
    parser.add_argument("--images", type=int, help="number of photographs; default: all")
    parser.add_argument(
        "--steps",
        type=int,
        default=Adversarial().steps,
        help="weight updates; default: %(default)s",
    )
    parser.add_argument(
        "--drawn", type=int, default=DRAWN, help="drawn retained pairs; default: %(default)s"
    )
    options = parser.parse_args(arguments)

    def report(step: StepReport) -> None:
        if step.step % 10 == 0 or step.step == step.steps:
            print(f"step {step.step} of {step.steps}", flush=True)

    fixed = retrain(
        options.work,
        reproduced()[: options.images],
        how=Adversarial(options.steps),
        drawn=options.drawn,
        on_step=report,
    )
    fixed.save_pretrained(options.out)
    print(options.out)


if __name__ == "__main__":
    main()
