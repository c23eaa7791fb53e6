"""One or two tokenizers and text encoders, checked and joined to a model's text side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dori_fast.errors import UsageError
from dori_fast.models.text.encoders import PARTS, TextSide, TextSideXL
from dori_fast.models.text.recognize import (
    require_encoder,
    require_one_context,
    require_tokenizer,
)
from dori_fast.models.text.tokens import context_of

# height and width of the original image, of the crop's corner, and of the target
_TIME_IDS = 6


def require_text_parts(present: Sequence[str], refiner: bool, where: str) -> bool:
    """Check which tokenizers and text encoders a model has; return whether it has two.

    Args:
        present: names of the model's parts.
        refiner: ``requires_aesthetics_score`` of the pipeline's config.
        where: name of the model, for the error message.

    Raises:
        UsageError: SDXL's refiner, or missing parts.
    """
    if refiner:
        raise UsageError(
            f"load: {where} is SDXL's refiner (requires_aesthetics_score), which only refines"
            " images of another model; load SDXL's base model"
        )
    two = any(part in present for part in PARTS[1])
    missing = [part for pair in PARTS[: 1 + two] for part in pair if part not in present]
    if missing:
        raise UsageError(
            f"load: {where} has no {' and no '.join(missing)}, which prompts need; load it with"
            " all its tokenizers and text encoders"
        )
    return two


def text_side(
    tokenizers: Sequence[Any], encoders: Sequence[Any], zero_for_empty: bool
) -> TextSide | TextSideXL:
    """The text side of one or two tokenizers and text encoders.

    Args:
        tokenizers: one tokenizer (SD 1.x, 2.x) or two (SDXL).
        encoders: as many frozen text encoders.
        zero_for_empty: ``force_zeros_for_empty_prompt`` of an SDXL pipeline.

    Raises:
        UsageError: a kind that is not supported, or parts that do not belong together.
    """
    for (name, part), tokenizer, encoder in zip(PARTS, tokenizers, encoders, strict=False):
        require_encoder(encoder, part)
        require_tokenizer(tokenizer, encoder, name)
    if len(encoders) == 1:
        return TextSide(tokenizers[0], encoders[0])
    require_one_context(*map(context_of, tokenizers, encoders))
    both, pair = (tokenizers[0], tokenizers[1]), (encoders[0], encoders[1])
    return TextSideXL(both, pair, zero_for_empty)


def text_of_pipeline(pipe: Any) -> TextSide | TextSideXL:
    """The text side of a diffusers pipeline in memory; raises as :func:`text_side`."""
    present = [name for pair in PARTS for name in pair if getattr(pipe, name, None) is not None]
    refiner = bool(pipe.config.get("requires_aesthetics_score"))
    two = require_text_parts(present, refiner, f"the {type(pipe).__name__}")
    tokenizers, encoders = (
        [getattr(pipe, pair[kind]) for pair in PARTS[: 1 + two]] for kind in (0, 1)
    )
    zeros = pipe.config.get("force_zeros_for_empty_prompt", True)
    return text_side(tokenizers, encoders, bool(zeros))


def require_fit(text: TextSide | TextSideXL, unet_config: Mapping[str, Any], dtype: Any) -> None:
    """Check that a text side's pooled embedding and dtype fit a UNet.

    Args:
        text: the text side.
        unet_config: config of the UNet.
        dtype: torch dtype of the UNet.

    Raises:
        UsageError: they do not.
    """
    if text.dtype != dtype:
        raise UsageError(
            f"load: the text encoder is {text.dtype}, the UNet {dtype}; give both one dtype with"
            " pipe.to(...)"
        )
    if not isinstance(text, TextSideXL):
        return
    takes, one = (
        unet_config.get(name)
        for name in ("projection_class_embeddings_input_dim", "addition_time_embed_dim")
    )
    if takes is None or one is None:
        return
    if takes - _TIME_IDS * one != text.pooled_width:
        raise UsageError(
            f"load: the UNet takes a pooled text embedding of width {takes - _TIME_IDS * one},"
            f" text_encoder_2 makes {text.pooled_width}; the parts do not belong together"
        )
