"""Timed problems: for each op and mode the shapes, the eager baseline and our call.

The baseline does what the papers' code does, in as few eager operations as possible.
"""

from benchmarks.ops.cases import attack, attention, masks, noise, prune, stats
from benchmarks.ops.cases.case import BenchCase

CASES: tuple[BenchCase, ...] = (
    *noise.CASES,
    *masks.CASES,
    *attack.CASES,
    *attention.CASES,
    *prune.CASES,
    *stats.CASES,
)
