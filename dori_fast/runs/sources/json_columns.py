"""Columns out of JSON objects: the keys that occur, typed by all of their values."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from dori_fast.runs.sources.rows import passed_names, storable

MAX_KEYS = 256


class Survey:
    """The kinds of values of every key, in order of first appearance.

    A column is int64, float64, bool or text where all its values are, null where it has none; mixed
    or nested values are kept as their JSON text.
    """

    def __init__(self) -> None:
        self.kinds: dict[str, set[str]] = {}

    def add(self, value: dict[str, Any]) -> None:
        """Take note of one object."""
        for key, item in value.items():
            self.kinds.setdefault(key, set())
            if item is not None:
                self.kinds[key].add(_kind(item))

    def too_many(self) -> bool:
        """Whether there are more than 256 keys, so that this is no table."""
        return len(self.kinds) > MAX_KEYS

    def columns(self, prompt: str | None) -> JsonColumns:
        """The columns of all keys but the prompt's."""
        return JsonColumns({key: kinds for key, kinds in self.kinds.items() if key != prompt})


class JsonColumns:
    """Cells of objects as the columns that a survey found."""

    def __init__(self, kinds: dict[str, set[str]]) -> None:
        self._as_json = {key: not _is_plain(kinds[key]) for key in kinds}
        names = passed_names([storable(key) or "" for key in kinds])
        types = [_arrow_type(kinds[key]) for key in kinds]
        self.schema = pa.schema(list(zip(names, types, strict=True)))

    def cells(self, value: dict[str, Any]) -> tuple[object, ...]:
        """The values of one object's columns; None where it lacks a key."""
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
        # of nulls alone, which other files may have values for
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
