"""Names of shards: number and path are inverse, and shards are listed by number."""

from __future__ import annotations

from pathlib import Path

import pytest

from dori_fast.runs.store import shard_names

NUMBERS = (0, 1, 99_999, 100_000, 1_000_000)


def test_a_path_states_its_number(tmp_path: Path) -> None:
    paths = [shard_names.path(tmp_path, index) for index in NUMBERS]
    assert paths[1] == tmp_path / "shards" / "part-00001.parquet"
    assert paths[3] == tmp_path / "shards" / "part-100000.parquet"
    assert [shard_names.number(path) for path in paths] == [*NUMBERS]


@pytest.mark.parametrize(
    "name",
    [
        "part-1.parquet",
        "part-000001.parquet",
        "part-00001.parquet.1",
        ".part-00001.parquet",
        "part-00001 (copy).parquet",
        "part-٠٠٠٠١.parquet",
        "part-00001.parquet\n",
        "part--0001.parquet",
        "notes.md",
    ],
)
def test_any_other_name_has_no_number(name: str) -> None:
    assert shard_names.number(Path(name)) is None


def test_shards_are_listed_by_number_after_foreign_names(tmp_path: Path) -> None:
    directory = shard_names.directory(tmp_path)
    directory.mkdir()
    paths = [shard_names.path(tmp_path, index) for index in NUMBERS]
    foreign, backup = directory / "part-5.parquet", directory / "part-00007.parquet.bak"
    for path in (*paths, foreign, backup, directory / "notes.md"):
        path.touch()
    assert shard_names.paths(tmp_path) == [foreign, *paths]
    assert set(shard_names.lookalikes(tmp_path)) == {foreign, backup, *paths}
    assert shard_names.paths(tmp_path / "nowhere") == []
