"""Fused operators. Each takes `backend="auto" | "reference" | "cpp" | "triton" | "cuda"`."""

from dori_fast.ops.activation_stats import ActivationStats, activation_stats
from dori_fast.ops.ms_ssim import MsSsimSettings, ms_ssim, ms_ssim_pairs, ms_ssim_settings
from dori_fast.ops.neuron_mask import NeuronIndices, neuron_mask, neuron_mask_, pack_indices
from dori_fast.ops.noise_difference import noise_difference

__all__ = [
    "ActivationStats",
    "MsSsimSettings",
    "NeuronIndices",
    "activation_stats",
    "ms_ssim",
    "ms_ssim_pairs",
    "ms_ssim_settings",
    "neuron_mask",
    "neuron_mask_",
    "noise_difference",
    "pack_indices",
]
