"""Fused operators. Each takes `backend="auto" | "reference" | "cpp" | "triton" | "cuda"`."""

from dori_fast.ops.diffusion_loss import add_noise, diffusion_loss
from dori_fast.ops.embedding_step import EmbeddingState, embedding_step
from dori_fast.ops.masked_linear import masked_linear
from dori_fast.ops.neuron_mask import NeuronIndices, neuron_mask, neuron_mask_, pack_indices
from dori_fast.ops.noise_difference import (
    noise_cosine,
    noise_difference,
    noise_difference_step,
)
from dori_fast.ops.wanda_mask import pack_mask, prune_, restore_, unpack_mask, wanda_mask

__all__ = [
    "EmbeddingState",
    "NeuronIndices",
    "add_noise",
    "diffusion_loss",
    "embedding_step",
    "masked_linear",
    "neuron_mask",
    "neuron_mask_",
    "noise_cosine",
    "noise_difference",
    "noise_difference_step",
    "pack_indices",
    "pack_mask",
    "prune_",
    "restore_",
    "unpack_mask",
    "wanda_mask",
]
