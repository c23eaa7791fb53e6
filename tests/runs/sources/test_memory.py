"""Prompts in memory of every library: their prompt column is read, or the error says why not."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import dori_fast
from dori_fast.errors import UsageError
from dori_fast.runs.dedup.dedup import dedup
from dori_fast.runs.errors import OverBudgetError
from dori_fast.runs.methods.prune import statistics_of
from dori_fast.runs.sources.open import input_sha256, open_prompts, prompts_on_disk
from tests.runs.inputs import NASTY, read_all, refusal
from tests.runs.scanning import Spelling, scanned

THREE = ["a red boat", "the old clock", "a green door"]
COLUMNS = {"kind": ["x", "y", "z"], "caption": THREE, "n": [1, 2, 3]}
ROWS = [dict(zip(COLUMNS, row, strict=True)) for row in zip(*COLUMNS.values(), strict=True)]


def read(given: Any, column: str | None = None) -> list[dict[str, Any]]:
    with prompts_on_disk(given) as path:
        return read_all(path, column)


class Frame:
    """A frame of a library that is not known here; iterating it gives the names of its columns."""

    columns = tuple(COLUMNS)

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __getitem__(self, name: str) -> list[Any]:
        return COLUMNS[name]


class Exporter:
    """A table that is known by its Arrow stream alone, as those of polars and DuckDB."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return pa.table(COLUMNS).__arrow_c_stream__(requested_schema)


def tables() -> dict[str, Any]:
    table = pa.table(COLUMNS)
    records = np.rec.fromarrays([*map(np.array, COLUMNS.values())], names=[*COLUMNS])
    return {
        "dict": COLUMNS,
        "dict of arrays": {name: np.array(values) for name, values in COLUMNS.items()},
        "dict of columns": dict(zip(table.column_names, table.columns, strict=True)),
        "rows": ROWS,
        "rows from a generator": (row for row in ROWS),
        "frame": Frame(),
        "stream": Exporter(),
        "table": table,
        "table of chunks": pa.concat_tables([table.slice(0, 1), table.slice(1)]),
        "batch": table.to_batches()[0],
        "reader": table.to_reader(),
        "structs": pa.array(ROWS),
        "chunked structs": pa.chunked_array([pa.array(ROWS[:2]), pa.array(ROWS[2:])]),
        "records": records,
    }


def test_tables_are_read_like_files() -> None:
    for name, given in tables().items():
        assert read(given) == [
            {"prompt": p, "error": None, "kind": k, "n": n}
            for k, p, n in zip(*COLUMNS.values(), strict=True)
        ], name
    for name, given in tables().items():
        assert [row["prompt"] for row in read(given, "kind")] == ["x", "y", "z"], name


def test_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"n": [3, 1, 2], "prompt": ["a", None, "c"]}, index=[7, 8, 9])
    for given in (frame, frame.convert_dtypes(), frame[frame.n > 0]):
        assert [(row["prompt"], row["n"]) for row in read(given)] == [("a", 3), (None, 1), ("c", 2)]
        assert list(read(given)[0]) == ["prompt", "error", "n"]
    assert [row["error"] for row in read(frame["prompt"])] == [
        None,
        "null: the row has no prompt",
        None,
    ]
    assert [row["prompt"] for row in read(frame.prompt.dropna())] == ["a", "c"]
    for values in (frame.prompt.array, pandas.Index(frame.prompt), frame.prompt.astype("string")):
        assert [row["prompt"] for row in read(values)] == ["a", None, "c"]
    categories = pandas.DataFrame({"prompt": pandas.Categorical(THREE * 500)})
    assert [row["prompt"] for row in read(categories)] == THREE * 500
    assert [row["prompt"] for row in read(pandas.Series(NASTY))] == NASTY
    message = refusal(lambda: read(pandas.DataFrame({"a": [object()], "prompt": ["b"]})))
    assert message.startswith("a DataFrame that is no table of columns")
    twice = pandas.DataFrame([["a", "b"]], columns=["prompt", "prompt"])
    assert "DataFrame" in refusal(lambda: read(twice))


@pytest.mark.needs("datasets")
def test_datasets() -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_dict({"prompt": [f"p{i}" for i in range(3000)], "n": range(3000)})
    assert [row["n"] for row in read(whole)] == list(range(3000))
    # an order of its own, which the files do not have
    chosen = whole.shuffle(seed=0).select(range(5, 9))
    expected = [(row["prompt"], row["n"]) for row in chosen]
    assert [(row["prompt"], row["n"]) for row in read(chosen)] == expected
    streamed = whole.to_iterable_dataset().filter(lambda row: row["n"] % 1000 == 1)
    assert [row["prompt"] for row in read(streamed)] == ["p1", "p1001", "p2001"]
    assert [row["prompt"] for row in read(chosen["prompt"])] == [prompt for prompt, _ in expected]
    both = datasets.DatasetDict(train=whole, test=chosen)
    assert "a DatasetDict of the splits 'train', 'test'; pass one" in refusal(lambda: read(both))


