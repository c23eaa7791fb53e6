"""Lines of a UTF-8 file in constant memory, with their byte offsets."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dori_fast.errors import UsageError

_WIDE = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# shorter texts may be prompts of control characters
_WIDE_BYTES = 8
_HEAD_BYTES = 4096
_SAMPLE_BYTES = 2**20
_END = re.compile(rb"\r+\n?|\n")


class Line(NamedTuple):
    """One line. ``raw`` is cut off at the reader's limit; ``size`` is the whole line's."""

    raw: bytes
    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size


def read_lines(path: Path, limit: int, *, quoted: bool = False) -> Iterator[Line]:
    """Lines with their ends, at most ``limit`` bytes of each; skips a UTF-8 mark.

    Lines end in LF, or in CR (classic Mac) if the file has no LF. With ``quoted``, lines also end
    in CR if the first line end outside quotes is a CR without LF. No other character ends a line.

    Args:
        path: the file.
        limit: largest number of bytes of a line to keep.
        quoted: True if quotes protect line ends, as in CSV.

    Raises:
        UsageError: the file is UTF-16 or UTF-32; the disk cannot read it; or the line ends are
            mixed: its first 1 MiB has several CR without LF, and not more LF than those.
    """
    try:
        yield from _read_lines(path, limit, quoted)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> UsageError:
    """The refusal of a file that the operating system does not read."""
    return UsageError(
        f"{path}: {error.strerror}, cannot be read to its end; check the path and the disk"
    )


def is_wide(head: bytes) -> bool:
    """Whether text is UTF-16 or UTF-32: by its mark, or because a third of its bytes are NUL."""
    if head.startswith(_WIDE):
        return True
    return len(head) >= _WIDE_BYTES and 3 * head.count(0) >= len(head)


def without_marks(raw: bytes) -> bytes:
    """Text without the UTF-8 marks in front; two of them come from saving twice."""
    while raw.startswith(codecs.BOM_UTF8):
        raw = raw[len(codecs.BOM_UTF8) :]
    return raw


def _read_lines(path: Path, limit: int, quoted: bool) -> Iterator[Line]:
    with path.open("rb") as file:
        head = file.read(_SAMPLE_BYTES)
        sample = without_marks(head)
        offset = len(head) - len(sample)
        if not offset and is_wide(head[:_HEAD_BYTES]):
            raise UsageError(f"{path}: UTF-16 or UTF-32 text; convert it to UTF-8 first")
        by_return = _ends_in_return(path, file, sample, quoted)
        file.seek(offset)
        yield from (_by_return if by_return else _by_feed)(file, limit, offset)


def _by_feed(file: BinaryIO, limit: int, offset: int) -> Iterator[Line]:
    while raw := file.readline(limit):
        size, piece = len(raw), raw
        while not piece.endswith(b"\n") and (piece := file.readline(limit)):
            size += len(piece)
        yield Line(raw, offset, size)
        offset += size


def _by_return(file: BinaryIO, limit: int, offset: int) -> Iterator[Line]:
    raw, size = b"", 0
    while block := file.read(_SAMPLE_BYTES):
        *ended, rest = block.split(b"\r")
        for piece in [*(piece + b"\r" for piece in ended), rest]:
            raw, size = raw + piece[: limit - len(raw)], size + len(piece)
            if piece.endswith(b"\r"):
                yield Line(raw, offset, size)
                raw, size, offset = b"", 0, offset + size
    if size:
        yield Line(raw, offset, size)


def _ends_in_return(path: Path, file: BinaryIO, sample: bytes, quoted: bool) -> bool:
    """Whether lines end in CR; ``sample`` holds the first bytes of the file."""
    if quoted and (first := _first_end(sample)) is not None:
        return first == b"\r"
    feeds, returns = sample.count(b"\n"), _lone_returns(sample)
    rest = iter(lambda: file.read(_SAMPLE_BYTES), b"")
    if not feeds and not any(b"\n" in block for block in rest):
        return True
    if not quoted and returns > 1 and returns >= feeds:
        raise UsageError(
            f"{path}: {returns:,} of its first line ends are CR and {feeds:,} are LF; convert all"
            " to LF"
        )
    return False


def _first_end(sample: bytes) -> bytes | None:
    """The first line end outside quotes, CR or LF; None if there is none."""
    quotes = last = 0
    for end in _END.finditer(sample):
        quotes, last = quotes + sample.count(b'"', last, end.start()), end.start()
        if quotes % 2 == 0:
            return end[0][-1:]
    return None


def _lone_returns(sample: bytes) -> int:
    """Number of CR that belong to no CR LF, nor to a CR CR LF."""
    *lines, last = sample.split(b"\n")
    # what follows the sample may be an LF
    last = last.rstrip(b"\r") if len(sample) >= _SAMPLE_BYTES - _HEAD_BYTES else last
    return sum(line.rstrip(b"\r").count(b"\r") for line in lines) + last.count(b"\r")
