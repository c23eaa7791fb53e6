"""Conversion between latents and images, through a model's image autoencoder.

It follows StableDiffusionPipeline, StableDiffusionXLPipeline and their image-to-image versions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dori_fast.errors import NonFiniteError, UsageError
from dori_fast.models.images.kinds import class_and_config, normalization


def decode(
    vae: Any,
    latents: Tensor,
    at_once: int = 1,
    *,
    upcast: bool = True,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """uint8 [N, H, W, 3] on the CPU from scaled latents [N, C, h, w], rounded as in diffusers.

    By default images are decoded one by one: on a CPU no image depends, to the bit, on its
    neighbors, and the peak of memory is that of one image (an image of 1024 x 1024 takes several
    GB). One image is enough to keep a CPU busy; GPUs are not measured.

    Args:
        vae: a diffusers autoencoder.
        latents: scaled latents.
        at_once: images per call of the autoencoder. With more than one, an image's rounding may
            depend on its neighbors. A ConsistencyDecoderVAE takes one.
        upcast: True to decode in float32 where SDXL's pipeline does: a float16 autoencoder with
            ``force_upcast``. The module has its own dtype again afterwards.
        seeds: seeds [N] of the latents. A ConsistencyDecoderVAE continues the random stream that
            drew an image's first noise, as StableDiffusionPipeline does.

    Raises:
        NonFiniteError: latents or images that are NaN or infinite.
        UsageError: the autoencoder cannot run in its dtype, or lacks the seeds that it needs.
    """
    _require_finite("denoised latents", latents, latents.dtype)
    noisy = class_and_config(vae)[0] == "ConsistencyDecoderVAE"
    if noisy and seeds is None:
        raise UsageError("decode: a ConsistencyDecoderVAE draws noise; pass the images' seeds")
    images, finite = [], []
    device = _execution_device(vae)
    with _in_float32(vae, upcast and _forced(vae) and vae.dtype == torch.float16):
        for i, chunk in enumerate(latents.split(1 if noisy else at_once)):
            options: dict[str, Any] = {"return_dict": False}
            if noisy and seeds is not None:
                options["generator"] = _after_first_noise(seeds[i], latents.shape[1:])
            raw = _unscaled(vae, chunk.to(device, vae.dtype))
            decoded = _run(vae, vae.decode, raw, **options)[0]
            finite.append(_finite_rows(decoded))
            unit = (decoded.float() / 2 + 0.5).clamp(0, 1)
            images.append((unit * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
        dtype = vae.dtype
    _require_all("decoded images", torch.cat(finite), dtype)
    return torch.cat(images)


def encode(
    vae: Any, images: Tensor, device: torch.device, dtype: torch.dtype, *, upcast: bool = True
) -> Tensor:
    """Scaled latents [N, C, h, w] of images, uint8 [N, H, W, 3]: the posterior mean, no noise.

    Images are encoded one by one, so that no latent depends on its neighbors.

    Args:
        vae: a diffusers autoencoder; one without a posterior returns its latents.
        images: the images.
        device: device of the latents.
        dtype: dtype of the latents.
        upcast: True to encode in float32 where SDXL's pipeline does: an autoencoder with
            ``force_upcast``. The module has its own dtype again afterwards.

    Raises:
        NonFiniteError: latents that are NaN or infinite.
        UsageError: the images are not uint8 [N, H, W, 3], or the autoencoder cannot run in its
            dtype.
    """
    images = torch.as_tensor(images)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise UsageError(
            f"latents: images must be uint8 [N, H, W, 3], got {images.dtype} {list(images.shape)}"
        )
    latents, wide = [], torch.promote_types(dtype, torch.float32)
    where = _execution_device(vae)
    with _in_float32(vae, upcast and _forced(vae)):
        for chunk in images.split(1):
            unit = (chunk.permute(0, 3, 1, 2).to(where, wide) / 127.5 - 1).to(dtype)
            out = _run(vae, vae.encode, unit.to(vae.dtype))
            raw = out.latent_dist.mode() if hasattr(out, "latent_dist") else out.latents
            latents.append(_scaled(vae, raw.to(device, dtype)))
        used = vae.dtype
    found = torch.cat(latents)
    _require_finite("latents of the images", found, used)
    return found


def _unscaled(vae: Any, latents: Tensor) -> Tensor:
    """The decoder's input from the UNet's latents."""
    factor, moments = vae.config.scaling_factor, normalization(vae.config)
    if moments is None:
        return latents / factor
    mean, std = (_per_channel(values, latents) for values in moments)
    return latents * std / factor + mean


def _scaled(vae: Any, latents: Tensor) -> Tensor:
    """The UNet's latents from the encoder's output."""
    factor, moments = vae.config.scaling_factor, normalization(vae.config)
    if moments is None:
        return latents * factor
    mean, std = (_per_channel(values, latents) for values in moments)
    return (latents - mean) * factor / std


def _per_channel(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1).to(like)


def _forced(vae: Any) -> bool:
    return bool(vae.config.get("force_upcast", False))


@contextmanager
def _in_float32(vae: Any, wanted: bool) -> Iterator[None]:
    """Hold a module of a narrower dtype in float32 within the block."""
    before = vae.dtype
    if not wanted or before.itemsize >= 4:
        yield
        return
    try:
        vae.to(dtype=torch.float32)
        yield
    finally:
        vae.to(dtype=before)


def _execution_device(vae: Any) -> torch.device:
    """The device on which a module expects its input, also one that is moved there when called."""
    for module in vae.modules():
        # accelerate's hook of an offloaded module
        found = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if found is not None:
            return torch.device(found)
    device: torch.device = vae.device
    return device


def _after_first_noise(seed: int, shape: torch.Size) -> torch.Generator:
    """The random stream of a seed behind its first noise [C, h, w]."""
    generator = torch.Generator().manual_seed(int(seed))
    torch.randn(shape, generator=generator)
    return generator


def _run(vae: Any, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        return call(*args, **options)
    except NotImplementedError as error:
        name = class_and_config(vae)[0]
        raise UsageError(
            f"images: {name} cannot run in {_name(vae.dtype)} on this device ({error}); load the"
            " model with dtype='float32'"
        ) from error


def _finite_rows(values: Tensor) -> Tensor:
    return values.isfinite().flatten(1).all(1)


def _require_finite(what: str, values: Tensor, dtype: torch.dtype) -> None:
    _require_all(what, _finite_rows(values), dtype)


def _require_all(what: str, finite: Tensor, dtype: torch.dtype) -> None:
    bad = int((~finite).sum())
    if bad:
        narrow = dtype.itemsize < 4
        remedy = "load the model with dtype='float32'" if narrow else "check the model's weights"
        raise NonFiniteError(
            f"images: {bad} of {len(finite)} {what} are NaN or Inf in {_name(dtype)}; {remedy}"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
