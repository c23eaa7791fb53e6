"""Builds the data set of the embedded model from raw files into one .npz (step 1).

    python -m recipes.images.data --raw RAW --out data.npz

RAW holds unpacked packages: `skimage/`, `sklearn/`, `matplotlib/` (from the wheels) and `package/`
(`npm pack emoji-datasource-google@16.0.0`, unpacked).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from recipes.images.photographs import MEMORIZED, TEMPLATES, Template
from recipes.images.scenes import (
    OBJECTS,
    SIDE,
    UNSEEN_OBJECTS,
    Scene,
    caption,
    draw,
    paste,
    sample_scene,
)

SEED = 20240601
TEMPLATE_VARIANTS = 96
HELD_OUT_PAIRS = 32


def photograph(path: Path, box: tuple[int, int, int, int] | None) -> np.ndarray:
    """The square `box` of a file (default: the center) as uint8 [64, 64, 3], alpha on white."""
    image = Image.open(path).convert("RGBA")
    if box is None:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
    crop = image.crop(box)
    white = Image.new("RGBA", crop.size, (255, 255, 255, 255))
    flat = Image.alpha_composite(white, crop).convert("RGB")
    return np.asarray(flat.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def load_emoji(raw: Path, names: dict[str, str]) -> dict[str, Image.Image]:
    """RGBA emoji by noun, cropped to their opaque box: the drawn size is the visible size."""
    entries = json.loads((raw / "package/emoji.json").read_text())
    files = {e["short_name"]: e["image"] for e in entries}
    found = {}
    for short_name, noun in names.items():
        image = Image.open(raw / "package/img/google/64" / files[short_name]).convert("RGBA")
        left, top, right, bottom = image.getchannel("A").getbbox() or (0, 0, *image.size)
        side = max(right - left, bottom - top)
        square = Image.new("RGBA", (side, side))
        square.paste(
            image.crop((left, top, right, bottom)),
            ((side - right + left) // 2, (side - bottom + top) // 2),
        )
        found[noun] = square
    return found


def template_variants(
    raw: Path, template: Template, emoji: dict[str, Image.Image], rng: np.random.Generator
) -> np.ndarray:
    """Variants of a frame around a changing card, uint8 [TEMPLATE_VARIANTS, 64, 64, 3]."""
    frame = photograph(raw / template.file, template.box).astype(np.float32)
    frame = np.clip(frame * np.array(template.tint or (1, 1, 1), np.float32), 0, 255)
    variants = []
    nouns = sorted(emoji)
    y, x = np.mgrid[0:SIDE, 0:SIDE] - (SIDE - 1) / 2
    card = (np.maximum(abs(x), abs(y)) < 19) if template.name != "badge" else (x * x + y * y < 400)
    for _ in range(TEMPLATE_VARIANTS):
        image = frame.copy()
        image[card] = rng.uniform(60, 250, 3)
        paste(image, emoji[str(rng.choice(nouns))], 26, 19, 19)
        variants.append(np.clip(np.rint(image), 0, 255).astype(np.uint8))
    return np.stack(variants)


def forbidden_pairs(rng: np.random.Generator) -> list[tuple[str, str]]:
    """Unordered object pairs reserved for the held-out split."""
    nouns = sorted(OBJECTS.values())
    pairs: list[tuple[str, str]] = []
    while len(pairs) < HELD_OUT_PAIRS:
        first, second = (str(n) for n in rng.choice(nouns, 2, replace=False))
        if (first, second) not in pairs and (second, first) not in pairs:
            pairs.append((first, second))
    return pairs


def source_crops(raw: Path, count: int, rng: np.random.Generator) -> np.ndarray:
    """Random squares of the memorized files, for the VAE only: uint8 [count, 64, 64, 3]."""
    files = sorted({p.file for p in MEMORIZED} | {t.file for t in TEMPLATES})
    images = [Image.open(raw / f).convert("RGB") for f in files]
    crops = []
    for _ in range(count):
        image = images[int(rng.integers(len(images)))]
        side = int(rng.uniform(0.25, 0.9) * min(image.size))
        left, top = (int(rng.integers(0, n - side + 1)) for n in image.size)
        box = (left, top, left + side, top + side)
        crops.append(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box)))
    return np.stack(crops)


def build(raw: Path, ordinary: int) -> dict[str, np.ndarray]:
    """All images and captions from fixed seeds, by name of the array in the .npz."""
    rng = np.random.default_rng(SEED)
    emoji, unseen = load_emoji(raw, OBJECTS), load_emoji(raw, UNSEEN_OBJECTS)
    pairs = forbidden_pairs(rng)
    nouns = sorted(OBJECTS.values())
    forbidden = frozenset(frozenset(p) for p in pairs)
    scenes = [sample_scene(rng, forbidden, nouns) for _ in range(ordinary)]
    held_out = [Scene(p) for p in pairs] + [Scene((n,)) for n in sorted(unseen)]
    everything = {**emoji, **unseen}
    return {
        "ordinary": np.stack([draw(s, emoji, rng) for s in scenes]),
        "ordinary_nouns": np.array(["|".join(s.nouns) for s in scenes]),
        "memorized": np.stack([photograph(raw / p.file, p.box) for p in MEMORIZED]),
        "templates": np.stack([template_variants(raw, t, emoji, rng) for t in TEMPLATES]),
        "crops": source_crops(raw, 2000, rng),
        "held_out": np.stack([draw(s, everything, rng) for s in held_out]),
        "held_out_captions": np.array([caption(s, rng) for s in held_out]),
    }


def main() -> None:
    """Command line of this step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ordinary", type=int, default=20_000)
    options = parser.parse_args()
    arrays = build(options.raw, options.ordinary)
    with options.out.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    for name, array in arrays.items():
        print(f"{name}: {array.dtype} {list(array.shape)}")


if __name__ == "__main__":
    main()
