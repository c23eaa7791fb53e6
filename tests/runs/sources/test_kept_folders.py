"""Folders that other programs keep: only the rows that count in them are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dori_fast.runs.sources.files import input_files
from dori_fast.runs.sources.open import input_sha256, open_prompts
from tests.runs.inputs import prompts, read_all, refusal
from tests.runs.sources.test_stand_ins import LFS

CACHE = "cache-4b93569ef128e4ad.arrow"


def arrow(path: Path, texts: Sequence[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_stream(str(path), pa.schema({"prompt": pa.string()})) as file:
        file.write_table(pa.table({"prompt": pa.array(texts, pa.string())}))
    return path


def saved(folder: Path, *shards: Sequence[str], **state: Any) -> Path:
    """A dataset as ``save_to_disk`` leaves it."""
    names = [f"data-{i:05}-of-{len(shards):05}.arrow" for i in range(len(shards))]
    for name, texts in zip(names, shards, strict=True):
        arrow(folder / name, texts)
    listed = {"_data_files": [{"filename": name} for name in names], "_split": None, **state}
    (folder / "state.json").write_text(json.dumps(listed))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_caches_and_stale_shards_of_a_saved_dataset_are_not_read(tmp_path: Path) -> None:
    folder = saved(tmp_path / "d", ["a", "b"], ["c"])
    digest = input_sha256(folder)
    arrow(folder / CACHE, ["A", "B", "C"])
    arrow(folder / "cache-675eacac8b0a4764_00000_of_00002.arrow", ["X"])
    arrow(folder / "data-00000-of-00001.arrow", ["old"])
    arrow(folder / "tmp" / "data-00000-of-00001.arrow", ["older"])
    (folder / "README.txt").write_text("read me")
    assert prompts(folder) == ["a", "b", "c"]
    assert input_sha256(folder) == digest
    # a part of a larger input
    whole = tmp_path / "all"
    shutil.copytree(folder, whole / "two")
    arrow(whole / "one.arrow", ["first"])
    assert prompts(whole) == ["first", "a", "b", "c"]
    message = refusal(lambda: open_prompts(f"{folder}/*.arrow"))
    assert f"{CACHE}: no data of the saved dataset" in message and f"the folder {folder}" in message
    assert prompts(folder / CACHE) == ["A", "B", "C"]


def test_the_order_is_that_of_the_state(tmp_path: Path) -> None:
    folder = saved(tmp_path / "d", ["a"], ["b"])
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"].reverse()
    (folder / "state.json").write_text(json.dumps(state))
    assert prompts(folder) == ["b", "a"]


def test_splits_are_chosen(tmp_path: Path) -> None:
    for split in ("train", "test"):
        saved(tmp_path / "d" / split, [split])
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    message = refusal(lambda: open_prompts(tmp_path / "d"))
    assert f"several splits (train, test); choose one, such as {tmp_path}/d/train" in message
    assert prompts(tmp_path / "d" / "test") == ["test"]
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    arrow(tmp_path / "d" / "train" / CACHE, ["no"])
    assert prompts(tmp_path / "d") == ["train"]
    assert [file.name for file in input_files(tmp_path / "d")] == [
        "train/data-00000-of-00001.arrow"
    ]


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no shard": (lambda d: next(d.glob("data-*")).unlink(), "missing, though state.json names it"),
    "pointer": (lambda d: (d / "state.json").write_text(LFS), "is a Git LFS pointer"),
    "shard": (lambda d: next(d.glob("data-*")).write_text(LFS), "arrow: is a Git LFS pointer"),
    "no json": (lambda d: (d / "state.json").write_text("{"), "state.json: cannot be read"),
    "list": (lambda d: (d / "state.json").write_text("[]"), "state.json: no JSON object"),
    "no list": (lambda d: (d / "state.json").write_text("{}"), "names no data files"),
    "indices": (lambda d: saved(d, ["a"], _indices_files=[{"filename": "i"}]), "flatten_indices"),
    "outside": (lambda d: saved(d, ["a"], _data_files=[{"filename": "../x"}]), "no name of a file"),
    "no state": (lambda d: (d / "state.json").unlink(), "and no state.json that names the data"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_dataset(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path / "d", ["a"])
    arrow(folder / CACHE, ["A"])
    change, message = DAMAGED[name]
    change(folder)
    assert message in refusal(lambda: open_prompts(folder))


@pytest.mark.needs("datasets")
def test_the_library_itself(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_dict({"prompt": [f"p{i}" for i in range(50)]})
    whole.save_to_disk(tmp_path / "d", num_shards=3)
    again = datasets.load_from_disk(tmp_path / "d")
    upper = again.map(lambda row: {"prompt": row["prompt"].upper()})
    chosen = again.filter(lambda row: row["prompt"] > "p3").shuffle(seed=0)
    assert any((tmp_path / "d").glob("cache-*.arrow"))
    assert prompts(tmp_path / "d") == again["prompt"][:]
    upper.save_to_disk(tmp_path / "upper")
    assert prompts(tmp_path / "upper") == upper["prompt"][:]
    chosen.save_to_disk(tmp_path / "chosen")
    assert prompts(tmp_path / "chosen") == chosen["prompt"][:]
    datasets.DatasetDict(a=whole, b=whole).save_to_disk(tmp_path / "both")
    assert "several splits (a, b)" in refusal(lambda: open_prompts(tmp_path / "both"))


def part(path: Path, texts: Sequence[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"prompt": pa.array(texts, pa.string())}), path)
    return path


def delta(table: Path, *commits: list[dict[str, Any]]) -> Path:
    for version, actions in enumerate(commits):
        path = table / "_delta_log" / f"{version:020}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(action) + "\n" for action in actions))
    return table


def added(path: str, **more: Any) -> dict[str, Any]:
    return {"add": {"path": path, "partitionValues": {}, "dataChange": True, **more}}


def test_the_current_version_of_a_delta_table(tmp_path: Path) -> None:
    table = tmp_path / "t"
    for name, texts in {"a": ["a"], "b": ["b"], "c": ["B"], "lost": ["lost"]}.items():
        part(table / f"{name}.parquet", texts)
    start = [{"protocol": {"minReaderVersion": 1}}, {"metaData": {"configuration": {}}}]
    delta(
        table,
        [*start, added("a.parquet"), added("b.parquet")],
        [{"remove": {"path": "b.parquet"}}, added("c.parquet"), {"commitInfo": {}}],
    )
    (table / "_delta_log" / "00000000000000000001.crc").write_text("{}")
    assert prompts(table) == ["a", "B"]
    assert "lies in the Delta table" in refusal(lambda: open_prompts(f"{table}/*.parquet"))
    whole = tmp_path / "all"
    shutil.copytree(table, whole / "t")
    part(whole / "s.parquet", ["s"])
    assert prompts(whole) == ["s", "a", "B"]
    (table / "c.parquet").unlink()
    assert "missing, though the table's log names it" in refusal(lambda: open_prompts(table))


def test_partitions_of_a_delta_table(tmp_path: Path) -> None:
    table = tmp_path / "t"
    part(table / "lang=de%20at" / "a.parquet", ["a"])
    part(table / "lang=__HIVE_DEFAULT_PARTITION__" / "b.parquet", ["b"])
    part(table / "lang=en" / "gone.parquet", ["gone"])
    actions = [
        added("lang=de%2520at/a.parquet", partitionValues={"lang": "de at"}),
        added("lang=__HIVE_DEFAULT_PARTITION__/b.parquet", partitionValues={"lang": None}),
    ]
    delta(table, actions)
    assert [(row["prompt"], row["lang"]) for row in read_all(table)] == [
        ("b", None),
        ("a", "de at"),
    ]
    message = refusal(lambda: open_prompts(table / "lang=en"))
    assert f"lies in the Delta table {table}" in message
    delta(table, [added("lang=en/gone.parquet", partitionValues={"lang": "fr"})])
    assert "partition values are not in the names" in refusal(lambda: open_prompts(table))


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (
            [added("a.parquet", deletionVector={"storageType": "u"})],
            "with deleted rows in a.parquet",
        ),
        ([added("/elsewhere/a.parquet")], "files elsewhere"),
        ([added("s3://b/a.parquet")], "files elsewhere"),
        ([added("../a.parquet")], "files elsewhere"),
        ([{"metaData": {"configuration": {"delta.columnMapping.mode": "name"}}}], "mapped column"),
        ([[1]], "no log of a Delta table"),
        ([{"add": "a.parquet"}], "no log of a Delta table"),
    ],
)
def test_delta_tables_that_files_do_not_show(
    tmp_path: Path, actions: list[Any], message: str
) -> None:
    part(tmp_path / "t" / "a.parquet", ["a"])
    assert message in refusal(lambda: open_prompts(delta(tmp_path / "t", actions)))


def test_a_file_removed_and_added_with_deleted_rows_in_any_order(tmp_path: Path) -> None:
    part(tmp_path / "t" / "a.parquet", ["a"])
    both = [added("a.parquet", deletionVector={"x": 1}), {"remove": {"path": "a.parquet"}}]
    for second in (both, both[::-1]):
        table = delta(tmp_path / "t", [added("a.parquet")], second)
        assert "with deleted rows" in refusal(lambda table=table: open_prompts(table))


def test_a_log_that_has_only_checkpoints_left(tmp_path: Path) -> None:
    table = delta(tmp_path / "t", [added("a.parquet")], [])
    log = table / "_delta_log"
    (log / f"{0:020}.json").unlink()
    message = refusal(lambda: open_prompts(table))
    assert "no version 0, only checkpoints; read it with deltalake" in message
    (log / f"{1:020}.json").unlink()
    assert "without a JSON log" in refusal(lambda: open_prompts(table))


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ("metadata/v1.metadata.json", "an Iceberg table"),
        ("metadata/version-hint.text", "an Iceberg table"),
        (".hoodie/hoodie.properties", "a Hudi table"),
        ("_spark_metadata/0", "the output of a Spark stream"),
    ],
)
def test_tables_of_other_programs(tmp_path: Path, there: str, message: str) -> None:
    part(tmp_path / "t" / "data" / "a.parquet", ["a"])
    (tmp_path / "t" / there).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "t" / there).write_text("")
    for folder in (tmp_path / "t", tmp_path):
        assert message in refusal(lambda folder=folder: open_prompts(folder))


def test_what_programs_leave_beside_the_data(tmp_path: Path) -> None:
    part(tmp_path / "part-00000-0a-c000.snappy.parquet", ["a"])
    part(tmp_path / "_temporary" / "0" / "part-00001-0a-c000.snappy.parquet", ["b"])
    part(tmp_path / "__MACOSX" / "p.parquet", ["c"])
    part(tmp_path / "._p.parquet", ["d"])
    for name in (
        "_SUCCESS",
        "_metadata",
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
        "x.parquet.part",
    ):
        (tmp_path / name).write_text("")
    assert prompts(tmp_path) == ["a"]


def test_sets_of_shards(tmp_path: Path) -> None:
    def shards(folder: str, *names: str) -> Path:
        for name in names:
            part(tmp_path / folder / name, [name])
        return tmp_path / folder

    two = shards("two", "train-00000-of-00002-0a.parquet", "train-00001-of-00002-1b.parquet",
                 "test-00000-of-00001.parquet")  # fmt: skip
    assert len(prompts(two)) == 3
    assert len(prompts(shards("one", "p-1-of-2.parquet", "p-2-of-2.parquet"))) == 2
    stale = shards("stale", "data-00000-of-00001.parquet", "data-00000-of-00002.parquet",
                   "data-00001-of-00002.parquet")  # fmt: skip
    for source in (stale, f"{stale}/*.parquet"):
        message = refusal(lambda source=source: open_prompts(source))
        assert "of another set of shards than data-00000-of-0000" in message and "stale" in message
    assert len(prompts(Path(f"{stale}/*-of-00002.parquet"))) == 2
    holes = shards("holes", "part-00000-of-00003.parquet", "part-00002-of-00003.parquet")
    message = refusal(lambda: open_prompts(holes))
    assert "1 of its set of 3 shards are missing, the first is number 1" in message
    assert len(prompts(holes / "*.parquet")) == 2
    again = shards("again", "t-00000-of-00001-0a.parquet", "t-00000-of-00001-1b.parquet")
    assert "the same shard as t-00000-of-00001-0a.parquet" in refusal(lambda: open_prompts(again))


def test_a_folder_without_prompts_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.parquet.incomplete").write_text("")
    assert "only unfinished downloads there (.incomplete)" in refusal(
        lambda: open_prompts(tmp_path)
    )
    (tmp_path / "a.csv.gz").write_text("")
    assert "no file there, only .gz, .incomplete; use one" in refusal(
        lambda: open_prompts(tmp_path)
    )
