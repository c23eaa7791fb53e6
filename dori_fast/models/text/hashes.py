"""Hashes of tokenizers and of text encoders' settings in memory, in place of files' hashes."""

from __future__ import annotations

import json
from typing import Any

from dori_fast.models.files.hashes import text_sha256
from dori_fast.models.text.encoders import PARTS, TextSide, TextSideXL
from dori_fast.models.text.tokens import context_of

# where an encoder was found, and what wrote it, change no embedding
_UNUSED = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


def tokenizer_sha256(tokenizer: Any) -> str:
    """sha256 of a tokenizer's vocabulary, merges, added words and marks.

    A call with truncation or padding leaves these settings in the tokenizer, so they are left out:
    the hash is the same before and after a pipeline has run.
    """
    from tokenizers import Tokenizer

    state = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    state.no_truncation()
    state.no_padding()
    return text_sha256(state.to_str())


def text_hashes(text: TextSide | TextSideXL) -> dict[str, str]:
    """Hashes of a text side in memory, by part, without those of the encoders' weights."""
    hashes = {}
    for (name, part), tokens in zip(PARTS, text.each, strict=False):
        tokenizer, encoder = tokens.tokenizer, tokens.encoder
        hashes[name] = tokenizer_sha256(tokenizer)
        hashes[f"{name}/config"] = _sha256(
            {
                "context": context_of(tokenizer, encoder),
                "pad_token_id": int(tokenizer.pad_token_id),
            }
        )
        config = encoder.config.to_dict()
        settings = {key: value for key, value in config.items() if key not in _UNUSED}
        if isinstance(text, TextSideXL):
            settings["force_zeros_for_empty_prompt"] = text.zero_for_empty
        hashes[f"{part}/config"] = _sha256(settings)
    return hashes


def _sha256(settings: dict[str, Any]) -> str:
    return text_sha256(json.dumps(settings, sort_keys=True, default=str))
