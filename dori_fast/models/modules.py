"""The networks and tokenizers of a model directory, opened and frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dori_fast.errors import IntegrityError
from dori_fast.models.files.directory import open_json, require_weights, text_config
from dori_fast.models.files.hashes import chosen_variant, first_nonfinite
from dori_fast.models.gate import Reading
from dori_fast.models.text.assemble import text_side
from dori_fast.models.text.encoders import PARTS, TextSide, TextSideXL
from dori_fast.models.text.recognize import require_tokenizer_class
from dori_fast.models.text.vocabulary import (
    require_pad_token,
    require_vocabulary_files,
    unbuilt_words,
)

# what the libraries raise on damaged weights, and on configurations with values of another kind
_UNREADABLE = (OSError, RuntimeError, ValueError, AttributeError, KeyError, TypeError)


def open_unet(
    directory: Path, dtype: torch.dtype, device: torch.device, variant: str | None
) -> Any:
    """The frozen UNet of a model that :func:`dori_fast.models.gate.require_denoiser` accepts.

    Raises:
        UsageError: pickled weights.
        IntegrityError: damaged weights, or weights that are not finite.
    """
    from diffusers import UNet2DConditionModel

    return _open_frozen(
        UNet2DConditionModel, directory, "unet", device, torch_dtype=dtype, variant=variant
    )


def open_text(
    directory: Path,
    reading: Reading,
    dtype: torch.dtype,
    device: torch.device,
    variant: str | None,
) -> TextSide | TextSideXL:
    """Tokenizer and frozen text encoder, or SDXL's two of each.

    Raises:
        UsageError: parts that do not belong together.
        IntegrityError: damaged weights or vocabulary files, or weights that are not finite.
    """
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    kinds = (CLIPTextModel, CLIPTextModelWithProjection)
    tokenizers, encoders = [], []
    for (tokenizer, encoder), kind in list(zip(PARTS, kinds, strict=True))[: 1 + reading.xl]:
        tokenizers.append(_open_tokenizer(directory, tokenizer))
        # outputs by name, whatever the configuration says
        how: dict[str, Any] = {"dtype": dtype, "variant": variant, "return_dict": True}
        encoders.append(_open_frozen(kind, directory, encoder, device, **how))
    return text_side(tokenizers, encoders, reading.zero_for_empty)


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
    variant = chosen_variant(folder, variant)
    require_weights(folder, variant)
    options |= {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    try:
        module, found = kind.from_pretrained(folder, variant=variant, **options)
    except (SafetensorError, *_UNREADABLE) as error:
        reason = _first_line(error)
        if "ignore_mismatched_sizes" in reason:
            # transformers names the weights in its log alone
            reason = "its weights have other shapes than its config.json; get both again"
        remedy = "" if "; " in reason else "; get its configuration and weights again"
        raise IntegrityError(f"load: {folder} cannot be read: {reason}{remedy}") from error
    if missing := sorted(found["missing_keys"]):
        # the libraries would fill them with random numbers
        raise IntegrityError(
            f"load: {folder} cannot be read: no weights for {missing[0]} and"
            f" {len(missing) - 1} more; get them again"
        )
    return module


def _open_tokenizer(directory: Path, part: str) -> Any:
    from transformers import CLIPTokenizer

    folder = directory / part
    config = require_vocabulary_files(folder)
    kind = config.get("tokenizer_class")
    if kind not in (None, "PreTrainedTokenizerFast", "TokenizersBackend"):
        require_tokenizer_class(str(kind), part)
    encoder = text_config(open_json(directory, f"{dict(PARTS)[part]}/config.json"))
    require_pad_token(folder, config, encoder.get("hidden_act", "quick_gelu"))
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        # the tokenizers library raises bare Exceptions on damaged files
        raise IntegrityError(
            f"load: {folder} cannot be read: {_first_line(error)}; get the tokenizer's files again"
        ) from error
    unbuilt = unbuilt_words(tokenizer)
    if unbuilt:
        raise IntegrityError(
            f"load: {folder}: no merge builds {len(unbuilt):,} words of the vocabulary, such as"
            f" {unbuilt[-1]!r}, so merges.txt is cut or another model's; get the tokenizer's files"
            " again"
        )
    return tokenizer


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
