"""Page of a localization: neurons or weights found, prompt by prompt."""

from __future__ import annotations

from typing import Any

import numpy as np

from dori_fast.report.load import Run, rows_of
from dori_fast.report.names import IMAGES_FIGURE, LAYERS_FIGURE
from dori_fast.report.pages.page import Html, page, section, table, tiles
from dori_fast.report.pages.sections import (
    SHOWN,
    file_name,
    more,
    quarantine,
    run_facts,
    unfinished,
    written,
)


def prune_page(run: Run) -> str:
    """The page of a localization's run directory, with the figures that the run wrote."""
    neurons = "refined" in run.columns
    rows = rows_of(run)
    done = [row for row in rows if row["error"] is None]
    bad = [(row["row_id"], row["error"]) for row in rows if row["error"] is not None]
    figures = [("prompts", f"{len(done):,}")]
    if neurons:
        figures.append(("memorized", f"{sum(bool(row['memorized']) for row in done):,}"))
    spent = sum(row["evaluations"] for row in done)
    if done:
        figures.append(("UNet evaluations per prompt", f"{spent / len(done):,.0f}"))
    parts = [*unfinished(run), tiles(figures), section("The run", run_facts(run))]
    titles = {LAYERS_FIGURE: "By layer", IMAGES_FIGURE: "Images with and without the masks"}
    parts += written(run.root, titles)
    shown = done[:SHOWN]
    listed = _neurons(shown) if neurons else _weights(shown)
    parts.append(section("Prompts", listed, *more(shown, len(done))))
    if bad:
        parts.append(section("Quarantined rows", *quarantine(bad, len(bad))))
    return page(f"Localization {file_name(run)}", *parts, footer="Made by dori-fast report.")


def _neurons(rows: list[dict[str, Any]]) -> Html:
    header = ("row", "memorized", "candidates", "similarity", "kept", "similarity ", "prompt")
    lines = [
        (
            row["row_id"],
            "yes" if row["memorized"] else "no",
            sum(len(set(layer)) for layer in row["initial"] or []),
            _number(row["initial_similarity"]),
            sum(len(set(layer)) for layer in row["refined"] or []),
            _number(row["refined_similarity"]),
            row["prompt"],
        )
        for row in rows
    ]
    return table(header, lines, right=("row", "candidates", "similarity", "kept", "similarity "))


def _weights(rows: list[dict[str, Any]]) -> Html:
    lines = [(row["row_id"], f"{_bits(row['pruned']):,}", row["prompt"]) for row in rows]
    return table(("row", "weights pruned", "prompt"), lines, right=("row", "weights pruned"))


def _bits(layers: list[bytes]) -> int:
    return sum(int(np.bitwise_count(np.frombuffer(layer, np.uint8)).sum()) for layer in layers)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
