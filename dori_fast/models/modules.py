"""The networks and tokenizers of a model directory: opened and frozen, or written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.models.autoencoders import require_supported, vae_scale_factor
from dori_fast.models.files.directory import open_json, require_weights
from dori_fast.models.files.hashes import first_nonfinite
from dori_fast.models.masks import Masks
from dori_fast.models.text.encoders import TextSide, TextSideXL


def open_unet(
    directory: Path, dtype: torch.dtype, device: torch.device, variant: str | None
) -> Any:
    """The frozen UNet.

    Raises:
        UsageError: another kind of network, or pickled weights.
        IntegrityError: damaged weights, or weights that are not finite.
    """
    from diffusers import UNet2DConditionModel

    kind = open_json(directory, "unet/config.json").get("_class_name")
    if kind != "UNet2DConditionModel":
        raise UsageError(
            f"load: {kind} is not supported; UNet2DConditionModel (SD 1.x, 2.x, XL) is"
        )
    return _open_frozen(
        UNet2DConditionModel, directory, "unet", device, torch_dtype=dtype, variant=variant
    )


def open_text(
    directory: Path, dtype: torch.dtype, device: torch.device, variant: str | None
) -> TextSide | TextSideXL:
    """Tokenizer and frozen text encoder, or SDXL's two of each; raises as :func:`open_unet`."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    how: dict[str, Any] = {"dtype": dtype, "variant": variant}
    encoder = _open_frozen(CLIPTextModel, directory, "text_encoder", device, **how)
    tokenizer = _open_tokenizer(CLIPTokenizer, directory, "tokenizer")
    if not (directory / "text_encoder_2").is_dir():
        return TextSide(tokenizer, encoder)
    second = _open_frozen(CLIPTextModelWithProjection, directory, "text_encoder_2", device, **how)
    tokenizers = tokenizer, _open_tokenizer(CLIPTokenizer, directory, "tokenizer_2")
    index = open_json(directory, "model_index.json")
    return TextSideXL(
        tokenizers, (encoder, second), bool(index.get("force_zeros_for_empty_prompt", True))
    )


def open_vae(directory: Path, dtype: torch.dtype, device: torch.device, variant: str | None) -> Any:
    """The frozen image autoencoder of the class that its config names, or None without one.

    Raises:
        UsageError: an unsupported class, or pickled weights.
        IntegrityError: damaged weights, or weights that are not finite.
    """
    import diffusers

    name, _ = vae_config(directory)
    if name is None:
        return None
    require_supported(name)
    kind = getattr(diffusers, name)
    return _open_frozen(kind, directory, "vae", device, torch_dtype=dtype, variant=variant)


def vae_config(directory: Path) -> tuple[str | None, dict[str, Any]]:
    """Class name and config of a directory's autoencoder; ``(None, {})`` if it has none.

    Raises:
        UsageError: the folder ``vae`` lacks a readable config.
    """
    if not (directory / "vae").is_dir():
        return None, {}
    config = open_json(directory, "vae/config.json")
    return str(config.get("_class_name", "AutoencoderKL")), config


def files_scale_factor(directory: Path) -> int:
    """Pixels per latent along a side, of a model directory.

    Raises:
        UsageError: an unreadable config of the VAE, or an SDXL directory whose VAE is missing.
    """
    name, config = vae_config(directory)
    if name is None and (directory / "text_encoder_2").is_dir():
        # SDXL is told the size of its images, so its scores depend on this factor
        named = open_json(directory, "model_index.json").get("vae") or [None]
        if named[-1] is not None:
            raise UsageError(
                f"load: {directory} has no vae/, but model_index.json names a {named[-1]}, which"
                " SDXL's scores depend on; restore the folder, or set vae to [null, null] there"
            )
    return vae_scale_factor(name, config)


def write_pipeline(
    directory: str | os.PathLike[str],
    text: TextSide | TextSideXL,
    masks: Masks | None,
    scheduler: Any,
    **networks: Any,
) -> None:
    """Write a diffusers directory of safetensors.

    Raises:
        UsageError: masks, which such a directory cannot hold.
    """
    if masks is not None:
        raise UsageError(
            "save_pretrained: this view has masks; save those, or put them into the weights of a"
            " pipeline with df.prune.apply_"
        )
    pipe = text.pipeline(scheduler=scheduler, **networks)
    pipe.save_pretrained(os.fspath(directory), safe_serialization=True)


def _open_frozen(
    kind: Any, directory: Path, part: str, device: torch.device, **options: Any
) -> Any:
    module = _open(kind, directory, part, **options)
    bad = first_nonfinite(module.named_parameters())
    if bad is not None:
        wider = ", or use dtype='float32'" if module.dtype == torch.float16 else ""
        raise IntegrityError(
            f"load: {directory / part} holds NaN or Inf in {bad}; get the weights again{wider}"
        )
    return module.to(device).eval().requires_grad_(False)


def _open(kind: Any, directory: Path, part: str, *, variant: str | None, **options: Any) -> Any:
    from safetensors import SafetensorError

    folder = directory / part
    require_weights(folder, variant)
    options |= {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    try:
        module, found = kind.from_pretrained(folder, variant=variant, **options)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise IntegrityError(f"load: {folder} cannot be read: {reason}") from error
    if missing := sorted(found["missing_keys"]):
        # the libraries would fill them with random numbers
        raise IntegrityError(
            f"load: {folder} cannot be read: no weights for {missing[0]} and"
            f" {len(missing) - 1} more; get them again"
        )
    return module


def _open_tokenizer(kind: Any, directory: Path, part: str) -> Any:
    folder = directory / part
    if not folder.is_dir():
        raise UsageError(
            f"load: {directory} has no {part}/; expected a complete diffusers directory"
        )
    return kind.from_pretrained(folder, local_files_only=True)
