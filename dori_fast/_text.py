"""Escape unsafe characters in text from data; sort names by their numbers."""

from __future__ import annotations

import re
import unicodedata

_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# joiners belong to emoji and to Persian and Indic words and do not reorder text
_JOINERS = "\u200c\u200d"


def harmless(text: str) -> str:
    """Return text with control, direction and format characters (ANSI, bidi, ...) escaped."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(c) for c in text)


def by_number(name: str) -> tuple[int, str]:
    """Return a sort key for names such as ``part-99999`` and ``part-100000``.

    Names without a number come first.
    """
    number = re.search(r"[0-9]+", name)
    return (int(number[0]) if number else -1, name)


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in _UNSAFE or character in _JOINERS:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
