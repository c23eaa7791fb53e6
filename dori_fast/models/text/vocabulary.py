"""A tokenizer's vocabulary: its files in a model directory, and whether its merges build it.

transformers makes a CLIPTokenizer of two words out of a folder without vocabulary files, and one
that spells every word out of an empty merges.txt, both without a warning.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dori_fast._text import read_stand_in
from dori_fast.errors import IntegrityError, UsageError

_WHOLE, _PAIR = "tokenizer.json", ("vocab.json", "merges.txt")
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_END = "</w>"


def require_vocabulary_files(folder: Path) -> dict[str, Any]:
    """Check the files of a tokenizer before a library opens them.

    Returns:
        tokenizer_config.json and special_tokens_map.json in one, {} without them.

    Raises:
        UsageError: no such folder.
        IntegrityError: a missing or damaged file.
    """
    if not folder.is_dir():
        raise UsageError(
            f"load: {folder.parent} has no {folder.name}/; use a complete diffusers directory"
        )
    if not (folder / _WHOLE).is_file():
        missing = [name for name in _PAIR if not (folder / name).is_file()]
        if missing:
            raise IntegrityError(
                f"load: {folder} has no {' and no '.join(missing)}, the tokenizer's vocabulary; get"
                " the tokenizer's files again"
            )
    found = {name: _text(folder / name) for name in (_WHOLE, *_PAIR, *_SETTINGS)}
    for name, text in found.items():
        if text is not None and name.endswith(".json"):
            _object(folder / name, text)
    settings = (found[name] for name in _SETTINGS[:2])
    return {key: value for text in settings if text for key, value in json.loads(text).items()}


def require_pad_token(folder: Path, settings: Mapping[str, Any], hidden_act: str) -> None:
    """Check that a tokenizer's files name its padding where transformers' default is wrong.

    The default, the end mark, is that of OpenAI's CLIP (SD 1.x, SDXL's first encoder). OpenCLIP's
    encoders (SD 2.x, SDXL's second) were trained with ``!`` and have the activation ``gelu``.

    Args:
        folder: folder of the tokenizer.
        settings: from :func:`require_vocabulary_files`.
        hidden_act: activation of the text encoder, from its config.

    Raises:
        IntegrityError: no file names the padding.
    """
    second = folder.name == "tokenizer_2"
    if settings.get("pad_token") is None and (second or hidden_act != "quick_gelu"):
        raise IntegrityError(
            f"load: {folder} names no pad_token in tokenizer_config.json or"
            " special_tokens_map.json, and this text encoder's is not the usual one; get the"
            " tokenizer's files again"
        )


def _text(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise IntegrityError(f"load: {path} cannot be read ({error}); get it again") from error
    if reason := read_stand_in(path):
        raise IntegrityError(f"load: {path} {reason}")
    return text


def _object(path: Path, text: str) -> None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"load: {path} is not whole JSON ({error}); get it again") from error
    if not isinstance(found, dict):
        raise IntegrityError(f"load: {path} holds no JSON object; get it again")


def unbuilt_words(tokenizer: Any) -> list[str]:
    """Words of more than one letter that no merge builds, so that no text ever has their number.

    Every word of a byte-pair vocabulary is a byte, a byte at the end of a word, what a merge makes,
    or an added word. A tokenizer whose merges are cut spells the other words out, and its text
    encoder reads what it never learned.
    """
    state = backend_state(tokenizer)
    model = state["model"]
    pairs = (m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"])
    made = {"".join(pair) for pair in pairs}
    made |= {str(token["content"]) for token in state["added_tokens"]}
    return [
        word
        for word in model["vocab"]
        if word not in made and len(word) > 1 and len(word.removesuffix(_END)) != 1
    ]


def backend_state(tokenizer: Any) -> dict[str, Any]:
    """The state of a tokenizer of the tokenizers library, as in tokenizer.json."""
    return dict(json.loads(tokenizer.backend_tokenizer.to_str()))
