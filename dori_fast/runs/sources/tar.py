"""Webdataset archives: a sample is a run of members with one key, 01.jpg 01.txt 01.json.

Members are read one header at a time. Hostile ones are rejected, none is unpacked.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa

from dori_fast._text import HEAD_BYTES, stand_in
from dori_fast.errors import UsageError
from dori_fast.runs.sources.jsonl import Survey, parse_object
from dori_fast.runs.sources.lines import is_wide, without_marks
from dori_fast.runs.sources.rows import (
    check_prompt,
    decode_prompt,
    find_column,
    missing_column,
    storable,
    too_long,
)
from dori_fast.runs.sources.text import Record, TextReader

_TEXT, _JSON, _KEY = ".txt", ".json", "key"
_JSON_BYTES = 16_000_000
_MAX_MEMBERS = 1_000_000
_READ_BYTES = 16_000_000


class _Member(NamedTuple):
    """A file of an archive; ``content`` is None if it is larger than the limit or not wanted."""

    name: str
    size: int
    offset: int
    content: bytes | None


class _Sample(NamedTuple):
    key: str
    text: _Member | None
    meta: dict[str, Any] | None
    error: str | None
    end: int


class TarFile(TextReader):
    """Prompts from .txt members, or from a key of .json members; images are skipped unread.

    The other JSON keys become columns beside ``key``, typed as those of JSON lines. A first pass
    over the archive finds them. A sample whose JSON is broken is quarantined even if its prompt
    is in a .txt member: otherwise its columns would look as if they had no values.
    """

    known = (_KEY,)

    def __init__(self, path: Path, column: str | None) -> None:
        survey, texts, self._end = Survey(), False, 0
        for sample in _samples(path):
            self._end = sample.end
            texts = texts or sample.text is not None
            survey.add(sample.meta or {}, path, repr(sample.key))
        names = [*(["txt"] if texts else []), *survey.kinds]
        found = "txt" if texts and column is None else find_column(names, column)
        if found is None and (column is not None or names):
            missing = f"no {column!r}" if column else "no .txt members and no prompt key"
            raise missing_column(path, missing, names)
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
    """The sha256 over members' names and sizes and the content of texts; images are not read."""
    digest = hashlib.sha256()
    for member in _members(path):
        data = hashlib.sha256(member.content or b"").hexdigest()
        name = member.name.encode(errors="surrogateescape").hex()
        digest.update(f"{name} {member.size} {data}\n".encode())
    return digest.hexdigest()


def _samples(path: Path) -> Iterator[_Sample]:
    for key, group in groupby(_members(path), key=lambda member: _split(member.name)[0]):
        by_suffix: dict[str, _Member] = {}
        for member in group:
            if by_suffix.setdefault(_split(member.name)[1], member) is not member:
                raise UsageError(
                    f"{path}: two members {member.name!r} in one sample; pack it again with one"
                    " of them"
                )
        meta, error = None, None
        if _JSON in by_suffix:
            meta, error = _object(by_suffix[_JSON])
        end = max(member.offset + member.size for member in by_suffix.values())
        yield _Sample(key, by_suffix.get(_TEXT), meta, error, end)


def _split(name: str) -> tuple[str, str]:
    """A name's key and suffix, split at the first dot after the last slash."""
    folder, slash, base = name.rpartition("/")
    stem, dot, rest = base.partition(".")
    return folder + slash + stem, dot + rest


def _object(member: _Member) -> tuple[dict[str, Any] | None, str | None]:
    if member.content is None:
        return None, f"too_long: {member.size:,} bytes of JSON, the limit is {_JSON_BYTES:,}"
    if reason := _unfit(member.content):
        return None, reason
    return parse_object(member.content, member.offset)


def _text(member: _Member | None) -> tuple[str | None, str | None]:
    if member is None:
        return None, "null: the sample has no .txt"
    if member.content is None:
        return None, too_long(member.size)
    text = without_marks(member.content)
    marks = len(member.content) - len(text)
    if reason := _unfit(member.content):
        return None, reason
    return decode_prompt(text, member.offset + marks)


def _unfit(content: bytes) -> str | None:
    """``"malformed: reason"`` of a member that is UTF-16, or a pointer in place of its data."""
    if is_wide(content[:HEAD_BYTES]):
        return "encoding: UTF-16 or UTF-32 text; convert it to UTF-8"
    reason = stand_in(content[:HEAD_BYTES])
    return reason and f"malformed: the member {reason}"


def _members(path: Path) -> Iterator[_Member]:
    """The files of an uncompressed archive in order, with the content of texts and JSON.

    Files that a system adds by itself are skipped, see :func:`_is_added`.

    Raises:
        UsageError: a member has an absolute name, leaves the folder, is a link or no plain file,
            or is the 1,000,001st; a header is larger than 16 MB; the archive is damaged, or has
            data after its end mark. The message names the member.
    """
    name = "the first member"
    try:
        with path.open("rb") as raw:
            file = cast(BinaryIO, _BoundedReads(raw, path))
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for count, info in enumerate(archive):
                    name = repr(info.name)
                    if count >= _MAX_MEMBERS:
                        raise UsageError(
                            f"{path}: more than {_MAX_MEMBERS:,} members, up to {name}; split it"
                        )
                    # tarfile keeps every header otherwise
                    archive.members = []  # type: ignore[attr-defined]
                    if info.isdir():
                        continue
                    _check(path, info)
                    if _is_added(info.name):
                        continue
                    content = None
                    if info.name.endswith((_TEXT, _JSON)) and info.size <= _JSON_BYTES:
                        raw.seek(info.offset_data)
                        content = raw.read(info.size)
                        if len(content) < info.size:
                            raise UsageError(f"{path}: cut off within {name}; get the file again")
                    yield _Member(info.name, info.size, info.offset_data, content)
                raw.seek(archive.offset)
                _check_end(path, raw, name)
    except UsageError:
        raise
    except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
        # RecursionError comes from a chain of extended headers
        raise UsageError(
            f"{path}: not a readable tar archive after {name} ({error}); get the file again"
        ) from error


class _BoundedReads:
    """A file that rejects an extended header of a decompression bomb's size."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _READ_BYTES:
            raise UsageError(
                f"{self._path}: a header of {size:,} bytes at {self.tell():,}; get the file again"
            )
        return self._file.read(size)


def _check_end(path: Path, file: BinaryIO, name: str) -> None:
    # tarfile takes a damaged header for the end of the archive
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise UsageError(f"{path}: cut off or damaged after {name}; get the file again")
    while block := file.read(_READ_BYTES):
        if block.strip(b"\0"):
            raise UsageError(
                f"{path}: has data behind the end mark after {name}, so it is damaged or several"
                " archives in one; split them (tar --ignore-zeros reads them all)"
            )


def _is_added(name: str) -> bool:
    """Whether no user packed this file: macOS' ``._NAME``, ``.Trashes/`` and the like."""
    *folders, base = PurePosixPath(name).parts
    added = base.startswith(".") or base.casefold() in ("thumbs.db", "desktop.ini", "icon\r")
    return added or any(part.startswith((".", "__MACOSX", "PaxHeader")) for part in folders)


def _check(path: Path, info: tarfile.TarInfo) -> None:
    parts = PurePosixPath(info.name).parts
    if not parts or info.name.startswith("/") or ".." in parts or "\0" in info.name:
        raise UsageError(f"{path}: member {info.name!r} leaves the archive's folder; remove it")
    if not info.isreg() or info.issparse():
        raise UsageError(f"{path}: member {info.name!r} is a link or no plain file; remove it")