def test_duckdb() -> None:
    duckdb = pytest.importorskip("duckdb")
    relation = duckdb.connect().sql("SELECT 'p' || range AS prompt, range AS n FROM range(3)")
    assert [(row["prompt"], row["n"]) for row in read(relation)] == [
        ("p0", 0),
        ("p1", 1),
        ("p2", 2),
    ]


def test_columns_are_lists_of_prompts() -> None:
    for given in (
        THREE, tuple(THREE), iter(THREE), (text for text in THREE), dict.fromkeys(THREE).keys(),
        np.array(THREE), np.array(THREE, object), pa.array(THREE), pa.chunked_array([THREE, []]),
        pa.array(THREE).dictionary_encode(),
    ):  # fmt: skip
        assert read(given) == [{"prompt": text, "error": None} for text in THREE]
    assert [row["error"] for row in read(pa.array(["a", None]))][1].startswith("null")
    assert read([]) == read(pa.array([], pa.string())) == read(pa.table({"prompt": []})) == []


def test_the_first_prompt_may_be_missing() -> None:
    assert [row["prompt"] for row in read([None, "a"])] == [None, "a"]


def test_the_digest_of_a_list_and_of_a_table_is_that_of_its_rows() -> None:
    def digest(given: Any) -> str:
        with prompts_on_disk(given) as path:
            return input_sha256(path)

    assert (
        digest(THREE) == digest(iter(THREE)) == digest(np.array(THREE)) == digest(pa.array(THREE))
    )
    # as written before tables were read
    assert digest(["a", None, 3]) == digest(pa.array(["a", None, "x"]).to_pylist()[:2] + [3])
    long = pa.table({"prompt": [f"p{i}" for i in range(5000)]})
    cut = pa.concat_tables([long.slice(0, 1500), long.slice(1500, 1), long.slice(1501)])
    assert digest(long) == digest(cut) == digest({"prompt": long["prompt"].to_pylist()})
    assert digest(long) != digest(long.slice(1))


REFUSED = [
    (None, "prompts=None; pass a list of str"),
    (b"a cat", "bytes where text was expected; decode it"),
    (bytearray(b"a"), "bytearray where text"),
    ({"a", "b"}, "a set has another order in every process, so no run could be resumed"),
    (frozenset("a"), "pass sorted(prompts)"),
    ({}, "an empty dict"),
    ({"prompt": "a cat"}, "a str in place of a column's values"),
    ({"a cat": np.zeros((2, 2, 3))}, "a dict that is no table of columns"),
    ({1: "a", 2: "b"}, "keys 1, 2, no names of columns"),
    ({"prompt": ["a"], "n": [1, 2]}, "a dict that is no table of columns"),
    ({"words": ["a"]}, "the dict of prompts: no prompt column among 'words'; name it with column="),
    ([{"words": "a"}], "the list of prompts: no prompt key among 'words'; name it with column="),
    (np.array([["a", "b"]]), "an array of shape (1, 2); pass one dimension"),
    (np.array("a"), "an array of shape (); pass one dimension"),
    (io.StringIO("a\nb\n"), "an open file"),
    (3, "a int, which holds none"),
    (SimpleNamespace(columns=["a"], __getitem__=0), "a SimpleNamespace that is no table"),
    ("a key", "prompts='a key': no such file or folder; check the path, or pass a list"),
    ("What is [this]? *", "no such file or folder; check the path, or pass a list"),
    ("x" * 5000, "no such file or folder"),
    ("a\0b", "no such file or folder"),
    ("", "no such file or folder"),
]  # fmt: skip


@pytest.mark.parametrize(
    "given", [given for given, _ in REFUSED], ids=lambda given: type(given).__name__
)
def test_what_is_no_prompts(given: Any) -> None:
    expected = next(message for other, message in REFUSED if other is given)
    message = refusal(lambda: read(given))
    assert expected in message and "\n" not in message and "/tmp" not in message


