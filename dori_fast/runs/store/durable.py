"""Durable writes: after a kill or power cut a file is whole or absent."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from dori_fast.errors import UsageError
from dori_fast.runs.errors import StorageError

TEMPORARY = ".tmp"
# a file-size limit shows itself as EFBIG
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


def write_durably(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary file in the same directory and rename it to ``path``.

    The data is on the disk before the rename, and the rename before the return. The rename is
    the only moment at which anything appears under the final name.

    Raises:
        UsageError: no such directory.
        StorageError: the disk refused; the temporary file is removed.
    """
    temporary = _temporary(path)
    with disk_refusals(path):
        if not path.parent.is_dir():
            raise UsageError(f"{path}: there is no folder {path.parent}; make it first")
        try:
            write(temporary)
            sync_file(temporary)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync_directory(path.parent)


def write_text_durably(path: Path, text: str) -> None:
    """Write text in UTF-8; see :func:`write_durably`."""
    write_durably(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_folder_durably(path: Path, write: Callable[[Path], object]) -> None:
    """Do the same for a directory that does not exist yet; see :func:`write_durably`.

    Raises:
        StorageError: the disk refused; what was written is removed.
    """
    temporary = _temporary(path)
    with disk_refusals(path):
        try:
            write(temporary)
            for entry in [temporary, *temporary.rglob("*")]:
                _sync(entry, os.O_RDONLY)
            os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_directory(path.parent)


def _temporary(path: Path) -> Path:
    # processes of two machines that share the directory may have the same id
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}")


def sync_file(path: Path) -> None:
    """Force a file's content to the disk."""
    _sync(path, os.O_RDONLY)


def sync_directory(path: Path) -> None:
    """Force a directory's entries to the disk."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_refusals(path: Path) -> Iterator[None]:
    """Turn the errors of a full or read-only disk into a StorageError that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno in _FORBIDDEN:
            raise _refused(path, error.strerror, "make it writable") from error
        if error.errno not in _FULL:
            raise
        raise _refused(path, error.strerror) from error
    except SafetensorError as error:
        # safetensors raises it instead of OSError and keeps the reason in the text alone
        raise _refused(path, error) from error


def _refused(path: Path, reason: object, remedy: str = "free some space") -> StorageError:
    return StorageError(
        f"{path} could not be written ({reason}), what was finished before is intact;"
        f" {remedy} and run the same command again"
    )
