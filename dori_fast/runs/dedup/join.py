"""Joining the scores of distinct prompts to all rows of the input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.runs.dedup.dedup import MEMORY, ROWS, UNIQUE, DedupRecord, tokenizer_files
from dori_fast.runs.dedup.token_table import batches, database, import_duckdb
from dori_fast.runs.scoring.score import shard_schema
from dori_fast.runs.signals import interruptible
from dori_fast.runs.sources.memory.values import prompts_path
from dori_fast.runs.sources.open import input_sha256, open_prompts
from dori_fast.runs.sources.rows import Reader, Rows
from dori_fast.runs.sources.where import Selection
from dori_fast.runs.store import shard_names
from dori_fast.runs.store.decisions import COLUMNS, DECIDED, newest_decision
from dori_fast.runs.store.decisions import ROWS as DECISION_ROWS
from dori_fast.runs.store.digest import file_sha256
from dori_fast.runs.store.durable import write_durably
from dori_fast.runs.store.record import RunRecord
from dori_fast.runs.store.shard import as_stored, check_shard

_AT_ONCE = 65_536


def join(
    folder: str | Path,
    run: str | Path,
    *,
    out: str | Path,
    prompts: str | Path | None = None,
    memory: str = MEMORY,
) -> int:
    """Write a table with every row of an input and the score of its distinct prompt.

    Args:
        folder: folder that :func:`dori_fast.runs.dedup.dedup.dedup` wrote.
        run: run directory of a finished scan of its ``unique.parquet``.
        out: parquet file to write, with the columns of a scan of the whole input.
        prompts: location of the input; default: the recorded one.
        memory: memory of the join, as in ``dedup``; default 1GB.

    Returns:
        The number of rows of the input.

    Raises:
        UsageError: the run is missing or unfinished, its detector's scores depend on a prompt's
            position, or ``out`` is a folder or lies in none.
        IntegrityError: the input has changed, the run has other prompts or another tokenizer, or a
            shard or the table of rows is damaged.
        StorageError: the disk refused.
        ScanInterrupted: SIGINT or SIGTERM; nothing is left.
    """
    folder, run, out = Path(folder), Path(run), Path(out)
    if out.is_dir():
        raise UsageError(f"{out}: is a folder; name a parquet file")
    with interruptible():
        return _join(folder, run, out, prompts, memory)


def _join(folder: Path, run: Path, out: Path, prompts: str | Path | None, memory: str) -> int:
    known, record = DedupRecord.read(folder), _run_record(run)
    source = known.input_path if prompts is None else prompts_path(prompts, "join")
    _check(folder, known, run, record)
    reader = open_prompts(source, known.column, Selection.of(known.where, known.keep, known.header))
    if input_sha256(source) != known.input_sha256:
        raise IntegrityError(f"{source}: has changed since {folder} was made; make it again")
    schema, newest = shard_schema(reader.schema), newest_decision(run)
    if newest is not None:
        schema = pa.schema([*schema, *(COLUMNS.field(name) for name in DECIDED)])
    shards = _shards(folder, run, record, known)

    def write(path: Path) -> None:
        decision = None if newest is None else newest[0] / DECISION_ROWS
        results = _results(connection, folder, shards, decision)
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for table in _joined(reader, results, schema):
                writer.write_table(table)
        if next(results, None) is not None:
            raise IntegrityError(f"{folder / ROWS}: has more rows than {source}")

    with _readable(folder, run), database(out, memory) as connection:
        write_durably(out, write)
    return known.rows


def _run_record(run: Path) -> RunRecord:
    try:
        return RunRecord.read(run / "run.json")
    except OSError as error:
        raise UsageError(
            f"{run}: no run directory (no readable run.json); give the --out of dori-fast scan"
        ) from error


@contextmanager
def _readable(folder: Path, run: Path) -> Iterator[None]:
    """Turn an error of the database about files that were whole a moment ago."""
    try:
        yield
    except import_duckdb().Error as error:
        reason = str(error).splitlines()[0]
        raise IntegrityError(
            f"{folder / ROWS} and the shards of {run}: cannot be read ({reason});"
            " stop other writers there, then join again"
        ) from error


def _check(folder: Path, known: DedupRecord, run: Path, record: RunRecord) -> None:
    identity = record.identity
    if record.state not in ("done", "over_budget") or identity["limit"] is not None:
        raise UsageError(f"{run}: not a finished scan of all rows; finish it first")
    if identity["input_sha256"] != file_sha256(folder / UNIQUE) or "selection" in identity:
        raise IntegrityError(f"{run}: not a scan of all of {folder / UNIQUE}; scan that file")
    if tokenizer_files(record.model) != known.tokenizer:
        raise IntegrityError(
            f"{run}: its model has another tokenizer than {folder}; scan with the same --model"
        )
    if "gen_seed" in identity["detector"]:
        raise UsageError(f"{run}: its scores depend on a prompt's position; scan the whole input")


def _shards(folder: Path, run: Path, record: RunRecord, known: DedupRecord) -> list[Path]:
    """The run's shards, after a check of each."""
    if file_sha256(folder / ROWS) != known.rows_sha256:
        raise IntegrityError(f"{folder / ROWS}: not what dedup wrote; make {folder} again")
    identity = record.identity
    unique = open_prompts(folder / UNIQUE, identity["column"])
    schema = as_stored(shard_schema(unique.schema))
    paths = shard_names.paths(run)
    rows = 0
    for index, path in enumerate(paths):
        first = index * int(identity["shard_size"])
        rows += check_shard(path, record.run_hash, first, schema).rows
    if rows != known.unique:
        raise IntegrityError(f"{run}: {rows} rows for {known.unique} distinct prompts; scan again")
    return paths


