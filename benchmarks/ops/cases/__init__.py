"""Timed problems: for each op and mode the shapes, the eager baseline and our call.

The baseline does what the papers' code does, in as few eager operations as possible.
"""

from benchmarks.ops.cases.case import DTYPES, BenchCase, Inputs, Shape
from benchmarks.ops.cases.masks import CASES

__all__ = ["CASES", "DTYPES", "BenchCase", "Inputs", "Shape"]
