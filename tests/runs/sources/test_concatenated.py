"""Folders, patterns and lists of files: their order, their columns and their digest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dori_fast.errors import UsageError
from dori_fast.runs.sources.files import input_files
from dori_fast.runs.sources.open import input_sha256, open_prompts
from tests.runs.inputs import prompts, read_all
from tests.runs.scanning import Spelling, scanned


def part(path: Path, texts: list[str], **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"caption": texts, **columns}), path, row_group_size=2)
    return path


@pytest.fixture
def laion(tmp_path: Path) -> Path:
    """Hive partitions, as Spark leaves them, written in another order than that of their names."""
    root = tmp_path / "laion"
    for year, language, first in ((2021, "en", 6), (2020, "de%20at", 3), (2020, "en", 0)):
        ids = range(first, first + 3)
        part(
            root / f"year={year}" / f"lang={language}" / "part-0.parquet",
            [f"p{i}" for i in ids],
            similarity=[i / 10 for i in ids],
            status=["success", "failed", "success"],
            URL=[f"http://x/{i}" for i in ids],
        )
    (root / "_SUCCESS").write_text("")
    (root / ".part-0.parquet.crc").write_text("")
    return root


def test_hive_partitions_are_columns_and_the_order_is_the_names(laion: Path) -> None:
    for size in (1, 2, 4, 100):
        rows = read_all(laion, size=size)
        assert [row["prompt"] for row in rows] == [
            "p3",
            "p4",
            "p5",
            *["p0", "p1", "p2", "p6", "p7", "p8"],
        ]
    assert [row["year"] for row in rows] == [2020] * 6 + [2021] * 3
    assert [row["lang"] for row in rows[:4]] == ["de at"] * 3 + ["en"]
    assert list(rows[0]) == [
        "prompt", "error", "similarity", "source_status", "URL", "year", "lang",
    ]  # fmt: skip


def test_a_missing_partition_value_is_null(tmp_path: Path) -> None:
    part(tmp_path / "d" / "n=7" / "a.parquet", ["a"])
    part(tmp_path / "d" / "n=__HIVE_DEFAULT_PARTITION__" / "a.parquet", ["b"])
    assert [row["n"] for row in read_all(tmp_path / "d")] == [7, None]
    part(tmp_path / "d" / "m=7" / "a.parquet", ["a"])
    with pytest.raises(UsageError, match=r"partition columns \['n'\] where .* has \['m'\]"):
        open_prompts(tmp_path / "d")
    part(tmp_path / "e" / "caption=x" / "a.parquet", ["a"])
    with pytest.raises(UsageError, match="'caption' is in the file and in its folder's name"):
        open_prompts(tmp_path / "e")


def test_patterns(tmp_path: Path) -> None:
    for i in (10, 9, 8):
        (tmp_path / f"{i:05d}.txt").write_text(f"p{i}\n")
    assert prompts(tmp_path / "{00008..00010}.txt") == ["p8", "p9", "p10"]
    assert prompts(tmp_path / "{00010,0000[89]}.txt") == ["p10", "p8", "p9"]
    assert prompts(tmp_path / "*.txt") == ["p8", "p9", "p10"]
    with pytest.raises(UsageError, match="00011.txt: no such file"):
        input_files(tmp_path / "{00010..00011}.txt")
    (tmp_path / "a[1]{2}.txt").write_text("literal")
    assert prompts(tmp_path / "a[1]{2}.txt") == ["literal"]
    (tmp_path / "x.csv").write_text("prompt\na\n")
    with pytest.raises(UsageError, match=r"several kinds \(\.csv, \.txt\)"):
        input_files(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="no file there"):
        input_files(tmp_path / "none")


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for path, text in ((here / "b" / "p.txt", "b"), (there / "p.txt", "there")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    (here / "a").symlink_to(there)
    assert prompts(here) == prompts(here / "**" / "*.txt") == ["there", "b"]
    digest = input_sha256(here)
    # links to a folder above are not followed again
    (there / "up").symlink_to(here)
    (here / "b" / "self").symlink_to(here / "b")
    assert [file.name for file in input_files(here)] == ["a/p.txt", "b/p.txt"]
    assert input_sha256(here) == digest
    (there / "p.txt").write_text("other")
    assert input_sha256(here) != digest


def test_types_are_joined_or_refused_by_name(tmp_path: Path) -> None:
    part(tmp_path / "a.parquet", ["a"], n=pa.array([2**40], pa.int64()), t=["x"])
    large = pa.array(["y"], pa.large_string())
    part(tmp_path / "b.parquet", ["b"], n=pa.array([1], pa.int8()), t=large)
    part(tmp_path / "c.parquet", ["c"], t=pa.nulls(1), n=pa.nulls(1))
    reader = open_prompts(tmp_path)
    assert [str(kind) for kind in reader.schema.types] == ["int64", "large_string"]
    assert [row["n"] for row in read_all(tmp_path)] == [2**40, 1, None]
    bad = part(tmp_path / "d.parquet", ["d"], n=["one"], t=["z"])
    with pytest.raises(UsageError, match=r"d\.parquet: column 'n' is string, but int64 in earlier"):
        open_prompts(tmp_path)
    pq.write_table(pa.table({"caption": ["d"], "n": [1]}), bad)
    with pytest.raises(UsageError, match=r"d\.parquet: no column 't', which .*a\.parquet has"):
        open_prompts(tmp_path)
    part(bad, ["d"], n=[1], t=["z"], more=[1])
    with pytest.raises(UsageError, match=r"a\.parquet: no column 'more', which .*d\.parquet has"):
        open_prompts(tmp_path)
    pq.write_table(pa.table({"TEXT": ["d"], "n": [1], "t": ["z"]}), bad)
    with pytest.raises(UsageError, match=r"d\.parquet: no column 'caption'"):
        open_prompts(tmp_path)
    bad.write_bytes(bad.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"d\.parquet: not a readable parquet file"):
        open_prompts(tmp_path)


def test_a_damaged_row_group_names_its_file(model: Any, laion: Path, tmp_path: Path) -> None:
    path = laion / "year=2020" / "lang=en" / "part-0.parquet"
    page = pq.read_metadata(path).row_group(1).column(0).dictionary_page_offset
    data = bytearray(path.read_bytes())
    data[page : page + 8] = b"\xff" * 8
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"lang=en/part-0\.parquet: row group 1 of 2 cannot"):
        scanned(model, laion, tmp_path / "run", detector=Spelling(), shard_size=2)
    shards = sorted((tmp_path / "run" / "shards").iterdir())
    before = [row for shard in shards for row in pq.read_table(shard)["prompt"].to_pylist()]
    assert before == ["p3", "p4", "p5", "p0"]


def test_text_files_are_joined_too(tmp_path: Path) -> None:
    for n, value in ((1, 1), (2, 0.5)):
        path = tmp_path / f"n={n}" / "p.jsonl"
        path.parent.mkdir()
        path.write_text(json.dumps({"prompt": f"p{n}", "x": value}) + "\nnot json\n")
    rows = read_all(tmp_path)
    assert [(row["prompt"], row["x"], row["n"]) for row in rows] == [
        ("p1", 1.0, 1), (None, None, 1), ("p2", 0.5, 2), (None, None, 2),
    ]  # fmt: skip


def test_keys_without_a_value_in_one_file(tmp_path: Path) -> None:
    for name, values in (("a", ["null"] * 4), ("b", ["1", "0.5", "true", '"x"'])):
        pairs = ", ".join(f'"k{i}": {value}' for i, value in enumerate(values))
        (tmp_path / f"{name}.jsonl").write_text(f'{{"prompt": "{name}", {pairs}}}')
    assert open_prompts(tmp_path / "a.jsonl").schema.types == [pa.null()] * 4
    rows = [list(row.values())[2:] for row in read_all(tmp_path)]
    assert rows == [[None] * 4, [1, 0.5, True, "x"]]
    assert [str(kind) for kind in open_prompts(tmp_path).schema.types] == [
        "int64", "double", "bool", "string",
    ]  # fmt: skip


def test_the_digest_knows_files_names_and_order(tmp_path: Path) -> None:
    a = part(tmp_path / "d" / "k=1" / "a.parquet", ["a"])
    part(tmp_path / "d" / "k=2" / "b.parquet", ["b"])
    seen = {input_sha256(tmp_path / "d")}
    assert input_sha256(tmp_path / "d") in seen
    seen.add(input_sha256(tmp_path / "d" / "k={2,1}" / "*.parquet"))
    a.parent.rename(tmp_path / "d" / "k=3")
    seen.add(input_sha256(tmp_path / "d"))
    part(tmp_path / "d" / "k=3" / "a.parquet", ["A"])
    seen.add(input_sha256(tmp_path / "d"))
    assert len(seen) == 4
    (tmp_path / "d").rename(tmp_path / "elsewhere")
    assert input_sha256(tmp_path / "elsewhere") in seen


def test_no_file_counts_twice(tmp_path: Path) -> None:
    for name in ("v1/p.txt", "v2/p.txt", "blob"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "v2" / "up").symlink_to(tmp_path / "v2")
    for pattern in ("v2/**/*.txt", "v{1,1}/*.txt", "v{1,*}/*.txt"):
        with pytest.raises(UsageError, match="its rows would count twice"):
            input_files(tmp_path / pattern)
    # equal files of a cache are links to one blob
    for name in ("a.txt", "b.txt"):
        (tmp_path / "v1" / name).symlink_to("../blob")
    assert prompts(tmp_path / "v1") == ["blob", "blob", "v1/p.txt"]
    (tmp_path / "v1" / "c.txt").symlink_to("p.txt")
    with pytest.raises(UsageError, match=r"c\.txt: the same file as .*p\.txt, by a link"):
        input_files(tmp_path / "v1")
    (tmp_path / "v1" / "c.txt").unlink()
    (tmp_path / "latest").symlink_to("v1")
    with pytest.raises(UsageError, match="by a link"):
        input_files(tmp_path)


def test_braces_of_too_many_numbers(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"stands for 1,000,000,000 files; check the numbers"):
        input_files(tmp_path / "{0..999999999}.txt")
