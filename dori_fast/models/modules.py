"""The networks and tokenizers of a model directory, opened and frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.models.files.directory import open_json, require_weights
from dori_fast.models.files.hashes import first_nonfinite
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


def open_vae(
    kind: Any, directory: Path, dtype: torch.dtype, device: torch.device, variant: str | None
) -> Any:
    """The frozen image autoencoder, of a class of diffusers; raises as :func:`open_unet`."""
    return _open_frozen(kind, directory, "vae", device, torch_dtype=dtype, variant=variant)


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
