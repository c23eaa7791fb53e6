"""What adversarial fine-tuning does on the embedded model, before and after, under fresh attacks.

The photographs that the model reproduces are trained away: surrogates from Wanda's masks, one for
each prompt; retained pairs are the shipped ordinary ones and what the model itself draws for other
captions of their kind. Then the pruned and the fine-tuned model are attacked from the prompts with
draws that training never saw, beside never-trained pictures at the same budget, and the loss on
held-out pairs is compared with the original's.

    python -m benchmarks.removal --work removal      # run again to go on after an interruption
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dori_fast as df
from benchmarks import harness
from benchmarks.pruning import HOW, OFTEN, WANDA
from dori_fast.attack import Dori
from dori_fast.demo.recipe.scenes import OBJECTS, caption, sample_scene
from dori_fast.evaluate import SmallPictures, held_out_loss, replication
from dori_fast.finetune import Adversarial, Checkpoint, Pool, StepReport, Surrogates, surrogates

RESULTS = harness.RESULTS / "quality" / "removal.json"
# seeds of the generations and draws of the attacks that no training step has seen
FIRST_SEED, ATTACK_SEED = 100, 4242
# draws per pair of the held-out loss
DRAWS = 20


@dataclass(frozen=True)
class Memorized:
    """Pictures with their prompts."""

    prompts: list[str]
    images: NDArray[np.uint8]

    @staticmethod
    def of(pictures: Sequence[df.demo.Picture]) -> Memorized:
        """Those of a split."""
        return Memorized([p.prompt for p in pictures], np.stack([p.image for p in pictures]))


def targets(count: int | None) -> Memorized:
    """The photographs that the model reproduces."""
    often = [p for p in df.demo.pictures("memorized") if p.duplication >= OFTEN]
    return Memorized.of(often[:count])


def held_out(kind: str, count: int | None = None) -> Memorized:
    """Never-trained pictures: "control" ones to attack, "composition" ones to take the loss of."""
    return Memorized.of([p for p in df.demo.pictures("held_out") if p.kind == kind][:count])


def retained_pairs(model: df.Denoiser, drawn: int) -> list[tuple[str, NDArray[np.uint8]]]:
    """The shipped ordinary pairs, and captions of their kind with what the model draws for them."""
    rng = np.random.default_rng(7)
    nouns, unseen = sorted(OBJECTS.values()), set(held_out("composition").prompts)
    captions: list[str] = []
    while len(captions) < drawn:
        text = caption(sample_scene(rng, frozenset(), nouns), rng)
        if text not in unseen:
            captions.append(text)
    pairs = df.demo.pairs("ordinary")
    for first in range(0, drawn, model.batch_size):
        part = captions[first : first + model.batch_size]
        pictures = model.generate(model.encode(part), [1000 + first], **HOW)[:, 0]
        pairs += list(zip(part, pictures.numpy(), strict=True))
    return pairs


def fine_tune(
    method: Adversarial,
    model: df.Denoiser,
    chosen: Memorized,
    others: Surrogates,
    pairs: list[tuple[str, NDArray[np.uint8]]],
    work: Path,
) -> df.Denoiser:
    """Train, or go on from the checkpoint in ``work``; a line of its log for each step."""
    path = work / "checkpoint.safetensors"

    def told(report: StepReport) -> None:
        with (work / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(report.as_dict()) + "\n")

    fixed = method.run(
        model,
        chosen.images,
        chosen.prompts,
        surrogates=others,
        retained=pairs,
        on_step=told,
        on_checkpoint=lambda state: state.save(path),
        checkpoint_every=5,
        resume=Checkpoint.load(path) if path.exists() else None,
    )
    fixed.save_pretrained(work / "model")
    return fixed


def copies(
    model: df.Denoiser, condition: df.models.TextCondition, images: NDArray[np.uint8], seeds: int
) -> dict[str, Any]:
    """Share of copies among the images, with its interval, and their mean similarity."""
    drawn_from = range(FIRST_SEED, FIRST_SEED + seeds)
    found = replication(model, condition, images, seeds=drawn_from, **HOW)
    rate = found.rate
    return {
        "rate": [rate.value, rate.low, rate.high],
        "any_seed": found.prompt_rate("any").value,
        "similarity": float(found.similarity.mean()),
    }


def loss_of(model: df.Denoiser) -> float:
    """Mean loss on pairs that were never trained on."""
    pairs = held_out("composition")
    return float(held_out_loss(model, pairs.images, pairs.prompts, draws=DRAWS, seed=5).mean())


def under_attack(
    view: df.Denoiser, at: Memorized, objective: str, budgets: Sequence[int], seeds: int
) -> dict[str, Any]:
    """Copies after fresh attacks from the prompts, by number of steps."""
    attack = Dori(max(budgets), objective=objective, seed=ATTACK_SEED, checkpoints=budgets)
    found = attack.run(
        view, at.images, at.prompts, ids=[f"fresh {i}" for i in range(len(at.prompts))]
    )
    return {str(n): copies(view, found.condition(view, n), at.images, seeds) for n in budgets}


def main(arguments: list[str] | None = None) -> None:
    """Train, attack, record."""
    options = parse(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    model = df.load("demo", device="cpu")
    chosen = targets(options.images)
    masks = WANDA.localize(model, chosen.prompts)
    hidden = model.masked(masks)
    measure = SmallPictures()
    others = surrogates(hidden, chosen.images, chosen.prompts, measure=measure, **HOW)
    method = Adversarial(
        options.steps,
        Dori(options.inner, batch=2, objective="prediction"),
        Pool(("prompt", "gaussian"), restart_after=48),
        lr=6e-4,
    )
    small = df.load("demo", device="cpu", batch_size=16)
    pairs = retained_pairs(model, options.drawn)
    fixed = fine_tune(method, small, chosen, others, pairs, options.work)

    controls = held_out("control", options.images)
    document: dict[str, Any] = {
        "images": len(chosen.prompts),
        "retained": len(pairs),
        "surrogates": others.summary(),
        "fine_tuning": method.config(),
        "prompts": {},
        "attacks": [],
        "held_out_loss": {"original": loss_of(model), "fine-tuned": loss_of(fixed)},
    }
    for name, view in {"original": model, "wanda": hidden, "fine-tuned": fixed}.items():
        at_prompts = copies(view, view.encode(chosen.prompts), chosen.images, options.seeds)
        document["prompts"][name] = at_prompts
    attacked = [
        ("wanda", hidden, chosen),
        ("fine-tuned", fixed, chosen),
        ("original", model, controls),
    ]
    attacked.append(("fine-tuned", fixed, controls))
    for name, view, at in attacked:
        for objective in ("epsilon", "prediction"):
            found = under_attack(view, at, objective, options.budgets, options.seeds)
            pictures = "control" if at is controls else "memorized"
            row = {"model": name, "pictures": pictures, "objective": objective, "after": found}
            document["attacks"].append(row)
            print(json.dumps(row), flush=True)
    options.results.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.removal", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoint and model")
    parser.add_argument("--images", type=int, help="of them so many; all if not given")
    parser.add_argument("--steps", type=int, default=110, help="updates of the weights")
    parser.add_argument("--inner", type=int, default=8, help="attack steps before each")
    parser.add_argument("--drawn", type=int, default=240, help="retained pairs drawn by the model")
    parser.add_argument("--budgets", type=int, nargs="+", default=[10, 25, 50])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
