"""CSV files without a header: no row is lost, and runs with and without one are different runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import dori_fast
from dori_fast.errors import IntegrityError
from dori_fast.runs.dedup.dedup import DedupRecord, dedup
from dori_fast.runs.sources.open import open_prompts
from dori_fast.runs.sources.where import Selection
from tests.runs.inputs import refusal, write
from tests.runs.scanning import Spelling, scanned

THREE = ["a red boat on the river", "the old clock tower at noon", "a green door"]
ONE = "".join(f"{text}\n" for text in THREE)
TWO = "".join(f'"{text}",{n}\n' for n, text in enumerate(THREE))


def rows(path: Path, column: str | None = None, **how: Any) -> list[str | None]:
    reader = open_prompts(path, column, Selection.of(**{"header": False, **how}))
    return [prompt for chunk in reader.chunks(2) for prompt in chunk.prompts]


def test_the_only_column_is_the_prompts(tmp_path: Path) -> None:
    for text in (ONE, ONE.replace("\n", "\r\n"), ONE.replace("\n", "\r"), "\ufeff" + ONE):
        for name in ("p.csv", "p.tsv"):
            assert rows(write(tmp_path / name, text)) == THREE
    quoted = write(tmp_path / "p.csv", '"a, b"\n"c ""d"", e"\n"f\ng"\n')
    assert rows(quoted) == ["a, b", 'c "d", e', "f\ng"]
    unquoted = write(tmp_path / "p.csv", "a, b, c\nd\ne, f\n")
    assert rows(unquoted) == ["a, b, c", "d", "e, f"]


def test_columns_are_named_by_position(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", TWO)
    assert rows(path, "1") == rows(path, "column_1") == THREE
    assert rows(path, "2") == ["0", "1", "2"]
    assert rows(path, "1", where=["column_2 > 0"]) == THREE[1:]
    assert open_prompts(path, "1", Selection.of(header=False)).schema.names == ["column_2"]
    message = refusal(lambda: rows(path))
    assert "column_1 ('a red boat on the river'), column_2 ('0'); name it with --column" in message
    assert "no column 'caption' without a header" in refusal(lambda: rows(path, "caption"))


def test_the_error_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    for text in (ONE, TWO):
        write(path, text)
        assert "use --no-header if the first line is" in refusal(lambda: open_prompts(path))
        message = refusal(lambda: open_prompts(path, THREE[0]))
        assert "reads like a prompt; use --no-header" in message
        # who says that it is a header gets one
        assert rows(path, THREE[0], header=True) == THREE[1:]


def test_a_header_is_no_row(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", f"n,caption\n1,{THREE[0]}\n")
    message = refusal(lambda: rows(path, "2"))
    assert "has the column name 'caption', so it is a header; leave --no-header out" in message


def test_files_of_other_kinds_have_none(tmp_path: Path) -> None:
    assert rows(write(tmp_path / "p.txt", ONE)) == THREE
    assert rows(write(tmp_path / "p.jsonl", '{"prompt": "a"}')) == ["a"]


def test_damaged_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", "a,1\n" * 9 + 'b\n"c,3\nd,4\n')
    reader = open_prompts(path, "1", Selection.of(header=False))
    errors = [error for chunk in reader.chunks(99) for error in chunk.errors][8:]
    assert errors[0] is None and errors[1] == "malformed: 1 fields where the first line has 2"
    assert str(errors[2]).startswith("malformed: ") and errors[3] is None


def test_a_scan_with_and_one_without_a_header_do_not_mix(model: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", "column_1\nb\nc\n")
    out = tmp_path / "run"
    with_header = scanned(model, path, out, detector=Spelling(), column="column_1")
    assert [row["prompt"] for row in with_header.rows()] == ["b", "c"]
    with pytest.raises(IntegrityError, match="header"):
        scanned(model, path, out, detector=Spelling(), column="column_1", header=False)
    without = scanned(model, path, tmp_path / "other", detector=Spelling(), header=False)
    assert [row["prompt"] for row in without.rows()] == ["column_1", "b", "c"]
    assert without.run_hash != with_header.run_hash
    # a header that is there by default or by name is the same run
    again = scanned(model, path, out, detector=Spelling(), column="column_1", header=True)
    assert again.scored == 0 and again.run_hash == with_header.run_hash


def test_calibrate_estimate_and_dedup(model: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", ONE)
    record = dori_fast.calibrate(
        model, path, out=tmp_path / "c.json", detector=Spelling(), header=False, suspicious=path
    )
    assert (record.rows, len(record.suspicious)) == (3, 3)
    from dori_fast.runs.estimate import estimate

    assert estimate(model, path, detector=Spelling(), header=False).rows == 3
    pytest.importorskip("duckdb")
    assert dedup(model, path, out=tmp_path / "once", header=False).rows == 3
    assert DedupRecord.read(tmp_path / "once").header is False
    plain = write(tmp_path / "q.csv", "prompt\na\n")
    dedup(model, plain, out=tmp_path / "plain")
    assert "header" not in (tmp_path / "plain" / "dedup.json").read_text()


def test_a_first_row_that_reads_like_a_prompt_is_no_header(tmp_path: Path) -> None:
    for text in ("a green door\na cat\n", "red boat,1\ngreen door,2\n", "red boat;0.5\nb;-1\n"):
        path = write(tmp_path / "p.csv", text)
        name = text.split("\n", 1)[0].split(",")[0].split(";")[0]
        assert "reads like a prompt" in refusal(lambda p=path, n=name: rows(p, n, header=None))
        assert len(rows(path, name, header=True)) == 1
    for text in ("image description\na\n", "desc,2019\na,1\n", "the image prompt,n\na,1\n"):
        path = write(tmp_path / "p.csv", text)
        assert rows(path, text.split("\n", 1)[0].split(",")[0], header=None) == ["a"]


@pytest.mark.parametrize("header", [None, True, False])
def test_the_mark_that_excel_writes_is_neither_header_nor_row(
    tmp_path: Path, header: bool | None
) -> None:
    for mark in ("sep=;", "sep=,", '"sep=;"', "SEP=\t", "\ufeffsep=;"):
        for end in ("\n", "\r\n", "\r"):
            path = write(tmp_path / "p.csv", end.join([mark, "prompt;n", "a;1", ""]))
            assert "remove that line" in refusal(lambda p=path: rows(p, header=header))
