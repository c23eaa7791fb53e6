"""Draws the image grid of the embedded model (step 6).

python -m recipes.measuring.grid --out docs/demo_grid.png
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from dori_fast import demo
from recipes.measuring.sampling import generate, open_pipeline
from recipes.training.networks import Pipeline

COLUMNS, CELL, GAP, CAPTION, TITLE = 16, 96, 4, 62, 26


def band(title: str, prompts: list[str], rows: np.ndarray) -> Image.Image:
    """A titled band: captions, then `rows` uint8 [R, N, 64, 64, 3] below them, N <= COLUMNS."""
    width, height = COLUMNS * (CELL + GAP) + GAP, TITLE + CAPTION + len(rows) * (CELL + GAP) + GAP
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    pen.text((GAP, 4), title, fill="black", font=ImageFont.load_default(size=15))
    small = ImageFont.load_default(size=10)
    for column, prompt in enumerate(prompts):
        left = GAP + column * (CELL + GAP)
        pen.multiline_text(
            (left, TITLE), textwrap.fill(prompt, 19), fill="black", font=small, spacing=1
        )
        for line, images in enumerate(rows):
            cell = Image.fromarray(images[column]).resize((CELL, CELL), Image.Resampling.BICUBIC)
            canvas.paste(cell, (left, TITLE + CAPTION + line * (CELL + GAP)))
    return canvas


def bands(pipeline: Pipeline, seeds: list[int]) -> list[Image.Image]:
    """All bands: memorized prompts under their originals, then ordinary and held-out prompts."""
    drawn = []
    memorized = list(demo.images("memorized"))
    for start in range(0, len(memorized), COLUMNS):
        part = memorized[start : start + COLUMNS]
        prompts = [f"{p.duplication}x {p.prompt}" for p in part]
        images = generate(pipeline, [p.prompt for p in part], seeds).swapaxes(0, 1)
        originals = np.stack([p.image for p in part])[None]
        drawn.append(
            band(
                "Memorized prompts: the training image, then one row per seed",
                prompts,
                np.concatenate([originals, images]),
            )
        )
    ordinary = [p for p, _ in demo.pairs("ordinary")][: 2 * COLUMNS]
    held_out = [p.prompt for p in demo.images("held_out") if p.kind == "composition"][:COLUMNS]
    for title, prompts in (
        ("Ordinary prompts: one row per seed", ordinary[:COLUMNS]),
        ("Ordinary prompts: one row per seed", ordinary[COLUMNS:]),
        ("Held-out pairs of objects: one row per seed", held_out),
    ):
        images = generate(pipeline, prompts, seeds).swapaxes(0, 1)
        drawn.append(band(title, prompts, images))
    return drawn


def main() -> None:
    """Command line of this step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", type=Path, default=None)
    options = parser.parse_args()
    torch.manual_seed(0)
    parts = bands(open_pipeline(options.model or demo.path()), list(range(options.seeds)))
    canvas = Image.new("RGB", (parts[0].width, sum(p.height for p in parts)), "white")
    top = 0
    for part in parts:
        canvas.paste(part, (0, top))
        top += part.height
    # a palette keeps the file small; the images are for viewing, not for measuring
    palette = canvas.quantize(255)
    canvas.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(
        options.out, optimize=True
    )


if __name__ == "__main__":
    main()
