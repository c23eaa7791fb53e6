"""Webdataset archives: a sample is a run of members with one key, 01.jpg 01.txt 01.json."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from dori_fast.errors import UsageError
from dori_fast.runs.sources.json_columns import MAX_KEYS, Survey
from dori_fast.runs.sources.jsonl import parse_object
from dori_fast.runs.sources.lines import Record, TextReader
from dori_fast.runs.sources.rows import check_prompt, decode_prompt, find_column, storable, too_long
from dori_fast.runs.sources.tar_members import Member, read_members

_TEXT, _JSON, _KEY = ".txt", ".json", "key"
_JSON_BYTES = 16_000_000


class _Sample(NamedTuple):
    key: str
    text: Member | None
    meta: dict[str, Any] | None
    error: str | None
    end: int


class TarFile(TextReader):
    """Prompts from .txt members, or from a key of .json members; pictures are passed over unread.

    The other JSON keys become columns as those of JSON lines do, beside ``key``. A first pass
    over the headers finds them. A sample whose JSON is broken is quarantined, also if its prompt
    is in a .txt member: otherwise its columns would look as if they had no values.
    """

    known = (_KEY,)

    def __init__(self, path: Path, column: str | None) -> None:
        survey, texts, self._end = Survey(), False, 0
        for sample in _samples(path):
            self._end = sample.end
            texts = texts or sample.text is not None
            survey.add(sample.meta or {})
            if survey.too_many():
                raise UsageError(
                    f"{path}: more than {MAX_KEYS} different keys up to {sample.key!r}"
                    " — this is not a table"
                )
        names = [*(["txt"] if texts else []), *survey.kinds]
        found = "txt" if texts and column is None else find_column(names, column)
        if found is None and (column is not None or names):
            shown = ", ".join(repr(name) for name in names[:20]) or "none at all"
            wanted = f"no {column!r}" if column else "no .txt members and no prompt key"
            raise UsageError(f"{path}: {wanted} among {shown} — name it with --column")
        survey.kinds.pop(_KEY, None)
        self._texts = texts and found == "txt"
        self._columns = survey.columns(found)
        schema = self._columns.schema.insert(0, pa.field(_KEY, pa.string()))
        super().__init__(path, found, schema)

    def end(self) -> int:
        return self._end

    def records(self) -> Iterator[Record]:
        for sample in _samples(self.path):
            meta = sample.meta or {}
            prompt, error = self._prompt(sample)
            cells = (storable(sample.key), *self._columns.cells(meta))
            yield Record(prompt, error, cells, sample.end, parsed=sample.error is None)

    def _prompt(self, sample: _Sample) -> tuple[str | None, str | None]:
        if sample.error is not None:
            return None, sample.error
        if self._texts:
            return _text(sample.text)
        return check_prompt((sample.meta or {}).get(self.column or ""))


def tar_sha256(path: Path) -> str:
    """A digest of what the rows of an archive depend on: names, sizes, and the data of texts.

    Pictures are neither read nor hashed.
    """
    digest = hashlib.sha256()
    for member in read_members(path, (_TEXT, _JSON), _JSON_BYTES):
        data = hashlib.sha256(member.content or b"").hexdigest()
        name = member.name.encode(errors="surrogateescape").hex()
        digest.update(f"{name} {member.size} {data}\n".encode())
    return digest.hexdigest()


def _samples(path: Path) -> Iterator[_Sample]:
    members = read_members(path, (_TEXT, _JSON), _JSON_BYTES)
    for key, group in groupby(members, key=lambda member: _split(member.name)[0]):
        by_suffix: dict[str, Member] = {}
        for member in group:
            if by_suffix.setdefault(_split(member.name)[1], member) is not member:
                raise UsageError(
                    f"{path}: two members {member.name!r} in one sample — which of them counts?"
                    " Pack it anew"
                )
        meta, error = None, None
        if _JSON in by_suffix:
            meta, error = _object(by_suffix[_JSON])
        end = max(member.offset + member.size for member in by_suffix.values())
        yield _Sample(key, by_suffix.get(_TEXT), meta, error, end)


def _split(name: str) -> tuple[str, str]:
    """The key and the rest of a name, parted at the first dot after the last slash."""
    folder, slash, base = name.rpartition("/")
    stem, dot, rest = base.partition(".")
    return folder + slash + stem, dot + rest


def _object(member: Member) -> tuple[dict[str, Any] | None, str | None]:
    if member.content is None:
        return None, f"too_long: {member.size:,} bytes of JSON, the limit is {_JSON_BYTES:,}"
    return parse_object(member.content, member.offset)


def _text(member: Member | None) -> tuple[str | None, str | None]:
    if member is None:
        return None, "null: the sample has no .txt"
    if member.content is None:
        return None, too_long(member.size)
    return decode_prompt(member.content, member.offset)
