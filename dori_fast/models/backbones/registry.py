"""The backbone of each supported architecture."""

from __future__ import annotations

from typing import Any

from dori_fast.models.backbones.unet.backbone import UNet
from dori_fast.models.engine.backbone import Backbone


def backbone_of(network: Any, image_size: tuple[int, int], borrowed: bool = False) -> Backbone:
    """The engine's view of a network; its ``not_shared`` is why the network runs whole, if it does.

    Args:
        network: a diffusers UNet2DConditionModel.
        image_size: (H, W) of the images, in pixels.
        borrowed: True if the network is the caller's, who may train it between evaluations.

    Raises:
        UsageError: not a text-to-image denoiser of a supported kind.
    """
    return UNet(network, image_size, borrowed)


def latent_shape(network: Any) -> tuple[int, int, int]:
    """(C, H, W) of one latent of a network that :func:`backbone_of` accepts."""
    return UNet.latent_shape_of(network)