def test_a_list_of_files_is_no_list_of_prompts(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    for given in ([tmp_path / "p.txt"], [str(tmp_path / "p.txt")], iter([Path("none.csv")])):
        message = refusal(lambda given=given: read(given))
        assert "a list that begins with the file" in message and "pass one path" in message
    assert [row["prompt"] for row in read(["none.txt", "a cat"])] == ["none.txt", "a cat"]


def test_rows_that_are_not_all_objects_are_quarantined() -> None:
    rows = read([{"prompt": "a", "at": np.int64(3), "o": object()}, "b", {"prompt": b"c"}])
    assert [row["prompt"] for row in rows] == ["a", None, None]
    assert (rows[0]["at"], rows[0]["o"]) == (3, '{"type": "object"}')
    assert [row["error"] and row["error"].split(":")[0] for row in rows] == [
        None,
        "malformed",
        "type",
    ]


def test_every_call_reads_them_alike(model: Any, tmp_path: Path) -> None:
    frame = Frame()
    scan = scanned(model, frame, tmp_path / "run", detector=Spelling())
    assert [(row["prompt"], row["n"]) for row in scan.rows()] == [
        *zip(THREE, [1, 2, 3], strict=True)
    ]
    assert scanned(model, frame, tmp_path / "run", detector=Spelling()).scored == 0
    some = scanned(
        model, frame, tmp_path / "some", detector=Spelling(), where=["n > 1"], keep=["kind"]
    )
    assert [row["prompt"] for row in some.rows()] == THREE[1:]
    record = dori_fast.calibrate(
        model, frame, out=tmp_path / "c.json", detector=Spelling(), suspicious=pa.table(COLUMNS)
    )
    assert (record.rows, len(record.suspicious)) == (3, 3)
    from dori_fast.runs.estimate import estimate

    assert estimate(model, frame, detector=Spelling()).rows == 3
    assert statistics_of(model, frame).count == 3
    with pytest.raises(UsageError, match=r"dedup: reads prompts from files, not from a Frame"):
        dedup(model, frame, out=tmp_path / "once")
    for call in (dori_fast.scan, dori_fast.calibrate):
        with pytest.raises(UsageError, match="'a key': no such file or folder"):
            call(model, "a key", out=tmp_path / "other")
    with pytest.raises(OverBudgetError, match="the list of prompts: 1 of 1 rows failed, the fi"):
        dori_fast.calibrate(model, [None], out=tmp_path / "d.json", detector=Spelling())
    with pytest.raises(OverBudgetError, match="correct the input, or raise max_errors="):
        dori_fast.calibrate(model, ["a", None], out=tmp_path / "d.json", detector=Spelling())


def test_paths_are_still_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a key.txt").write_text("a\n")
    for path in ("a key.txt", "*.txt", "a key.{txt}", str(tmp_path), Path("a key.txt")):
        with prompts_on_disk(path) as found:
            assert [r.prompts for r in open_prompts(found).chunks(9)] == [["a"]]


@pytest.mark.parametrize("error", [ValueError("no\nmore"), OSError(5, "gone"), ZeroDivisionError()])
def test_a_generator_that_fails_is_named(error: Exception) -> None:
    def values() -> Iterator[str]:
        yield "a"
        raise error

    for given in (values(), ({"prompt": value} for value in values())):
        message = refusal(lambda given=given: read(given))
        assert f"the generator raised {type(error).__name__}" in message
        assert "after 1 parts" in message and "\n" not in message and "free" not in message


def test_a_row_of_a_frame_and_labels_are_no_list() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"prompt": THREE, "kind": THREE})
    assert "so one row of a table" in refusal(lambda: read(frame.iloc[0]))
    labelled = pandas.Series(THREE, index=["x", "y", "z"])
    assert [row["prompt"] for row in read(labelled)] == THREE
    assert "pass one level" in refusal(lambda: read(pandas.MultiIndex.from_frame(frame)))
    mixed = pandas.DataFrame({"prompt": ["a", 1]})
    assert "(Expected bytes, got a 'int' object, Conv" in refusal(lambda: read(mixed))


def test_a_set_is_no_column() -> None:
    assert "a set in place of a column's values" in refusal(lambda: read({"prompt": {"a", "b"}}))


@pytest.mark.parametrize("column", [["prompt"], 0, b"prompt"])
def test_a_column_has_one_name(column: Any) -> None:
    assert "not the name of one column" in refusal(lambda: read({"prompt": THREE}, column))


def test_a_transform_of_a_dataset_is_not_passed_over() -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({"prompt": THREE})
    lower = dataset.with_transform(lambda rows: {"prompt": ["x" for _ in rows["prompt"]]})
    assert "a Dataset with a transform" in refusal(lambda: read(lower))
    assert [row["prompt"] for row in read(dataset.with_format("numpy"))] == THREE
