"""Image autoencoders of diffusers: supported classes, and the meaning of their configurations.

Stable Diffusion's pipelines treat their VAE as follows; other keys of its config they ignore.

    scale factor    2^(len(block_out_channels) - 1), or 8 without a VAE
    decoding        z / scaling_factor; XL with latents_mean and latents_std: z std / factor + mean
    force_upcast    XL alone: a float16 VAE is decoded, and any VAE encoded, in float32

Some keys change what latents mean. Where a pipeline ignores such a key, its images are not the
model's, so no image is drawn or read then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dori_fast.errors import UsageError

NO_VAE_FACTOR = 8


@dataclass(frozen=True)
class _Kind:
    """Config keys of one class, and their defaults.

    Attributes:
        encoder, decoder: keys that hold one number of channels per block.
        depth: default number of blocks of either.
        channels: default number of latent channels.
        colors: keys that hold the number of color channels.
        scaling: default scaling factor.
    """

    encoder: str = "block_out_channels"
    decoder: str = "block_out_channels"
    depth: int = 1
    channels: int = 4
    colors: tuple[str, ...] = ("in_channels", "out_channels")
    scaling: float = 0.18215


_KINDS = {
    "AutoencoderKL": _Kind(),
    "AsymmetricAutoencoderKL": _Kind("down_block_out_channels", "up_block_out_channels"),
    "AutoencoderTiny": _Kind(
        "encoder_block_out_channels", "decoder_block_out_channels", depth=4, scaling=1.0
    ),
    "ConsistencyDecoderVAE": _Kind(
        "encoder_block_out_channels",
        "encoder_block_out_channels",
        depth=4,
        colors=("encoder_in_channels",),
    ),
    "VQModel": _Kind(channels=3),
}
SUPPORTED = tuple(_KINDS)


def class_and_config(vae: Any) -> tuple[str | None, Mapping[str, Any]]:
    """Class name and configuration of an autoencoder in memory; ``(None, {})`` for None.

    A subclass of a supported class has that class's name.
    """
    if vae is None:
        return None, {}
    # torch.compile wraps a module
    bases = type(getattr(vae, "_orig_mod", vae)).__mro__
    ours = [c.__name__ for c in bases if c.__module__.startswith("diffusers.")]
    name = next((name for name in ours if name in _KINDS), bases[0].__name__)
    return name, getattr(vae, "config", {})


def autoencoder_class(class_name: str) -> Any:
    """The class of diffusers that a config names.

    Raises:
        UsageError: another class than those of :data:`SUPPORTED`.
    """
    _require_supported(class_name)
    import diffusers

    return getattr(diffusers, class_name)


def vae_scale_factor(class_name: str | None, config: Mapping[str, Any]) -> int:
    """Pixels per latent along a side, as diffusers' pipelines compute it.

    Args:
        class_name: class of the autoencoder, or None without one.
        config: its configuration, from a file or a module.

    Raises:
        UsageError: the config does not say how many blocks there are.
    """
    if class_name is None:
        return NO_VAE_FACTOR
    kind = _KINDS.get(class_name, _Kind(depth=0))
    depth = _depth(config, kind.decoder, kind.depth)
    if not depth:
        raise UsageError(
            f"load: the config of the VAE, {class_name}, has no list {kind.decoder!r}, so the size"
            " of images is unknown; use a VAE that Stable Diffusion's pipelines take"
        )
    return int(2 ** (depth - 1))


def pipeline_scale_factor(pipe: Any) -> int:
    """Pixels per latent along a side, of a pipeline in memory; it may have lost its VAE.

    Raises:
        UsageError: the pipeline was made with a VAE of another factor than it has now.
    """
    vae = getattr(pipe, "vae", None)
    made_with = getattr(pipe, "vae_scale_factor", None)
    if vae is None:
        return made_with if isinstance(made_with, int) else NO_VAE_FACTOR
    name, config = class_and_config(vae)
    factor = vae_scale_factor(name, config)
    if made_with not in (None, factor):
        raise UsageError(
            f"load: the pipeline counts on images {made_with} times as large as latents, its VAE,"
            f" {name}, has a factor of {factor}; make a new pipeline with this VAE"
        )
    return factor


def require_autoencoder(
    class_name: str | None, config: Mapping[str, Any], latent_channels: int, *, xl: bool
) -> None:
    """Reject an autoencoder whose images or latents would not be the model's.

    Args:
        class_name: class of the autoencoder, or None without one.
        config: its configuration, from a file or a module.
        latent_channels: channels of the UNet's latents.
        xl: True for SDXL, whose pipelines apply ``latents_mean`` and ``latents_std``.

    Raises:
        UsageError: no autoencoder, an unsupported class, or a config that contradicts the UNet
            or that the model's pipeline would ignore.
    """
    if class_name is None:
        raise UsageError(
            "images: the model has no VAE, which draws and reads images; add one to the pipeline,"
            " or a folder vae/ to the directory"
        )
    _require_supported(class_name)
    kind = _KINDS[class_name]
    reason = (
        _wrong_channels(class_name, kind, config, latent_channels)
        or _wrong_factor(kind, config)
        or _wrong_scaling(kind, config)
        or _wrong_normalization(config, latent_channels, xl)
    )
    if reason is not None:
        raise UsageError(f"images: {reason}; use the VAE that belongs to the UNet")


def normalization(config: Mapping[str, Any]) -> tuple[list[float], list[float]] | None:
    """``latents_mean`` and ``latents_std`` [C] of an autoencoder, or None without both."""
    mean, std = config.get("latents_mean"), config.get("latents_std")
    return None if mean is None or std is None else ([*mean], [*std])


def _require_supported(class_name: str) -> None:
    if class_name not in _KINDS:
        raise UsageError(
            f"images: the VAE is of class {class_name}, which is not supported; use one of"
            f" {', '.join(SUPPORTED)}"
        )


def _depth(config: Mapping[str, Any], key: str, default: int) -> int:
    blocks = config.get(key)
    if key not in config:
        return default
    return len(blocks) if isinstance(blocks, (list, tuple)) else 0


def _wrong_channels(
    class_name: str, kind: _Kind, config: Mapping[str, Any], wanted: int
) -> str | None:
    channels = config.get("latent_channels", kind.channels)
    if class_name == "VQModel":
        # the codebook's vectors are the latents
        embedded = config.get("vq_embed_dim")
        channels = channels if embedded is None else embedded
    if channels != wanted:
        return f"the VAE has latents of {channels} channels, the UNet of {wanted}"
    for key in kind.colors:
        if config.get(key, 3) != 3:
            return f"the VAE has {key} {config[key]}, images have 3 channels"
    return None


def _wrong_factor(kind: _Kind, config: Mapping[str, Any]) -> str | None:
    into, out_of = (_depth(config, key, kind.depth) for key in (kind.encoder, kind.decoder))
    if not into or not out_of:
        return f"the VAE's {kind.encoder} and {kind.decoder} must be lists of channels"
    step = config.get("upsampling_scaling_factor", 2)
    if into != out_of or (step != 2 and out_of > 1):
        return (
            f"the VAE shrinks images by {2 ** (into - 1)} but enlarges latents by"
            f" {step ** (out_of - 1)}, its pipeline by {2 ** (out_of - 1)}"
        )
    return None


def _wrong_scaling(kind: _Kind, config: Mapping[str, Any]) -> str | None:
    scaling = config.get("scaling_factor", kind.scaling)
    if not _is_number(scaling) or scaling == 0:
        return f"the VAE's scaling_factor is {scaling!r}, not a finite number other than 0"
    shift = config.get("shift_factor")
    if shift:
        return f"the VAE has a shift_factor, {shift!r}, which no Stable Diffusion pipeline applies"
    return None


def _wrong_normalization(config: Mapping[str, Any], channels: int, xl: bool) -> str | None:
    mean: Any = config.get("latents_mean")
    std: Any = config.get("latents_std")
    if mean is None and std is None:
        return None
    for values in (mean, std):
        if not isinstance(values, (list, tuple)) or len(values) != channels:
            return (
                f"the VAE's latents_mean and latents_std must both be lists of {channels} numbers,"
                f" got {mean!r} and {std!r}"
            )
        if not all(map(_is_number, values)):
            return f"the VAE's latents_mean or latents_std is not finite: {values!r}"
    if not all(value > 0 for value in std):
        return f"the VAE's latents_std must be above 0, got {std!r}"
    if not xl and (any(mean) or any(value != 1 for value in std)):
        return (
            "the VAE has latents_mean and latents_std, which only SDXL's pipelines apply, but this"
            " model is not SDXL"
        )
    return None


def _is_number(value: Any) -> bool:
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return known and math.isfinite(value)
