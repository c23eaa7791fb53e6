"""Unsafe characters in text from data, and files that stand in for the data."""

from __future__ import annotations

import os
import re
import unicodedata

_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# joiners belong to emoji and to Persian and Indic words and do not reorder text
_JOINERS = "\u200c\u200d"

# pages are recognized by two tags within these bytes, so that a prompt with one tag is none
HEAD_BYTES = 4096
_LFS = re.compile(
    rb"version https?://(git-lfs\.github\.com|hawser\.github\.com|git-media\.io)/\S*\s+"
    rb"(ext-\d[^\n]*\n)*oid \w+:"
)
_ANNEX = re.compile(rb"/annex/objects/\S+\s*|(\.\./)*\.git/annex/objects/\S+\s*")
_PAGE = re.compile(rb"<!doctype html|<html[\s>]|<\?xml[^>]*>\s*<(!doctype html|html|error)", re.I)
_TAG = re.compile(rb"<(?:!doctype|html|head|body|title|meta|script|h1|error|code|message)\b", re.I)
_ANSWERS = (
    b"Entry not found",
    b"Repository not found",
    b"404: Not Found",
    b"Invalid username or password.",
    b"Invalid credentials in Authorization header",
)
_ERROR = re.compile(rb'\{"error":\s*"[^"]*"\}')
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


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


def stand_in(head: bytes, *, packed: bool = True) -> str | None:
    """The reason why a file is not the data that it is named for, with the remedy; else None.

    Recognized are pointers of Git LFS and git-annex, web pages, answers of a hub that were saved
    in place of a file, and, if ``packed``, compressed files.

    Args:
        head: first bytes of the file, :data:`HEAD_BYTES` or all of them.
        packed: True to recognize compressed data; False for formats that may be compressed.
    """
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if _LFS.match(text):
        return "is a Git LFS pointer, not the data; run git lfs pull"
    if _ANNEX.fullmatch(text):
        return "is a git-annex pointer, not the data; run git annex get"
    if _PAGE.match(text) and len(_TAG.findall(text)) > 1:
        return "is a web page, not the data; download the file itself"
    if text.strip() in _ANSWERS or _ERROR.fullmatch(text.strip()):
        answer = text.strip().decode(errors="replace")
        return f"holds only a server's answer ({answer!r}), not the data; download it again"
    for magic, kind in _PACKED.items() if packed else ():
        # a text may begin with "BZh"
        if head.startswith(magic) and (kind != "bzip2" or head[4:10] == b"1AY&SY"):
            return f"is compressed ({kind}); decompress it first"
    return None


def read_stand_in(path: str | os.PathLike[str], *, packed: bool = False) -> str | None:
    """:func:`stand_in` for a file; None also if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return stand_in(file.read(HEAD_BYTES), packed=packed)
    except OSError:
        return None
