"""Removal by fine-tuning, tested on the embedded model under attacks unseen in training.

Fine-tuning removes the photographs that the model replicates. The pruned and the fine-tuned model
are attacked from the prompts and from Gaussian starts, with draws and seeds that training did not
use. Controls, images never trained on, are attacked at the same budgets. `prediction` is the
stronger attack, which also injects images that the model never saw. Triggers found on the pruned
model are replayed on the fine-tuned one: a model that only misleads attacks on itself would still
draw the images from them. Quality is compared on held-out pairs. `--work` keeps every attack; the
same call resumes an interrupted run.

    python -m benchmarks.quality.removal --work removal --finetuned DIR
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dori_fast as df
from benchmarks.pages import removal as removal_page
from dori_fast.attack import Dori
from dori_fast.demo.facts import GENERATION, HIDING, reproduced
from dori_fast.demo.retained import DRAWN
from dori_fast.demo.story.settings import ATTACK
from dori_fast.evaluate import quality, replication
from dori_fast.finetune import Adversarial
from recipes.training.finetuned import retrain

# first seed of the drawn images and seed of the attacks; no training step used them
FIRST_SEED, ATTACK_SEED = 100, 4242
ATTACKS: dict[str, dict[str, Any]] = {"min-snr": ATTACK, "prediction": {"objective": "prediction"}}
STARTS = ("prompt", "gaussian")


def held_out(kind: str) -> list[df.demo.DemoImage]:
    """Images never trained on: kind "control" to attack, "composition" to compare quality."""
    return [p for p in df.demo.images("held_out") if p.kind == kind]


def images_of(shipped: Sequence[df.demo.DemoImage]) -> np.ndarray:
    """Images as uint8 [P, H, W, 3]."""
    return np.stack([p.image for p in shipped])


def copies(
    model: df.Denoiser,
    condition: df.models.TextCondition,
    originals: Sequence[df.demo.DemoImage],
    seeds: int,
) -> dict[str, Any]:
    """Replication rate with its interval, and mean similarity."""
    drawn_from = range(FIRST_SEED, FIRST_SEED + seeds)
    found = replication(model, condition, images_of(originals), seeds=drawn_from, **GENERATION)
    rate = found.rate
    return {
        "rate": [rate.value, rate.low, rate.high],
        "any_seed": found.prompt_rate("any").value,
        "similarity": float(found.similarity.mean()),
    }


def under_attack(
    view: df.Denoiser,
    at: Sequence[df.demo.DemoImage],
    how: dict[str, Any],
    start: str,
    budgets: Sequence[int],
    seeds: int,
    replay: df.Denoiser | None = None,
) -> dict[str, Any]:
    """Copies after fresh attacks by number of steps; "replayed" are copies drawn by ``replay``."""
    attack = Dori(max(budgets), **how, seed=ATTACK_SEED, checkpoints=budgets)
    prompts = [p.prompt for p in at]
    ids = [f"fresh {i}" for i in range(len(at))]
    found = attack.run(view, prompts, images_of(at), start=start, ids=ids)
    after = {str(n): copies(view, found.condition(view, n), at, seeds) for n in budgets}
    if replay is not None:
        for n in budgets:
            after[str(n)]["replayed"] = copies(replay, found.condition(replay, n), at, seeds)
    return after


def kept(path: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The content of a JSON file; it is computed and written first if it does not exist."""
    if not path.exists():
        path.write_text(json.dumps(compute()), encoding="utf-8")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def main(arguments: list[str] | None = None) -> None:
    """Train unless a model is given, attack, and write the results."""
    options = parse(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    tuned = Adversarial(options.steps)
    torch.set_num_threads(1)
    model = df.load("demo", device="cpu")
    chosen = reproduced()[: options.images]
    if options.finetuned is None:
        fixed = retrain(options.work, chosen, how=tuned, drawn=options.drawn)
        fixed.save_pretrained(options.work / "model")
    else:
        fixed = df.load(options.finetuned, device="cpu")
    prompts = [p.prompt for p in chosen]
    hidden = model.masked(HIDING.localize(model, prompts))
    controls, unseen = held_out("control")[: options.images], held_out("composition")
    document: dict[str, Any] = {
        "images": len(chosen),
        "controls": len(controls),
        "seeds": options.seeds,
        "fine_tuning": tuned.config(),
        "attack": ATTACK,
        "prompts": {
            name: copies(view, view.encode(prompts), chosen, options.seeds)
            for name, view in {"original": model, "wanda": hidden, "fine-tuned": fixed}.items()
        },
        "quality": quality(
            fixed, model, [p.prompt for p in unseen], images_of(unseen), **GENERATION
        ).summary(),
        "attacks": [],
    }
    print(json.dumps(document["prompts"]), json.dumps(document["quality"]), flush=True)
    # pruning fails at the attack's own budget; larger budgets are for the fine-tuned model
    before = [n for n in options.budgets if n <= 50]
    attacked: tuple[tuple[str, df.Denoiser, str, list[df.demo.DemoImage], list[int]], ...] = (
        ("fine-tuned", fixed, "memorized", chosen, options.budgets),
        ("fine-tuned", fixed, "control", controls, options.budgets),
        ("wanda", hidden, "memorized", chosen, before),
        ("original", model, "control", controls, before),
    )
    for name, view, which, at, budgets in attacked:
        replay = fixed if name == "wanda" else None
        for objective, how in ATTACKS.items():
            for start in STARTS:
                what = f"{name}-{which}-{objective}-{start}"
                attack = partial(under_attack, view, at, how, start, budgets, options.seeds, replay)
                found = kept(options.work / f"{what}.json", attack)
                row = {"model": name, "pictures": which, "objective": objective}
                document["attacks"].append({**row, "start": start, "after": found})
                print(what, {n: found[n]["rate"] for n in found}, flush=True)
    options.results.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if options.results == removal_page.RESULTS:
        removal_page.PAGE.write_text(removal_page.page(document), encoding="utf-8")
        removal_page.CURVE.write_bytes(removal_page.curve(document["attacks"]))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.removal", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for checkpoints and attacks"
    )
    parser.add_argument("--finetuned", help="fine-tuned model; default: train one")
    parser.add_argument("--images", type=int, help="number of photographs; default: all")
    parser.add_argument("--steps", type=int, default=Adversarial().steps, help="fine-tuning steps")
    parser.add_argument("--drawn", type=int, default=DRAWN, help="retained pairs to draw")
    parser.add_argument(
        "--budgets", type=int, nargs="+", default=[25, 50, 150], help="attack steps"
    )
    parser.add_argument("--seeds", type=int, default=4, help="seeds per embedding")
    parser.add_argument("--results", type=Path, default=removal_page.RESULTS, help="output file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
