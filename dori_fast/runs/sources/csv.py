"""CSV and TSV prompts: detected separator, quoted line breaks, damaged rows in quarantine."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from dori_fast.errors import UsageError
from dori_fast.runs.sources.lines import Line, read_lines
from dori_fast.runs.sources.rows import (
    check_prompt,
    find_column,
    missing_column,
    not_utf8,
    passed_names,
    storable,
)
from dori_fast.runs.sources.text import Record, TextReader

_RECORD_BYTES = 16_000_000
_SAMPLE_ROWS = 100
_LONE_RETURN = "a CR outside quotes where lines end in LF; convert all line ends to LF"
_UNDECODED = re.compile("[\udc80-\udcff]")
_SEPARATORS = {".csv": ",;\t|", ".tsv": "\t,;|"}
# prompts with commas are split into numbers of fields that differ more
_TABLE_SHARE = 0.8
# names of columns have fewer words, prompts seldom
_SENTENCE_WORDS = 4
# the same in files of one column, whose usual header is one word
_LONE_SENTENCE_WORDS = 3
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_EXCEL_MARK = re.compile(rb'"?sep=.?"?\s*', re.IGNORECASE)


class _Parsed(NamedTuple):
    """A record's cells (undecodable bytes as surrogates), or the error that left it without."""

    cells: list[str] | None
    error: str | None
    lines: list[Line]


class CsvFile(TextReader):
    """A delimited file. Passed-through columns are text.

    A row whose quotes do not balance, or whose number of fields differs from the first line's, is
    quarantined as ``malformed``; reading continues at the next line.

    Args:
        path: the file.
        column: the prompt column; default: the first usual name, or the only column.
        header: True if the first line has the names of the columns, see
            :class:`dori_fast.runs.sources.where.Selection`. If false, they are ``column_1``,
            ``column_2``, ..., and ``column`` may be the number alone.

    Raises:
        UsageError: no such column, or a first line that is a header contrary to ``header``, or
            reads like a prompt.
    """

    def __init__(self, path: Path, column: str | None, header: bool | None = None) -> None:
        self._header = header is not False
        self._separator, first = _sniff(path, column, self._header)
        if self._header:
            names, found = first, _named(path, first, column, self._separator, header)
        else:
            names = [f"column_{i}" for i in range(1, len(first) + 1)]
            found = _numbered(path, names, first, column)
        self._prompt_at, self._width = names.index(found), len(names)
        extra = [storable(name) or "" for i, name in enumerate(names) if i != self._prompt_at]
        schema = pa.schema([(name, pa.string()) for name in passed_names(extra)])
        super().__init__(path, found, schema)

    def records(self) -> Iterator[Record]:
        empty = (None,) * len(self.schema)
        first = "header" if self._header else "first line"
        for parsed in islice(_parse(self.path, self._separator), int(self._header), None):
            cells, end = parsed.cells, parsed.lines[-1].end
            if cells is None:
                yield Record(None, parsed.error, empty, end, parsed=False)
            elif len(cells) != self._width:
                count = f"{len(cells)} fields where the {first} has {self._width}"
                yield Record(None, f"malformed: {count}", empty, end, parsed=False)
            else:
                prompt, error = self._check(cells, parsed.lines)
                del cells[self._prompt_at]
                yield Record(prompt, error, tuple(map(storable, cells)), end)

    def _check(self, cells: list[str], lines: list[Line]) -> tuple[str | None, str | None]:
        prompt = cells[self._prompt_at]
        if prompt.isascii() or not _UNDECODED.search(prompt):
            return check_prompt(prompt)
        # undecoded bytes have the same order in the cells as in the raw record
        before = len(_UNDECODED.findall("".join(cells[: self._prompt_at])))
        text = b"".join(line.raw for line in lines).decode("utf-8", "surrogateescape")
        found = next(islice(_UNDECODED.finditer(text), before, None))
        position = len(text[: found.start()].encode("utf-8", "surrogateescape"))
        return None, not_utf8(ord(found[0]) - 0xDC00, position, lines[0].offset)


def _named(
    path: Path, names: list[str], column: str | None, separator: str, header: bool | None
) -> str:
    """The prompt column among the names of a header."""
    found = find_column(names, column)
    if found is None:
        missing = f"no column {column!r}" if column else "no prompt column"
        remedy = ", or use --no-header if the first line is no header but a row"
        raise missing_column(path, missing, names, f" (separated by {separator!r})", remedy)
    if names.count(found) > 1:
        raise UsageError(f"{path}: column {found!r} occurs twice; rename one of them")
    if header is None and _reads_like_a_row(found, names):
        raise UsageError(
            f"{path}: the column name {found!r} reads like a prompt; use --no-header if the first"
            " line is a row, or --header if it is a header"
        )
    return found


