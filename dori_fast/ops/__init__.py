"""Fused ops: functions on tensors over the torch operators `dori::*`.

All of them share this; a docstring states only what differs:

- A floating input is float32, bfloat16, float16 or float64, with any strides. Tensors of one call
  have the same dtype and device.
- Arithmetic is in float32 (float64 for float64 inputs) and rounds once, to the dtype of the result.
- In a kernel (any backend but "reference"), a sample's result does not depend on its batch, on the
  alignment of its memory or on the number of threads, and repeats bit for bit on one machine. Tests
  prove it on CPUs. On GPUs it follows from the order of sums in the code and is not yet measured;
  there, `activation_stats` adds its float64 numbers in an order that alignment may change. Two
  backends add in different orders.
- Square roots and quotients are correctly rounded on CPUs and GPUs; exponentials are not.
- `backend` is "auto", which selects the best kernel for the device, or one of "reference", "cpp",
  "triton" and "cuda", which computes or raises. `dori_fast.backends()` lists them.
- TypeError: an input is not a tensor. ValueError: a shape, dtype, device or number does not fit, or
  the backend is unknown. RuntimeError: the named backend cannot serve; the message says why.

Equations and their sources stand in `dori_fast.reference`, one module per op.
"""

from dori_fast.ops.activation_stats import ActivationStats, activation_stats
from dori_fast.ops.diffusion_loss import add_noise, diffusion_loss
from dori_fast.ops.embedding_step import EmbeddingState, embedding_step
from dori_fast.ops.ms_ssim import (
    MsSsimSettings,
    largest_per_map,
    ms_ssim,
    ms_ssim_pairs,
    ms_ssim_settings,
)
from dori_fast.ops.neuron_mask import NeuronIndices, neuron_mask, neuron_mask_, pack_indices
from dori_fast.ops.noise_difference import (
    noise_cosine,
    noise_difference,
    noise_difference_step,
)
from dori_fast.ops.sdpa_jvp import sdpa_jvp
from dori_fast.ops.wanda_mask import pack_mask, prune_, restore_, unpack_mask, wanda_mask

__all__ = [
    "ActivationStats",
    "EmbeddingState",
    "MsSsimSettings",
    "NeuronIndices",
    "activation_stats",
    "add_noise",
    "diffusion_loss",
    "embedding_step",
    "largest_per_map",
    "ms_ssim",
    "ms_ssim_pairs",
    "ms_ssim_settings",
    "neuron_mask",
    "neuron_mask_",
    "noise_cosine",
    "noise_difference",
    "noise_difference_step",
    "pack_indices",
    "pack_mask",
    "prune_",
    "restore_",
    "sdpa_jvp",
    "unpack_mask",
    "wanda_mask",
]
