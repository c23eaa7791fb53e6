"""Lines of a UTF-8 file in constant memory, with their byte offsets."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dori_fast.errors import UsageError

_WIDE = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Line(NamedTuple):
    """One line. ``raw`` is cut off at the reader's limit; ``size`` is the whole line's."""

    raw: bytes
    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size


def read_lines(path: Path, limit: int) -> Iterator[Line]:
    """Lines that end in LF (kept), at most ``limit`` bytes of each; skips a UTF-8 mark.

    Raises:
        UsageError: the file is UTF-16 or UTF-32, or the disk cannot read it.
    """
    try:
        yield from _read_lines(path, limit)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> UsageError:
    """The refusal of a file that the operating system does not read."""
    return UsageError(
        f"{path}: {error.strerror}, cannot be read to its end; check the path and the disk"
    )


def _read_lines(path: Path, limit: int) -> Iterator[Line]:
    with path.open("rb") as file:
        head = file.read(4)
        if head.startswith(_WIDE):
            raise UsageError(f"{path}: UTF-16 or UTF-32 text; convert it to UTF-8 first")
        offset = 3 if head.startswith(codecs.BOM_UTF8) else 0
        file.seek(offset)
        while raw := file.readline(limit):
            size, piece = len(raw), raw
            while not piece.endswith(b"\n") and (piece := file.readline(limit)):
                size += len(piece)
            yield Line(raw, offset, size)
            offset += size
