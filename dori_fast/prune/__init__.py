"""Localisation: the neurons and weights that memorized prompts need, and masks of them."""

from dori_fast.models import NeuronMask, WeightMask, stack
from dori_fast.models.applied import Applied, apply_
from dori_fast.prune.export import load_pruned_, save_pruned, torch_prune_
from dori_fast.prune.nemo import NeMo
from dori_fast.prune.search import Search
from dori_fast.prune.statistics import NeuronStatistics
from dori_fast.prune.wanda import Wanda, WandaResult

__all__ = [
    "Applied",
    "NeMo",
    "NeuronMask",
    "NeuronStatistics",
    "Search",
    "Wanda",
    "WandaResult",
    "WeightMask",
    "apply_",
    "load_pruned_",
    "save_pruned",
    "stack",
    "torch_prune_",
]
