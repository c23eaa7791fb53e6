"""Rows with equal token ids are scored once, and every row gets that score."""

from __future__ import annotations

import os
import resource
import shutil
import signal
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
from dori_fast.runs.calibrate import calibrate
from dori_fast.runs.dedup.dedup import dedup
from dori_fast.runs.dedup.join import join
from dori_fast.runs.dedup.token_table import batches, database
from dori_fast.runs.errors import OverBudgetError, ScanInterrupted, StorageError
from dori_fast.runs.flag import flag
from dori_fast.runs.progress import Progress
from dori_fast.runs.store.shard import read_footer
from tests.runs.inputs import NASTY
from tests.runs.scanning import Spelling, scanned

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
    dedup(model, root / "p.parquet", out=root / "once", max_errors=0.1)
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
    # these texts differ, their ids do not
    assert rows["unique_row"][:5] == [0] * 5 and rows["unique_row"][5] == 1
    # equal ids before the cut are not enough, since the number of tokens is a result too
    assert len({ids[-1], ids[-2], ids[-3]}) == 2


def test_the_joined_rows_are_those_of_the_whole_scan(model: Any, folder: Path) -> None:
    whole = list(scanned(model, folder / "p.parquet", folder / "whole").rows())
    run = scanned(model, folder / "once" / "unique.parquet", folder / "run", shard_size=5)
    assert run.scored < len(VARIANTS) - 15
    assert join(folder / "once", run.out, out=folder / "joined.parquet") == len(VARIANTS)
    assert pq.read_table(folder / "joined.parquet").to_pylist() == whole


def test_a_decision_on_distinct_prompts_is_joined_to_all_rows(
    model: Any, folder: Path, tmp_path: Path
) -> None:
    clean = [f"clean {i}" for i in range(20)]
    made = calibrate(model, clean, out=tmp_path / "c.json", detector=Spelling())
    unique = folder / "once" / "unique.parquet"
    run = scanned(model, unique, tmp_path / "run", shard_size=5, detector=Spelling())
    decision = flag(run.out, made, fpr=0.2)
    join(folder / "once", run.out, out=tmp_path / "joined.parquet")
    joined = pq.read_table(tmp_path / "joined.parquet")
    assert joined.schema.names[-2:] == ["p_value", "flagged"]
    verdicts = {row["score"]: (row["p_value"], row["flagged"]) for row in run.rows()}
    for row in joined.to_pylist():
        expected = (None, None) if row["score"] is None else verdicts[row["score"]]
        assert (row["p_value"], row["flagged"]) == expected
    assert sum(map(bool, joined["flagged"].to_pylist())) > decision.flagged > 0


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
    with pytest.raises(UsageError, match="depend on a prompt's position"):
        join(once, placed.out, out=out)
    run = scanned(model, once / "unique.parquet", tmp_path / "run")
    changed = tmp_path / "p.parquet"
    pq.write_table(pq.read_table(folder / "p.parquet").slice(1), changed)
    with pytest.raises(IntegrityError, match="has changed since"):
        join(once, run.out, out=out, prompts=changed)
    run.shards[0].unlink()
    with pytest.raises(IntegrityError, match=r"0 rows for \d+ distinct prompts"):
        join(once, run.out, out=out)
    with pytest.raises(UsageError, match="typo: no run directory"):
        join(once, tmp_path / "typo", out=out)
    with pytest.raises(UsageError, match=r"no dedup\.json there"):
        join(tmp_path, run.out, out=out)
    assert not out.exists()


def test_nothing_is_overwritten_or_left(model: Any, folder: Path) -> None:
    with pytest.raises(UsageError, match="is there already"):
        dedup(model, folder / "p.parquet", out=folder / "once")
    with pytest.raises(UsageError, match="memory 'much'"):
        dedup(model, folder / "p.parquet", out=folder / "again", memory="much")
    assert not [path for path in folder.iterdir() if path.name.startswith((".", "again"))]


