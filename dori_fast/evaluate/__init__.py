"""Judging: how well scores separate, how alike pictures are, with intervals."""

from dori_fast.evaluate.detection import auc, roc, tpr_at_fpr
from dori_fast.evaluate.rates import Interval, clopper_pearson
from dori_fast.evaluate.similarity import similarity

__all__ = ["Interval", "auc", "clopper_pearson", "roc", "similarity", "tpr_at_fpr"]
