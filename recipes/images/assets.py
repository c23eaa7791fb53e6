"""Writes the shipped images (a sheet and a list per split) and the sample prompts (step 5).

    python -m recipes.images.assets --data data.npz --raw RAW --web LISTS --out dori_fast/demo

LISTS holds real captions for the sample prompts: the `;`-separated lists of the NeMo repository
(MIT), with a column `Caption`.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image

from dori_fast.demo.retained import DRAWN
from recipes.images.controls import CONTROLS, control_image
from recipes.images.photographs import MEMORIZED, TEMPLATES
from recipes.images.scenes import OBJECTS, SIDE, Scene, caption, sample_scene

EMOJI = "Apache-2.0 (Noto Emoji, Google; emoji-datasource-google 16.0.0)"
ORDINARY = 48
WEB_PROMPTS = 200
SEED = 7

Row = tuple[dict[str, object], np.ndarray]


def row(prompt: str, kind: str, duplication: int, source: str, licence: str) -> dict[str, object]:
    """One entry of a split's list, with the keys of `dori_fast.demo.DemoImage`."""
    return {
        "prompt": prompt,
        "kind": kind,
        "duplication": duplication,
        "source": source,
        "licence": licence,
    }


def memorized_rows(data: dict[str, np.ndarray]) -> list[Row]:
    """Every repeated photograph, then one variant of every template."""
    rows = [
        (row(p.caption, "photograph", p.duplication, p.file, p.licence), image)
        for p, image in zip(MEMORIZED, data["memorized"], strict=True)
    ]
    rows += [
        (row(t.caption, "template", 1, t.file, f"{t.licence}; centre: {EMOJI}"), images[0])
        for t, images in zip(TEMPLATES, data["templates"], strict=True)
    ]
    return rows


def ordinary_rows(data: dict[str, np.ndarray], rng: np.random.Generator) -> list[Row]:
    """The first ordinary training images that each show an object for the first time."""
    seen: set[str] = set()
    rows: list[Row] = []
    for nouns, image in zip(data["ordinary_nouns"], data["ordinary"], strict=True):
        scene = Scene(tuple(str(nouns).split("|")))
        if seen.isdisjoint(scene.nouns) and len(rows) < ORDINARY:
            seen.update(scene.nouns)
            rows.append((row(caption(scene, rng), "composition", 1, str(nouns), EMOJI), image))
    return rows


def held_out_rows(data: dict[str, np.ndarray], raw: Path) -> list[Row]:
    """Unseen pairs and unseen objects, then the controls."""
    source = "drawn as the ordinary pictures"
    rows = [
        (row(str(text), "composition", 0, source, EMOJI), image)
        for text, image in zip(data["held_out_captions"], data["held_out"], strict=True)
    ]
    rows += [
        (row(c.caption, "control", 0, c.file, c.licence), control_image(raw, c, SIDE))
        for c in CONTROLS
    ]
    return rows


def write_split(rows: list[Row], stem: Path) -> None:
    """Writes `stem`.json, and `stem`.webp with the images in one column, lossless."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(r, ensure_ascii=False) for r, _ in rows)
    stem.with_suffix(".json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    sheet = Image.fromarray(np.concatenate([image for _, image in rows]))
    sheet.save(stem.with_suffix(".webp"), lossless=True, method=6, exact=True)


def web_prompts(lists: Path, rng: np.random.Generator) -> list[str]:
    """Real captions, drawn evenly from the `;`-separated lists of a folder."""
    files = sorted(lists.glob("*.csv"))
    found = []
    for number, file in enumerate(files):
        share = WEB_PROMPTS // len(files) + (number < WEB_PROMPTS % len(files))
        with file.open(encoding="utf-8", newline="") as lines:
            captions = [r["Caption"] for r in csv.DictReader(lines, delimiter=";")]
        picked = rng.choice(len(captions), share, replace=False)
        found += [captions[i] for i in sorted(picked)]
    return found


def write_prompts(
    splits: dict[str, list[Row]], web: list[str], out: Path, rng: np.random.Generator
) -> None:
    """Writes sample_prompts.csv: prompt and kind, shuffled."""
    lines = [(str(r["prompt"]), split) for split, rows in splits.items() for r, _ in rows]
    lines += [(text, "web") for text in web]
    with (out / "sample_prompts.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("prompt", "kind"))
        writer.writerows(lines[i] for i in rng.permutation(len(lines)))


def retained_captions(unseen: Collection[str]) -> list[str]:
    """Captions of the ordinary kind, none of them ``unseen``, for fine-tuning to retain."""
    rng = np.random.default_rng(SEED)
    nouns, captions = sorted(OBJECTS.values()), list[str]()
    while len(captions) < DRAWN:
        text = caption(sample_scene(rng, frozenset(), nouns), rng)
        if text not in unseen:
            captions.append(text)
    return captions


def main() -> None:
    """Command line of this step."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("data", "raw", "web", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    rng = np.random.default_rng(SEED)
    with np.load(options.data) as arrays:
        data = {k: arrays[k] for k in arrays.files}
    splits = {
        "memorized": memorized_rows(data),
        "ordinary": ordinary_rows(data, rng),
        "held_out": held_out_rows(data, options.raw),
    }
    for name, rows in splits.items():
        write_split(rows, options.out / "images" / name)
        print(f"{name}: {len(rows)} images")
    write_prompts(splits, web_prompts(options.web, rng), options.out, rng)
    lines = retained_captions({str(r["prompt"]) for r, _ in splits["held_out"]})
    text = "".join(f"{line}\n" for line in lines)
    (options.out / "retained_captions.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
