"""Budget of errors: how many rows a run may quarantine and still count as done."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import pyarrow.compute as pc
import pyarrow.parquet as pq

from dori_fast.errors import UsageError
from dori_fast.runs.errors import OverBudgetError
from dori_fast.runs.store.record import Counts
from dori_fast.runs.store.shard import read_footer

if TYPE_CHECKING:
    from dori_fast.runs.sources.rows import Reader

MAX_ERRORS = 0.01
Verdict = Literal["done", "over_budget"]
Failure = tuple[int, str]
"""Number of a row, and the reason why it failed."""


class Finished(Protocol):
    """A run whose rows are all committed."""

    @property
    def out(self) -> Path:
        """The run directory."""
        ...

    @property
    def shards(self) -> list[Path]:
        """Paths of the shards, in row order."""
        ...

    @property
    def counts(self) -> Counts:
        """Number of rows by outcome."""
        ...


def verdict(counts: Counts, max_errors: float) -> Verdict:
    """The state of a run whose rows are all committed.

    Args:
        counts: number of rows by outcome.
        max_errors: allowed quarantined rows: a fraction if below 1, else a number of rows. A run
            whose every row failed has no result, so that is never allowed.
    """
    allowed = max_errors if max_errors >= 1 else max_errors * counts.rows
    none_left = counts.rows > 0 and counts.ok == 0
    return "over_budget" if none_left or counts.quarantined > allowed else "done"


def failures_of(run: Finished) -> str:
    """The failed rows of a run over its budget in one line: count, first reason, remedy."""
    first = _first_failure(run.shards) if run.counts.quarantined else None
    see = f"see the column error of {run.out}/shards"
    return _line(str(run.out), run.counts, first, see)


def require_within(
    where: str | Path,
    counts: Counts,
    max_errors: float,
    first: Failure | None,
    see: str = "correct the input",
) -> None:
    """Check the budget of a run that leaves no rows.

    Args:
        where: the input.
        counts: number of its rows by outcome.
        max_errors: the budget, as of :func:`verdict`.
        first: the first row that failed, None without failures.
        see: remedy, for the message.

    Raises:
        OverBudgetError: more rows failed than the budget allows.
    """
    if verdict(counts, max_errors) == "over_budget":
        raise OverBudgetError(_line(str(where), counts, first, see))


def require_rows(reader: Reader, where: str | Path) -> None:
    """Raise UsageError if an input has no rows, since any result over them would mean nothing."""
    if not any(len(rows) for rows in reader.chunks(1)):
        raise UsageError(
            f"{where}: the input has no rows, or none that meets its conditions; check both"
        )


def require_readable(reader: Reader, where: str | Path, max_errors: float) -> None:
    """Raise OverBudgetError if more rows lack a usable prompt than the budget allows."""
    counts, first = Counts(), None
    for rows in reader.chunks(1024):
        failed = [(rows.first + i, error) for i, error in enumerate(rows.errors) if error]
        counts.add(len(rows), len(failed))
        first = first or next(iter(failed), None)
    require_within(where, counts, max_errors, first)


def _line(where: str, counts: Counts, first: Failure | None, see: str) -> str:
    named = "" if first is None else f", the first: row {first[0]}: {first[1]}"
    more = ", or raise --max-errors" if counts.ok else ""
    return f"{where}: {counts.quarantined:,} of {counts.rows:,} rows failed{named}; {see}{more}"


def _first_failure(shards: Iterable[Path]) -> Failure | None:
    for path in shards:
        if not read_footer(path).quarantined:
            continue
        table = pq.read_table(path, columns=["row_id", "error"], partitioning=None)
        row = table.filter(pc.is_valid(table["error"])).slice(0, 1).to_pylist()[0]
        return row["row_id"], row["error"]
    return None
