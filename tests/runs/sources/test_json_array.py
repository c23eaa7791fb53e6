"""JSON documents as prompts, files of kinds that are read only if named, and kinds that are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pytest

from dori_fast.runs.sources.json import array
from dori_fast.runs.sources.open import open_prompts
from dori_fast.runs.sources.where import Selection
from tests.runs.inputs import NASTY, codes, prompts, read_all, refusal, write

COCO = {
    "info": {"year": 2017},
    "images": [{"id": 9, "file_name": "000009.jpg"}, {"id": 7, "file_name": "000007.jpg"}],
    "annotations": [
        {"image_id": 7, "id": 38, "caption": "A bicycle replica with a clock."},
        {"image_id": 9, "id": 40, "caption": "A black Honda motorcycle."},
        {"image_id": 7, "id": 41, "caption": "A room with blue walls."},
        {"image_id": 8, "id": 42, "caption": None},
    ],
}


def document(path: Path, value: Any, **how: Any) -> Path:
    return write(path, json.dumps(value, **how))


@pytest.mark.parametrize("how", [{}, {"indent": 1}])
def test_captions_of_coco_in_order_with_their_images(tmp_path: Path, how: dict[str, int]) -> None:
    path = document(tmp_path / "captions_val2017.json", COCO, **how)
    rows = read_all(path)
    assert [(row["prompt"], row["file_name"], row["image_id"], row["id"]) for row in rows] == [
        ("A bicycle replica with a clock.", "000007.jpg", 7, 38),
        ("A black Honda motorcycle.", "000009.jpg", 9, 40),
        ("A room with blue walls.", "000007.jpg", 7, 41),
        (None, None, 8, 42),
    ]
    chosen = open_prompts(path, selection=Selection.of(["image_id == 7"], ["id"])).chunks(9)
    assert [chunk.prompts for chunk in chosen] == [
        [row["prompt"] for row in rows if row["image_id"] == 7]
    ]


def test_arrays(tmp_path: Path) -> None:
    path = document(tmp_path / "p.json", NASTY)
    for size in (1, 3, 100):
        assert prompts(path, size=size) == NASTY
    rows = document(tmp_path / "r.json", [{"text": "a", "n": 1}, "b", 3, {"text": 4}, {"n": 2}])
    assert [row["prompt"] for row in read_all(rows)] == ["a", None, None, None, None]
    assert [row["n"] for row in read_all(rows)] == [1, None, None, None, 2]
    assert read_all(document(tmp_path / "none.json", [])) == []
    texts = document(tmp_path / "t.json", ["a", None, 3, ["b"]])
    assert codes(texts) == [None, "null", "type", "type"]
    marked = write(tmp_path / "m.json", b'\xef\xbb\xbf["a"]')
    assert prompts(marked) == ["a"]


def test_other_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.json"
    for text, message in {
        '{"a": ["x"]}': "an object with 'a', neither an array of rows nor COCO's captions",
        '{"images": [], "annotations": [{"bbox": []}]}': "nor COCO's captions (images, annotations",
        "{}": "an object with no keys",
        '"a"': "a JSON str, no array of rows",
        '{"prompt": "a"}\n{"prompt": "b"}\n': "several JSON documents; name the file .jsonl",
        '["a"': "not JSON",
        "": "not JSON",
        "[" * 100_000: "not JSON",
        '[{"words": "a"}]': "no prompt key among 'words'; name it with --column",
    }.items():
        write(path, text)
        assert message in refusal(lambda: open_prompts(path))
    write(path, '["a"]'.encode("utf-16"))
    assert "convert it to UTF-8" in refusal(lambda: open_prompts(path))
    monkeypatch.setattr(array, "_BYTES", 3)
    assert "more than 3 bytes of JSON" in refusal(lambda: open_prompts(write(path, '["a"]')))


@pytest.mark.parametrize("how", [{}, {"indent": 1}])
def test_an_array_is_no_json_lines(tmp_path: Path, how: dict[str, int]) -> None:
    for rows in ([{"prompt": "a"}, {"prompt": "b"}], ["a"]):
        path = document(tmp_path / "p.jsonl", rows, **how)
        assert "a JSON array, not an object per line" in refusal(lambda path=path: read_all(path))


def test_folders_leave_json_documents_out(tmp_path: Path) -> None:
    (tmp_path / "00000_stats.json").write_text("{}")
    (tmp_path / "00000.jsonl").write_text('{"prompt": "a"}')
    assert prompts(tmp_path) == ["a"]


def test_other_names_of_known_kinds(tmp_path: Path) -> None:
    assert prompts(write(tmp_path / "p.ndjson", '{"prompt": "a"}\n')) == ["a"]
    assert prompts(write(tmp_path / "p.tab", "n\tprompt\n1\ta\n")) == ["a"]
    table = pa.table({"prompt": NASTY, "n": range(len(NASTY))})
    for name in ("p.feather", "p.arrow"):
        pyarrow.feather.write_feather(table, str(tmp_path / name), chunksize=4)
        for size in (1, 3, 100):
            assert prompts(tmp_path / name, size=size) == NASTY
        assert [row["n"] for row in read_all(tmp_path / name)] == [*range(len(NASTY))]
    whole = (tmp_path / "p.arrow").read_bytes()
    write(tmp_path / "p.arrow", whole[:-40])
    assert "get the file again" in refusal(lambda: read_all(tmp_path / "p.arrow"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("p.csv.gz", "a compressed file; decompress it first"),
        ("p.jsonl.zst", "a compressed file"),
        ("p.tgz", "a compressed file"),
        ("p.zip", "a compressed file"),
        ("p.XLSX", "a spreadsheet; save it as CSV UTF-8"),
        ("p.pkl", "a pickle, which is never read"),
        ("p.csv.dvc", "a DVC pointer, not the data; run dvc pull"),
        ("p.parquet.incomplete", "an unfinished download"),
        ("p.rtf", "unknown kind of file; use one of .txt"),
    ],
)
def test_kinds_that_are_not_read(tmp_path: Path, name: str, message: str) -> None:
    assert message in refusal(lambda: open_prompts(write(tmp_path / name, "x")))
    assert "no such file or folder" in refusal(lambda: open_prompts(tmp_path / f"other {name}"))
