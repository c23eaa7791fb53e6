"""Rows with equal token ids, found so that each distinct prompt is scored once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from dori_fast._text import read_stand_in
from dori_fast.errors import IntegrityError, UsageError
from dori_fast.runs.budget import MAX_ERRORS, Failure, require_rows, require_within
from dori_fast.runs.dedup.token_table import TokenTable, database
from dori_fast.runs.progress import Progress
from dori_fast.runs.settings import refuse_inside
from dori_fast.runs.signals import Interrupts, interruptible
from dori_fast.runs.sources.memory.values import prompts_path
from dori_fast.runs.sources.open import input_sha256, open_prompts
from dori_fast.runs.sources.read_ahead import read_ahead
from dori_fast.runs.sources.rows import Reader
from dori_fast.runs.sources.where import Selection
from dori_fast.runs.store.digest import file_sha256
from dori_fast.runs.store.durable import disk_refusals, write_folder_durably
from dori_fast.runs.store.record import Counts

if TYPE_CHECKING:
    from dori_fast.models import Denoiser

UNIQUE, ROWS, RECORD = "unique.parquet", "rows.parquet", "dedup.json"
MEMORY = "1GB"
_AT_ONCE = 8192


class DedupRecord(BaseModel):
    """The content of dedup.json.

    Attributes:
        input_path: location of the input.
        input_sha256: digest of the input.
        column, where, keep, header: the prompt column, conditions, kept columns and kind of header,
            as in a scan; ``header`` is in the file only if it is not None.
        tokenizer: sha256 of the model's tokenizer files, by name.
        rows_sha256: sha256 of ``rows.parquet``.
        rows: number of rows of the input.
        unique: number of distinct token sequences.
        quarantined: number of rows without a prompt.
    """

    model_config = ConfigDict(extra="forbid")

    input_path: str
    input_sha256: str
    column: str | None
    where: list[str]
    keep: list[str] | None
    header: bool | None = None
    tokenizer: dict[str, str]
    rows_sha256: str
    rows: int
    unique: int
    quarantined: int

    @classmethod
    def read(cls, folder: Path) -> DedupRecord:
        """Read a folder of ``dedup``; UsageError or IntegrityError if it is none."""
        try:
            return cls.model_validate_json((folder / RECORD).read_bytes())
        except OSError as error:
            raise UsageError(f"{folder}: no {RECORD} there; make it with dedup") from error
        except (ValidationError, UnicodeDecodeError) as error:
            if reason := read_stand_in(folder / RECORD):
                raise IntegrityError(f"{folder / RECORD}: {reason}") from error
            raise IntegrityError(f"{folder / RECORD}: damaged; make it again") from error


def dedup(
    model: Denoiser,
    prompts: str | Path,
    *,
    out: str | Path,
    column: str | None = None,
    where: Sequence[str] = (),
    keep: Sequence[str] | None = None,
    header: bool | None = None,
    max_errors: float = MAX_ERRORS,
    memory: str = MEMORY,
    on_progress: Callable[[Progress], None] | None = None,
) -> DedupRecord:
    """Find the rows of an input that are the same to a model, in bounded memory.

    Two rows are the same if all token ids of their prompts are equal before truncation. Prompts
    that differ in case or spaces may be the same, other Unicode forms are not. Scan
    ``out/unique.parquet``, then score every row by :func:`dori_fast.runs.dedup.join.join`.

    Args:
        model: the model, for its tokenizer.
        prompts: files as in a scan; no prompts in memory.
        out: a new folder, which appears whole or not at all. ``unique.parquet`` has a row per
            distinct sequence in order of first appearance (``prompt`` of the first row,
            ``first_row``, ``count`` of rows, ``ids``), ``rows.parquet`` has ``row_id`` and
            ``unique_row`` of every row; ``dedup.json`` is the record.
        column, where, keep, header, max_errors: as in a scan. Rows without a prompt are not among
            the unique ones, so a scan of these does not count them.
        memory: memory of the table, which spills the rest to the disk beside ``out``; default 1GB.
        on_progress: called after every 8,192 rows.

    Raises:
        UsageError: as in a scan; ``out`` exists or cannot be made, or DuckDB is not installed.
        OverBudgetError: more rows have no prompt than allowed; nothing is left.
        StorageError: the disk refused; nothing is left.
        ScanInterrupted: SIGINT or SIGTERM; nothing is left.
    """
    prompts = prompts_path(prompts, "dedup")
    out, selection = Path(out), Selection.of(where, keep, header)
    refuse_inside(out, prompts)
    reader = open_prompts(prompts, column, selection)
    require_rows(reader, prompts)
    _make_room(out)
    with interruptible() as interrupts, database(out, memory) as connection:
        table = TokenTable(connection)
        counts, first = _fill(table, model, reader, interrupts, on_progress)
        require_within(prompts, counts, max_errors, first)
        table.number()

        def write(folder: Path) -> None:
            folder.mkdir()
            unique = _write(folder / UNIQUE, _UNIQUE, table.unique())
            _write(folder / ROWS, _ROWS, table.mapping())
            record = _record(file_sha256(folder / ROWS), unique)
            (folder / RECORD).write_text(
                record.model_dump_json(indent=2, exclude_defaults=True) + "\n"
            )

        def _record(rows_sha256: str, unique: int) -> DedupRecord:
            return DedupRecord(
                input_path=str(prompts),
                input_sha256=input_sha256(prompts),
                column=reader.column,
                where=list(where),
                keep=None if keep is None else list(keep),
                header=header,
                tokenizer=tokenizer_files(model.config()),
                rows_sha256=rows_sha256,
                rows=counts.rows,
                unique=unique,
                quarantined=counts.quarantined,
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
            raise UsageError(f"{out}: is there already; use another --out")
        with disk_refusals(out):
            out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"{out}: cannot be made ({reason}); use another --out") from error


def _fill(
    table: TokenTable,
    model: Denoiser,
    reader: Reader,
    interrupts: Interrupts,
    on_progress: Callable[[Progress], None] | None,
) -> tuple[Counts, Failure | None]:
    """Put all rows into the table; return their number by outcome, and the first without prompt."""
    counts, began = Counts(), perf_counter()
    first: Failure | None = None
    with read_ahead(reader.chunks(_AT_ONCE)) as chunks:
        for rows in chunks:
            interrupts.check()
            scorable = [prompt for prompt in rows.prompts if prompt is not None]
            ids = iter(model.token_ids(scorable))
            found = [None if p is None else next(ids) for p in rows.prompts]
            table.add(rows.first, rows.prompts, found)
            counts.add(len(rows), len(rows) - len(scorable))
            if first is None and len(scorable) < len(rows):
                place = rows.prompts.index(None)
                first = rows.first + place, rows.errors[place] or ""
            if on_progress is not None:
                done, seconds = counts.rows, perf_counter() - began
                left = seconds * (1 / rows.fraction - 1) if rows.fraction else None
                on_progress(Progress(done, counts.quarantined, done, seconds, remaining=left))
    return counts, first


def tokenizer_files(config: dict[str, Any]) -> dict[str, str]:
    """The sha256 of the tokenizer files in a model's ``config()``, by name."""
    files = config["files"]
    return {name: files[name] for name in sorted(files) if name.startswith("tokenizer")}


def _write(path: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> int:
    rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_table(pa.Table.from_batches([batch]).cast(schema))
            rows += len(batch)
    return rows
