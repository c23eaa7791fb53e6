"""Conditions and columns: which rows are kept and read, and their place in a run's identity."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.runs.sources.open import open_prompts
from dori_fast.runs.sources.rows import Rows, rechunk
from dori_fast.runs.sources.where import Condition, Selection
from tests.runs.inputs import refusal, write
from tests.runs.scanning import Spelling, scanned

COLUMNS = {
    "caption": ["a", "b", "c", "d", "e", None],
    "similarity": [0.1, 0.3, None, 0.5, float("nan"), 0.9],
    "status": ["success", "failed", "success", None, "success", "success"],
    "width": [512, 64, 512, 1024, 9007199254740993, 512],
    "wide file": [True, False, True, None, True, True],
}
CASES: dict[str, list[str | None]] = {
    "similarity > 0.3": ["d", None],
    "similarity>=0.3": ["b", "d", None],
    "similarity is null": ["c"],
    "status == 'success'": ["a", "c", "e", None],
    'status != "success"': ["b"],
    'status in ["failed", "gone"]': ["b"],
    "status is  not null": ["a", "b", "c", "e", None],
    "width in [64, 1024]": ["b", "d"],
    "width == 9007199254740993": ["e"],
    "width < 64.5": ["b"],
    "width < 512": ["b"],
    "width <= 512": ["a", "b", "c", None],
    "width in [64.0, 1023.5]": ["b"],
    "similarity < 99999999999999999999": ["a", "b", "d", None],
    "similarity != 0.1": ["b", "d", "e", None],
    "`wide file` == true": ["a", "c", "e", None],
    "caption > 'c'": ["d", "e"],
    "caption is not null": ["a", "b", "c", "d", "e"],
}


def kept(path: Path, *where: str, keep: list[str] | None = None) -> list[str | None]:
    chunks = list(open_prompts(path, selection=Selection.of(where, keep)).chunks(2))
    assert [chunk.first for chunk in chunks] == [2 * i for i in range(len(chunks))]
    assert [len(chunk) for chunk in chunks[:-1]] == [2] * (len(chunks) - 1)
    return [prompt for chunk in chunks for prompt in chunk.prompts]


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    pq.write_table(pa.table(COLUMNS), tmp_path / "p.parquet", row_group_size=2)
    return tmp_path / "p.parquet"


def test_parquet(parquet: Path) -> None:
    assert {where: kept(parquet, where) for where in CASES} == CASES


def test_json_lines(tmp_path: Path) -> None:
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in zip(*COLUMNS.values(), strict=True)]
    path = write(tmp_path / "p.jsonl", "\n".join(json.dumps(row) for row in rows))
    assert {where: kept(path, where) for where in CASES} == CASES


def test_conditions_are_all_to_hold(parquet: Path) -> None:
    assert kept(parquet, "similarity > 0.2", "status == 'failed'") == ["b"]
    assert kept(parquet, "similarity > 2") == []


def test_text_spells_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", "prompt,s\na,0.5\nb,-1e3\nc,none\nd,\ne, 2 \nf,9,9\n")
    # the malformed row has no s to be filtered on
    assert kept(path, "s > 0") == ["a", "e", None]
    assert kept(path, "s in [-1000]") == ["b", None]


def test_unsigned_integers_of_any_size(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    h = pa.array([2**63 + 5, 1, None], pa.uint64())
    pq.write_table(pa.table({"prompt": list("abc"), "h": h}), path, row_group_size=1)
    assert kept(path, "h > 5") == kept(path, f"h == {2**63 + 5}") == ["a"]
    assert kept(path, f"h in [1, {2**63 + 5}]") == kept(path, "h > 0.5") == ["a", "b"]
    with pytest.raises(UsageError, match="'h' is uint64, which cannot be compared by h > -1"):
        kept(path, "h > -1")


@pytest.mark.parametrize("group", [3, 6])
def test_not_a_number_is_kept_whatever_the_row_groups_say(tmp_path: Path, group: int) -> None:
    x = [5.0, float("nan"), 5.0, None, 2.0, 3.0]
    for kind in (pa.float64(), pa.float32()):
        table = pa.table({"prompt": list("abcdef"), "x": pa.array(x, kind)})
        pq.write_table(table, tmp_path / "p.parquet", row_group_size=group)
        assert kept(tmp_path / "p.parquet", "x != 5") == ["b", "e", "f"]


def test_what_cannot_be_chosen_from_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    bad = pa.Array.from_buffers(pa.string(), 2, pa.array([b"7", b"\xff"]).buffers())
    view, half = pa.array(["a", "b"], pa.string_view()), pa.array([1, 2], pa.float16())
    columns = {"prompt": ["a", "b"], "bad": bad, "view": view, "half": half, "none": pa.nulls(2)}
    pq.write_table(pa.table(columns), path)
    assert kept(path, "none > 5", keep=[]) == kept(path, "none == 'x'", keep=[]) == []
    for where in ("view == 'a'", "half > 1"):
        with pytest.raises(UsageError, match=r"p\.parquet: these columns cannot be filtered"):
            kept(path, where, keep=[])
    with pytest.raises(UsageError, match=r"p\.parquet: these columns cannot be filtered.*UTF8"):
        kept(path, "bad > 5", keep=[])


def test_what_is_not_kept_is_not_remembered() -> None:
    alive: list[weakref.ref[pa.Table]] = []
    most = 0

    def parts() -> Iterator[Rows]:
        nonlocal most
        for _ in range(50):
            empty = pa.table({"x": pa.array([], pa.int64())})
            alive.append(weakref.ref(empty))
            yield Rows(0, [], [], empty, 0.5)
            del empty
            most = max(most, sum(one() is not None for one in alive))

    assert list(rechunk(parts(), 10)) == []
    # the loop still holds one
    assert most <= 1


def test_a_row_is_judged_by_what_it_has(tmp_path: Path) -> None:
    for year in (2020, 2021):
        path = tmp_path / "d" / f"year={year}" / "p.jsonl"
        path.parent.mkdir(parents=True)
        write(path, f'{{"prompt": "p{year}", "n": 1}}\nbroken\n{{"prompt": 7, "n": 2}}\n')
    folder = tmp_path / "d"
    assert kept(folder, "year == 2021") == ["p2021", None, None]
    assert kept(folder, "year == 2021", "n == 1") == ["p2021", None]
    # a broken line and a prompt that is no text cannot be filtered on the prompt
    assert kept(folder, "year == 2021", "prompt == 'x'") == [None, None]
    assert kept(folder, "year > 2020", "prompt != 'x'", "n == 2") == [None, None]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "a\nb\n"),
        ("p.csv", "prompt\na\nb\n"),
        ("p.jsonl", '{"prompt":"a"}\n{"prompt":"b"}'),
    ],
)
def test_text_without_other_columns(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / "year=2020" / name
    path.parent.mkdir()
    write(path, text)
    (chunk,) = open_prompts(tmp_path).chunks(5)
    assert (chunk.prompts, chunk.extra["year"].to_pylist()) == (["a", "b"], [2020, 2020])
    assert kept(tmp_path, "year == 2021") == []
    assert kept(tmp_path, keep=[]) == ["a", "b"]
    if name != "p.txt":
        assert kept(path, "prompt != 'a'") == ["b"]


def test_a_prompt_column_of_any_name(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", "row_id,status,prompt\na,1,x\nb,2,y\n")
    selection = Selection.of(["row_id != 'a'", "prompt == 'y'", "status > 1"])
    (chunk,) = open_prompts(path, "row_id", selection).chunks(5)
    assert chunk.prompts == ["b"]
    assert chunk.extra.to_pydict() == {"source_status": ["2"], "source_prompt": ["y"]}


def test_a_dictionary_is_compared_as_its_values(tmp_path: Path) -> None:
    status = pa.array(["x", "y", None, "x"]).dictionary_encode()
    pq.write_table(pa.table({"prompt": list("abcd"), "status": status}), tmp_path / "p.parquet")
    assert kept(tmp_path / "p.parquet", "status == 'x'") == ["a", "d"]


def test_only_what_is_needed_is_read(parquet: Path) -> None:
    """Damage goes unnoticed where nothing needs to be read, and only there."""
    pq.write_table(
        pa.table(COLUMNS), parquet, row_group_size=2, write_page_checksum=True, use_dictionary=False
    )
    data = bytearray(parquet.read_bytes())
    for group, column in ((1, "width"), (0, "caption")):
        meta = pq.read_metadata(parquet).row_group(group)
        chunk = meta.column(list(COLUMNS).index(column))
        data[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 0xFF
    write(parquet, bytes(data))
    reader = open_prompts(parquet, selection=Selection.of(["similarity > 0.3"], ["status"]))
    assert reader.schema.names == ["source_status"]
    assert [chunk.prompts for chunk in reader.chunks(10)] == [["d", None]]
    with pytest.raises(UsageError, match="row group 1 of 3"):
        kept(parquet, "similarity > 0.3")
    with pytest.raises(UsageError, match="row group 0 of 3"):
        kept(parquet, "width > 0", keep=[])


def test_partitions_rule_out_whole_files(tmp_path: Path) -> None:
    for year in (2020, 2021):
        path = tmp_path / f"year={year}" / "p.parquet"
        path.parent.mkdir()
        pq.write_table(pa.table({"prompt": [f"p{year}"]}), path)
    assert kept(tmp_path, "year > 2020") == ["p2021"]
    spoilt = tmp_path / "year=2020" / "p.parquet"
    spoilt.write_bytes(b"PAR1" + b"\xff" * 20 + spoilt.read_bytes()[24:])
    assert kept(tmp_path, "year == 2021") == ["p2021"]
    with pytest.raises(UsageError, match="row group 0 of 1"):
        kept(tmp_path, "year == 2020")


REFUSALS = {
    "similarity": "not COLUMN OP VALUE",
    "similarity > ": "is no value",
    "status == success": "put text in quotes",
    "status is null 3": "takes no value",
    "width in 3": "a list",
    "width == [3]": "a number, text, true or false",
    "height > 3": "p.parquet: column 'height' is not among 'caption', 'similarity'",
    "width > 'x'": "p.parquet: column 'width' is int64, which cannot be compared by width > \"x\"",
    "width == true": "is int64",
    "`wide file` > 1": "is bool",
    "width > 99999999999999999999": "is int64, which cannot be compared by width > 9999999999999",
    "width in [1, 9223372036854775808]": "is int64",
    f"similarity < 1{'0' * 400}": "is double",
    "similarity in [NaN]": "is no value",
}


def test_refusals(parquet: Path) -> None:
    messages = {where: refusal(lambda where=where: kept(parquet, where)) for where in REFUSALS}
    wrong = {w: said for w, said in messages.items() if REFUSALS[w] not in said}
    assert wrong == {}


def test_a_run_remembers_its_selection(model: Any, parquet: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"detector": Spelling(), "shard_size": 2}
    out = tmp_path / "run"
    chosen = scanned(model, parquet, out, where=["width >= 512"], keep=["width"], **options)
    rows = list(chosen.rows())
    assert [(row["row_id"], row["prompt"], row["width"]) for row in rows] == [
        (0, "a", 512), (1, "c", 512), (2, "d", 1024), (3, "e", 2**53 + 1), (4, None, 512),
    ]  # fmt: skip
    again = scanned(model, parquet, out, where=["width>=512"], keep=["width"], **options)
    assert again.scored == 0
    with pytest.raises(IntegrityError, match="selection.where"):
        scanned(model, parquet, out, where=["width >= 513"], keep=["width"], **options)
    with pytest.raises(IntegrityError, match="selection.keep"):
        scanned(model, parquet, out, where=["width >= 512"], **options)


def test_conditions_have_one_spelling() -> None:
    assert str(Condition.parse(" a==1 ")) == str(Condition.parse("`a` == 1")) == "a == 1"
