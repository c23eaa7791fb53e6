"""Page of an attack: copies before and after it, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np

from dori_fast.evaluate import clopper_pearson, mcnemar
from dori_fast.report.load import Run, rows_of
from dori_fast.report.names import ATTACK_FIGURE, interval
from dori_fast.report.pages.page import Html, note, page, paragraph, section, table, tiles
from dori_fast.report.pages.sections import (
    SHOWN,
    file_name,
    more,
    quarantine,
    run_facts,
    unfinished,
    written,
)

_COLUMNS = ("row_id", "prompt", "error", "losses", "similarity_before", "similarity")


def attack_page(run: Run) -> str:
    """The page of an attack's run directory, with the figure that the run wrote."""
    rows = rows_of(run, *_COLUMNS)
    done = [row for row in rows if row["error"] is None]
    bad = [(row["row_id"], row["error"]) for row in rows if row["error"] is not None]
    method = run.summary()["identity"]["detector"]
    threshold = float(method["judging"]["measure"]["threshold"])
    parts = [*unfinished(run), tiles([("rows attacked", f"{len(done):,}")])]
    parts.append(section("The run", run_facts(run)))
    if done:
        parts.append(section("Copies", *_verdict(done, threshold)))
        parts += written(run.root, {ATTACK_FIGURE: "Similarities to the originals, and losses"})
        parts.append(section("Rows", *_rows(done, threshold)))
    if bad:
        parts.append(section("Quarantined rows", *quarantine(bad, len(bad))))
    return page(f"Attack {file_name(run)}", *parts, footer="Made by dori-fast report.")


def _verdict(rows: list[dict[str, Any]], threshold: float) -> list[Html]:
    # loads torch, which the other pages do without
    from dori_fast._checks import finite_similarities

    found = {
        name: finite_similarities(np.array([row[key] for row in rows]), threshold)
        for name, key in (("the prompt", "similarity_before"), ("the attack", "similarity"))
    }
    median = {name: np.median(x, axis=1) > threshold for name, x in found.items()}
    lines = [
        (
            name,
            _rate(x > threshold),
            _rate(median[name]),
            _rate(x.max(1) > threshold),
            f"{x.mean():.2f}",
        )
        for name, x in found.items()
    ]
    test = mcnemar(*median.values())
    return [
        paragraph(
            f"Shares of copies, similarity above {threshold:g}, among {found['the prompt'].size:,}"
            " images and among the prompts. Intervals are exact 95 % ones; images count as"
            " independent."
        ),
        table(
            ("from", "images", "prompts, median seed", "prompts, any seed", "similarity"),
            lines,
            right=("similarity",),
        ),
        paragraph(
            f"Median seed: {test.second_only} prompts are copies only after the attack,"
            f" {test.first_only} only before, {test.both} both times, {test.neither} never;"
            f" McNemar's exact p = {test.p_value:.2g}."
        ),
        note(
            "Enough steps inject any image: compare with an attack on images that the model never"
            " saw, at the same budget."
        ),
    ]


def _rows(rows: list[dict[str, Any]], threshold: float) -> list[Html]:
    header = ("row", "copies before", "after", "similarity before", "after ", "last loss", "prompt")
    lines = [
        (
            row["row_id"],
            *(_copies(row[key], threshold) for key in ("similarity_before", "similarity")),
            *(f"{np.median(row[key]):.2f}" for key in ("similarity_before", "similarity")),
            f"{row['losses'][-1]:.3g}",
            row["prompt"],
        )
        for row in rows[:SHOWN]
    ]
    return [table(header, lines, right=header[:-1]), *more(lines, len(rows))]


def _copies(similarity: list[float], threshold: float) -> str:
    return f"{sum(value > threshold for value in similarity)}/{len(similarity)}"


def _rate(hits: np.ndarray[Any, np.dtype[np.bool_]]) -> str:
    rate = clopper_pearson(int(hits.sum()), hits.size)
    return interval((rate.value, rate.low, rate.high))
