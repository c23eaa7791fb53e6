"""Lines of a UTF-8 file in constant memory, with their byte offsets; plain-text prompts."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar, NamedTuple

import pyarrow as pa

from dori_fast.errors import UsageError
from dori_fast.runs.sources.rows import PROMPT_BYTES, Rows, decode_prompt, too_long

_WIDE = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Line(NamedTuple):
    """One line. ``raw`` is cut short if the line is longer than the limit; ``size`` is not."""

    raw: bytes
    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size


class Record(NamedTuple):
    """One row of a text format; ``end`` is the byte offset after it.

    ``parsed`` is false where its columns could not be made out, so that nulls stand for them.
    """

    prompt: str | None
    error: str | None
    cells: tuple[object, ...]
    end: int
    parsed: bool = True


def read_lines(path: Path, limit: int) -> Iterator[Line]:
    """Lines that end in LF (kept), at most ``limit`` bytes of each; a UTF-8 mark is skipped."""
    try:
        yield from _read_lines(path, limit)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror} — it cannot be read to its end") from error


def _read_lines(path: Path, limit: int) -> Iterator[Line]:
    with path.open("rb") as file:
        head = file.read(4)
        refuse_wide(head, path)
        offset = 3 if head.startswith(codecs.BOM_UTF8) else 0
        file.seek(offset)
        while raw := file.readline(limit):
            size, piece = len(raw), raw
            while not piece.endswith(b"\n") and (piece := file.readline(limit)):
                size += len(piece)
            yield Line(raw, offset, size)
            offset += size


def refuse_wide(head: bytes, path: Path) -> None:
    if head.startswith(_WIDE):
        raise UsageError(f"{path}: UTF-16 or UTF-32 text — convert it to UTF-8 first")


@dataclass
class TextReader:
    """A text format as a :class:`dori_fast.runs.sources.rows.Reader`; formats give ``records``.

    ``known`` are the columns that also a row has which could not be parsed.
    """

    known: ClassVar[tuple[str, ...]] = ()
    path: Path
    column: str | None
    schema: pa.Schema

    def records(self) -> Iterator[Record]:
        """All rows in order."""
        raise NotImplementedError

    def end(self) -> int:
        """The byte offset after the last row."""
        return os.path.getsize(self.path)

    def chunks(self, size: int) -> Iterator[Rows]:
        """All rows, ``size`` at a time (the last chunk may be shorter)."""
        return (rows for rows, _ in self.parts(size))

    def parts(self, size: int) -> Iterator[tuple[Rows, list[bool]]]:
        """The same chunks, and which of their rows were parsed."""
        total = max(1, self.end())
        records, first = self.records(), 0
        while group := list(islice(records, size)):
            columns = [
                pa.array([record.cells[i] for record in group], field.type)
                for i, field in enumerate(self.schema)
            ]
            rows = Rows(
                first=first,
                prompts=[record.prompt for record in group],
                errors=[record.error for record in group],
                extra=pa.Table.from_arrays(columns, schema=self.schema),
                fraction=min(1.0, group[-1].end / total),
            )
            yield rows, [record.parsed for record in group]
            first += len(group)


class PlainText(TextReader):
    """One prompt a line; an empty line is the empty prompt."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, None, pa.schema([]))

    def records(self) -> Iterator[Record]:
        for line in read_lines(self.path, PROMPT_BYTES + 2):
            text = line.raw.removesuffix(b"\n").removesuffix(b"\r")
            if line.size > len(line.raw):
                yield Record(None, too_long(line.size), (), line.end)
            else:
                yield Record(*decode_prompt(text, line.offset), (), line.end)
