"""One or two tokenizers and text encoders, checked and joined to a model's text side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dori_fast.models.text.encoders import PARTS, TextSide, TextSideXL
from dori_fast.models.text.recognize import (
    require_named_outputs,
    require_one_context,
    require_tokenizer,
)
from dori_fast.models.text.tokens import context_of


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
    for (name, _), tokenizer, encoder in zip(PARTS, tokenizers, encoders, strict=False):
        require_tokenizer(tokenizer, encoder, name)
    if len(encoders) == 1:
        return TextSide(tokenizers[0], encoders[0])
    for (_, name), encoder in zip(PARTS, encoders, strict=True):
        require_named_outputs(encoder, name)
    require_one_context(*map(context_of, tokenizers, encoders))
    both, pair = (tokenizers[0], tokenizers[1]), (encoders[0], encoders[1])
    return TextSideXL(both, pair, zero_for_empty)
