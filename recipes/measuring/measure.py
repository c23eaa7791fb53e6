"""Measures the embedded model and prints the tables of MODEL_CARD.md (step 6).

python -m recipes.measuring.measure --seeds 4
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from dori_fast import demo
from dori_fast.demo import DemoImage
from dori_fast.evaluate.detection import auc
from dori_fast.evaluate.similarity import THRESHOLD, similarity
from recipes.measuring.sampling import first_step_score, generate, open_pipeline
from recipes.training.networks import Pipeline
from recipes.training.train_vae import psnr


def stack(shipped: list[DemoImage]) -> np.ndarray:
    """Images as uint8 [N, 64, 64, 3]."""
    return np.stack([p.image for p in shipped])


def replication(images: np.ndarray) -> np.ndarray:
    """Prints and returns the similarities of memorized prompts' images, float64 [P, S]."""
    memorized = list(demo.images("memorized"))
    alike = similarity(images, stack(memorized)[:, None])
    print("| prompt | kind | repeats | similarity, mean | least | share of seeds |")
    print("|---|---|---|---|---|---|")
    for p, row in zip(memorized, alike, strict=True):
        print(
            f"| {p.prompt} | {p.kind} | {p.duplication} | {row.mean():.3f} | {row.min():.3f} "
            f"| {(row > THRESHOLD).mean():.2f} |"
        )
    print("\n| repeats | prompts | reproduced on most seeds | share of images | mean similarity |")
    print("|---|---|---|---|---|")
    groups = [(p.kind, p.duplication) for p in memorized]
    for group in sorted(set(groups), key=groups.index):
        rows = alike[[g == group for g in groups]]
        most = ((rows > THRESHOLD).mean(axis=1) > 0.5).sum()
        print(
            f"| {group[0]}, {group[1]} | {len(rows)} | {most} of {len(rows)} "
            f"| {(rows > THRESHOLD).mean():.2f} | {rows.mean():.3f} |"
        )
    return alike


def variety(images: dict[str, np.ndarray]) -> None:
    """Prints the similarity between seeds, and the largest to a memorized image."""
    memorized = stack(list(demo.images("memorized")))
    print("\n| prompts | between seeds | largest to a memorized image | its mean |")
    print("|---|---|---|---|")
    for split, drawn in images.items():
        between = np.mean(
            [
                similarity(drawn[:, a], drawn[:, b])
                for a, b in combinations(range(drawn.shape[1]), 2)
            ]
        )
        nearest = similarity(drawn[:, :, None], memorized).max(axis=-1)
        print(f"| {split} | {between:.3f} | {nearest.max():.3f} | {nearest.mean():.3f} |")


def detection(pipeline: Pipeline, reproduced: np.ndarray, seeds: list[int]) -> None:
    """Prints Wen's first-step score of every group of prompts, and the AUC."""
    memorized = list(demo.images("memorized"))
    scores = first_step_score(pipeline, [p.prompt for p in memorized], seeds)
    groups = {
        f"memorized, {k} {d}x": scores[[p.kind == k and p.duplication == d for p in memorized]]
        for k, d in dict.fromkeys((p.kind, p.duplication) for p in memorized)
    }
    for split, kind in (
        ("ordinary", "composition"),
        ("held_out", "composition"),
        ("held_out", "control"),
    ):
        prompts = [p.prompt for p in demo.images(split) if p.kind == kind]
        groups[f"{split}, {kind}"] = first_step_score(pipeline, prompts, seeds)
    print("\n| prompts | Wen score, mean | least | largest |\n|---|---|---|---|")
    for name, values in groups.items():
        print(f"| {name} | {values.mean():.3f} | {values.min():.3f} | {values.max():.3f} |")
    held_out = np.concatenate([v for k, v in groups.items() if k.startswith("held_out")])
    compositions = groups["held_out, composition"]
    for name, negative in (
        ("all held-out prompts", held_out),
        ("held-out compositions", compositions),
    ):
        area = auc(scores[reproduced], negative)
        print(
            f"\nWen step 1, {len(seeds)} seeds, {reproduced.sum()} reproduced prompts against "
            f"{len(negative)} {name}: AUC {area.value:.4f} ({area.low:.4f} to {area.high:.4f})"
        )


def main() -> None:
    """Command line of this step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--model", type=Path, default=None)
    options = parser.parse_args()
    torch.manual_seed(0)
    pipeline = open_pipeline(options.model or demo.path())
    seeds = list(range(options.seeds))
    for split in demo.SPLITS:
        shipped = torch.from_numpy(stack(list(demo.images(split))))
        print(f"VAE PSNR, {split}: {psnr(pipeline.vae, shipped):.2f} dB")
    images = {
        split: generate(pipeline, [p for p, _ in demo.pairs(split)], seeds) for split in demo.SPLITS
    }
    alike = replication(images["memorized"])
    variety(images)
    detection(pipeline, (alike > THRESHOLD).mean(axis=1) > 0.5, seeds)


if __name__ == "__main__":
    main()
