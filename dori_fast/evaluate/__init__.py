"""Evaluation: detection rates, similarity of images, replication and quality, with intervals."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dori_fast.evaluate.detection import auc, roc, tpr_at_fpr
from dori_fast.evaluate.features import FeatureExtractor, GridHistograms
from dori_fast.evaluate.kid import KernelDistance, kernel_distance
from dori_fast.evaluate.paired import PairedTest, mcnemar
from dori_fast.evaluate.rates import Interval, clopper_pearson
from dori_fast.evaluate.similarity import similarity

if TYPE_CHECKING:
    from dori_fast.evaluate.copies import CopySimilarity, SmallImages
    from dori_fast.evaluate.denoising import held_out_loss
    from dori_fast.evaluate.quality_kept import Quality, quality
    from dori_fast.evaluate.replications import Replication, replication
    from dori_fast.evaluate.sscd import SSCD

# these need torch; the command line of a scan must respond before torch is loaded
_LATER = {
    "CopySimilarity": "copies",
    "Quality": "quality_kept",
    "quality": "quality_kept",
    "Replication": "replications",
    "SSCD": "sscd",
    "SmallImages": "copies",
    "held_out_loss": "denoising",
    "replication": "replications",
}

__all__ = [
    "SSCD",
    "CopySimilarity",
    "FeatureExtractor",
    "GridHistograms",
    "Interval",
    "KernelDistance",
    "PairedTest",
    "Quality",
    "Replication",
    "SmallImages",
    "auc",
    "clopper_pearson",
    "held_out_loss",
    "kernel_distance",
    "mcnemar",
    "quality",
    "replication",
    "roc",
    "similarity",
    "tpr_at_fpr",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"dori_fast.evaluate.{_LATER[name]}"), name)
    raise AttributeError(f"module 'dori_fast.evaluate' has no attribute {name!r}")