def _reads_like_a_row(found: str, names: list[str]) -> bool:
    words = len(found.split())
    if words >= (_LONE_SENTENCE_WORDS if len(names) == 1 else _SENTENCE_WORDS):
        return True
    return words > 1 and any(_NUMBER.fullmatch(name) for name in names)


def _numbered(path: Path, names: list[str], first: list[str], column: str | None) -> str:
    """The prompt column of a file without a header whose first row is ``first``."""
    if usual := find_column(first, None):
        raise UsageError(
            f"{path}: its first line has the column name {usual!r}, so it is a header; leave"
            " --no-header out, or remove that line"
        )
    if column is None and len(names) == 1:
        return names[0]
    found = f"column_{column}" if column and column.isdecimal() else column
    if found in names:
        return found
    missing = f"no column {column!r}" if column else "no name of a prompt column"
    shown = [f"{name} ({cell[:40]!r})" for name, cell in zip(names, first, strict=True)]
    raise UsageError(
        f"{path}: {missing} without a header, where the columns are {', '.join(shown[:20])}; name"
        " it with --column, such as --column 1"
    )


class _Feed:
    """Lines for ``csv.reader``; keeps those of the record being read."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self._again: deque[Line] = deque()
        self.record: list[Line] = []
        self._size = 0
        # offset of the last line on which a record of several lines fails, and its error
        self._lost_to, self._reason = -1, ""

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        if self.record and self._again and self._again[0].offset <= self._lost_to:
            raise csv.Error(self._reason)
        line = self._again.popleft() if self._again else next(self._lines)
        self.record.append(line)
        self._size += line.size
        if self._size > _RECORD_BYTES:
            raise csv.Error(f"longer than {_RECORD_BYTES:,} bytes, or a quote is never closed")
        return line.raw.decode("utf-8", "surrogateescape")

    def start_record(self) -> None:
        self.record, self._size = [], 0

    def requeue(self, reason: str) -> None:
        """Read all lines of the failed record except the first again.

        Each of these lines ended inside an open quote. A record that starts at one of them and
        spans lines would fail as this one did, so only single-line records need a retry. Without
        this rule every line could be read to the end of the file. (A record that fails by its
        size, starting later, could have used the rest of its 16 MB; it fails all the same.)
        """
        self._lost_to, self._reason = max(self._lost_to, self.record[-1].offset), reason
        self._again.extendleft(reversed(self.record[1:]))
        del self.record[1:]


def _parse(path: Path, separator: str) -> Iterator[_Parsed]:
    """All records, the header first; skips blank lines, as CSV readers do."""
    # csv's limit is global and per field; the limit on a record's size bounds every field
    csv.field_size_limit(max(csv.field_size_limit(), _RECORD_BYTES))
    feed = _Feed(read_lines(path, _RECORD_BYTES, quoted=True))
    reader = csv.reader(feed, delimiter=separator, strict=True)
    while True:
        feed.start_record()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = _LONE_RETURN if "new-line character" in str(error) else str(error)
            feed.requeue(reason)
            yield _Parsed(None, f"malformed: {reason}", feed.record)
            continue
        if cells:
            yield _Parsed(cells, None, feed.record)


def _sniff(path: Path, column: str | None, header: bool) -> tuple[str, list[str]]:
    """The separator and the first line.

    Of all separators the best is one with which the header, if there is one, holds the prompt
    column and most rows have as many fields as the first line. Without a header, one that splits
    nearly all rows alike is better than one that splits none.
    """
    best: tuple[tuple[bool, float, int], str, list[str]] | None = None
    for separator in _SEPARATORS.get(path.suffix.lower(), _SEPARATORS[".tsv"]):
        sample = list(islice(_parse(path, separator), _SAMPLE_ROWS))
        if not sample:
            remedy = "put a header with the column names first" if header else "get it again"
            raise UsageError(f"{path}: empty; {remedy}")
        if _EXCEL_MARK.fullmatch(sample[0].lines[0].raw):
            raise UsageError(
                f"{path}: its first line is Excel's mark of the separator, neither a header nor a"
                " row; remove that line"
            )
        if sample[0].cells is None:
            continue
        first = [name.strip() for name in sample[0].cells]
        regular = sum(p.cells is not None and len(p.cells) == len(first) for p in sample)
        share = regular / len(sample)
        if header:
            likely = find_column(first, column) is not None
        else:
            likely = len(first) > 1 and share >= _TABLE_SHARE
        key = (likely, share, len(first))
        if best is None or key > best[0]:
            best = key, separator, first
    if best is None:
        what = "header" if header else "first"
        raise UsageError(f"{path}: the {what} line cannot be read as CSV; check its quotes")
    return best[1], best[2]
