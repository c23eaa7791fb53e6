"""Time of `dori-fast demo` at full size, and the README's figure of its story.

    python -m benchmarks.quality.story --out build/story

Run it on an idle machine with an output folder that holds no story yet.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import dori_fast as df
from benchmarks import harness
from dori_fast.demo.story import BATCH, Settings, tell
from dori_fast.evaluate import clopper_pearson
from dori_fast.evaluate.similarity import THRESHOLD
from dori_fast.report.figures.grid import Group, image_grid

ROOT = Path(__file__).parents[2]
RESULTS = harness.RESULTS / "quality" / "story.json"
FIGURE = ROOT / "docs" / "story.png"
# arm, and True after the attack, by title of the column
COLUMNS = {
    "replicated": ("unpruned", False),
    "hidden": ("wanda", False),
    "retrieved": ("wanda", True),
    "removed": ("fine-tuned", False),
    "attacked": ("fine-tuned", True),
}
SHOWN = 8


def arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a .npz file."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def after(arm: dict[str, np.ndarray], attacked: bool) -> str:
    """The number of steps in the names of an arm's arrays; "0" before the attack."""
    steps = sorted(int(key.split()[1]) for key in arm if key.startswith("similarity "))
    return str(steps[-1] if attacked else 0)


def figures(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Replication rates, [value, low, high], by set and column."""
    found: dict[str, dict[str, list[float]]] = {"memorized": {}, "control": {}}
    for which, columns in found.items():
        for title, (model, attacked) in COLUMNS.items():
            path = folder / f"{which}-{model}.npz"
            if path.exists():
                arm = arrays(path)
                copies = arm[f"similarity {after(arm, attacked)}"] > THRESHOLD
                rate = clopper_pearson(int(copies.sum()), copies.size)
                columns[title] = [rate.value, rate.low, rate.high]
    return found


def draw(folder: Path, path: Path) -> None:
    """Write a grid of the first photographs: the original, and the images of each model."""
    originals = arrays(folder / "originals.npz")["memorized"][:SHOWN]
    groups = [Group("original", originals[:, None])]
    for title, (model, attacked) in COLUMNS.items():
        arm = arrays(folder / f"memorized-{model}.npz")
        groups.append(Group(title, arm[f"pictures {after(arm, attacked)}"][:SHOWN, None]))
    prompts = json.loads((folder / "story.json").read_text(encoding="utf-8"))["memorized"]
    image_grid(prompts[: len(originals)], groups).save(path)


def main(arguments: list[str] | None = None) -> int:
    """Run the demo, time it, and write the results and the figure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.story", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "story")
    options = parser.parse_args(arguments)
    if (options.out / "story.json").exists():
        raise SystemExit(f"story: {options.out} holds a story; use another --out")
    wall, processor = time.perf_counter(), time.process_time()
    told: Any = partial(print, flush=True)
    finetuned = partial(df.load, "demo-finetuned", batch_size=BATCH)
    page = tell(options.out, settings=Settings(), finetuned=finetuned, say=told)
    results = {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - processor,
        "cores": os.cpu_count(),
        "setting": Settings().config(),
        "copies": figures(options.out),
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    draw(options.out, FIGURE)
    print(f"{page}: {results['seconds']:.0f} s, {results['cpu_seconds']:.0f} CPU seconds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
