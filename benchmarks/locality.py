"""Are memories local? Triggers of one photograph from many starts, beside prompts.

The embedded model is attacked for one photograph from Gaussian starts; NeMo and Wanda localise each
embedding found, and each memorized prompt for comparison. Everything is kept in `--work`, and an
interrupted run goes on there.

    python -m benchmarks.locality
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

import dori_fast as df
from benchmarks import harness
from dori_fast.attack import Dori
from dori_fast.demo.recipe.finetuned import HIDING, HOW, reproduced
from dori_fast.demo.story.settings import NEMO
from dori_fast.report import draw_locality
from dori_fast.scan.attack import Judging, attack
from dori_fast.scan.locality import locality
from dori_fast.scan.prune import prune

ROOT = Path(__file__).parents[1]
RESULTS = harness.RESULTS / "quality" / "locality.json"
FIGURE = ROOT / "docs" / "locality.png"
# from N(0, I) a trigger has far to go, and the weaker objectives do not arrive in 50 steps
ATTACK = Dori(objective="prediction")
STARTS, PROMPTS = 12, 12


def study(work: Path, starts: int, prompts: int, method: Dori) -> dict[str, Any]:
    """Attack, localise, compare; ``locality.json`` and ``locality.png`` are left in ``work``."""
    work.mkdir(parents=True, exist_ok=True)
    model = df.load("demo", device="cpu")
    memorized = reproduced()[:prompts]
    photograph = memorized[0]
    repeated, usual, clean = (work / f"{name}.txt" for name in ("repeated", "memorized", "clean"))
    repeated.write_text(f"{photograph.prompt}\n" * starts, encoding="utf-8")
    usual.write_text("".join(f"{p.prompt}\n" for p in memorized), encoding="utf-8")
    ordinary = [prompt for prompt, _ in df.demo.pairs("ordinary")]
    clean.write_text("".join(f"{prompt}\n" for prompt in ordinary), encoding="utf-8")
    attacked = work / "attacked"
    found = attack(
        model,
        repeated,
        {photograph.prompt: photograph.image},
        out=attacked,
        method=method,
        start="gaussian",
        judging=Judging(seeds=4, **HOW),
    )
    triggers, baselines = [], []
    for name, how in (("nemo", NEMO), ("wanda", HIDING)):
        triggers.append(work / f"{name}-triggers")
        baselines.append(work / f"{name}-prompts")
        prune(model, repeated, out=triggers[-1], method=how, embeddings=attacked)
        prune(model, usual, out=baselines[-1], method=how)
    results = locality(
        model, attacked, usual, clean, out=work, triggers=triggers, baselines=baselines
    )
    draw_locality(work)
    similarities = [row["similarity"] for row in found.run.rows()]
    return {
        "photograph": photograph.prompt,
        "attack": method.config(),
        "similarities_by_start_and_seed": similarities,
        "threshold": found.threshold,
        **results,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.locality", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--work", type=Path, default=Path("build/locality"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = study(options.work, STARTS, PROMPTS, ATTACK)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(options.work / "locality.png", FIGURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
