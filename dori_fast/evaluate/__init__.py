"""Judging: how well scores separate, how alike pictures are, what comes back; with intervals."""

from dori_fast.evaluate.copies import CopySimilarity, SmallPictures
from dori_fast.evaluate.detection import auc, roc, tpr_at_fpr
from dori_fast.evaluate.paired import PairedTest, mcnemar
from dori_fast.evaluate.rates import Interval, clopper_pearson
from dori_fast.evaluate.replication import Replication, replication
from dori_fast.evaluate.similarity import similarity
from dori_fast.evaluate.sscd import SSCD

__all__ = [
    "SSCD",
    "CopySimilarity",
    "Interval",
    "PairedTest",
    "Replication",
    "SmallPictures",
    "auc",
    "clopper_pearson",
    "mcnemar",
    "replication",
    "roc",
    "similarity",
    "tpr_at_fpr",
]
