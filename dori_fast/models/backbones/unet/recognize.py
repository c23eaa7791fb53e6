"""Checks of a UNet: whether it is a supported denoiser, and whether the text fits it."""

from __future__ import annotations

from typing import Any

from dori_fast.errors import UsageError

_ADDED_EMBEDDINGS = (None, "text_time")


def require_denoiser(unet: Any) -> None:
    """Check that a UNet is a text-to-image denoiser of a supported kind.

    Raises:
        UsageError: it is not; the message has the reason.
    """
    config = unet.config
    if config.in_channels != config.out_channels:
        raise UsageError(
            f"load: a UNet from {config.in_channels} to {config.out_channels} channels is not a"
            " text-to-image denoiser (an inpainting or edit model?); not supported"
        )
    kind = config.class_embed_type or config.addition_embed_type
    if config.class_embed_type is not None or kind not in _ADDED_EMBEDDINGS:
        raise UsageError(f"load: a UNet with {kind!r} embeddings is not supported")


def require_text(unet: Any, width: int, pooled: bool) -> None:
    """Check that text embeddings fit a UNet.

    Args:
        unet: a UNet that :func:`require_denoiser` accepts.
        width: width of the embeddings.
        pooled: whether a pooled embedding comes with them (SDXL).

    Raises:
        UsageError: they do not fit.
    """
    config = unet.config
    takes_pooled = config.addition_embed_type == "text_time"
    if takes_pooled != pooled:
        expected = "two text encoders (SDXL)" if takes_pooled else "one text encoder"
        raise UsageError(f"load: this UNet needs {expected}; the parts do not belong together")
    if config.cross_attention_dim != width:
        raise UsageError(
            f"load: the UNet takes text of width {config.cross_attention_dim}, the text encoder"
            f" makes {width}; the parts do not belong together"
        )
