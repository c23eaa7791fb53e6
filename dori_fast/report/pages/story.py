"""Page of the demo's story, from the files of its folder."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.evaluate import clopper_pearson
from dori_fast.report.figures.charts import DENSITY, budget_curves
from dori_fast.report.labels import Labels
from dori_fast.report.load import Run
from dori_fast.report.names import interval, settings
from dori_fast.report.pages.page import (
    Cell,
    Html,
    facts,
    figure,
    image_row,
    note,
    page,
    paragraph,
    section,
    table,
    tiles,
)
from dori_fast.report.pages.scan import scan_summary

SETS = ("memorized", "control")
PRUNED, FIXED = ("nemo", "wanda"), "fine-tuned"

Arm = dict[str, NDArray[Any]]


def story_page(folder: Path, scan: Run) -> str:
    """The page.

    Args:
        folder: Folder with ``story.json``, ``originals.npz`` and one ``<set>-<model>.npz`` per
            finished arm: ``similarity <step>`` [P, S] and ``pictures <step>`` uint8 [P, H, W, 3].
        scan: Run of the scan.

    Raises:
        UsageError: the folder holds no story.
        IntegrityError: a file is damaged.
    """
    if not (folder / "story.json").is_file():
        raise UsageError(f"{folder}: no story.json; run dori-fast demo first")
    story = json.loads((folder / "story.json").read_text(encoding="utf-8"))
    originals, setting = _arrays(folder / "originals.npz"), story["setting"]
    threshold, arms = float(setting["threshold"]), _arms(folder)
    title = "Found, hidden, retrieved, removed: the embedded model"
    return page(
        title,
        paragraph(
            "A miniature diffusion model memorized photographs. A scan finds their prompts, pruning"
            " hides them, an attack on the prompt's embedding retrieves them, and adversarial"
            " fine-tuning removes them. Controls are images that the model never saw, attacked on"
            " the same models at the same budget: copies of controls were injected, not"
            " remembered."
        ),
        *([] if f"memorized-{FIXED}" in arms else [_NO_FIXED]),
        tiles(_figures(arms, threshold)),
        section("Found: the scan", *scan_summary(scan, Labels("kind"))),
        section("Hidden, retrieved, removed", *_table(arms, threshold)),
        section("By budget", *_curves(arms, threshold)),
        section("Memorized photographs", _grid("memorized", story, originals, arms)),
        section("Controls", _grid("control", story, originals, arms)),
        section("Settings", _settings(setting, story["model"])),
        footer="Made by dori-fast demo.",
    )


_NO_FIXED = note("No fine-tuned model was given, so this story ends with the pruned models.")


def _arms(folder: Path) -> dict[str, Arm]:
    names = [f"{which}-{model}" for which in SETS for model in ("unpruned", *PRUNED, FIXED)]
    paths = {name: folder / f"{name}.npz" for name in names}
    return {name: _arrays(path) for name, path in paths.items() if path.is_file()}


def _arrays(path: Path) -> Arm:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise IntegrityError(f"{path}: cannot be read; remove it and run the demo again") from error


def _steps(arm: Arm) -> list[int]:
    return sorted(int(key.split()[1]) for key in arm if key.startswith("similarity "))


def _rate(hits: NDArray[Any]) -> tuple[float, float, float]:
    rate = clopper_pearson(int(hits.sum()), hits.size)
    return rate.value, rate.low, rate.high


def _figures(arms: Mapping[str, Arm], threshold: float) -> list[tuple[str, str]]:
    figures = []
    wanted = [("unpruned", 0, "copies from the prompts")]
    wanted += [(m, i, f"{m}, {'attacked' if i else 'prompts'}") for m in PRUNED for i in (0, -1)]
    wanted += [(FIXED, i, f"fine-tuned, {'attacked' if i else 'prompts'}") for i in (0, -1)]
    for model, which, name in wanted:
        arm = arms.get(f"memorized-{model}")
        if arm is not None:
            share = (arm[f"similarity {_steps(arm)[which]}"] > threshold).mean()
            figures.append((name, f"{share:.0%}"))
    return figures


def _table(arms: Mapping[str, Arm], threshold: float) -> list[Html]:
    rows: list[Sequence[Cell]] = []
    for name, arm in arms.items():
        which, model = name.split("-", 1)
        for step in _steps(arm):
            found = arm[f"similarity {step}"]
            rows.append(
                (
                    which,
                    model,
                    f"{step} steps" if step else "the prompt",
                    len(found),
                    interval(_rate(found > threshold)),
                    interval(_rate(np.median(found, axis=1) > threshold)),
                    interval(_rate(found.max(1) > threshold)),
                    f"{found.mean():.2f}",
                )
            )
    header = (
        *("set", "model", "after", "images", "copies among drawn images"),
        *("prompts, median seed", "prompts, any seed", "similarity"),
    )
    return [
        table(header, rows, right=("images", "similarity")),
        paragraph(
            f"A copy has a similarity above {threshold:g}, a threshold fixed on unrelated pairs."
            " Intervals are exact 95 % ones, as if all images were independent."
        ),
    ]


def _curves(arms: Mapping[str, Arm], threshold: float) -> list[Html]:
    curves: dict[str, dict[str, dict[int, tuple[float, float, float]]]] = {}
    for name, arm in arms.items():
        which, model = name.split("-", 1)
        steps = _steps(arm)
        if len(steps) > 1:
            points = {step: _rate(arm[f"similarity {step}"] > threshold) for step in steps}
            curves.setdefault(model, {})[which] = points
    if not curves:
        return [note("No attack was judged at more than one budget.")]
    caption = "Share of images that are copies, by attack steps, with 95 % intervals; 0 steps is"
    caption += " the prompt."
    return [figure(budget_curves(curves), "Copies by budget", caption, density=DENSITY)]


def _grid(which: str, story: Mapping[str, Any], originals: Arm, arms: Mapping[str, Arm]) -> Html:
    """One row per image, with the first seed of every arm."""
    columns: list[tuple[str, NDArray[np.uint8]]] = [("original", originals[which])]
    stages = {
        "unpruned": ("replicated", ""),
        "nemo": ("NeMo", "NeMo, attacked"),
        "wanda": ("Wanda", "Wanda, attacked"),
        FIXED: ("fine-tuned", "fine-tuned, attacked"),
    }
    for model, (plain, attacked) in stages.items():
        arm = arms.get(f"{which}-{model}")
        if arm is None:
            continue
        steps = _steps(arm)
        columns += [(plain, arm[f"pictures {steps[0]}"])] if steps[0] == 0 else []
        columns += [(attacked, arm[f"pictures {steps[-1]}"])] if steps[-1] else []
    rows = [
        [*(image_row(drawn[i : i + 1], f"{name}, {which} {i}") for name, drawn in columns), prompt]
        for i, prompt in enumerate(story[which])
    ]
    return table([*(name for name, _ in columns), "prompt"], rows, grid=True)


def _settings(setting: Mapping[str, Any], model: Mapping[str, Any]) -> Html:
    names = {"attack": "attack", "nemo": "NeMo", "wanda": "Wanda", "generation": "images"}
    sizes = {name: value for name, value in setting.items() if name not in names}
    hashes = model.get("files") or {}
    weights = next((name for name in hashes if name.startswith("unet")), None)
    return facts(
        [
            ("size", settings(sizes)),
            *((title, settings(setting[name])) for name, title in names.items()),
            ("UNet sha256", weights and hashes[weights]),
        ]
    )
