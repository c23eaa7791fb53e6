"""One writer, one configuration, and recovery from crashes and foreign files."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.runs.store.directory import RunDirectory
from dori_fast.runs.store.job import Job
from dori_fast.runs.store.record import RunRecord, differences, hash_identity, make_identity
from tests.runs.store.test_shard import make_table

SIZE = 30


def make_record(**changes: Any) -> RunRecord:
    arguments: dict[str, Any] = {
        "detector": {"name": "wen", "seeds": [0, 1], "steps": 1},
        "model": {"source": "here", "dtype": "float32", "weights": {"unet/x": "f" * 64}},
        "input_sha256": "e" * 64,
        "column": "prompt",
        "limit": None,
        "shard_size": SIZE,
    }
    identity = make_identity(**(arguments | changes))
    return RunRecord(
        run_hash=hash_identity(identity),
        identity=identity,
        input_path="p.csv",
        model=arguments["model"],
        batch_size=8,
        versions={"dori_fast": "0"},
    )


def opened(
    root: Path, resume: Any = "auto", job: Job | None = None, **changes: Any
) -> RunDirectory:
    return RunDirectory(root, make_record(**changes), make_table().schema, resume, job)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    root = tmp_path / "run"
    with opened(root) as run:
        for index in range(3):
            run.commit(index, make_table(index * SIZE, SIZE))
    return root


def test_committed_shards_are_found_again(finished: Path) -> None:
    with opened(finished, "must") as run:
        assert sorted(run.committed) == [0, 1, 2]
        assert [run.committed[i].first_row for i in range(3)] == [0, 30, 60]
    names = sorted(path.name for path in (finished / "shards").iterdir())
    assert names == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"detector": {"name": "wen", "seeds": [0], "steps": 1}}, r"seeds: \[0, 1\] then, \[0\]"),
        ({"detector": {"name": "wen", "seeds": [0, 1]}}, "detector.steps: 1 then, null now"),
        ({"model": {"dtype": "float16"}}, 'model.dtype: "float32" then, "float16" now'),
        ({"input_sha256": "d" * 64}, "input_sha256"),
        ({"column": "text"}, 'column: "prompt" then, "text" now'),
        ({"limit": 5}, "limit: null then, 5 now"),
        ({"shard_size": 31}, "shard_size: 30 then, 31 now"),
    ],
)
def test_another_configuration_is_refused(
    finished: Path, changes: dict[str, Any], shown: str
) -> None:
    before = sorted((p, p.stat().st_mtime_ns) for p in finished.rglob("*.parquet"))
    with pytest.raises(IntegrityError, match=shown), opened(finished, **changes):
        pytest.fail("opened")
    assert before == sorted((p, p.stat().st_mtime_ns) for p in finished.rglob("*.parquet"))
    with opened(finished) as run:
        assert len(run.committed) == 3


def test_where_the_model_lies_does_not_matter(finished: Path) -> None:
    model = make_record().model | {"source": "elsewhere", "revision": "main"}
    with opened(finished, model=model) as run:
        assert len(run.committed) == 3


def test_differences_are_one_short_line() -> None:
    many = {f"k{i}": i for i in range(12)}
    line = differences({"same": 1, "w": {"unet": "a" * 64}}, {"same": 1, "w": {}, **many})
    assert line.startswith('w.unet: "aaaa') and "..." in line
    assert line.endswith("; and 5 more")
    assert "\n" not in line and "same" not in line


def test_resume_modes(tmp_path: Path, finished: Path) -> None:
    with pytest.raises(UsageError, match="no run to resume"), opened(tmp_path / "new", "must"):
        pytest.fail("opened")
    with pytest.raises(UsageError, match="holds a run"), opened(finished, "never"):
        pytest.fail("opened")
    with opened(tmp_path / "fresh", "never") as run:
        assert run.committed == {}


@pytest.mark.parametrize("damage", ["empty", "cut", "flip", "foreign", "misplaced", "text"])
def test_a_bad_shard_is_set_aside(finished: Path, damage: str, caplog: Any) -> None:
    path = finished / "shards" / "part-00001.parquet"
    data = bytearray(path.read_bytes())
    if damage == "foreign":
        with opened(finished.parent / "other", limit=7) as other:
            other.commit(1, make_table(SIZE, SIZE))
        data = bytearray((finished.parent / "other/shards/part-00001.parquet").read_bytes())
    elif damage == "misplaced":
        data = bytearray((finished / "shards" / "part-00002.parquet").read_bytes())
    elif damage == "flip":
        data[len(data) // 3] ^= 4
    else:
        data = {"empty": data[:0], "cut": data[: len(data) // 2], "text": bytearray(b"hello")}[
            damage
        ]
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING), opened(finished) as run:
        assert sorted(run.committed) == [0, 2]
        assert not path.exists()
        run.commit(1, make_table(SIZE, SIZE))
    assert (finished / "quarantine" / "part-00001.parquet").read_bytes() == data
    assert "part-00001.parquet" in caplog.text and "computed again" in caplog.text
    path.write_bytes(b"again")
    with opened(finished) as run:
        assert sorted(run.committed) == [0, 2]
    assert (finished / "quarantine" / "part-00001.parquet.1").read_bytes() == b"again"


def test_leftovers(finished: Path, caplog: Any) -> None:
    stale = [finished / ".run.json.7.tmp", finished / "shards" / ".part-00003.parquet.7.tmp"]
    strange = [finished / "notes.md", finished / "shards" / "part-1.parquet"]
    for path in [*stale, *strange]:
        path.write_text("x")
    with caplog.at_level(logging.WARNING), opened(finished) as run:
        assert sorted(run.committed) == [0, 1, 2]
    assert not any(path.exists() for path in stale)
    assert all(path.exists() for path in strange)
    assert "part-1.parquet: not a shard, left alone" in caplog.text


def test_shards_outlive_their_record(finished: Path) -> None:
    (finished / "run.json").unlink()
    with pytest.raises(UsageError, match="holds a run"), opened(finished, "never"):
        pytest.fail("opened")
    with opened(finished) as run:
        assert sorted(run.committed) == [0, 1, 2]


@pytest.mark.parametrize("text", ["", "{", '{"schema_version": 1}', "\xff"])
def test_a_damaged_record_is_refused(finished: Path, text: str) -> None:
    (finished / "run.json").write_text(text, encoding="latin-1")
    with pytest.raises(IntegrityError, match="run.json"), opened(finished):
        pytest.fail("opened")


def test_the_record_is_complete_json(finished: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    assert record["schema_version"] == 1
    assert record["run_hash"] == make_record().run_hash
    assert record["model"]["weights"] == {"unet/x": "f" * 64}


def test_other_library_versions_are_told(finished: Path, caplog: Any) -> None:
    record = make_record()
    record.versions = {"dori_fast": "1", "torch": "9"}
    with caplog.at_level(logging.WARNING), RunDirectory(finished, record, make_table().schema):
        pass
    assert "begun with dori_fast 0, resumed with 1" in caplog.text
    assert "begun with torch absent, resumed with 9" in caplog.text


def _hold(root: Path, held: Any, release: Any) -> None:
    with opened(root):
        held.set()
        release.wait(30)


def test_two_writers(finished: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(finished, held, release))
    process.start()
    try:
        assert held.wait(60)
        with pytest.raises(UsageError, match=rf"pid {process.pid} on ") as info, opened(finished):
            pytest.fail("opened")
        assert os.uname().nodename in str(info.value)
    finally:
        release.set()
        process.join(30)
    assert process.exitcode == 0
    with opened(finished) as run:
        assert len(run.committed) == 3


def test_the_lock_dies_with_its_owner(finished: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from tests.runs.store.test_directory import opened\n"
        "opened(Path(sys.argv[1])).__enter__(); os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code, str(finished)], cwd=root)
    assert done.returncode == -9
    with opened(finished) as run:
        assert len(run.committed) == 3


def test_jobs_exclude_a_whole_run_and_their_own_number(tmp_path: Path) -> None:
    root = tmp_path / "run"
    with opened(root, job=Job(0, 2)) as first, opened(root, job=Job(1, 2)) as second:
        for again in (Job(), Job(0, 2)):
            with (
                pytest.raises(UsageError, match=f"pid {os.getpid()} on "),
                opened(root, job=again),
            ):
                pytest.fail("opened")
        record = (root / "run.json").read_bytes()
        first.record.state = "done"
        first.save_record()
        assert (root / "run.json").read_bytes() == record, "a job's record is not the run's"
        second.commit(1, make_table(SIZE, SIZE))
    with (
        opened(root),
        pytest.raises(UsageError, match="another run"),
        opened(root, job=Job(1, 2)),
    ):
        pytest.fail("opened")
    with (
        pytest.raises(IntegrityError, match="limit"),
        opened(root, job=Job(0, 2), limit=3),
    ):
        pytest.fail("opened")


def test_a_job_sweeps_up_its_own_shards_alone(finished: Path) -> None:
    shards = finished / "shards"
    for index in (0, 1):
        (shards / f".part-{index:05d}.parquet.7.tmp").write_text("half")
        (shards / f"part-{index:05d}.parquet").write_text("damaged")
    with opened(finished, job=Job(1, 2)) as run:
        assert run.committed == {}
        assert [path.name for path in shards.glob(".*.tmp")] == [".part-00000.parquet.7.tmp"]
    assert [path.name for path in (finished / "quarantine").iterdir()] == ["part-00001.parquet"]
    with opened(finished) as run:
        assert list(run.committed) == [2]
    assert not list(shards.glob(".*.tmp"))


def test_an_unusable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot be written"), opened(tmp_path / "file" / "run"):
        pytest.fail("opened")


def test_a_table_of_another_shape_is_not_committed(finished: Path) -> None:
    with opened(finished) as run:
        with pytest.raises(IntegrityError):
            run.commit(3, make_table(0, SIZE))
        assert 3 not in run.committed
    assert not (finished / "shards" / "part-00003.parquet").exists()
