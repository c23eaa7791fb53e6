"""The denoiser: the only thing that methods see of a diffusion model."""

from dori_fast.models.denoiser import Denoiser
from dori_fast.models.loading import load, source_hashes
from dori_fast.models.masks import NeuronMask, WeightMask, stack
from dori_fast.models.partial import save_difference
from dori_fast.models.recorder import StatsRecorder, linear_layers
from dori_fast.models.samples import SharedLatents
from dori_fast.models.text import TextCondition

__all__ = [
    "Denoiser",
    "NeuronMask",
    "SharedLatents",
    "StatsRecorder",
    "TextCondition",
    "WeightMask",
    "linear_layers",
    "load",
    "save_difference",
    "source_hashes",
    "stack",
]
