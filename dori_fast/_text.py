"""Escape unsafe characters in text from data."""

from __future__ import annotations

import unicodedata

_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# joiners belong to emoji and to Persian and Indic words and do not reorder text
_JOINERS = "\u200c\u200d"


def harmless(text: str) -> str:
    """Return text with control, direction and format characters (ANSI, bidi, ...) escaped."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(c) for c in text)


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in _UNSAFE or character in _JOINERS:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
