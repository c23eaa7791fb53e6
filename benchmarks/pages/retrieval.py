"""The document, page and figures of `benchmarks.quality.retrieval`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import harness
from dori_fast.evaluate import clopper_pearson, mcnemar
from dori_fast.evaluate.similarity import THRESHOLD
from dori_fast.report.figures.grid import Group, image_grid

ROOT = Path(__file__).parents[2]
RESULTS = harness.RESULTS / "quality" / "retrieval.json"
PAGE = ROOT / "docs" / "retrieval.md"
CURVE, GRID = ROOT / "docs" / "retrieval_curve.png", ROOT / "docs" / "retrieval_grid.png"
MODELS = ("unpruned", "nemo", "wanda")
COLORS = {"memorized": "#c05621", "control": "#2b6cb0"}
# replication rates of Kowalczuk et al. for Stable Diffusion 1.4, before and after 50 steps
PAPER = {
    "memorized-unpruned": (0.98, None),
    "memorized-nemo": (0.20, 0.99),
    "memorized-wanda": (0.00, 0.72),
    "control-unpruned": (0.00, 0.00),
}

Arm = Mapping[str, NDArray[Any]]


def write(
    arms: Mapping[str, Arm], setting: dict[str, Any], originals: Mapping[str, NDArray[np.uint8]]
) -> None:
    """Write the document, the page and the two figures.

    Args:
        arms: measured arrays by name of the arm.
        setting: settings of the run, as plain JSON.
        originals: attacked images, uint8 [P, H, W, 3], by set.
    """
    results = document(arms, setting)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(results), encoding="utf-8")
    draw_curves(results["curve"], CURVE)
    draw_grid(arms, setting["budget"], originals, GRID)


def document(arms: Mapping[str, Arm], setting: dict[str, Any]) -> dict[str, Any]:
    """All results as plain JSON; rates are [value, low, high]."""
    verdicts: dict[str, Any] = {}
    curves: dict[str, Any] = {}
    for name, arm in arms.items():
        which, kind = name.rsplit("-", 1)
        found = {step: arm[f"similarity {step}"] for step in steps_of(arm)}
        if kind == "curve":
            curves[which] = {str(step): _rate(s > THRESHOLD) for step, s in found.items()}
            continue
        unseen = arm["rows"] % setting["chosen_on_every"] != 0
        verdicts[which] = {
            "pictures": len(unseen),
            "cpu_seconds_per_problem": float(arm["cpu_seconds_per_problem"]),
            "steps": {str(step): _verdict(s, unseen) for step, s in found.items()},
        }
        if len(found) == 2:
            before, after = (np.median(s, axis=1) > THRESHOLD for s in found.values())
            verdicts[which]["mcnemar"] = vars(mcnemar(before, after))
    return {"setting": setting, "verdict": verdicts, "curve": curves}


def steps_of(arm: Arm) -> list[int]:
    """Numbers of attack steps after which an arm was judged."""
    return sorted(int(key.split()[1]) for key in arm if key.startswith("similarity "))


def _verdict(similarity: NDArray[np.float64], unseen: NDArray[np.bool_]) -> dict[str, Any]:
    copies = similarity > THRESHOLD
    return {
        "images": _rate(copies),
        "images_not_chosen_on": _rate(copies[unseen]),
        "prompts_median": _rate(np.median(similarity, axis=1) > THRESHOLD),
        "prompts_any": _rate(copies.any(1)),
        "similarity": float(similarity.mean()),
    }


def _rate(hits: NDArray[np.bool_]) -> list[float]:
    rate = clopper_pearson(int(hits.sum()), hits.size)
    return [rate.value, rate.low, rate.high]


def _cell(rate: Sequence[float]) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*rate)


def page(results: dict[str, Any]) -> str:
    """The Markdown page."""
    setting, verdicts = results["setting"], results["verdict"]
    attack, how, budget = setting["attack"], setting["generation"], setting["budget"]
    lines = [
        "# Retrieval: what an attack brings back from a pruned model",
        "",
        f"`python -m benchmarks.quality.retrieval` attacks the embedded model for {budget} steps of"
        f" `Dori(objective={attack['objective']!r}, snr_cap={attack['snr_cap']},"
        f" lr={attack['lr']})` from the {attack['start']}, with {attack['batch']} draws a step:"
        f" {budget * attack['batch']} evaluations of the network, forward and backward, per image."
        f" Images are drawn by {how['steps']} DDIM steps with guidance {how['guidance']:g},"
        f" memorized ones from {setting['seeds']['memorized']} seeds and controls from"
        f" {setting['seeds']['controls']}. An image is a copy above similarity {THRESHOLD:g}, a"
        " threshold fixed on unrelated pairs (`dori_fast/evaluate/similarity.py`). Intervals are"
        " exact 95 % intervals that treat the drawn images as independent. The paper's rates are"
        " for Stable Diffusion 1.4 and SSCD.",
        "",
        "| images | model | after | copies | copies, trial images left out"
        " | prompts, median seed | prompts, any seed | similarity | paper |",
        "|---|---|---|---|---|---|---|---:|---:|",
    ]
    for which, verdict in verdicts.items():
        images, model = which.split("-")
        for step, found in verdict["steps"].items():
            published = PAPER.get(which, (None, None))[int(step) > 0]
            cells = (
                f"{verdict['pictures']} {images}",
                model,
                f"{step} steps" if int(step) else "the prompt",
                _cell(found["images"]),
                _cell(found["images_not_chosen_on"]),
                _cell(found["prompts_median"]),
                _cell(found["prompts_any"]),
                f"{found['similarity']:.2f}",
                "" if published is None else f"{published:.2f}",
            )
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "McNemar's test of the prompt against the attack, by each prompt's median seed:",
        "",
    ]
    for which, verdict in verdicts.items():
        if "mcnemar" in verdict:
            test, model = verdict["mcnemar"], which.split("-")[1]
            lines.append(
                f"- {model}: {test['second_only']} come back, {test['first_only']} disappear,"
                f" {test['both']} are copies both times, {test['neither']} never; p ="
                f" {test['p_value']:.2g}"
            )
    return "\n".join(
        [
            *lines,
            "",
            f"![Replication by budget](./{CURVE.name})",
            "",
            f"Every {_ordinal(setting['chosen_on_every'])} image, {setting['seeds']['curve']}"
            " seeds. 0 steps is the prompt.",
            "",
            f"![Originals, and images drawn before and after the attack](./{GRID.name})",
            "",
            "Two seeds each. Top: memorized photographs; bottom: controls.",
            "",
            DISCUSSION.format(every=_ordinal(setting["chosen_on_every"])),
        ]
    )


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third", 4: "fourth"}[number]


DISCUSSION = """## How to read this

