"""Fused operators. Each takes `backend="auto" | "reference" | "cpp" | "triton" | "cuda"`."""

from dori_fast.ops.activation_stats import ActivationStats, activation_stats
from dori_fast.ops.neuron_mask import NeuronIndices, neuron_mask, neuron_mask_, pack_indices
from dori_fast.ops.noise_difference import noise_difference

__all__ = [
    "ActivationStats",
    "NeuronIndices",
    "activation_stats",
    "neuron_mask",
    "neuron_mask_",
    "noise_difference",
    "pack_indices",
]
