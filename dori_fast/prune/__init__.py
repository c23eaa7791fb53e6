"""Localisation: the neurons and weights that memorized prompts need, and masks of them."""

from dori_fast.models import NeuronMask, WeightMask, stack
from dori_fast.prune.nemo import NeMo
from dori_fast.prune.search import Search
from dori_fast.prune.statistics import NeuronStatistics

__all__ = ["NeMo", "NeuronMask", "NeuronStatistics", "Search", "WeightMask", "stack"]
