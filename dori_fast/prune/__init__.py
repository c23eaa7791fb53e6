"""Localization: find the neurons and weights that memorized prompts need, and mask them."""

from dori_fast.models import NeuronMask, WeightMask, stack
from dori_fast.models.in_place import Applied, apply_
from dori_fast.prune.export import load_pruned_, save_pruned
from dori_fast.prune.nemo.published_csv import read_nemo_csv, write_nemo_csv
from dori_fast.prune.nemo.result import Search
from dori_fast.prune.nemo.search import NeMo
from dori_fast.prune.nemo.statistics import NeuronStatistics
from dori_fast.prune.torch_masks import from_torch_prune, torch_prune_
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
    "from_torch_prune",
    "load_pruned_",
    "read_nemo_csv",
    "save_pruned",
    "stack",
    "torch_prune_",
    "write_nemo_csv",
]
