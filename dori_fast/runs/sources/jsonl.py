"""JSON-lines prompts: one object a line; keys become columns, typed by what the file holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dori_fast.errors import UsageError
from dori_fast.runs.sources.json_columns import MAX_KEYS, Survey
from dori_fast.runs.sources.lines import Line, Record, TextReader, read_lines
from dori_fast.runs.sources.rows import check_prompt, find_column, not_utf8

_LINE_BYTES = 16_000_000


class JsonLines(TextReader):
    """Objects with a prompt under one key; blank lines are skipped.

    A first pass over the file finds the keys and their types.
    """

    def __init__(self, path: Path, column: str | None) -> None:
        survey = _survey(path)
        found = find_column(survey.kinds, column)
        if found is None and (column is not None or survey.kinds):
            wanted = f"no key {column!r}" if column else "no prompt key"
            shown = ", ".join(repr(name) for name in list(survey.kinds)[:20]) or "none at all"
            raise UsageError(f"{path}: {wanted} among {shown} — name it with --column")
        self._columns = survey.columns(found)
        super().__init__(path, found, self._columns.schema)

    def records(self) -> Iterator[Record]:
        empty = (None,) * len(self.schema)
        for line in read_lines(self.path, _LINE_BYTES):
            if not line.raw.strip():
                continue
            value, error = _parse(line)
            if value is None:
                yield Record(None, error, empty, line.end, parsed=False)
            else:
                prompt, error = check_prompt(value.get(self.column or ""))
                yield Record(prompt, error, self._columns.cells(value), line.end)


def _parse(line: Line) -> tuple[dict[str, Any] | None, str | None]:
    if line.size > len(line.raw):
        return None, f"too_long: a line of {line.size:,} bytes, the limit is {_LINE_BYTES:,}"
    return parse_object(line.raw, line.offset)


def parse_object(raw: bytes, offset: int) -> tuple[dict[str, Any] | None, str | None]:
    """A JSON object that starts at ``offset`` of its file, or why it is none."""
    try:
        value = json.loads(raw.decode())
    except UnicodeDecodeError as error:
        return None, not_utf8(raw[error.start], error.start, offset)
    except (ValueError, RecursionError) as error:
        return None, f"malformed: not JSON: {error}"
    if not isinstance(value, dict):
        return None, f"malformed: {type(value).__name__} where an object was expected"
    return value, None


def _survey(path: Path) -> Survey:
    survey = Survey()
    for line in read_lines(path, _LINE_BYTES):
        value, _ = _parse(line) if line.raw.strip() else (None, None)
        survey.add(value or {})
        if survey.too_many():
            raise UsageError(
                f"{path}: more than {MAX_KEYS} different keys up to byte {line.end}"
                " — this is not a table; keep the keys that matter"
            )
    return survey
