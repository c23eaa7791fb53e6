"""Line ends and byte order marks: every file has the lines that its writer meant, or is refused."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from dori_fast.runs.sources.lines import read_lines
from dori_fast.runs.sources.open import open_prompts
from tests.runs.inputs import prompts, read_all, refusal, write

THREE = ["a red boat", "the old clock", "a green door"]
LISTS = {
    "p.txt": THREE,
    "p.csv": ["prompt,n", *(f"{text},{n}" for n, text in enumerate(THREE))],
    "p.tsv": ["prompt\tn", *(f"{text}\t{n}" for n, text in enumerate(THREE))],
    "p.jsonl": [f'{{"prompt": "{text}"}}' for text in THREE],
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
def test_every_line_end_with_and_without_the_last(tmp_path: Path, name: str, end: str) -> None:
    text = end.join(LISTS[name])
    for mark in ("", "\ufeff", "\ufeff\ufeff"):
        assert prompts(write(tmp_path / name, mark + text)) == THREE
        assert prompts(write(tmp_path / name, mark + text + end)) == THREE


def test_no_other_character_ends_a_line(tmp_path: Path) -> None:
    text = "a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g"
    for end in ("\n", "\r"):
        assert prompts(write(tmp_path / "p.txt", f"{text}{end}x{end}")) == [text, "x"]
        table = write(tmp_path / "p.csv", f"prompt{end}{text}{end}x{end}")
        assert prompts(table) == [text, "x"]


def test_a_return_within_a_prompt_stays(tmp_path: Path) -> None:
    assert prompts(write(tmp_path / "p.txt", "one\rtwo\nthree\n")) == ["one\rtwo", "three"]
    assert prompts(write(tmp_path / "p.txt", "one\rtwo\n")) == ["one\rtwo"]
    cells = 'prompt,n\n"a\rb\rc\rd",1\ne,2\n'
    assert prompts(write(tmp_path / "p.csv", cells)) == ["a\rb\rc\rd", "e"]
    feeds = 'prompt,n\r"a\nb\nc",1\re,2\r'
    assert prompts(write(tmp_path / "p.csv", feeds)) == ["a\nb\nc", "e"]
    header = '"the\rprompt",n\na,1\n'
    assert prompts(write(tmp_path / "p.csv", header), "the\rprompt") == ["a"]


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl"])
def test_line_ends_of_two_kinds_are_refused(tmp_path: Path, name: str) -> None:
    for text in ("a\rb\rc\n", "a\rb\rc\r\n", "a\nb\nc\rd\re\r", "a\r" * 700_000 + "b\n"):
        message = refusal(
            lambda text=text: (
                open_prompts(write(tmp_path / name, text)) and read_all(tmp_path / name)
            )
        )
        assert message.endswith("convert all to LF") and "are CR" in message


def test_rows_of_a_table_with_other_line_ends_are_quarantined(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", "prompt,n\ra,1\rb,2\nc,3\r")
    assert prompts(path) == ["a", None]
    path = write(tmp_path / "p.csv", "prompt,n\na,1\nb,2\rc,3\rd,4\re,5\n")
    rows = read_all(path)
    assert [row["prompt"] for row in rows] == ["a", None]
    assert "convert all line ends to LF" in rows[1]["error"]


def test_classic_lines_take_constant_memory_and_keep_offsets(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.txt", b"\xef\xbb\xbf" + b"a line of text\r" * 1_000_000 + b"caf\xe9\r"
    )
    tracemalloc.start()
    count = 0
    for line in read_lines(path, 8):
        count += 1
        assert len(line.raw) <= 8
    assert tracemalloc.get_traced_memory()[1] < 16e6
    tracemalloc.stop()
    assert (count, line.raw, line.offset) == (1_000_001, b"caf\xe9\r", 3 + 15_000_000)
    error = read_all(path, size=10**6)[-1]["error"]
    assert error == "encoding: invalid UTF-8, byte 0xE9 at offset 15000006 of the file"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("name", LISTS)
def test_wide_text_without_a_mark_is_refused(tmp_path: Path, name: str, encoding: str) -> None:
    path = write(tmp_path / name, "\n".join(LISTS[name]).encode(encoding))
    assert "UTF-16 or UTF-32 text; convert it to UTF-8" in refusal(lambda: read_all(path))


def test_marks_inside_a_file(tmp_path: Path) -> None:
    joined = "\ufeff".join(f"{line}\n" for line in LISTS["p.jsonl"])
    assert prompts(write(tmp_path / "p.jsonl", joined)) == THREE
    quoted = '\ufeff"prompt","n"\n"a","1"\n'
    assert read_all(write(tmp_path / "p.csv", quoted)) == [{"prompt": "a", "error": None, "n": "1"}]
    # within a text it is a character like others
    assert prompts(write(tmp_path / "p.txt", "a\n\ufeffb\n")) == ["a", "\ufeffb"]


def test_lines_of_a_classic_file_joined_with_another_are_quarantined(tmp_path: Path) -> None:
    path = write(tmp_path / "p.txt", "a\rb\rc\rd\n" + "e\r\n" * 9)
    rows = read_all(path)
    assert [row["prompt"] for row in rows] == [None, *"e" * 9]
    assert rows[0]["error"].startswith("malformed: 3 CR within the line")
