"""Rows that a model cannot tell apart, found on token ids, so that each is scored once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.runs.progress import Progress
from dori_fast.runs.sources.read_ahead import read_ahead
from dori_fast.runs.store.digest import file_sha256
from dori_fast.runs.store.durable import disk_refusals, write_folder_durably
from dori_fast.runs.sources.open import input_sha256, open_prompts
from dori_fast.runs.sources.rows import Reader
from dori_fast.runs.sources.where import Selection
from dori_fast.runs.settings import refuse_inside
from dori_fast.runs.signals import Interrupts, interruptible
from dori_fast.runs.dedup.token_table import TokenTable, database

if TYPE_CHECKING:
    from dori_fast.models import Denoiser

UNIQUE, ROWS, RECORD = "unique.parquet", "rows.parquet", "dedup.json"
MEMORY = "1GB"
_AT_ONCE = 8192


class DedupRecord(BaseModel):
    """The content of dedup.json: which input, read how, and by whose tokenizer.

    ``rows`` of the input are ``unique`` sequences and ``quarantined`` rows without a prompt;
    ``rows_sha256`` is that of rows.parquet.
    """

    model_config = ConfigDict(extra="forbid")

    input_path: str
    input_sha256: str
    column: str | None
    where: list[str]
    keep: list[str] | None
    tokenizer: dict[str, str]
    rows_sha256: str
    rows: int
    unique: int
    quarantined: int

    @classmethod
    def read(cls, folder: Path) -> DedupRecord:
        """Raises UsageError or IntegrityError if the folder is not of ``dedup``."""
        try:
            return cls.model_validate_json((folder / RECORD).read_bytes())
        except OSError as error:
            raise UsageError(f"{folder}: no {RECORD} there — make it with dedup") from error
        except (ValidationError, UnicodeDecodeError) as error:
            raise IntegrityError(f"{folder / RECORD}: damaged — make it again") from error


def dedup(
    model: Denoiser,
    prompts: str | Path,
    *,
    out: str | Path,
    column: str | None = None,
    where: Sequence[str] = (),
    keep: Sequence[str] | None = None,
    memory: str = MEMORY,
    on_progress: Callable[[Progress], None] | None = None,
) -> DedupRecord:
    """Find the rows of an input that are the same to a model, in bounded memory.

    Two rows are the same if all token ids of their prompts are, before truncation: text that
    differs in case or in spaces may be, other Unicode forms may not. Scan ``out/unique.parquet``,
    then give every row its score by :func:`dori_fast.runs.dedup.join.join`.

    Args:
        model: whose tokenizer counts.
        prompts: as in a scan, but nothing in memory.
        out: a new folder: ``unique.parquet`` with a row for each distinct sequence in order of
            first appearance (``prompt`` of its first row, ``first_row``, ``count`` of rows,
            ``ids``), ``rows.parquet`` with ``row_id`` and ``unique_row`` of every row, and
            ``dedup.json``. It appears whole or not at all.
        column, where, keep: as in a scan.
        memory: what the table may hold in memory; the rest spills to the disk beside ``out``.
        on_progress: called after every 8,192 rows.

    Raises:
        UsageError: as in a scan; ``out`` is there already or cannot be made, or DuckDB is not
            installed.
        StorageError: the disk refused; nothing is left.
        ScanInterrupted: SIGINT or SIGTERM; nothing is left.
    """
    out, selection = Path(out), Selection.of(where, keep)
    refuse_inside(out, prompts)
    reader = open_prompts(prompts, column, selection)
    _make_room(out)
    with interruptible() as interrupts, database(out, memory) as connection:
        table = TokenTable(connection)
        counts = _fill(table, model, reader, interrupts, on_progress)
        table.number()

        def write(folder: Path) -> None:
            folder.mkdir()
            counts["unique"] = _write(folder / UNIQUE, _UNIQUE, table.unique())
            _write(folder / ROWS, _ROWS, table.mapping())
            record = _record(file_sha256(folder / ROWS))
            (folder / RECORD).write_text(record.model_dump_json(indent=2) + "\n")

        def _record(rows_sha256: str) -> DedupRecord:
            return DedupRecord(
                input_path=str(prompts),
                input_sha256=input_sha256(prompts),
                column=reader.column,
                where=list(where),
                keep=None if keep is None else list(keep),
                tokenizer=tokenizer_files(model.config()),
                rows_sha256=rows_sha256,
                **counts,
            )

        write_folder_durably(out, write)
    return DedupRecord.read(out)


_UNIQUE = pa.schema(
    [
        ("prompt", pa.string()),
        ("first_row", pa.int64()),
        ("count", pa.int64()),
        ("ids", pa.list_(pa.int32())),
    ]
)
_ROWS = pa.schema([("row_id", pa.int64()), ("unique_row", pa.int64())])


def _make_room(out: Path) -> None:
    try:
        if out.exists():
            raise UsageError(f"{out}: is there already — use another --out")
        with disk_refusals(out):
            out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"{out}: cannot be made ({reason}) — use another --out") from error


def _fill(
    table: TokenTable,
    model: Denoiser,
    reader: Reader,
    interrupts: Interrupts,
    on_progress: Callable[[Progress], None] | None,
) -> dict[str, int]:
    """Put all rows into the table; how many there are."""
    counts, began = {"rows": 0, "unique": 0, "quarantined": 0}, perf_counter()
    with read_ahead(reader.chunks(_AT_ONCE)) as chunks:
        for rows in chunks:
            interrupts.check()
            scorable = [prompt for prompt in rows.prompts if prompt is not None]
            ids = iter(model.token_ids(scorable))
            found = [None if p is None else next(ids) for p in rows.prompts]
            table.add(rows.first, rows.prompts, found)
            counts["rows"] += len(rows)
            counts["quarantined"] += len(rows) - len(scorable)
            if on_progress is not None:
                done, seconds = counts["rows"], perf_counter() - began
                left = seconds * (1 / rows.fraction - 1) if rows.fraction else None
                on_progress(
                    Progress(done, counts["quarantined"], done, seconds, remaining=left)
                )
    return counts


def tokenizer_files(described: dict[str, Any]) -> dict[str, str]:
    """The sha256 of a model's tokenizer files, by name."""
    files = described["files"]
    return {name: files[name] for name in sorted(files) if name.startswith("tokenizer")}


def _write(path: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> int:
    rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_table(pa.Table.from_batches([batch]).cast(schema))
            rows += len(batch)
    return rows
