"""JSON-lines prompts: one object a line; keys become columns, typed by what the file holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from dori_fast.errors import UsageError
from dori_fast.scan.lines import Line, Record, TextReader, read_lines
from dori_fast.scan.rows import check_prompt, find_column, not_utf8, passed_names, storable

_LINE_BYTES = 16_000_000
_MAX_KEYS = 256


class JsonLines(TextReader):
    """Objects with a prompt under one key; blank lines are skipped.

    A first pass over the file finds the keys and their types. A column is int64, float64, bool or
    text where all its values are; mixed or nested values are kept as their JSON text.
    """

    def __init__(self, path: Path, column: str | None) -> None:
        kinds = _survey(path)
        found = find_column(kinds, column)
        if found is None and (column is not None or kinds):
            wanted = f"no key {column!r}" if column else "no prompt key"
            shown = ", ".join(repr(name) for name in list(kinds)[:20]) or "none at all"
            raise UsageError(f"{path}: {wanted} among {shown} — name it with --column")
        self._keys = [key for key in kinds if key != found]
        types = [_arrow_type(kinds[key]) for key in self._keys]
        names = passed_names([storable(key) or "" for key in self._keys])
        schema = pa.schema(list(zip(names, types, strict=True)))
        self._as_json = [not _is_plain(kinds[key]) for key in self._keys]
        super().__init__(path, found, schema)

    def records(self) -> Iterator[Record]:
        empty = (None,) * len(self._keys)
        for line in read_lines(self.path, _LINE_BYTES):
            if not line.raw.strip():
                continue
            value, error = _parse(line)
            if value is None:
                yield Record(None, error, empty, line.end)
            else:
                prompt, error = check_prompt(value.get(self.column or ""))
                yield Record(prompt, error, self._cells(value), line.end)

    def _cells(self, value: dict[str, Any]) -> tuple[object, ...]:
        pairs = zip(self._keys, self._as_json, strict=True)
        return tuple(_cell(value.get(key), as_json) for key, as_json in pairs)


def _cell(value: object, as_json: bool) -> object:
    if as_json and value is not None:
        return json.dumps(value, ensure_ascii=True)
    return storable(value) if isinstance(value, str) else value


def _parse(line: Line) -> tuple[dict[str, Any] | None, str | None]:
    if line.size > len(line.raw):
        return None, f"too_long: a line of {line.size:,} bytes, the limit is {_LINE_BYTES:,}"
    try:
        value = json.loads(line.raw.decode())
    except UnicodeDecodeError as error:
        return None, not_utf8(line.raw[error.start], error.start, line.offset)
    except (ValueError, RecursionError) as error:
        return None, f"malformed: not JSON: {error}"
    if not isinstance(value, dict):
        return None, f"malformed: {type(value).__name__} where an object was expected"
    return value, None


def _survey(path: Path) -> dict[str, set[str]]:
    """The kinds of values of every key, in order of first appearance."""
    kinds: dict[str, set[str]] = {}
    for line in read_lines(path, _LINE_BYTES):
        value, _ = _parse(line) if line.raw.strip() else (None, None)
        for key, item in (value or {}).items():
            kinds.setdefault(key, set())
            if item is not None:
                kinds[key].add(_kind(item))
        if len(kinds) > _MAX_KEYS:
            raise UsageError(
                f"{path}: more than {_MAX_KEYS} different keys up to byte {line.end}"
                " — this is not a table; keep the keys that matter"
            )
    return kinds


def _kind(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        if abs(value) <= 2**53:
            return "int"
        return "long" if -(2**63) <= value < 2**63 else "huge"
    return type(value).__name__


def _arrow_type(kinds: set[str]) -> pa.DataType:
    if kinds == {"bool"}:
        return pa.bool_()
    if kinds and kinds <= {"int", "long"}:
        return pa.int64()
    if kinds and kinds <= {"int", "float"}:
        return pa.float64()
    return pa.string()


def _is_plain(kinds: set[str]) -> bool:
    return _arrow_type(kinds) != pa.string() or kinds <= {"str"}
