"""Runs that compute a few rows at a time and commit each shard when it is done.

The run directory is a scan's, with shards of a few rows: a kill costs at most those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from dori_fast.runs.budget import MAX_ERRORS, Verdict, verdict
from dori_fast.runs.progress import Progress
from dori_fast.runs.scoring.spent import Spent
from dori_fast.runs.settings import checked
from dori_fast.runs.signals import interruptible
from dori_fast.runs.sources.open import input_sha256
from dori_fast.runs.sources.rows import Reader, Rows, limited
from dori_fast.runs.sources.where import EVERYTHING, Selection
from dori_fast.runs.store.directory import Resume, RunDirectory
from dori_fast.runs.store.record import (
    Counts,
    RunRecord,
    hash_identity,
    library_versions,
    make_identity,
)

if TYPE_CHECKING:
    from dori_fast.models import Denoiser

Found = list[dict[str, Any] | str]
"""For each place its result columns, or ``"code: message"`` to quarantine the row."""
Compute = Callable[[Rows, Sequence[int]], Found]
"""Called with rows and the places of those with a prompt."""
Ahead = Callable[[Sequence[tuple[Rows, Sequence[int]]]], list[Found]]
"""As :data:`Compute`, for several shards at once."""


@dataclass(frozen=True)
class RowRunResult:
    """A finished run.

    Attributes:
        out: the run directory.
        shards: paths of the shards, in row order.
        done: rows with a result that this call computed, without those of earlier calls.
        seconds: duration of this call.
        counts: number of rows, ok and quarantined, of the whole input.
        state: ``"done"``, or ``"over_budget"`` if more rows were quarantined than allowed.
        evaluations: UNet sample evaluations of this call, without padding.
        rows_computed: UNet rows that this call computed: samples, padding, parts of the network.
    """

    out: Path
    shards: list[Path]
    done: int
    seconds: float
    counts: Counts
    state: Verdict
    evaluations: int = 0
    rows_computed: int = 0

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows in order as dictionaries; holds one shard in memory."""
        for shard in self.shards:
            yield from pq.read_table(shard, partitioning=None).to_pylist()


def run_rows(
    model: Denoiser,
    reader: Reader,
    path: Path,
    *,
    out: Path,
    method: dict[str, Any],
    columns: pa.Schema,
    compute: Compute | Ahead,
    at_once: int = 1,
    together: int | None = None,
    selection: Selection = EVERYTHING,
    limit: int | None = None,
    resume: Resume = "auto",
    max_errors: float = MAX_ERRORS,
    on_progress: Callable[[Progress], None] | None = None,
) -> RowRunResult:
    """Compute result columns for every row of an input, resumably.

    Args:
        model: the model; its ``config()`` is part of the run's identity.
        reader: the opened input.
        path: file, folder or pattern of the input.
        out: the run directory, created if missing.
        method: all other facts that the results depend on, as plain JSON.
        columns: schema of the result columns; quarantined rows have nulls there.
        compute: function of at most ``at_once`` rows; of a list of shards if ``together`` is given.
        at_once: rows per shard; default 1.
        together: number of shards that one call of ``compute`` gets, whose rows do not depend on
            each other; a kill costs at most those. Default: one shard, not in a list.
        selection: the selection that the reader was opened with; part of the run's identity.
        limit: number of rows to read; default: all.
        resume: as in a scan.
        max_errors: as in a scan.
        on_progress: called after each shard.

    Raises:
        UsageError, IntegrityError, StorageError, ScanInterrupted: as in a scan.
    """
    settings = checked(
        "run",
        seeds=1,
        steps=1,
        batch_size="auto",
        limit=limit,
        shard_size=at_once,
        resume=resume,
        max_errors=max_errors,
    )
    described = model.config()
    identity = make_identity(
        detector=method,
        model=described,
        input_sha256=input_sha256(path),
        column=reader.column,
        limit=limit,
        shard_size=at_once,
        selection=selection.config(),
    )
    record = RunRecord(
        run_hash=hash_identity(identity),
        identity=identity,
        input_path=str(path),
        model=described,
        reading=list(model.reading),
        batch_size=model.batch_size,
        execution=asdict(model.engine.execution),
        versions=library_versions(),
    )
    schema = _schema(reader, columns)
    # rows that this call handled, and those of them that got a result
    began, computed, done, shards = perf_counter(), 0, 0, []
    spent, used, smallest = Spent(model), model.engine.batches.used, model.batch_size
    with interruptible() as interrupts, RunDirectory(out, record, schema, resume) as run:
        record.state = "interrupted"
        try:
            shards_of = enumerate(limited(reader, settings.shard_size, settings.limit))
            while group := list(islice(shards_of, together or 1)):
                interrupts.check()
                used.clear()
                new = [rows for index, rows in group if index not in run.committed]
                tables = iter(_tables(new, compute, together, schema, columns))
                sizes = used or {model.batch_size}
                smallest = min(smallest, *sizes)
                for index, rows in group:
                    footer = run.committed.get(index)
                    if footer is None:
                        table = next(tables)
                        # halved if memory ran out, and another one for gradients
                        one = next(iter(sizes)) if len(sizes) == 1 else None
                        footer = run.commit(index, table, one)
                        computed += footer.rows
                        done += footer.rows - footer.quarantined
                    record.counts.add(footer.rows, footer.quarantined)
                    shards.append(run.path(index))
                    if on_progress is not None:
                        seconds = perf_counter() - began
                        on_progress(_progress(record.counts, computed, seconds, rows.fraction))
            record.state = state = verdict(record.counts, settings.max_errors)
        except BaseException:
            # also the shard whose commit was not recorded before a signal came
            record.counts = run.counted(range(len(shards) + 1))
            raise
        finally:
            record.seconds += perf_counter() - began
            record.add_spent(*spent.both)
            record.batch_size = smallest
            if not computed:
                run.keep_record()
            run.save_record()
        run.seal()
    seconds = perf_counter() - began
    return RowRunResult(out, shards, done, seconds, record.counts, state, *spent.both)


