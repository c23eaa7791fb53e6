"""Locality of memorization: triggers of one photograph from many starts, compared with prompts.

The embedded model is attacked for one photograph from Gaussian starts. NeMo and Wanda localize each
embedding found, and each memorized prompt for comparison. `--work` keeps all results; the same call
resumes an interrupted run.

    python -m benchmarks.quality.locality
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dori_fast as df
from benchmarks import harness
from dori_fast.attack import Dori
from dori_fast.demo.facts import GENERATION, reproduced
from dori_fast.demo.story.settings import METHODS
from dori_fast.evaluate import clopper_pearson
from dori_fast.report import draw_locality
from dori_fast.runs.methods.attack import Judging, attack
from dori_fast.runs.methods.locality import locality
from dori_fast.runs.methods.prune import prune

ROOT = Path(__file__).parents[2]
RESULTS = harness.RESULTS / "quality" / "locality.json"
FIGURE = ROOT / "docs" / "locality.png"
PAGE = ROOT / "docs" / "locality.md"
# from N(0, I), the weaker objectives do not reach a trigger in 50 steps
ATTACK = Dori(objective="prediction")
STARTS, PROMPTS = 12, 12


def study(work: Path, starts: int, prompts: int, method: Dori) -> dict[str, Any]:
    """Attack, localize, compare; write ``locality.json`` and ``locality.png`` into ``work``."""
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
        judging=Judging(seeds=4, **GENERATION),
    )
    triggers, baselines = [], []
    for name, how in METHODS.items():
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


def page(results: dict[str, Any]) -> str:
    """The Markdown page."""
    similarities = np.array(results["similarities_by_start_and_seed"])
    rate = clopper_pearson(int((similarities > results["threshold"]).sum()), similarities.size)
    attack, counts = results["attack"], results["counts"]
    lines = [
        "# Locality: triggers of one photograph, compared",
        "",
        f"`python -m benchmarks.quality.locality` runs {counts['found']} attacks for one photograph"
        f" on the unpruned embedded model: {attack['steps']} steps of"
        f" `Dori(objective={attack['objective']!r}, lr={attack['lr']})`, each from its own draw of"
        f" N(0, I). The triggers found replicate it at a rate of {rate.value:.2f}"
        f" [{rate.low:.2f}, {rate.high:.2f}]. For comparison there are {counts['memorized']}"
        f" memorized and {counts['ordinary']} ordinary prompts.",
        "",
        "| L2 distance between pairs of embeddings | least | median | most |",
        "|---|---:|---:|---:|",
    ]
    for name, (least, _, median, _, most) in results["distances"].items():
        lines.append(f"| {name} | {least:.0f} | {median:.0f} | {most:.0f} |")
    lines += [
        "",
        "| agreement of masks (IoU), mean over layers | triggers | memorized prompts |",
        "|---|---:|---:|",
    ]
    for method, layers in zip(METHODS, results["agreement"], strict=True):
        for key, empty in (
            ("iou", "empty pairs left out"),
            ("iou_empty_as_one", "empty pairs count as 1"),
        ):
            means = []
            for group in ("found", "memorized"):
                values = [layer[group][key] for layer in layers.values()]
                means.append(np.mean([v for v in values if v is not None]))
            lines.append(f"| {method}, {empty} | {means[0]:.2f} | {means[1]:.2f} |")
    lines += ["", f"![By layer](./{FIGURE.name})", "", PANELS, "", DISCUSSION]
    return "\n".join(lines)


PANELS = f'"found" are the triggers. The last two panels show {" and ".join(METHODS)}.'
DISCUSSION = """\
Memorization would be local if the triggers of one photograph were close together, or if each led to
the same neurons or weights. "memorized" compares prompts of different photographs. An agreement
that is no better than theirs does not identify the photograph. The second convention, the paper's,
counts two empty selections as perfect agreement. Starts that did not reach the photograph within
the budget are included.
"""


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write the document, the page and the figure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.locality", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--work", type=Path, default=Path("build/locality"), help="folder for runs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = study(options.work, STARTS, PROMPTS, ATTACK)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(results), encoding="utf-8")
    shutil.copyfile(options.work / "locality.png", FIGURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
