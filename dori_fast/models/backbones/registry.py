"""The backbone of each supported architecture."""

from __future__ import annotations

from typing import Any

from dori_fast.models.backbones.unet.backbone import UNet
from dori_fast.models.engine.backbone import Backbone


def backbone_of(network: Any, image_size: tuple[int, int]) -> Backbone:
    """The engine's view of a network; its ``not_shared`` is why the network runs whole, if it does.

    Args:
        network: a diffusers UNet2DConditionModel, or a network with the same call.
        image_size: (H, W) of the images, in pixels.

    Raises:
        UsageError: not a text-to-image denoiser of a supported kind.
    """
    return UNet(network, image_size)


def latent_shape(network: Any) -> tuple[int, int, int]:
    """(C, H, W) of one latent of a network that :func:`backbone_of` accepts."""
    return UNet.latent_shape_of(network)
