"""Figures and pages, drawn from result files only."""

from dori_fast.report.attack import draw_attack
from dori_fast.report.grid import picture_grid
from dori_fast.report.locality import draw_locality
from dori_fast.report.prune import draw_prune

__all__ = ["draw_attack", "draw_locality", "draw_prune", "picture_grid"]