def _progress(counts: Counts, computed: int, seconds: float, fraction: float) -> Progress:
    share = fraction * computed / max(1, counts.rows)
    return Progress(
        done=counts.rows,
        quarantined=counts.quarantined,
        computed=computed,
        seconds=seconds,
        remaining=seconds * (1 - fraction) / share if share > 0 else None,
    )


def _schema(reader: Reader, columns: pa.Schema) -> pa.Schema:
    fixed = [pa.field("row_id", pa.int64()), pa.field("prompt", pa.string())]
    status = [pa.field("status", pa.string()), pa.field("error", pa.string())]
    passed = [
        field.with_name(name)
        for name, field in zip(_passed(reader.schema, columns), reader.schema, strict=True)
    ]
    return pa.schema([*fixed, *passed, *status, *columns])


def _passed(schema: pa.Schema, columns: pa.Schema) -> list[str]:
    """Output names of the passed-through columns: different from the result columns'."""
    return [f"source_{name}" if name in columns.names else name for name in schema.names]


def _tables(
    shards: Sequence[Rows],
    compute: Compute | Ahead,
    together: int | None,
    schema: pa.Schema,
    columns: pa.Schema,
) -> list[pa.Table]:
    """A table of each shard, whose results are computed at once."""
    places = [[i for i, prompt in enumerate(rows.prompts) if prompt is not None] for rows in shards]
    call: Any = compute
    some = [(rows, at) for rows, at in zip(shards, places, strict=True) if at]
    results = call(some) if together and some else [call(*one) for one in some]
    found = iter(results)
    return [
        _table(rows, at, next(found) if at else [], schema, columns)
        for rows, at in zip(shards, places, strict=True)
    ]


def _table(
    rows: Rows, places: Sequence[int], found: Found, schema: pa.Schema, columns: pa.Schema
) -> pa.Table:
    results: dict[str, list[Any]] = {name: [None] * len(rows) for name in columns.names}
    errors = list(rows.errors)
    for place, result in zip(places, found, strict=True):
        if isinstance(result, str):
            errors[place] = result
            continue
        for name in columns.names:
            results[name][place] = result[name]
    results["row_id"] = list(range(rows.first, rows.first + len(rows)))
    results["prompt"] = rows.prompts
    results["error"] = errors
    results["status"] = ["ok" if error is None else "quarantined" for error in errors]
    passed = dict(zip(_passed(rows.extra.schema, columns), rows.extra.columns, strict=True))
    arrays = [passed.get(f.name, results.get(f.name)) for f in schema]
    return pa.Table.from_arrays(
        [
            pa.array(array, field.type) if isinstance(array, list) else array
            for array, field in zip(arrays, schema, strict=True)
        ],
        schema=schema,
    )
