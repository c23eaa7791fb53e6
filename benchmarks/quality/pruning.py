"""NeMo and Wanda on the embedded model: replication before and after, and ordinary images kept.

Each photograph that the model replicates gets one mask for its prompt. Ordinary prompts are drawn
under these masks in turn, and compared with the unpruned model's images of the same seeds. The
similarity of the unpruned model's images of two seeds shows how similar unrelated draws are.

    python -m benchmarks.quality.pruning
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dori_fast as df
from benchmarks import harness
from dori_fast.demo.facts import GENERATION, HIDING, reproduced
from dori_fast.evaluate import clopper_pearson
from dori_fast.evaluate.replications import Replication, replication
from dori_fast.evaluate.similarity import similarity
from dori_fast.prune import NeMo, NeuronMask, WeightMask
from dori_fast.report.figures.grid import Group, image_grid

ROOT = Path(__file__).parents[2]
RESULTS = harness.RESULTS / "quality" / "pruning.json"
PAGE, FIGURE = ROOT / "docs" / "pruning.md", ROOT / "docs" / "pruning.png"
SHOWN = 8
# chosen for the embedded model: its memory spreads over all layers, and its scores are higher
NEMO = NeMo(layers="all", threshold=0.15, theta_end=0.0)


@dataclass(frozen=True)
class Found:
    """Result of one method; `ordinary` holds the similarities [P, S] of ordinary images."""

    name: str
    memorized: Replication
    ordinary: NDArray[np.float64]
    pruned_share: float
    evaluations: float

    def summary(self) -> dict[str, Any]:
        """The results as plain JSON; rates are [value, low, high]."""
        rate = self.memorized.rate
        kept = clopper_pearson(
            int((self.ordinary > self.memorized.threshold).sum()), self.ordinary.size
        )
        return {
            **self.memorized.summary(),
            "replication": [rate.value, rate.low, rate.high],
            "ordinary_similarity_mean": float(self.ordinary.mean()),
            "ordinary_similarity_tenth": float(np.quantile(self.ordinary, 0.1)),
            "ordinary_above_threshold": [kept.value, kept.low, kept.high],
            "pruned_share": self.pruned_share,
            "evaluations_per_prompt": self.evaluations,
        }


def share(masks: NeuronMask | WeightMask) -> float:
    """Mean share of the covered neurons or weights that a mask switches off."""
    tensors = masks.scales if isinstance(masks, NeuronMask) else masks.pruned
    size = sum(t[0].numel() for t in tensors.values())
    counts: float = sum(float(c.double().mean()) for c in masks.counts().values())
    return counts / size


def between_seeds(images: NDArray[np.uint8]) -> float:
    """Mean similarity of a prompt's images of two seeds, [P, S, H, W, 3]."""
    first, second = np.triu_indices(images.shape[1], 1)
    return float(similarity(images[:, first], images[:, second]).mean())


