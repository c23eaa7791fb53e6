"""The denoiser: the only thing that methods see of a diffusion model."""

from dori_fast.models.denoiser import Denoiser
from dori_fast.models.engine.batch import SharedLatents
from dori_fast.models.load import load, source_hashes
from dori_fast.models.masks import NeuronMask, WeightMask, stack
from dori_fast.models.save import save_difference
from dori_fast.models.text.conditions import TextCondition

__all__ = [
    "Denoiser",
    "NeuronMask",
    "SharedLatents",
    "TextCondition",
    "WeightMask",
    "load",
    "save_difference",
    "source_hashes",
    "stack",
]
