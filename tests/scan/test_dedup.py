"""Rows that are equal in token ids are scored once, and every row still gets its row."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dori_fast.detect import Ren
from dori_fast.errors import IntegrityError, UsageError
from dori_fast.scan.dedup import dedup
from dori_fast.scan.dedup_join import join
from tests.scan.inputs import NASTY
from tests.scan.scanning import scanned

pytestmark = pytest.mark.needs("duckdb")

COMPOSED = "a caf\u00e9"
VARIANTS = [
    "A cat", "a cat", "a cat ", " a  cat", "a\tcat\n", "a cat.", COMPOSED,
    unicodedata.normalize("NFD", COMPOSED), None, "a cat", *NASTY, *NASTY, "", "   ",
    "the thin hen " * 30, "The thin hen " * 30, "the thin hen " * 30 + "sits",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: Any) -> Path:
    root = tmp_path_factory.mktemp("dedup")
    ids = range(len(VARIANTS))
    table = pa.table({"caption": pa.array(VARIANTS, pa.string()), "id": ids})
    pq.write_table(table, root / "p.parquet", row_group_size=7)
    dedup(model, root / "p.parquet", out=root / "once")
    return root


def test_equal_means_equal_token_ids(model: Any, folder: Path) -> None:
    ids = [None if p is None else tuple(model.token_ids([p])[0]) for p in VARIANTS]
    order = list(dict.fromkeys(i for i in ids if i is not None))
    unique = pq.read_table(folder / "once" / "unique.parquet").to_pylist()
    assert [tuple(row["ids"]) for row in unique] == order
    assert [row["count"] for row in unique] == [ids.count(i) for i in order]
    assert [row["first_row"] for row in unique] == [ids.index(i) for i in order]
    assert [row["prompt"] for row in unique] == [VARIANTS[ids.index(i)] for i in order]
    rows = pq.read_table(folder / "once" / "rows.parquet").to_pydict()
    assert rows["row_id"] == list(range(len(VARIANTS)))
    assert rows["unique_row"] == [None if i is None else order.index(i) for i in ids]
    # text that differs may be the same, and is
    assert rows["unique_row"][:5] == [0] * 5 and rows["unique_row"][5] == 1
    # the same up to the cut is not the same: how long a prompt is, is a result too
    assert len({ids[-1], ids[-2], ids[-3]}) == 2


def test_the_joined_rows_are_those_of_the_whole_scan(model: Any, folder: Path) -> None:
    whole = list(scanned(model, folder / "p.parquet", folder / "whole").rows())
    run = scanned(model, folder / "once" / "unique.parquet", folder / "run", shard_size=5)
    assert run.scored < len(VARIANTS) - 15
    assert join(folder / "once", run.out, out=folder / "joined.parquet") == len(VARIANTS)
    assert pq.read_table(folder / "joined.parquet").to_pylist() == whole


def test_runs_that_do_not_fit(model: Any, folder: Path, tmp_path: Path) -> None:
    once, out = folder / "once", tmp_path / "joined.parquet"
    other = scanned(model, folder / "p.parquet", tmp_path / "other")
    with pytest.raises(IntegrityError, match="not a scan of all of"):
        join(once, other.out, out=out)
    part = scanned(model, once / "unique.parquet", tmp_path / "part", limit=3)
    with pytest.raises(UsageError, match="not a finished scan of all rows"):
        join(once, part.out, out=out)
    by_place = Ren(seeds=2, layer=0, compat="ren")
    placed = scanned(model, once / "unique.parquet", tmp_path / "placed", detector=by_place)
    with pytest.raises(UsageError, match="depend on a prompt's place"):
        join(once, placed.out, out=out)
    run = scanned(model, once / "unique.parquet", tmp_path / "run")
    changed = tmp_path / "p.parquet"
    pq.write_table(pq.read_table(folder / "p.parquet").slice(1), changed)
    with pytest.raises(IntegrityError, match="has changed since"):
        join(once, run.out, out=out, prompts=changed)
    run.shards[0].unlink()
    with pytest.raises(IntegrityError, match=r"0 rows where \d+ distinct prompts are"):
        join(once, run.out, out=out)
    with pytest.raises(UsageError, match=r"no dedup\.json there"):
        join(tmp_path, run.out, out=out)
    assert not out.exists()


def test_nothing_is_overwritten_or_left(model: Any, folder: Path) -> None:
    with pytest.raises(UsageError, match="is there already"):
        dedup(model, folder / "p.parquet", out=folder / "once")
    with pytest.raises(UsageError, match="memory 'much'"):
        dedup(model, folder / "p.parquet", out=folder / "again", memory="much")
    assert not [path for path in folder.iterdir() if path.name.startswith((".", "again"))]


ROWS, LENGTH = 50_000, 600


def test_a_table_larger_than_its_memory(tmp_path: Path) -> None:
    """120 MB of ids with 64 MB of memory, in a process whose peak is measured."""
    code = f"""
import resource, sys
from pathlib import Path
import duckdb, numpy as np, pyarrow as pa
from dori_fast.scan.token_table import TokenTable, database
n, each = {ROWS}, {LENGTH}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with database(Path(sys.argv[1]), "64MB") as connection:
    table = TokenTable(connection)
    for first in range(0, n, 2000):
        # every sequence twice, half the input apart, different in one token alone
        keys = np.arange(first, first + 2000) % (n // 2)
        ids = np.full((2000, each), 9, np.int32)
        ids[:, -1] = keys
        table.add(first, [None] * 2000, list(ids))
    table.number()
    rows = pa.Table.from_batches(table.mapping())
    counts = [c for batch in table.unique() for c in batch["count"].to_pylist()]
assert rows["row_id"].to_numpy().tolist() == list(range(n))
assert rows["unique_row"].to_numpy().tolist() == [*range(n // 2)] * 2
assert counts == [2] * (n // 2), len(counts)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "out"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < ROWS * LENGTH * 4
