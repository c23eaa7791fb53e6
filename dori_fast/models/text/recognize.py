"""Checks of tokenizers and text encoders: whether they are supported and belong together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dori_fast.errors import UsageError
from dori_fast.models.text.tokens import context_of
from dori_fast.models.text.vocabulary import backend_state, unbuilt_words

TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
ENCODERS = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
"""The class of each text encoder; SDXL has both, SD 1.x and 2.x have the first."""

_MODEL_TYPES = ("clip_text_model", "clip")
# configs from before transformers' pull 24773, Stable Diffusion's too, have this wrong number; for
# them transformers takes the pooled state at the largest id
_LEGACY_EOS = 2
# an embedding matrix may be rounded up to a multiple of these for speed
_ROUNDED_TO = (2, 4, 8, 16, 32, 64, 128)


def require_encoder(name: str, config: Mapping[str, Any], part: str) -> None:
    """Check the kind of a text encoder, by what names it.

    Args:
        name: class name, such as ``"CLIPTextModel"``.
        config: its configuration.
        part: ``"text_encoder"`` or ``"text_encoder_2"``.

    Raises:
        UsageError: another kind of text encoder.
    """
    if name != ENCODERS[part]:
        raise UsageError(
            f"load: {part} is a {name}, but only {ENCODERS[part]} is supported (SD 1.x, 2.x, XL);"
            " use a model with CLIP text encoders"
        )
    if config.get("model_type", _MODEL_TYPES[0]) not in _MODEL_TYPES:
        raise UsageError(
            f"load: {part}'s configuration is of a {config['model_type']!r}, but only CLIP's is"
            " supported (SD 1.x, 2.x, XL); use a model with CLIP text encoders"
        )


def require_named_outputs(encoder: Any, part: str) -> None:
    """Check that a text encoder in memory names its outputs, as SDXL's pipelines read them.

    Raises:
        UsageError: it returns tuples.
    """
    if not getattr(encoder.config, "return_dict", True):
        raise UsageError(
            f"load: {part} returns tuples (return_dict is False), but SDXL's pipelines read its"
            f" outputs by name; set pipe.{part}.config.return_dict = True"
        )


def require_tokenizer_class(name: str, part: str) -> None:
    """Check the name of a tokenizer's class, from ``model_index.json`` or the object.

    Raises:
        UsageError: another kind of tokenizer.
    """
    if name not in TOKENIZERS:
        raise UsageError(
            f"load: {part} is a {name}, but only transformers' CLIPTokenizer is supported (SD 1.x,"
            " 2.x, XL); use the model's own CLIPTokenizer"
        )


def require_tokenizer(tokenizer: Any, encoder: Any, part: str) -> None:
    """Check that a tokenizer is of a supported kind and belongs to its text encoder.

    Args:
        tokenizer: the tokenizer object.
        encoder: the text encoder that takes its ids, which :func:`require_encoder` accepts.
        part: ``"tokenizer"`` or ``"tokenizer_2"``, for the error message.

    Raises:
        UsageError: another class; another vocabulary, end mark or length than the encoder's;
            merges that do not build the vocabulary; random merges.
    """
    # a subclass may hold words that no hash of the vocabulary covers
    require_tokenizer_class(type(tokenizer).__name__, part)
    _require_context(tokenizer, encoder, part)
    _require_marks(tokenizer, part)
    _require_merges(tokenizer, part)
    _require_rows(tokenizer, encoder, part)
    _require_end(tokenizer, encoder, part)


def require_one_context(first: int, second: int) -> None:
    """Check that SDXL's two tokenizers pad to one length, since their embeddings are joined.

    Raises:
        UsageError: they do not.
    """
    if first != second:
        raise UsageError(
            f"load: tokenizer pads to {first} tokens, tokenizer_2 to {second}; give both the same"
            " model_max_length"
        )


def _require_marks(tokenizer: Any, part: str) -> None:
    marks = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    for name, number in marks.items():
        if number is None:
            raise UsageError(f"load: {part} has no {name}_token; use the model's own tokenizer")
    found = list(tokenizer("", padding=False, truncation=False)["input_ids"])
    if found != [marks["bos"], marks["eos"]]:
        raise UsageError(
            f"load: {part} encodes the empty prompt as {found}, not as its begin and end marks"
            f" {[marks['bos'], marks['eos']]}; use the model's own tokenizer"
        )
    for side in ("padding_side", "truncation_side"):
        if getattr(tokenizer, side) != "right":
            raise UsageError(
                f"load: {part} has {side} {getattr(tokenizer, side)!r}; text encoders of Stable"
                " Diffusion were trained with 'right', so set that"
            )


def _require_merges(tokenizer: Any, part: str) -> None:
    if backend_state(tokenizer)["model"].get("dropout"):
        raise UsageError(f"load: {part} merges at random (dropout); set its dropout to None")
    unbuilt = unbuilt_words(tokenizer)
    if unbuilt:
        raise UsageError(
            f"load: no merge of {part} builds {len(unbuilt):,} words of its vocabulary, such as"
            f" {unbuilt[-1]!r}; load the tokenizer from complete files"
        )


def _require_rows(tokenizer: Any, encoder: Any, part: str) -> None:
    words = max(tokenizer.get_vocab().values()) + 1
    rows = int(encoder.get_input_embeddings().weight.shape[0])
    rounded = {-(-words // multiple) * multiple for multiple in _ROUNDED_TO}
    if rows != words and rows not in rounded:
        raise UsageError(
            f"load: {part} has {words:,} words, its text encoder embeddings for {rows:,}; use the"
            " tokenizer that was saved with this text encoder"
        )


def _require_end(tokenizer: Any, encoder: Any, part: str) -> None:
    own, end = int(tokenizer.eos_token_id), encoder.config.eos_token_id
    if end in (own, _LEGACY_EOS):
        return
    # the first encoder's pooled state is not used, so a number that no token has is harmless there
    outside = end is None or not 0 <= int(end) < encoder.get_input_embeddings().weight.shape[0]
    if part == "tokenizer_2" or not outside:
        raise UsageError(
            f"load: the end mark of {part} is {own}, its text encoder's is {end} (eos_token_id);"
            " use the tokenizer that was saved with this text encoder"
        )


def _require_context(tokenizer: Any, encoder: Any, part: str) -> None:
    own = tokenizer.model_max_length
    number = own is None or (isinstance(own, int | float) and not math.isnan(own))
    if not number or context_of(tokenizer, encoder) < 3:
        raise UsageError(
            f"load: {part} has model_max_length {own!r}, which leaves no room for a word between"
            " begin and end mark; set it to the text encoder's max_position_embeddings,"
            f" {encoder.config.max_position_embeddings}"
        )