@pytest.fixture(scope="module")
def run(model: Any, folder: Path) -> Path:
    return scanned(model, folder / "once" / "unique.parquet", folder / "by-5", shard_size=5).out


@pytest.mark.parametrize("name", ["score=7", "unique_row=0", "a[b]*", "c?{d,e}"])
def test_the_names_of_folders_say_nothing(
    folder: Path, run: Path, tmp_path: Path, name: str
) -> None:
    here = tmp_path / name
    shutil.copytree(folder / "once", here / "once")
    shutil.copytree(run, here / "run")
    # a pattern would match this copy
    shutil.copytree(run / "shards", tmp_path / "ab" / "run" / "shards")
    join(folder / "once", run, out=tmp_path / "plain.parquet")
    join(here / "once", here / "run", out=here / "joined.parquet")
    joined, plain = here / "joined.parquet", tmp_path / "plain.parquet"
    assert joined.read_bytes() == plain.read_bytes()


def test_damage_is_named_and_not_joined(folder: Path, run: Path, tmp_path: Path) -> None:
    once, bad, out = tmp_path / "once", tmp_path / "run", tmp_path / "joined.parquet"
    shutil.copytree(folder / "once", once)
    shutil.copytree(run, bad)
    shard = bad / "shards" / "part-00001.parquet"
    # behind the data lies the footer, with fields that no reader uses
    data = read_footer(shard).data_bytes
    size = (once / "rows.parquet").stat().st_size
    cases = [(shard, data, "part-00001"), (once / "rows.parquet", size, "rows.parquet: not what")]
    for path, end, message in cases:
        whole = path.read_bytes()
        for place in range(0, end, end // 20):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
            with pytest.raises(IntegrityError, match=message):
                join(once, bad, out=out)
        path.write_bytes(whole)
    shard.rename(shard.with_name("part-00009.parquet"))
    with pytest.raises(IntegrityError, match="holds rows from"):
        join(once, bad, out=out)
    assert not out.exists()


def test_shards_that_become_unreadable_meanwhile(
    folder: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dori_fast.runs.dedup import join as dedup_join

    bad = tmp_path / "run"
    shutil.copytree(run, bad)

    def damaging(*args: Any) -> Any:
        paths = shards(*args)
        paths[0].write_bytes(b"gone")
        return paths

    shards = dedup_join._shards
    monkeypatch.setattr(dedup_join, "_shards", damaging)
    with pytest.raises(IntegrityError, match=r"cannot be read \(.*part-00000"):
        join(folder / "once", bad, out=tmp_path / "joined.parquet")


def test_rows_without_a_prompt_have_the_budget_of_a_scan(model: Any, tmp_path: Path) -> None:
    """The unique prompts lack them, so that a scan of these would not see them."""
    prompts, out = tmp_path / "p.parquet", tmp_path / "once"
    pq.write_table(pa.table({"prompt": pa.array(["a", None], pa.string())}), prompts)
    with pytest.raises(OverBudgetError, match="1 of 2 rows failed, the first: row 1: null"):
        dedup(model, prompts, out=out)
    pq.write_table(pa.table({"prompt": pa.array([None, None], pa.string())}), prompts)
    with pytest.raises(OverBudgetError, match="2 of 2 rows failed, the first: row 0: null"):
        dedup(model, prompts, out=out, max_errors=9)
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), prompts)
    with pytest.raises(UsageError, match=r"p\.parquet: the input has no rows"):
        dedup(model, prompts, out=out)
    assert list(tmp_path.iterdir()) == [prompts]


def test_outputs_that_cannot_be(model: Any, folder: Path, run: Path, tmp_path: Path) -> None:
    once, prompts = folder / "once", folder / "p.parquet"
    with pytest.raises(UsageError, match="there is no folder .*nowhere(;| —) make it first"):
        join(once, run, out=tmp_path / "nowhere" / "joined.parquet")
    with pytest.raises(UsageError, match="is a folder; name a parquet file"):
        join(once, run, out=tmp_path)
    for out in (prompts / "x" / "once", Path("/proc/x/once"), tmp_path / ("x" * 300)):
        with pytest.raises(UsageError, match="use another --out"):
            dedup(model, prompts, out=out)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="lies inside the input"):
        dedup(model, folder, out=folder / "twice")


