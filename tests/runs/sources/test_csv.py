"""CSV in every dialect, compared with an independent reader; damaged rows in quarantine."""

from __future__ import annotations

import csv
import io
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dori_fast.errors import UsageError
from dori_fast.runs.sources import csv as csv_file
from dori_fast.runs.sources.open import open_prompts
from tests.runs.inputs import NASTY, TEXT, codes, csv_text, prompts, read_all, write


def test_nasty_text_in_every_dialect(tmp_path: Path) -> None:
    rows = [["id", "Caption", "url"], *([str(i), t, t] for i, t in enumerate(NASTY))]
    expected = [(str(i), text, text) for i, text in enumerate(NASTY)]
    wrong = []
    for dialect in product([".csv", ".tsv"], ",;\t|", ["\n", "\r\n"]):
        suffix, separator, end = dialect
        read = read_all(write(tmp_path / f"p{suffix}", csv_text(rows, separator, end)))
        if [(row["id"], row["prompt"], row["url"]) for row in read] != expected:
            wrong.append(dialect)
    assert wrong == []


@given(
    st.lists(st.tuples(TEXT, TEXT), max_size=20),
    st.sampled_from(",;\t|"),
    st.integers(1, 7),
)
@settings(max_examples=100, deadline=None)
def test_round_trip(
    tmp_path_factory: Any, pairs: list[tuple[str, str]], separator: str, size: int
) -> None:
    text = csv_text([["note", "prompt"], *map(list, pairs)], separator, "\r\n")
    path = write(tmp_path_factory.mktemp("c") / "p.csv", text)
    expected = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))[1:]
    read = read_all(path, size=size)
    assert [[row["note"], row["prompt"]] for row in read] == expected
    assert [row["prompt"] for row in read] == [prompt for _, prompt in pairs]


def test_nemo_file(tmp_path: Path) -> None:
    text = (
        ";Caption;URL;type;mean_sscd;max_sscd;Index\n"
        "0;The No Limits; Podcast?;u;VM;0.8;0.9;1\n"
        '1;"Full; ""body"", U-Zip";https://x/y;TM;0.19;0.2;2026642560\n'
    )
    rows = read_all(write(tmp_path / "memorized.csv", text))
    assert rows[0]["error"] == "malformed: 8 fields where the header has 7"
    assert rows[1] == {
        "prompt": 'Full; "body", U-Zip',
        "error": None,
        "unnamed_0": "1",
        "URL": "https://x/y",
        "type": "TM",
        "mean_sscd": "0.19",
        "max_sscd": "0.2",
        "Index": "2026642560",
    }


def test_single_column_may_hold_separators(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", "prompt\na, b\nc, d, e\nf\n")
    assert prompts(path) == ["a, b", "c, d, e", "f"]


def test_invalid_byte_in_the_prompt_is_found_in_the_file(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbfnote,prompt\n\xff\xfe,"two\nli\xe9nes"\n\xe9,fine\n'
    rows = read_all(write(tmp_path / "p.csv", data))
    at = data.index(b"\xe9nes")
    assert rows[0]["error"] == f"encoding: invalid UTF-8, byte 0xE9 at offset {at} of the file"
    assert rows[0]["note"] == "\\xff\\xfe"
    assert (rows[1]["prompt"], rows[1]["note"]) == ("fine", "\\xe9")


def test_a_quote_that_never_closes_costs_one_row(tmp_path: Path) -> None:
    body = "".join(f"{i},row {i}\n" for i in range(200))
    text = f'id,prompt\n{body}x,"never closed\n{body}'
    path = write(tmp_path / "p.csv", text)
    found = codes(path)
    assert found == [None] * 200 + ["malformed"] + [None] * 200
    assert prompts(path)[201] == "row 0"


def test_a_quote_that_never_closes_is_bounded(tmp_path: Path) -> None:
    filler = "y" * 99_995 + "\n"
    text = 'id,prompt\n1,"open\n' + f"2,{filler}" * 200
    found = codes(write(tmp_path / "p.csv", text))
    assert found == ["malformed"] + [None] * 200


def test_quotes_that_open_on_every_line_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = 0

    class Counted(csv_file._Feed):
        def __next__(self) -> str:
            nonlocal fed
            fed += 1
            return super().__next__()

    monkeypatch.setattr(csv_file, "_Feed", Counted)
    path = write(tmp_path / "p.csv", "a,prompt\n" + 'b","x\n' * 2000 + "1,fine\n")
    reader = open_prompts(path)
    fed = 0
    errors = [error for chunk in reader.chunks(500) for error in chunk.errors]
    assert errors == ["malformed: unexpected end of data"] * 2000 + [None]
    assert fed < 4 * 2000


@given(
    st.lists(st.sampled_from(['b","x', "1,a", '"', '1,"a', '",2', '1,""', '"a"b', ""]), max_size=12)
)
@settings(max_examples=300, deadline=None)
def test_what_fails_again_fails_as_if_it_were_read(tmp_path_factory: Any, body: list[str]) -> None:
    lines = ["a,prompt", *body, "1,end"]
    path = write(tmp_path_factory.mktemp("c") / "p.csv", "".join(f"{line}\n" for line in lines))
    expected, start = [], 1
    while start < len(lines):
        reader = csv.reader((f"{line}\n" for line in lines[start:]), strict=True)
        try:
            cells = next(reader)
        except csv.Error as error:
            expected.append(f"malformed: {error}")
            start += 1
            continue
        start += reader.line_num
        if cells:
            count = f"malformed: {len(cells)} fields where the header has 2"
            expected.append(None if len(cells) == 2 else count)
    assert [row["error"] for row in read_all(path)] == expected


def test_text_after_a_closing_quote_is_not_guessed_at(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", 'id,prompt\n1,"say \\"hi\\""\n2,ok\n')
    assert codes(path) == ["malformed", None]


def test_ragged_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", "id,prompt,url\n1,a,u\n2,b\n3,c,u,extra\n\n4,d,u\n")
    assert codes(path) == [None, "malformed", "malformed", None]


def test_long_prompts(tmp_path: Path) -> None:
    text = csv_text([["prompt"], ["x" * 1_000_000], ["x" * 1_000_001], ["y"]])
    assert codes(write(tmp_path / "p.csv", text)) == [None, "too_long", None]


def test_a_line_over_the_record_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", "id,prompt\n1," + "x" * 20_000_000 + "\n2,ok\n")
    assert codes(path) == ["malformed", None]


def test_header_only(tmp_path: Path) -> None:
    assert read_all(write(tmp_path / "p.csv", "id;TEXT\n")) == []


def test_usual_names_in_order(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", "Prompt,text,caption\nP,t,c\n")
    assert prompts(path) == ["c"]
    assert prompts(path, "Prompt") == ["P"]


def test_clashing_and_repeated_names(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", "score,x,x,,caption,prompt,status\n1,2,3,4,5,6,7\n")
    reader = open_prompts(path, "caption")
    names = ["source_score", "x", "x_2", "unnamed_3", "source_prompt", "source_status"]
    assert reader.schema.names == names


REFUSALS = [
    ("id,words\n1,a\n", None, "no prompt column among 'id', 'words'"),
    ("id,prompt\n1,a\n", "nope", "no column 'nope' among 'id', 'prompt'"),
    ("prompt,prompt\n1,a\n", None, "occurs twice"),
    ("", None, "empty"),
    ('"prompt\n1\n', None, "header line cannot be read"),
]


def test_refusals(tmp_path: Path) -> None:
    for data, column, message in REFUSALS:
        with pytest.raises(UsageError, match=message):
            open_prompts(write(tmp_path / "p.csv", data), column)
