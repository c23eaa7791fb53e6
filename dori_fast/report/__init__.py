"""Figures, pages and exports, made from result files only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dori_fast.report.export.csv_rows import csv_rows
from dori_fast.report.export.lm_eval import lm_eval
from dori_fast.report.export.measured import measured_file, measured_scan
from dori_fast.report.export.model_card import model_card
from dori_fast.report.figures.attack import draw_attack
from dori_fast.report.figures.grid import image_grid
from dori_fast.report.figures.locality import draw_locality
from dori_fast.report.labels import Labels
from dori_fast.report.pages.attack import attack_page
from dori_fast.report.pages.prune import prune_page
from dori_fast.report.pages.scan import scan_page
from dori_fast.report.pages.story import story_page

if TYPE_CHECKING:
    from dori_fast.report.figures.prune import draw_prune

__all__ = [
    "Labels",
    "attack_page",
    "csv_rows",
    "draw_attack",
    "draw_locality",
    "draw_prune",
    "image_grid",
    "lm_eval",
    "measured_file",
    "measured_scan",
    "model_card",
    "prune_page",
    "scan_page",
    "story_page",
]


def __getattr__(name: str) -> Any:
    # masks need torch; pages must load without it
    if name == "draw_prune":
        from dori_fast.report.figures.prune import draw_prune

        return draw_prune
    raise AttributeError(f"module 'dori_fast.report' has no attribute {name!r}")
