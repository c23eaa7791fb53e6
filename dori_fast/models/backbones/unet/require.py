"""The UNets that are supported: text-to-image denoisers of a latent, a timestep and a text."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from dori_fast.errors import UsageError

KIND = "UNet2DConditionModel"
# inputs besides latent, timestep and text, each with the option that adds it
_FURTHER_INPUTS = {
    "class_embed_type": "class labels",
    "num_class_embeds": "class labels",
    "time_cond_proj_dim": "the guidance scale (a guidance-distilled model, such as LCM)",
    "encoder_hid_dim": "a projection of its text or image embeddings",
    "encoder_hid_dim_type": "image prompts (IP-Adapter) or projected text",
}
_REMEDIES = {
    "time_cond_proj_dim": "use the model that it was distilled from: this one has no unconditional"
    " prediction to compare with",
    "encoder_hid_dim_type": "call pipe.unload_ip_adapter() first if an IP-Adapter is loaded",
}
_TAKES_POOLED = "text_time"
# diffusers before this release wrote UNets of 64 x 64 latents with a smaller sample_size
_OLD, _OLD_SIZE = (0, 9), 64
_RELEASE = re.compile(r"(\d+)\.(\d+)")
_APART = "do not belong together; use the UNet and the text encoders of one model"
# SDXL's added conditions: original size, crop and target size
_TIME_IDS = 6


@cache
def _defaults() -> dict[str, Any]:
    from diffusers import UNet2DConditionModel

    parameters = inspect.signature(UNet2DConditionModel.__init__).parameters
    return {n: p.default for n, p in parameters.items() if n != "self"}


def require_unet(kind: str, config: Mapping[str, Any]) -> None:
    """Check that a UNet is a text-to-image denoiser of a supported kind.

    Args:
        kind: name of its class.
        config: its configuration; a missing key has diffusers' default.

    Raises:
        UsageError: it is not; the message has the reason.
    """
    if kind != KIND:
        raise UsageError(f"load: a {kind} is not supported; use a {KIND} (SD 1.x, 2.x, XL)")
    config = {**_defaults(), **config}
    made, given = config["out_channels"], config["in_channels"]
    if made != given:
        raise UsageError(
            f"load: a UNet from {given} to {made} channels is not a text-to-image denoiser, which"
            " has as many out as in (is it for inpainting, editing, depth or upscaling?); use the"
            " text-to-image model"
        )
    for option, what in _FURTHER_INPUTS.items():
        if config[option] is not None:
            remedy = _REMEDIES.get(option, "use a UNet of latent, timestep and text alone")
            raise UsageError(
                f"load: this UNet takes {what} ({option}={config[option]!r}), which a prompt does"
                f" not have; {remedy}"
            )
    if config["addition_embed_type"] not in (None, _TAKES_POOLED):
        raise UsageError(
            f"load: a UNet with {config['addition_embed_type']!r} embeddings is not supported; use"
            " SD 1.x, 2.x or XL"
        )
    if config["time_embedding_type"] != "positional":
        raise UsageError(
            f"load: a UNet whose time embedding is {config['time_embedding_type']!r} takes noise"
            " levels, not timesteps; use a UNet with time_embedding_type 'positional'"
        )
    if config["dual_cross_attention"]:
        raise UsageError(
            "load: a UNet with dual_cross_attention takes two conditions; use a UNet of text alone"
        )
    _require_sizes(config)


def corrected_size(config: Mapping[str, Any]) -> int | None:
    """The ``sample_size`` that Stable Diffusion's pipelines set for a UNet of an old release.

    None if they leave the configuration as it is.
    """
    size, release = config.get("sample_size"), _RELEASE.match(str(config.get("_diffusers_version")))
    old = release is not None and tuple(map(int, release.groups())) < _OLD
    return _OLD_SIZE if old and isinstance(size, int) and size < _OLD_SIZE else None


def _require_sizes(config: Mapping[str, Any]) -> None:
    size, width = config["sample_size"], config["cross_attention_dim"]
    sides = [size, size] if isinstance(size, int) else size
    if not _are_counts(sides) or len(sides) != 2:
        raise UsageError(
            f"load: the UNet's sample_size is {size!r}, so the size of its latents is unknown; set"
            " sample_size in unet/config.json (or pipe.unet.register_to_config(sample_size=...))"
            " to the height and width of the latents that it was trained on"
        )
    if not isinstance(width, int):
        widths = set(width) if isinstance(width, list | tuple) else {width}
        if len(widths) != 1:
            raise UsageError(
                f"load: the UNet's blocks take text of several widths ({width!r}); use a UNet with"
                " a single cross_attention_dim"
            )


def _are_counts(sides: Any) -> bool:
    return isinstance(sides, list | tuple) and all(
        isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides
    )


def require_pooled(config: Mapping[str, Any], encoder: Mapping[str, Any]) -> None:
    """Check that SDXL's pooled text and six numbers of sizes are what a UNet was made for.

    Args:
        config: the UNet's configuration.
        encoder: configuration of the second text encoder.

    Raises:
        UsageError: they are not.
    """
    config = {**_defaults(), **config}
    takes = config["projection_class_embeddings_input_dim"]
    per_number = config["addition_time_embed_dim"]
    pooled = encoder.get("projection_dim", 512)
    if takes != pooled + _TIME_IDS * per_number:
        raise UsageError(
            f"load: the UNet's added conditions have {takes} numbers, but the pooled text has"
            f" {pooled} and its {_TIME_IDS} sizes {_TIME_IDS * per_number}, so they {_APART}"
        )


def require_text(config: Mapping[str, Any], width: int, pooled: bool) -> None:
    """Check that text embeddings fit a UNet.

    Args:
        config: configuration of a UNet that :func:`require_unet` accepts.
        width: width of the embeddings.
        pooled: True if a pooled embedding comes with them (SDXL).

    Raises:
        UsageError: they do not fit.
    """
    config = {**_defaults(), **config}
    takes_pooled = config["addition_embed_type"] == _TAKES_POOLED
    if takes_pooled != pooled:
        expected = "two text encoders (SDXL)" if takes_pooled else "one text encoder"
        raise UsageError(f"load: this UNet needs {expected}, so the parts {_APART}")
    takes = text_width(config)
    if takes != width:
        raise UsageError(
            f"load: the UNet takes text of width {takes}, the text encoder makes {width}, so they"
            f" {_APART}"
        )


def text_width(config: Mapping[str, Any]) -> int:
    """The width of the text embeddings that a UNet takes."""
    width = config["cross_attention_dim"]
    return int(width if isinstance(width, int) else width[0])
