"""Page of a scan: distribution and separation of scores, top prompts, quarantined rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dori_fast.evaluate import auc, clopper_pearson, roc, tpr_at_fpr
from dori_fast.report.decided import Decided, decided
from dori_fast.report.figures.charts import DENSITY, histogram, roc_curve
from dori_fast.report.labels import FALSE_RATE, Labels, Scores
from dori_fast.report.load import Run
from dori_fast.report.names import interval
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
from dori_fast.report.pages.sections import file_name, quarantine, run_facts, unfinished

_TOP, _MOST = 50, 1_000


def scan_page(
    run: Run,
    *,
    top: int | None = None,
    labels: Labels | None = None,
    drawn: Mapping[int, NDArray[np.uint8]] | None = None,
) -> str:
    """The page of a scan's run directory.

    Args:
        run: The scan.
        top: Number of highest-scored rows to list; default: 50, or all flagged rows to 1,000.
        labels: Labels of rows; add ROC, AUC and TPR at 1 % FPR, with intervals.
        drawn: Images uint8 [S, H, W, 3] by row, shown with the top rows.

    Raises:
        UsageError: the column of labels is missing, or lacks one of the two kinds of rows.
    """
    decision = decided(run.summary())
    seen = Scores(run, _MOST if top is None else top, labels)
    if top is None:
        del seen.best[max(_TOP, seen.flagged) :]
    threshold = None if decision is None else decision.threshold
    parts = [*unfinished(run), tiles(_figures(run, seen, decision))]
    if decision is not None:
        parts.append(section("Decision", *_decision(decision, seen)))
    parts.append(section("The run", run_facts(run)))
    parts.append(section("Scores", *_scores(seen, threshold)))
    if labels is not None:
        parts.append(section("Detection", *_detection(seen, labels, threshold)))
    listed = [*_listed(seen, decision), _top(seen, labels, drawn or {})]
    parts.append(section("Highest-scored prompts", *listed))
    if seen.quarantined:
        reasons = ", ".join(f"{count:,} {code}" for code, count in seen.reasons.most_common())
        listed = quarantine(seen.quarantined_rows, seen.quarantined)
        parts.append(section("Quarantined rows", paragraph(reasons), *listed))
    return page(f"Scan {file_name(run)}", *parts, footer="Made by dori-fast report.")


def scan_summary(run: Run, labels: Labels, top: int = 10) -> list[Html]:
    """Distribution and separation of scores, and the top rows, for a page with other sections."""
    seen, decision = Scores(run, top, labels), decided(run.summary())
    threshold = None if decision is None else decision.threshold
    return [*_scores(seen, threshold), *_detection(seen, labels, threshold), _top(seen, labels, {})]


def _figures(run: Run, seen: Scores, decision: Decided | None) -> list[tuple[str, str]]:
    record = run.summary()
    scored = sum(map(len, seen.scores))
    figures = [("rows scored", f"{scored:,}"), ("quarantined", f"{seen.quarantined:,}")]
    if decision is not None:
        figures.append(("flagged", f"{seen.flagged:,}"))
        if decision.expected_false is not None:
            figures.append(("of them expected by chance", f"{decision.expected_false:,.1f}"))
    if seen.best:
        figures.append(("highest score", f"{seen.best[0]['score']:.4f}"))
    if record["seconds"] > 0:
        figures.append(("rows per second", f"{scored / record['seconds']:,.1f}"))
    spent = {"evaluations": "UNet evaluations", "rows_computed": "UNet rows with padding"}
    for key, what in spent.items():
        if scored and record.get(key) is not None:
            figures.append((f"{what} per prompt", f"{record[key] / scored:,.2f}"))
    if seen.truncated:
        figures.append(("truncated prompts", f"{seen.truncated:,}"))
    return figures


def _scores(seen: Scores, threshold: float | None) -> list[Html]:
    groups = {"not memorized": seen.group(0), "memorized": seen.group(1)}
    groups = {name: scores for name, scores in groups.items() if len(scores)}
    if not groups:
        groups = {"prompts": seen.group(-1)}
    everything = np.concatenate(list(groups.values()))
    if not len(everything):
        return [note("No row could be scored.")]
    low, middle, high = np.percentile(everything, (5, 50, 95))
    caption = f"Median {middle:.4f}; 90 % lie between {low:.4f} and {high:.4f}."
    png = histogram(groups, threshold)
    return [figure(png, "Histogram of scores", caption, density=DENSITY)]


def _decision(decision: Decided, seen: Scores) -> list[Html]:
    """What the scores mean, how many rows are flagged, and what the error rate rests on."""
    clean = "clean prompts" if decision.clean is None else f"{decision.clean:,} clean prompts"
    floor = "" if decision.clean is None else f" It cannot be below {1 / (decision.clean + 1):.2g}."
    meaning = (
        "A row's score says how much the model's prediction depends on its prompt; memorized"
        f" prompts score high. Its p-value is the share of {clean} that score at least as high, the"
        f" row counted in.{floor}"
    )
    rule = (
        "The false-positive rate is the share of clean prompts that may be flagged."
        if decision.kind == "fpr"
        else "The false discovery rate is the expected share of clean prompts among the flagged."
    )
    valid = "It holds if the scan's clean prompts are like those of the calibration."
    known, chance = decision.calibration, decision.expected_false
    return [
        paragraph(meaning),
        paragraph(f"{rule} {valid}"),
        facts(
            [
                ("wanted", decision.wanted),
                ("rows flagged", f"{seen.flagged:,}"),
                ("of them expected by chance", None if chance is None else f"{chance:,.1f}"),
                ("threshold", decision.threshold and f"{decision.threshold:.6g}"),
                ("largest flagged p-value", decision.p_value and f"{decision.p_value:.2g}"),
                ("clean prompts", decision.clean and f"{decision.clean:,}"),
                (
                    "of these above the threshold, 95 % interval",
                    decision.observed and _percent(decision.observed),
                ),
                ("decided", decision.made),
                ("calibration made", known.get("made")),
                ("calibration scores, sha256", known.get("scores_sha256")),
                ("calibration file, sha256", known.get("file_sha256")),
                ("clean prompts' input, sha256", known.get("input_sha256")),
            ]
        ),
    ]


def _listed(seen: Scores, decision: Decided | None) -> list[Html]:
    """How many of the flagged rows the list below shows."""
    if decision is None or not seen.flagged:
        return []
    shown = sum(bool(row.get("flagged")) for row in seen.best)
    if shown == seen.flagged:
        return [paragraph(f"All {shown:,} flagged rows are listed.")]
    return [
        note(
            f"{shown:,} of {seen.flagged:,} flagged rows are listed; dori-fast export --flagged"
            " writes all of them."
        )
    ]


def _detection(seen: Scores, labels: Labels, threshold: float | None) -> list[Html]:
    memorized, others = seen.separated(labels)
    area, hits = auc(memorized, others), tpr_at_fpr(memorized, others, FALSE_RATE)
    false, true, _ = roc(memorized, others)
    rows: list[Sequence[Cell]] = [
        ("AUC", interval((area.value, area.low, area.high))),
        ("TPR below 1 % FPR", interval((hits.value, hits.low, hits.high))),
    ]
    if threshold is not None:
        for name, scores in (("memorized", memorized), ("not memorized", others)):
            share = clopper_pearson(int((scores > threshold).sum()), len(scores))
            shown = interval((share.value, share.low, share.high))
            rows.append((f"{name} above the threshold", shown))
    words = ", ".join(sorted(labels.positive))
    parts = [
        paragraph(
            f"{len(memorized):,} rows count as memorized (column {labels.column}: {words}),"
            f" {len(others):,} do not. Intervals are 95 % ones; rows count as independent."
        ),
        table(("metric", "value [interval]"), rows),
        figure(roc_curve(false, true), "ROC curve", density=DENSITY),
    ]
    if len(others) < 1 / FALSE_RATE:
        parts.append(note(f"{len(others)} other rows cannot resolve a false-positive rate of 1 %."))
    return parts


def _top(seen: Scores, labels: Labels | None, drawn: Mapping[int, NDArray[np.uint8]]) -> Html:
    optional = {
        "p": any("p_value" in row for row in seen.best),
        "flagged": any("flagged" in row for row in seen.best),
        "label": labels is not None,
        "images": bool(drawn),
    }
    names = ("rank", "score", "seeds", "p", "flagged", "label", "row", "tokens", "images")
    header = [name for name in (*names, "prompt") if optional.get(name, True)]
    rows = []
    for rank, row in enumerate(seen.best, 1):
        images = drawn.get(row["row_id"])
        tokens = f"{row['n_tokens']}{' (cut)' if row['truncated'] else ''}"
        cells: dict[str, Cell] = {
            "rank": rank,
            "score": f"{row['score']:.4f}",
            "seeds": _range(row["score_per_seed"]),
            "p": None if row.get("p_value") is None else f"{row['p_value']:.2g}",
            "flagged": "yes" if row.get("flagged") else "no",
            "label": None if labels is None else row[labels.column],
            "row": row["row_id"],
            "tokens": tokens,
            "images": None if images is None else image_row(images, f"row {row['row_id']}", 64),
            "prompt": row["prompt"],
        }
        rows.append([cells[name] for name in header])
    return table(header, rows, right=("rank", "score", "seeds", "p", "row", "tokens"))


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.2f}–{max(values):.2f}" if len(values) > 1 else ""


def _percent(rate: Sequence[float]) -> str:
    return "{:.2%} [{:.2%}, {:.2%}]".format(*rate)