@pytest.mark.parametrize("limit", [5_000, 300_000])
def test_a_full_disk(model: Any, tmp_path: Path, limit: int) -> None:
    """The disk refuses the first byte of the table, or the middle of the rows."""
    prompts = tmp_path / "p.txt"
    prompts.write_text("".join(f"a cat on a mat {i}\n" for i in range(20_000)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(StorageError, match=r"once could not be written.*free some space"):
            dedup(model, prompts, out=tmp_path / "once")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [prompts]


def test_spills_that_fill_the_disk(tmp_path: Path) -> None:
    """By default DuckDB spills to 90 % of the free disk, then reports a lack of memory."""
    with pytest.raises(StorageError, match="No space left"), _spilling(tmp_path) as connection:
        connection.execute("SET max_temp_directory_size = '1MB'")
        connection.execute("CREATE TABLE sorted AS SELECT * FROM range(20000000) ORDER BY -range")


def test_a_disk_and_a_memory_that_end_while_the_result_is_read(tmp_path: Path) -> None:
    query = "SELECT range, repeat('x', 300) FROM range(2000000) ORDER BY hash(range)"
    with pytest.raises(StorageError, match="No space left"), _spilling(tmp_path) as connection:
        connection.execute("SET max_temp_directory_size = '1MB'")
        list(batches(connection, query))
    tight = _spilling(tmp_path, "1MB")
    with pytest.raises(UsageError, match="1MB of memory is not enough"), tight as connection:
        list(batches(connection, query))


def _spilling(folder: Path, memory: str = "20MB") -> Any:
    return database(folder / "out", memory)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(model: Any, tmp_path: Path, number: int) -> None:
    prompts, before = tmp_path / "p.txt", signal.getsignal(number)
    prompts.write_text("".join(f"a cat {i}\n" for i in range(20_000)))

    def read(progress: Progress) -> None:
        os.kill(os.getpid(), number)

    with pytest.raises(ScanInterrupted, match=signal.Signals(number).name):
        dedup(model, prompts, out=tmp_path / "once", on_progress=read)
    assert signal.getsignal(number) is before
    assert list(tmp_path.iterdir()) == [prompts]


def test_what_the_dead_left_is_swept_and_the_living_keep_theirs(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from dori_fast.runs.dedup.token_table import TokenTable, database
with database(Path(sys.argv[1]) / "once", "64MB") as connection:
    TokenTable(connection)
    print("ready", flush=True)
    time.sleep(300)
"""
    (tmp_path / ".dedup-of-somebody-else").mkdir()
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as living:
        try:
            assert living.stdout is not None and living.stdout.readline() == "ready\n"
            (theirs,) = tmp_path.glob(".dedup-*/table")
            with database(tmp_path / "other", "64MB"):
                assert theirs.exists()
        finally:
            living.kill()
    assert theirs.exists()
    with database(tmp_path / "other", "64MB"):
        assert not theirs.parent.exists()
    assert [path.name for path in tmp_path.iterdir()] == [".dedup-of-somebody-else"]


ROWS, LENGTH = 50_000, 600


def test_a_table_larger_than_its_memory(tmp_path: Path) -> None:
    """120 MB of ids with 64 MB of memory, in a process whose peak is measured."""
    code = f"""
import resource, sys
from pathlib import Path
import duckdb, numpy as np, pyarrow as pa
from dori_fast.runs.dedup.token_table import TokenTable, database
n, each = {ROWS}, {LENGTH}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with database(Path(sys.argv[1]), "64MB") as connection:
    table = TokenTable(connection)
    for first in range(0, n, 2000):
        # every sequence occurs twice, half the input apart; sequences differ in one token
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
