"""Distinct token sequences of any number of rows, counted by a table that spills to disk."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pyarrow as pa

from dori_fast.errors import UsageError
from dori_fast.runs.store.durable import disk_refusals

# a row may have 100,000 tokens
_BATCH = 2048
_WORKSPACE, _NEW, _LOCK = ".dedup-", ".new", "lock"
_REFUSALS = {os.strerror(n): n for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)}
_DIGEST = ("d0", "d1", "d2", "d3")
_SEEN = pa.schema(
    [
        ("row_id", pa.int64()),
        ("prompt", pa.string()),
        ("ids", pa.list_(pa.int32())),
        *((name, pa.uint64()) for name in _DIGEST),
    ]
)


def import_duckdb() -> Any:
    """The module; UsageError if it is not installed."""
    try:
        import duckdb
    except ImportError as error:
        raise UsageError("dedup: needs duckdb; pip install 'dori-fast[dedup]'") from error
    return duckdb


@contextmanager
def database(beside: Path, memory: str) -> Iterator[Any]:
    """A DuckDB connection whose table and spills lie in a temporary folder.

    Args:
        beside: path next to which the folder is made.
        memory: memory limit, such as ``"1GB"``.

    Raises:
        UsageError: DuckDB is not installed, ``memory`` is no size or not enough, or the folder
            cannot be made.
        StorageError: the disk refused.
    """
    duckdb = import_duckdb()
    with _workspace(beside) as folder:
        settings: dict[str, Any] = {
            "memory_limit": memory,
            "temp_directory": f"{folder}/spilled",
            # every query has its ORDER BY; preserving another order costs memory
            "preserve_insertion_order": False,
            "threads": 1,
        }
        try:
            with _connected(f"{folder}/table", settings) as connection:
                yield connection
        except duckdb.Error as error:
            number = _errno(error)
            if number is not None:
                with disk_refusals(beside):
                    raise OSError(number, os.strerror(number)) from error
            if "Out of Memory Error" in str(error):
                raise UsageError(
                    f"dedup: {memory} of memory is not enough; raise --memory"
                ) from error
            raise


def _connected(path: str, settings: dict[str, Any]) -> Any:
    duckdb = import_duckdb()
    try:
        return duckdb.connect(path, config=settings)
    except (duckdb.InvalidInputException, duckdb.ParserException) as error:
        memory = settings["memory_limit"]
        raise UsageError(f"dedup: memory {memory!r}: {error}; give a size such as 4GB") from error
    except duckdb.IOException as error:
        if _errno(error) is not None:
            raise
        raise UsageError(f"{path}: cannot be made ({error}); use another --out") from error


def _errno(error: Exception) -> int | None:
    """The error number of a disk's refusal, which DuckDB gives only in its text; else None."""
    for text, number in _REFUSALS.items():
        if text in str(error):
            return number
    # this limit is by default 90 % of the free disk
    return errno.ENOSPC if "max_temp_directory_size" in str(error) else None


@contextmanager
def _workspace(beside: Path) -> Iterator[Path]:
    """A locked temporary folder next to a path; removes those that dead processes left there."""
    try:
        with disk_refusals(beside):
            if not beside.parent.is_dir():
                raise UsageError(f"{beside}: there is no folder {beside.parent}; make it first")
            _sweep(beside.parent)
            new = Path(mkdtemp(prefix=_NEW + _WORKSPACE, dir=beside.parent))
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"{beside}: cannot be written ({reason}); use another --out") from error
    # other processes sweep folders of this name, so it gets the name only once it is locked
    folder = new.with_name(new.name.removeprefix(_NEW))
    try:
        with disk_refusals(beside):
            lock = (new / _LOCK).open("w")
        with lock:
            _lock(lock.fileno())
            yield new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(parent: Path) -> None:
    for stale in parent.glob(f"{_WORKSPACE}*"):
        # a folder without lock file is foreign; another process may sweep at the same time
        with suppress(OSError), (stale / _LOCK).open("r+") as lock:
            if _lock(lock.fileno()):
                shutil.rmtree(stale, ignore_errors=True)


def _lock(descriptor: int) -> bool:
    """Whether the lock was free and is taken; the kernel releases it when the process ends."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        # another process holds it, or the file system has no locks
        return False
    return True


class TokenTable:
    """Rows with their token ids; two rows are the same if all their ids are equal.

    Sequences are compared by their sha256, four numbers of fixed size: a table of these spills
    gracefully, a table of long lists does not.
    """

    def __init__(self, connection: Any) -> None:
        self._connection, self._rows = connection, 0
        digest = ", ".join(f"{name} UBIGINT" for name in _DIGEST)
        connection.execute(
            f"CREATE TABLE seen (row_id BIGINT, prompt VARCHAR, ids INTEGER[], {digest})"
        )

    def add(
        self, first: int, prompts: Sequence[str | None], ids: Sequence[Sequence[int] | None]
    ) -> None:
        """Add rows ``first``, ``first`` + 1, ...; the ids of a row without a prompt are None."""
        rows = range(first, first + len(prompts))
        lists = pa.array(ids, pa.list_(pa.int32()))
        digests = zip(*map(_digest, ids), strict=True)
        self._connection.register("more", pa.table([rows, prompts, lists, *digests], schema=_SEEN))
        self._connection.execute("INSERT INTO seen SELECT * FROM more")
        self._connection.unregister("more")
        self._rows = first + len(prompts)

    def number(self) -> None:
        """Number the distinct sequences from 0 by first row; call this after the last ``add``."""
        key = ", ".join(_DIGEST)
        self._connection.execute(
            f"CREATE TABLE found AS SELECT {key}, min(row_id) AS first_row, count(*) AS count"
            " FROM seen WHERE ids IS NOT NULL GROUP BY ALL"
        )
        self._connection.execute(
            "CREATE TABLE numbered AS SELECT *, row_number() OVER (ORDER BY first_row) - 1"
            " AS unique_row FROM found"
        )

    def unique(self) -> Iterator[pa.RecordBatch]:
        """``prompt`` and number of the first row, ``count`` and ``ids`` per sequence, in order."""
        query = (
            "SELECT prompt, first_row, count, ids FROM seen JOIN numbered ON row_id = first_row"
            " WHERE row_id BETWEEN ? AND ? AND first_row BETWEEN ? AND ? ORDER BY first_row"
        )
        # both tables have the order of rows; sorting all the long lists would not spill
        for start in range(0, self._rows, _BATCH):
            window = (start, start + _BATCH - 1)
            yield from batches(self._connection, query, [*window, *window])

    def mapping(self) -> Iterator[pa.RecordBatch]:
        """``row_id`` and ``unique_row`` (null without a prompt) per row, in order."""
        key = ", ".join(_DIGEST)
        return batches(
            self._connection,
            f"SELECT row_id, unique_row FROM seen LEFT JOIN numbered USING ({key}) ORDER BY row_id",
        )


def batches(
    connection: Any, query: str, parameters: Sequence[Any] = ()
) -> Iterator[pa.RecordBatch]:
    """The result of a query; holds one batch in memory."""
    try:
        yield from connection.sql(query, params=list(parameters)).to_arrow_reader(_BATCH)
    except (OSError, pa.ArrowException) as error:
        # DuckDB's errors while its result is read come from pyarrow
        raise import_duckdb().OperationalError(str(error)) from error


def _digest(ids: Sequence[int] | None) -> tuple[int | None, ...]:
    if ids is None:
        return (None,) * len(_DIGEST)
    raw = np.asarray(ids, np.int32).tobytes()
    return struct.unpack("<4Q", hashlib.sha256(raw).digest())
