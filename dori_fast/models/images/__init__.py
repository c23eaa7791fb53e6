"""Latents and images: decoding and encoding by a model's image autoencoder."""

from dori_fast.models.images.autoencoder import Autoencoder
from dori_fast.models.images.convert import decode, encode
from dori_fast.models.images.kinds import require_autoencoder

__all__ = ["Autoencoder", "decode", "encode", "require_autoencoder"]
