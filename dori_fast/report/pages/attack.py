"""The page of an attack: what comes back, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np

from dori_fast.evaluate import clopper_pearson, mcnemar
from dori_fast.report.figures.attack import FIGURE
from dori_fast.report.load import (
    SHOWN,
    Run,
    file_name,
    quarantine,
    rows_of,
    run_facts,
    unfinished,
)
from dori_fast.report.names import interval
from dori_fast.report.pages.page import Html, note, page, paragraph, section, table, tiles
from dori_fast.report.pages.written import written

_COLUMNS = ("row_id", "prompt", "error", "losses", "similarity_before", "similarity")


def attack_page(run: Run) -> str:
    """The page of an attack's run directory, with the figure that the run wrote."""
    rows = rows_of(run, *_COLUMNS)
    done = [row for row in rows if row["error"] is None]
    unfit = [(row["row_id"], row["error"]) for row in rows if row["error"] is not None]
    method = run.summary()["identity"]["detector"]
    threshold = float(method["judging"]["measure"]["threshold"])
    parts = [*unfinished(run), tiles([("rows attacked", f"{len(done):,}")])]
    parts.append(section("The run", run_facts(run)))
    if done:
        parts.append(section("What comes back", *_verdict(done, threshold)))
        parts += written(run.root, {FIGURE: "Similarities to the originals, and losses"})
        parts.append(section("Rows", *_rows(done, threshold)))
    if unfit:
        parts.append(section("Quarantined rows", *quarantine(unfit[:SHOWN], len(unfit))))
    return page(f"Attack {file_name(run)}", *parts, footer="Made by dori-fast report.")


def _verdict(rows: list[dict[str, Any]], threshold: float) -> list[Html]:
    found = {
        name: np.array([row[key] for row in rows])
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
            f"Median seed: {test.second_only} come back by the attack, {test.first_only} go,"
            f" {test.both} are copies both times, {test.neither} never; McNemar's exact p ="
            f" {test.p_value:.2g}."
        ),
        note(
            "Enough steps inject any picture: compare with an attack on pictures that the model"
            " never saw, at the same budget."
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
    parts = [table(header, lines, right=header[:-1])]
    if len(rows) > SHOWN:
        parts.append(note(f"{len(rows) - SHOWN:,} more are in the run directory."))
    return parts


def _copies(similarity: list[float], threshold: float) -> str:
    return f"{sum(value > threshold for value in similarity)}/{len(similarity)}"


def _rate(hits: np.ndarray[Any, np.dtype[np.bool_]]) -> str:
    rate = clopper_pearson(int(hits.sum()), hits.size)
    return interval((rate.value, rate.low, rate.high))