- **Controls.** "control" are photographs and drawings. "composition" are emoji images like those
  of the training set, but of classes it lacks. Neither was trained on. Each is attacked under the
  mask of one memorized prompt, at the same budget. Their replication is injection, not retrieval.
- **The loss.** The embedded model predicts the sample. The paper's epsilon loss weights its error
  by SNR(t), so nearly clean timesteps dominate. The loss on the prediction weights all noise levels
  equally and injects. min(SNR, 1) lies between.
- **Choice of the setting.** Trials ran on every {every} image with 3 seeds: caps of 5 and 1,
  learning rates of 0.1 (the paper's), 0.05 and 0.03, judged after 25 to 150 steps on the pruned
  models. At 0.05 and 0.03 the controls passed a rate of 0.10 between 25 and 50 steps, so a lower
  learning rate was taken. The paper's epsilon loss at its own rate brought back 0.71 of the images
  that NeMo hid, none that Wanda hid, and no control, in 50 steps. The column "trial images left
  out" drops the images of the trials. All controls had been used once, under NeMo's masks at 0.1.
- **Pruning.** NeMo's threshold leaves about as many copies from the prompts as in the paper. The
  stronger threshold of [pruning](pruning.md) leaves half as many.
"""


def draw_curves(curves: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Write a PNG of replication by budget: a panel per model, memorized images and controls."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(MODELS), figsize=(9.6, 3.2), sharey=True, layout="constrained"
    )
    for axis, model in zip(axes, MODELS, strict=True):
        for which, color in COLORS.items():
            points = curves.get(f"{which}-{model}", {})
            if points:
                value, low, high = np.array(list(points.values())).T
                places = np.arange(len(points))
                axis.plot(places, value, "o-", color=color, label=which, markersize=4)
                axis.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)
                axis.set_xticks(places, list(points))
        axis.set_title(model, fontsize=10)
        axis.set_xlabel("attack steps")
        axis.grid(alpha=0.3)
        axis.legend(loc="upper left")
    axes[0].set_ylabel("share of images that are copies")
    axes[0].set_ylim(-0.02, 1.02)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def draw_grid(
    arms: Mapping[str, Arm], budget: int, originals: Mapping[str, NDArray[np.uint8]], path: Path
) -> None:
    """Write a grid of some memorized images and controls: originals and drawn images."""
    from PIL import Image

    sheets = []
    for which, rows in (("memorized", 7), ("control", 5)):
        chosen = np.linspace(0, len(originals[which]) - 1, rows).astype(int)
        groups = [Group("original", originals[which][chosen, None])]
        for model in MODELS:
            arm = arms[f"{which}-{model}-verdict"]
            titles = {0: model, budget: f"{model}, attacked"}
            for step in steps_of(arm):
                groups.append(Group(titles[step], arm[f"pictures {step}"][chosen]))
        sheets.append(image_grid([f"{which} {row}" for row in chosen], groups))
    size = max(s.width for s in sheets), sum(s.height for s in sheets)
    joined = Image.new("RGB", size, (255, 255, 255))
    top = 0
    for sheet in sheets:
        joined.paste(sheet, (0, top))
        top += sheet.height
    joined.save(path)
