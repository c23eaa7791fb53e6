"""What the ledger counts when a signal comes at the worst moment."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from dori_fast.runs.sources.rows import Rows
from dori_fast.runs.workers.ledger import Ledger
from tests.runs.store.test_directory import SIZE, opened
from tests.runs.store.test_shard import make_table


def chunk(index: int) -> Rows:
    extra = pa.table({"x": pa.array(range(SIZE))}).select([])
    return Rows(index * SIZE, ["a"] * SIZE, [None] * SIZE, extra, (index + 1) / 3)


def test_a_shard_committed_just_before_a_signal_is_counted_once(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        ledger = Ledger(run, map(chunk, range(3)))
        first, second, third = (ledger.take() for _ in range(3))
        assert first and second and third
        ledger.committed(first, run.commit(0, make_table(0, SIZE)))
        # renamed, and the signal comes before it is recorded
        run.commit(1, make_table(SIZE, SIZE))
        del run.committed[1]
        assert ledger.counts.rows == SIZE
        for _ in range(2):
            ledger.settle()
            assert ledger.counts.rows == 2 * SIZE
