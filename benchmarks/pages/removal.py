"""The results of `benchmarks.quality.removal` as a page and a curve."""

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
        f"Made by `python -m benchmarks.quality.removal` on the embedded model; attacked are"
        f" {results['images']} photographs and {results['controls']} never-trained pictures."
        f" Fine-tuned by {tuning['steps']} steps at learning rate {tuning['lr']:g}: triggers"
        f" from {' and '.join(tuning['pool']['starts'])} starts,"
        f" {inner['steps']} inner steps of {inner['batch']} draws a turn"
        f" (`{inner['objective']}`, rate {inner['lr']:g}), begun anew after"
        f" {tuning['pool']['restart_after']}; weight {tuning['redirect']:g} of noised memorized"
        f" pictures that lead to surrogates; {tuning['retained_batch']} retained pairs a step,"
        f" weight {tuning['retained_weight']:g},"
        f" {'the original model as their teacher' if tuning['distil'] else 'as they are'}.",
        "",
        "Attacks have draws, starts and seeds of their own, from the prompts or from N(0, I)."
        f" `min-snr` is the attack of [retrieval](retrieval.md) (rate {attack['lr']:g}, cap"
        f" {attack['snr_cap']:g}), `prediction` a stronger one at rate 0.1, which injects more."
        f" Seeds of the images: {results['seeds']}. Intervals are exact 95 % ones, over images as"
        " if they were independent.",
        "",
        "| copies from the prompts | images |",
        "|---|---|",
        *(f"| {name} | {_rate(found['rate'])} |" for name, found in results["prompts"].items()),
        "",
    ]
    budgets = sorted({int(n) for row in results["attacks"] for n in row["after"]})
    lines += [
        f"| model | pictures | attack | from | {' | '.join(f'{n} steps' for n in budgets)} |",
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
    """Where the fine-tuned model gives its photographs more often than controls."""
    counts = [results[of] * results["seeds"] for of in ("images", "controls")]
    rows = {
        (row["objective"], row["start"], row["pictures"]): row["after"]
        for row in results["attacks"]
        if row["model"] == "fine-tuned"
    }
    above = []
    for (objective, start, pictures), after in rows.items():
        if pictures == "memorized":
            control = rows[objective, start, "control"]
            for n in after:
                shares = (after[n]["rate"][0], control[n]["rate"][0])
                hits = [round(k * share) for k, share in zip(counts, shares, strict=True)]
                table = [[hit, k - hit] for k, hit in zip(counts, hits, strict=True)]
                p = float(fisher_exact(table, alternative="greater").pvalue)
                if p < 0.05:
                    above.append(f"`{objective}` from {start} after {n} (p = {p:.2g})")
    told = "; ".join(above) if above else "nowhere"
    return (
        "Where the fine-tuned model gives photographs more often than never-trained pictures"
        f" (Fisher's exact test, one-sided, p < 0.05, images as if independent): {told}."
    )


def _replayed(attacks: Sequence[Mapping[str, Any]]) -> str:
    """What the fine-tuned model draws from the triggers of the pruned one."""
    found = [
        after["replayed"]["rate"]
        for row in attacks
        for after in row["after"].values()
        if "replayed" in after
    ]
    return (
        "Of what the fine-tuned model draws from the triggers that were found on the pruned one, at"
        f" most {_rate(max(found))} are copies ({len(found)} attacks and budgets)."
    )


def _quality(kept: Mapping[str, Any]) -> list[str]:
    """Held-out pairs, the original beside the fine-tuned model."""
    lines = [
        f"| {kept['prompts']} held-out pairs, {len(kept['seeds'])} seeds | original | fine-tuned"
        " | relative change |",
        "|---|---|---|---:|",
    ]
    distance = kept["distance_to_pairs"]
    table = {
        "denoising loss": kept["held_out_loss"],
        "distance of drawn from real pictures": {
            name: [d["value"], d["value"] - 2 * d["error"], d["value"] + 2 * d["error"]]
            for name, d in distance.items()
        },
        "similarity to the real picture": kept["similarity_to_pair"],
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
        f"Similarity of the two models' pictures of one prompt and seed {_figure(same)}; distance"
        f" between their distributions {apart['value']:.3f}. Distances are squared maximum mean"
        " discrepancies of color and edge histograms (`dori_fast/evaluate/kid.py`,"
        " `features.py`), their brackets twice the standard error over subsets; the other"
        " intervals are 95 % bootstrap ones over prompts.",
    ]


def _figure(value: Sequence[float]) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(*value)


DISCUSSION = """## How to read this

- **Controls** are photographs and drawings that were never trained on, attacked at the same budgets
  on the same model. What they reach is injection: an embedding of some thousand free numbers can
  describe a picture to a model that never saw it. A photograph is removed, as far as an attack can
  tell, where it comes back no more often than they do.
- **Beyond the paper.** Its loss trains what a trigger draws. Trained that way alone, the embedded
  model withstood the attack that it was trained against and gave in to `prediction`. Two things
  were added, both options of `Adversarial`: under the triggers, noised memorized pictures lead to
  surrogates too, where the schedule leaves enough noise; and retained pairs keep the original's
  answers.
"""


def curve(attacks: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG: copies by budget on the fine-tuned model, a panel for each attack and start."""
    panels: dict[str, dict[str, dict[int, tuple[float, float, float]]]] = {}
    for row in attacks:
        if row["model"] == "fine-tuned":
            found = {int(n): tuple(after["rate"]) for n, after in row["after"].items()}
            panels.setdefault(f"{row['objective']}, from {row['start']}", {})[row["pictures"]] = (
                found
            )
    return budget_curves(panels)