def main(arguments: list[str] | None = None) -> None:
    """Localize, draw, compare, and write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.pruning", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--seeds", type=int, default=10, help="seeds per memorized prompt")
    parser.add_argument("--ordinary-seeds", type=int, default=4, help="seeds per ordinary prompt")
    options = parser.parse_args(arguments)
    model = df.load("demo", device="cpu")
    chosen = reproduced()
    prompts, originals = [p.prompt for p in chosen], np.stack([p.image for p in chosen])
    ordinary = [prompt for prompt, _ in df.demo.pairs("ordinary")]
    held_out = [p.prompt for p in df.demo.images("held_out") if p.kind == "composition"]
    others, seeds = [*ordinary, *held_out], range(options.ordinary_seeds)
    usual = model.generate(model.encode(others), seeds, **GENERATION).numpy()

    def measure(name: str, view: df.Denoiser, under: df.Denoiser, size: float, n: float) -> Found:
        copies = replication(
            view,
            view.encode(prompts),
            originals,
            seeds=options.seeds,
            keep_images=True,
            **GENERATION,
        )
        drawn = under.generate(under.encode(others), seeds, **GENERATION).numpy()
        return Found(name, copies, similarity(drawn, usual), size, n)

    found = [measure("unpruned", model, model, 0.0, 0.0)]
    for method in (NEMO, HIDING):
        before = model.engine.evaluations
        masks = method.localize(model, prompts)
        spent = (model.engine.evaluations - before) / len(prompts)
        turns = masks.in_turn(len(others))
        found.append(
            measure(method.name, model.masked(masks), model.masked(turns), share(masks), spent)
        )
        print(json.dumps({method.name: found[-1].summary()}, indent=1), flush=True)
    record(found, [*prompts], originals, len(others), between_seeds(usual))


def record(
    found: list[Found],
    prompts: list[str],
    originals: NDArray[np.uint8],
    others: int,
    apart: float,
) -> None:
    """Write the document, the page and the figure."""
    summaries = {f.name: f.summary() for f in found}
    setting = {"prompts": len(prompts), "ordinary": others, "ordinary_between_seeds": apart}
    methods = {"nemo": {k: v for k, v in NEMO.config().items() if k != "statistics"}}
    methods["wanda"] = HIDING.config()
    document = {"setting": setting, "methods": methods, "results": summaries}
    RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(summaries, setting), encoding="utf-8")
    groups = [Group("trained on", originals[:SHOWN, None])]
    for f in found:
        if f.memorized.images is not None:
            groups.append(Group(f.name, f.memorized.images[:SHOWN, :3]))
    image_grid(prompts[:SHOWN], groups).save(FIGURE)


def page(summaries: dict[str, dict[str, Any]], setting: dict[str, Any]) -> str:
    """The Markdown page."""
    seeds = len(summaries["unpruned"]["seeds"])
    nemo, wanda = NEMO.config(), HIDING.config()
    lines = [
        "# Pruning the embedded model",
        "",
        f"`python -m benchmarks.quality.pruning` prunes for {setting['prompts']} photographs that"
        f" the model replicates, with a mask for each prompt. It draws {seeds} seeds each by"
        f" {GENERATION['steps']} DDIM steps with guidance {GENERATION['guidance']:g}. An image is a"
        " copy above similarity 0.6 (`dori_fast/evaluate/similarity.py`). Intervals are 95 %"
        " intervals that treat the drawn images as independent.",
        "",
        f"![Training images, and images drawn before and after pruning]({FIGURE.name})",
        "",
        "| model | copies | ordinary images, similarity to the unpruned model's: mean, lowest tenth"
        " | ordinary images above 0.6 | switched off | evaluations per prompt |",
        "|---|---|---|---|---:|---:|",
    ]
    for name, s in summaries.items():
        rate, kept = s["replication"], s["ordinary_above_threshold"]
        lines.append(
            f"| {name} | {rate[0]:.2f} [{rate[1]:.2f}, {rate[2]:.2f}]"
            f" | {s['ordinary_similarity_mean']:.2f}, {s['ordinary_similarity_tenth']:.2f}"
            f" | {kept[0]:.2f} [{kept[1]:.2f}, {kept[2]:.2f}]"
            f" | {100 * s['pruned_share']:.1f} % | {s['evaluations_per_prompt']:.0f} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"Ordinary images are of {setting['ordinary']} prompts that were trained on once or"
            " never, each under the mask of one memorized prompt, from the same seeds. Images of"
            " two seeds of the unpruned model have similarity"
            f" {setting['ordinary_between_seeds']:.2f}.",
            "",
            f"NeMo searches all value layers with threshold {nemo['threshold']:g} and lowers theta"
            f" to {nemo['theta_end']:g}. With the paper's settings (down and mid blocks, threshold"
            " 0.428, theta to 1) it hides few of these images. The memory of this small model also"
            " lies in the up blocks and spreads over a fifth of the value neurons; in Stable"
            " Diffusion it lies in a few neurons. Wanda marks"
            f" {100 * wanda['sparsity']:g} % of each row per step, over {wanda['steps']} steps.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
