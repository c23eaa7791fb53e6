"""A shard proves that it is whole and which run it belongs to, however it is changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dori_fast.errors import IntegrityError
from dori_fast.runs.store.shard import check_shard, commit_shard, read_footer

RUN = "a" * 64


def make_table(first: int = 0, n: int = 30) -> pa.Table:
    return pa.table(
        {
            "row_id": pa.array(range(first, first + n), pa.int64()),
            "prompt": [f"prompt {i} {i * 7919}" for i in range(n)],
            "status": ["quarantined" if i % 10 == 9 else "ok" for i in range(n)],
            "score": pa.array([i / 7 for i in range(n)], pa.float32()),
            "score_per_seed": pa.array([[i / 3, i / 11] for i in range(n)], pa.list_(pa.float32())),
        }
    )


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "part-00000.parquet"
    commit_shard(path, make_table(), RUN, 0)
    return path


def check(path: Path) -> None:
    check_shard(path, RUN, 0, make_table().schema)


def test_round_trip(shard: Path) -> None:
    assert pq.read_table(shard).equals(make_table())
    footer = check_shard(shard, RUN, 0, make_table().schema)
    assert footer == read_footer(shard)
    assert (footer.rows, footer.quarantined, footer.first_row) == (30, 3, 0)
    assert footer.run_hash == RUN
    assert os.listdir(shard.parent) == [shard.name]
    assert pq.read_metadata(shard).row_group(0).column(0).compression == "ZSTD"


def test_any_parquet_reader_can_read_it(shard: Path) -> None:
    assert pq.ParquetFile(shard).read(columns=["score"])["score"].to_pylist()[7] == 1.0


def test_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.parquet"
    commit_shard(path, make_table().slice(0, 0), RUN, 0)
    assert check_shard(path, RUN, 0, make_table().schema).rows == 0


@pytest.mark.parametrize("keep", ["0", "1", "8", "n // 4", "n // 2", "n - 9", "n - 8", "n - 1"])
def test_a_cut_shard_is_noticed(shard: Path, keep: str) -> None:
    data = shard.read_bytes()
    shard.write_bytes(data[: eval(keep, {"n": len(data)})])
    with pytest.raises(IntegrityError):
        check(shard)


def test_data_lost_in_a_power_cut_is_noticed(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    for start in range(0, read_footer(shard).data_bytes - 64, 64):
        lost = bytearray(data)
        lost[start : start + 64] = bytes(64)
        shard.write_bytes(lost)
        with pytest.raises(IntegrityError):
            check(shard)


def test_no_flipped_bit_changes_a_row_unnoticed(shard: Path) -> None:
    data = shard.read_bytes()
    caught = 0
    # every bit of every byte was tried once; the test suite samples them
    for at in range(0, 8 * len(data), 37):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        shard.write_bytes(flipped)
        try:
            check(shard)
        except IntegrityError:
            caught += 1
        else:
            assert pq.read_table(shard).equals(make_table())
    assert caught > 0.5 * (8 * len(data) / 37)


def test_another_run_place_or_table(shard: Path) -> None:
    schema = make_table().schema
    with pytest.raises(IntegrityError, match="another run"):
        check_shard(shard, "b" * 64, 0, schema)
    with pytest.raises(IntegrityError, match="rows from 0, not 30"):
        check_shard(shard, RUN, 30, schema)
    with pytest.raises(IntegrityError, match="columns"):
        check_shard(shard, RUN, 0, schema.remove(3))


def test_a_parquet_file_that_is_no_shard(tmp_path: Path) -> None:
    pq.write_table(make_table(), tmp_path / "x.parquet")
    with pytest.raises(IntegrityError, match="no shard of dori_fast"):
        read_footer(tmp_path / "x.parquet")


def test_rows_are_renumbered_only_by_their_own_footer(tmp_path: Path) -> None:
    path = tmp_path / "part-00001.parquet"
    with pytest.raises(IntegrityError, match="its rows are not"):
        commit_shard(path, make_table(first=5), RUN, 30)
    assert list(tmp_path.iterdir()) == []


def test_system_calls_come_in_the_order_that_survives_a_power_cut(
    tmp_path: Path, monkeypatch: Any
) -> None:
    calls: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        calls.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def record_replace(source: Any, target: Any) -> None:
        assert pq.read_table(source).equals(make_table())
        calls.append(("replace", f"{source} {target}"))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    path = tmp_path / "part-00000.parquet"
    commit_shard(path, make_table(), RUN, 0)
    (first, temporary), (second, both), (third, directory) = calls
    assert (first, second, third) == ("fsync", "replace", "fsync")
    assert both == f"{temporary} {path}"
    assert Path(temporary).parent == path.parent
    assert directory == str(path.parent)
