"""The page and the figure of `benchmarks.quality.removal`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import fisher_exact

from benchmarks import harness
from dori_fast.report.figures.charts import budget_curves

ROOT = Path(__file__).parents[2]
RESULTS = harness.RESULTS / "quality" / "removal.json"
PAGE, CURVE = ROOT / "docs" / "removal.md", ROOT / "docs" / "removal_curve.png"


def page(results: Mapping[str, Any]) -> str:
    """The Markdown page."""
    attack, tuning, kept = results["attack"], results["fine_tuning"], results["quality"]
    inner = tuning["attack"]
    lines = [
        "# Removal: what an attack brings back from a fine-tuned model",
        "",
        f"`python -m benchmarks.quality.removal` attacks {results['images']} memorized photographs"
        f" and {results['controls']} control images, which were never trained on, on the embedded"
        f" model. Fine-tuning took {tuning['steps']} steps at learning rate {tuning['lr']:g}."
        f" Triggers start from {' and '.join(tuning['pool']['starts'])}; each turn attacks them for"
        f" {inner['steps']} inner steps of {inner['batch']} draws (`{inner['objective']}`, rate"
        f" {inner['lr']:g}), and a trigger restarts after"
        f" {tuning['pool']['restart_after']} inner steps."
        f" Noised memorized images are also trained toward surrogates (weight"
        f" {tuning['redirect']:g}). Each step has {tuning['retained_batch']} retained pairs (weight"
        f" {tuning['retained_weight']:g}), whose target is"
        f" {'the prediction of the original model' if tuning['distil'] else 'their own image'}.",
        "",
        "The attacks use their own draws, starts and seeds; they start from the prompts or from"
        f" N(0, I). `min-snr` is the attack of [retrieval](retrieval.md) (rate {attack['lr']:g},"
        f" cap {attack['snr_cap']:g}); `prediction` is a stronger attack at rate 0.1, which injects"
        f" more. Each rate is over {results['seeds']} seeds an image. Intervals are exact 95 %"
        " intervals that treat the drawn images as independent.",
        "",
        "| model | replication from the prompts |",
        "|---|---|",
        *(f"| {name} | {_rate(found['rate'])} |" for name, found in results["prompts"].items()),
        "",
    ]
    budgets = sorted({int(n) for row in results["attacks"] for n in row["after"]})
    lines += [
        f"| model | images | attack | from | {' | '.join(f'{n} steps' for n in budgets)} |",
        f"|---|---|---|---|{'---|' * len(budgets)}",
    ]
    for row in results["attacks"]:
        after = row["after"]
        cells = [_rate(after[str(n)]["rate"]) if str(n) in after else "" for n in budgets]
        named = (row["model"], row["pictures"], f"`{row['objective']}`", row["start"])
        lines.append(f"| {' | '.join([*named, *cells])} |")
    lines += ["", _verdict(results), "", _replayed(results["attacks"])]
    lines += ["", f"![By budget](./{CURVE.name})", ""]
    return "\n".join([*lines, *_quality(kept), "", DISCUSSION])


def _rate(rate: Sequence[float]) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*rate)


def _verdict(results: Mapping[str, Any]) -> str:
    """The attacks after which memorized images come back more often than controls."""
    counts = [results[of] * results["seeds"] for of in ("images", "controls")]
    rows = {
        (row["objective"], row["start"], row["pictures"]): row["after"]
        for row in results["attacks"]
        if row["model"] == "fine-tuned"
    }
    above = []
    for (objective, start, which), after in rows.items():
        if which == "memorized":
            control = rows[objective, start, "control"]
            for n in after:
                shares = (after[n]["rate"][0], control[n]["rate"][0])
                hits = [round(k * share) for k, share in zip(counts, shares, strict=True)]
                table = [[hit, k - hit] for k, hit in zip(counts, hits, strict=True)]
                p = float(fisher_exact(table, alternative="greater").pvalue)
                if p < 0.05:
                    above.append(f"`{objective}` from {start} after {n} (p = {p:.2g})")
    cases = "; ".join(above) if above else "in no case"
    return (
        "The fine-tuned model replicates memorized photographs more often than controls (Fisher's"
        f" exact test, one-sided, p < 0.05, drawn images as independent): {cases}."
    )


def _replayed(attacks: Sequence[Mapping[str, Any]]) -> str:
    """Replication by the fine-tuned model from triggers that were found on the pruned model."""
    found = [
        after["replayed"]["rate"]
        for row in attacks
        for after in row["after"].values()
        if "replayed" in after
    ]
    return (
        "Triggers that were found on the pruned model make the fine-tuned model replicate at a rate"
        f" of at most {_rate(max(found))} ({len(found)} attacks and budgets)."
    )


def _quality(kept: Mapping[str, Any]) -> list[str]:
    """A table of quality on held-out pairs: original and fine-tuned model."""
    lines = [
        f"| {kept['prompts']} held-out pairs, {len(kept['seeds'])} seeds | original | fine-tuned"
        " | relative change |",
        "|---|---|---|---:|",
    ]
    distance = kept["distance_to_pairs"]
    table = {
        "denoising loss": kept["held_out_loss"],
        "distance from drawn to real images": {
            name: [d["value"], d["value"] - 2 * d["error"], d["value"] + 2 * d["error"]]
            for name, d in distance.items()
        },
        "similarity to the real image": kept["similarity_to_pair"],
        "diversity over seeds": kept["diversity"],
    }
    for name, both in table.items():
        old, new = both["original"], both["changed"]
        lines.append(
            f"| {name} | {_figure(old)} | {_figure(new)} | {100 * (new[0] / old[0] - 1):+.1f} % |"
        )
    same, apart = kept["same_seed_similarity"], kept["distance"]
    return [
        *lines,
        "",
        f"The two models' images of one prompt and seed have similarity {_figure(same)}; the"
        f" distance between their distributions is {apart['value']:.3f}. A distance is the squared"
        " maximum mean discrepancy of color and edge histograms (`dori_fast/evaluate/kid.py`,"
        " `features.py`), plus or minus two standard errors over subsets. The other intervals are"
        " 95 % bootstrap intervals over prompts.",
    ]


def _figure(value: Sequence[float]) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(*value)


DISCUSSION = """## How to read this

- **Controls** are photographs and drawings that were never trained on. They are attacked at the
  same budgets on the same model. Their replication is injection: an embedding of a few thousand
  free numbers can describe an image to a model that never saw it. A photograph counts as removed if
  it comes back no more often than the controls.
- **Beyond the paper.** The paper's loss trains the image that a trigger draws. With this loss
  alone, the embedded model resisted the attack it was trained against but not `prediction`. Two
  options of `Adversarial` were added. First, under the triggers, noised memorized images are also
  trained toward surrogates, at timesteps with enough noise. Second, the model keeps the original
  model's predictions on retained pairs.
"""


def curve(attacks: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG of replication by budget on the fine-tuned model: a panel per attack and start."""
    panels: dict[str, dict[str, dict[int, tuple[float, float, float]]]] = {}
    for row in attacks:
        if row["model"] == "fine-tuned":
            found = {int(n): tuple(after["rate"]) for n, after in row["after"].items()}
            panels.setdefault(f"{row['objective']}, from {row['start']}", {})[row["pictures"]] = (
                found
            )
    return budget_curves(panels)