def _results(
    connection: Any, folder: Path, shards: list[Path], decision: Path | None
) -> Iterator[dict[str, Any]]:
    schema = shard_schema(pa.schema([])).remove(1)
    mapping = pa.schema([("row_id", pa.int64()), ("unique_row", pa.int64())])
    # pyarrow reads the files, as it checked them: DuckDB's reader differs on damaged footers and
    # takes patterns and partitions from the names of files and folders
    connection.register("mapping", _streamed([folder / ROWS], mapping))
    connection.register("scanned", _streamed(shards, schema))
    columns = [f"scanned.{name}" for name in schema.names if name != "row_id"]
    tables = "mapping LEFT JOIN scanned ON unique_row = scanned.row_id"
    if decision is not None:
        connection.register("decided", _streamed([decision], COLUMNS))
        columns += [f"decided.{name}" for name in DECIDED]
        tables += " LEFT JOIN decided ON unique_row = decided.row_id"
    query = f"SELECT {', '.join(columns)} FROM {tables} ORDER BY mapping.row_id"
    return chain.from_iterable(batch.to_pylist() for batch in batches(connection, query))


def _streamed(paths: list[Path], schema: pa.Schema) -> pa.RecordBatchReader:
    def read() -> Iterator[pa.RecordBatch]:
        for path in paths:
            try:
                with pq.ParquetFile(path) as file:
                    yield from file.iter_batches(_AT_ONCE, columns=schema.names)
            except (OSError, pa.ArrowException) as error:
                raise IntegrityError(f"{path}: {error}") from error

    ordered = (batch.select(schema.names).cast(schema) for batch in read())
    return pa.RecordBatchReader.from_batches(schema, ordered)


def _joined(
    reader: Reader, results: Iterator[dict[str, Any]], schema: pa.Schema
) -> Iterator[pa.Table]:
    for rows in reader.chunks(_AT_ONCE):
        part = list(islice(results, len(rows)))
        if len(part) < len(rows):
            raise IntegrityError(f"{ROWS}: ends before row {rows.first + len(part)}")
        yield _table(rows, part, schema)


def _table(rows: Rows, part: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    errors = [own or row["error"] for own, row in zip(rows.errors, part, strict=True)]
    values: dict[str, list[Any]] = {name: [row[name] for row in part] for name in part[0]}
    values["row_id"] = list(range(rows.first, rows.first + len(rows)))
    values["prompt"], values["error"] = rows.prompts, errors
    values["status"] = ["ok" if error is None else "quarantined" for error in errors]
    columns = [
        pa.array(values[field.name], field.type)
        if field.name in values
        else rows.extra.column(field.name)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)
