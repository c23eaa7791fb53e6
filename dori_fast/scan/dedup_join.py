"""Scores of distinct prompts given back to every row that they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.scan.dedup import MEMORY, ROWS, UNIQUE, DedupRecord, tokenizer_files
from dori_fast.scan.durable import write_durably
from dori_fast.scan.read import file_sha256, input_sha256, open_prompts
from dori_fast.scan.record import RunRecord
from dori_fast.scan.rows import Reader, Rows
from dori_fast.scan.score import shard_schema
from dori_fast.scan.select import Selection
from dori_fast.scan.shard import read_footer
from dori_fast.scan.token_table import batches, database

_AT_ONCE = 65_536


def join(
    folder: str | Path,
    run: str | Path,
    *,
    out: str | Path,
    prompts: str | Path | None = None,
    memory: str = MEMORY,
) -> int:
    """Write a table with every row of an input, scored as its distinct prompt was.

    Args:
        folder: of :func:`dori_fast.scan.dedup.dedup`.
        run: the directory of a finished scan of its ``unique.parquet``.
        out: a parquet file with the columns of a scan of the whole input.
        prompts: where the input lies now; by default where it lay.
        memory: as in ``dedup``.

    Returns:
        The number of rows, which is the input's.

    Raises:
        UsageError: the run is not finished, or its detector's scores depend on a prompt's place.
        IntegrityError: the input has changed, or the run is of other prompts or another tokenizer.
        StorageError: the disk refused.
    """
    folder, run, out = Path(folder), Path(run), Path(out)
    known, record = DedupRecord.read(folder), RunRecord.read(run / "run.json")
    source = prompts if prompts is not None else known.input_path
    _check(folder, known, run, record)
    reader = open_prompts(source, known.column, Selection.of(known.where, known.keep))
    if input_sha256(source) != known.input_sha256:
        raise IntegrityError(f"{source}: has changed since {folder} was made — make it again")
    decided = record.threshold is not None
    schema = shard_schema(reader.schema, decided)
    names = [f.name for f in shard_schema(pa.schema([]), decided)][2:]

    def write(path: Path) -> None:
        results = _results(connection, folder, _shards(run, record, known), names)
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for table in _joined(reader, results, schema):
                writer.write_table(table)
        if next(results, None) is not None:
            raise IntegrityError(f"{folder / ROWS}: has more rows than {source}")

    with database(out, memory) as connection:
        write_durably(out, write)
    return known.rows


def _check(folder: Path, known: DedupRecord, run: Path, record: RunRecord) -> None:
    identity = record.identity
    if record.state not in ("done", "over_budget") or identity["limit"] is not None:
        raise UsageError(f"{run}: not a finished scan of all rows — finish it first")
    if identity["input_sha256"] != file_sha256(folder / UNIQUE) or "selection" in identity:
        raise IntegrityError(f"{run}: not a scan of all of {folder / UNIQUE}")
    if tokenizer_files(record.model) != known.tokenizer:
        raise IntegrityError(f"{run}: its model's tokenizer is not the one of {folder}")
    if "gen_seed" in identity["detector"]:
        raise UsageError(f"{run}: its scores depend on a prompt's place — scan the whole input")


def _shards(run: Path, record: RunRecord, known: DedupRecord) -> list[str]:
    paths = sorted((run / "shards").glob("part-*.parquet"))
    footers = [read_footer(path) for path in paths]
    rows = sum(footer.rows for footer in footers if footer.run_hash == record.run_hash)
    if rows != known.unique:
        raise IntegrityError(f"{run}: {rows} rows where {known.unique} distinct prompts are")
    return [str(path) for path in paths]


def _results(
    connection: Any, folder: Path, shards: list[str], names: list[str]
) -> Iterator[dict[str, Any]]:
    columns = ", ".join(f"scanned.{name}" for name in names)
    query = (
        f"SELECT {columns} FROM read_parquet(?) AS rows"
        " LEFT JOIN read_parquet(?) AS scanned ON unique_row = scanned.row_id ORDER BY rows.row_id"
    )
    found = batches(connection, query, [str(folder / ROWS), shards])
    return chain.from_iterable(batch.to_pylist() for batch in found)


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
