"""JSON-lines prompts: one object per line; keys become columns, typed by all their values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from dori_fast.errors import UsageError
from dori_fast.runs.sources.lines import Line, read_lines, without_marks
from dori_fast.runs.sources.rows import (
    check_prompt,
    find_column,
    missing_column,
    not_utf8,
    passed_names,
    storable,
)
from dori_fast.runs.sources.text import Record, TextReader

_LINE_BYTES = 16_000_000
_MAX_KEYS = 256


class JsonLines(TextReader):
    """Objects with a prompt under one key; skips blank lines.

    A first pass over the file finds the keys and their types.
    """

    def __init__(self, path: Path, column: str | None) -> None:
        survey = _survey(path)
        found = find_column(survey.kinds, column)
        if found is None and (column is not None or survey.kinds):
            missing = f"no key {column!r}" if column else "no prompt key"
            raise missing_column(path, missing, list(survey.kinds))
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
    """The JSON object in ``raw``, which lies at ``offset`` in its file; or ``"code: message"``.

    A UTF-8 mark in front is skipped: files with marks may have been joined or packed.
    """
    text = without_marks(raw)
    try:
        value = json.loads(text.decode())
    except UnicodeDecodeError as error:
        return None, not_utf8(text[error.start], error.start, offset + len(raw) - len(text))
    except (ValueError, RecursionError) as error:
        return None, f"malformed: not JSON: {error}"
    if not isinstance(value, dict):
        return None, f"malformed: {type(value).__name__} where an object was expected"
    return value, None


def _survey(path: Path) -> Survey:
    survey, first = Survey(), True
    for line in read_lines(path, _LINE_BYTES):
        text = line.raw.strip()
        if first and text:
            first = False
            if text == b"[" or text.startswith((b"[{", b'["')):
                raise UsageError(f"{path}: a JSON array, not an object per line; name it .json")
        value, _ = _parse(line) if text else (None, None)
        survey.add(value or {}, path, f"byte {line.end}")
    return survey


class Survey:
    """The kinds of values of every key, in order of first appearance.

    A column is int64, float64, bool or text if all its values are, and null if it has none; mixed
    or nested values are kept as their JSON text.
    """

    def __init__(self) -> None:
        self.kinds: dict[str, set[str]] = {}

    def add(self, value: dict[str, Any], path: Path, place: str) -> None:
        """Add one object.

        Raises:
            UsageError: there are more than 256 keys up to this ``place`` in the file.
        """
        for key, item in value.items():
            self.kinds.setdefault(key, set())
            if item is not None:
                self.kinds[key].add(_kind(item))
        if len(self.kinds) > _MAX_KEYS:
            raise UsageError(
                f"{path}: more than {_MAX_KEYS} different keys up to {place}, so this is not a"
                " table; remove the keys that do not matter"
            )

    def columns(self, prompt: str | None) -> JsonColumns:
        """The columns of all keys except the prompt's."""
        return JsonColumns({key: kinds for key, kinds in self.kinds.items() if key != prompt})


class JsonColumns:
    """The columns that a survey found, and an object's cells in them."""

    def __init__(self, kinds: dict[str, set[str]]) -> None:
        self._as_json = {key: not _is_plain(kinds[key]) for key in kinds}
        names = passed_names([storable(key) or "" for key in kinds])
        types = [_arrow_type(kinds[key]) for key in kinds]
        self.schema = pa.schema(list(zip(names, types, strict=True)))

    def cells(self, value: dict[str, Any]) -> tuple[object, ...]:
        """One object's values; None where it lacks a key."""
        return tuple(_cell(value.get(key), as_json) for key, as_json in self._as_json.items())


def _cell(value: object, as_json: bool) -> object:
    if as_json and value is not None:
        return json.dumps(value, ensure_ascii=True)
    return storable(value) if isinstance(value, str) else value


def _kind(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        if abs(value) <= 2**53:
            return "int"
        return "long" if -(2**63) <= value < 2**63 else "huge"
    return type(value).__name__


def _arrow_type(kinds: set[str]) -> pa.DataType:
    if not kinds:
        # only nulls here; other files may have values
        return pa.null()
    if kinds == {"bool"}:
        return pa.bool_()
    if kinds <= {"int", "long"}:
        return pa.int64()
    if kinds <= {"int", "float"}:
        return pa.float64()
    return pa.string()


def _is_plain(kinds: set[str]) -> bool:
    return _arrow_type(kinds) != pa.string() or kinds <= {"str"}
