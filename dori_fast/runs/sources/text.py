"""Readers of text formats, record by record, and the reader of plain text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar, NamedTuple

import pyarrow as pa

from dori_fast.runs.sources.lines import read_lines
from dori_fast.runs.sources.rows import PROMPT_BYTES, Rows, decode_prompt, too_long

_RETURNS = "CR within the line where lines end in LF; convert all line ends to LF"


class Record(NamedTuple):
    """One row of a text format.

    Attributes:
        prompt: the prompt, None if the row is quarantined.
        error: ``"code: message"`` if the row is quarantined, else None.
        cells: values of the passed-through columns.
        end: byte offset after the row.
        parsed: false if the columns are unreadable, so that ``cells`` are placeholders.
    """

    prompt: str | None
    error: str | None
    cells: tuple[object, ...]
    end: int
    parsed: bool = True


@dataclass
class TextReader:
    """A :class:`dori_fast.runs.sources.rows.Reader` of a text format; formats define ``records``.

    Attributes:
        known: columns that even an unparsable row has.
        path: the file.
        column: the prompt column, None if the format has none.
        schema: the passed-through columns.
    """

    known: ClassVar[tuple[str, ...]] = ()
    path: Path
    column: str | None
    schema: pa.Schema

    def records(self) -> Iterator[Record]:
        """All rows in order."""
        raise NotImplementedError

    def end(self) -> int:
        """Byte offset after the last row."""
        return os.path.getsize(self.path)

    def chunks(self, size: int) -> Iterator[Rows]:
        """All rows, ``size`` at a time (the last chunk may be shorter)."""
        return (rows for rows, _ in self.parts(size))

    def parts(self, size: int) -> Iterator[tuple[Rows, list[bool]]]:
        """The same chunks, each with its rows' ``parsed``."""
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
    """One prompt per line; an empty line is the empty prompt.

    CR before a line end are no part of the prompt; a line with several others is quarantined.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, None, pa.schema([]))

    def records(self) -> Iterator[Record]:
        for line in read_lines(self.path, PROMPT_BYTES + 2):
            text = line.raw.removesuffix(b"\n").rstrip(b"\r")
            if line.size > len(line.raw):
                yield Record(None, too_long(line.size), (), line.end)
            elif (returns := text.count(b"\r")) > 1:
                # several lines of a classic Mac file that was joined with one of LF
                yield Record(None, f"malformed: {returns} {_RETURNS}", (), line.end)
            else:
                yield Record(*decode_prompt(text, line.offset), (), line.end)
