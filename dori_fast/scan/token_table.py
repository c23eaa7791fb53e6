"""Token sequences of any number of rows, kept apart and counted by a table that spills to disk."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from dori_fast.errors import UsageError

# a row may have 100,000 tokens
_BATCH = 2048
_DIGEST = ("d0", "d1", "d2", "d3")
_SEEN = pa.schema(
    [
        ("row_id", pa.int64()),
        ("prompt", pa.string()),
        ("ids", pa.list_(pa.int32())),
        *((name, pa.uint64()) for name in _DIGEST),
    ]
)


@contextmanager
def database(beside: Path, memory: str) -> Iterator[Any]:
    """A DuckDB connection whose table and spills lie in a folder that is removed afterwards.

    Args:
        beside: the folder is made next to this path.
        memory: what it may hold in memory, such as ``"1GB"``.

    Raises:
        UsageError: DuckDB is not installed, or ``memory`` is no size or not enough.
    """
    try:
        import duckdb
    except ImportError as error:
        raise UsageError("dedup: needs duckdb — pip install 'dori-fast[dedup]'") from error
    with TemporaryDirectory(prefix=".dedup-", dir=beside.parent) as folder:
        settings: dict[str, Any] = {
            "memory_limit": memory,
            "temp_directory": f"{folder}/spilled",
            # every query says in which order; keeping another one costs memory
            "preserve_insertion_order": False,
            "threads": 1,
        }
        try:
            with duckdb.connect(f"{folder}/table", config=settings) as connection:
                yield connection
        except duckdb.OutOfMemoryException as error:
            raise UsageError(f"dedup: {memory} of memory are not enough — give more") from error
        except (duckdb.InvalidInputException, duckdb.ParserException) as error:
            raise UsageError(f"dedup: memory {memory!r}: {error}") from error


class TokenTable:
    """Rows with their token ids; two rows are the same if all their ids are.

    Sequences are compared by their sha256, four numbers of fixed size: a table of these spills
    gracefully, which one of long lists does not.
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
        """Rows ``first``, ``first`` + 1, ...; ids of None for one that has no prompt."""
        rows = range(first, first + len(prompts))
        lists = pa.array(ids, pa.list_(pa.int32()))
        digests = zip(*map(_digest, ids), strict=True)
        self._connection.register("more", pa.table([rows, prompts, lists, *digests], schema=_SEEN))
        self._connection.execute("INSERT INTO seen SELECT * FROM more")
        self._connection.unregister("more")
        self._rows = first + len(prompts)

    def number(self) -> None:
        """Number the distinct sequences from 0, by their first rows; call it after the last row."""
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
        """``prompt`` (the first row's), ``first_row``, ``count`` and ``ids`` of each, in order."""
        query = (
            "SELECT prompt, first_row, count, ids FROM seen JOIN numbered ON row_id = first_row"
            " WHERE row_id BETWEEN ? AND ? AND first_row BETWEEN ? AND ? ORDER BY first_row"
        )
        # both tables are in the order of rows; a sort of all the long lists would not spill
        for start in range(0, self._rows, _BATCH):
            window = (start, start + _BATCH - 1)
            yield from batches(self._connection, query, [*window, *window])

    def mapping(self) -> Iterator[pa.RecordBatch]:
        """``row_id`` and ``unique_row`` (null where there is no prompt), in order."""
        key = ", ".join(_DIGEST)
        return batches(
            self._connection,
            f"SELECT row_id, unique_row FROM seen LEFT JOIN numbered USING ({key}) ORDER BY row_id",
        )


def batches(
    connection: Any, query: str, parameters: Sequence[Any] = ()
) -> Iterator[pa.RecordBatch]:
    """A query's result, one batch in memory."""
    yield from connection.sql(query, params=list(parameters)).to_arrow_reader(_BATCH)


def _digest(ids: Sequence[int] | None) -> tuple[int | None, ...]:
    if ids is None:
        return (None,) * len(_DIGEST)
    raw = np.asarray(ids, np.int32).tobytes()
    return struct.unpack("<4Q", hashlib.sha256(raw).digest())
