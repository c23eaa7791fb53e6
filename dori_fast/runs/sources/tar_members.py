"""Members of a tar archive, one header at a time; hostile ones are refused, none is unpacked."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple, cast

from dori_fast.errors import UsageError

MEMBERS = 1_000_000
_AT_ONCE = 16_000_000


class Member(NamedTuple):
    """A file of an archive; ``content`` is None where it is not wanted or larger than the limit."""

    name: str
    size: int
    offset: int
    content: bytes | None


def read_members(path: Path, suffixes: tuple[str, ...], limit: int) -> Iterator[Member]:
    """The files of an uncompressed archive in order; data are read for wanted suffixes alone.

    Raises:
        UsageError: a member is absolute, leaves the folder, is a link or no plain file, or is the
            1,000,001st; a header is larger than 16 MB; or the archive is damaged, or goes on
            behind its end. It names the member.
    """
    name = "the first member"
    try:
        with path.open("rb") as raw:
            file = cast(BinaryIO, _Sparing(raw, path))
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for count, info in enumerate(archive):
                    name = repr(info.name)
                    if count >= MEMBERS:
                        raise UsageError(f"{path}: more than {MEMBERS:,} members, up to {name}")
                    # it would remember every header
                    archive.members = []  # type: ignore[attr-defined]
                    if info.isdir():
                        continue
                    _check(path, info)
                    content = None
                    if info.name.endswith(suffixes) and info.size <= limit:
                        raw.seek(info.offset_data)
                        content = raw.read(info.size)
                        if len(content) < info.size:
                            raise UsageError(f"{path}: cut off within {name} — get the file again")
                    yield Member(info.name, info.size, info.offset_data, content)
                raw.seek(archive.offset)
                _check_end(path, raw, name)
    except UsageError:
        raise
    except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
        # the last of them for a chain of extended headers
        raise UsageError(
            f"{path}: not a readable tar archive after {name} ({error}) — get the file again"
        ) from error


class _Sparing:
    """A file that does not hand out an extended header that is as large as a bomb."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _AT_ONCE:
            raise UsageError(f"{self._path}: a header of {size:,} bytes at {self.tell():,}")
        return self._file.read(size)


def _check_end(path: Path, file: BinaryIO, name: str) -> None:
    # to tarfile a damaged header is an end like any other
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise UsageError(f"{path}: cut off or damaged after {name} — get the file again")
    while block := file.read(_AT_ONCE):
        if block.strip(b"\0"):
            raise UsageError(
                f"{path}: goes on behind the end mark after {name} — it is damaged, or several"
                " archives in one: part them (tar --ignore-zeros reads them all)"
            )


def _check(path: Path, info: tarfile.TarInfo) -> None:
    parts = PurePosixPath(info.name).parts
    if not parts or info.name.startswith("/") or ".." in parts or "\0" in info.name:
        raise UsageError(f"{path}: member {info.name!r} leaves the archive's folder — not read")
    if not info.isreg() or info.issparse():
        raise UsageError(f"{path}: member {info.name!r} is a link or no plain file — not read")
