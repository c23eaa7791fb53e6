"""Files that stand in for the data: pointers, web pages, compressed files."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from dori_fast.errors import IntegrityError
from dori_fast.models import NeuronMask
from dori_fast.runs.calibrate import read_calibration
from dori_fast.runs.dedup.dedup import DedupRecord
from dori_fast.runs.methods.prune import read_statistics
from dori_fast.runs.sources.open import open_prompts
from dori_fast.runs.store.record import RunRecord
from dori_fast.runs.store.shard import read_footer
from tests.runs.inputs import codes, prompts, read_all, refusal, write

LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123456\n"
READERS = ("txt", "csv", "tsv", "jsonl", "parquet", "arrow", "tar", "json", "feather")
STAND_INS = {
    "lfs": (LFS, "is a Git LFS pointer, not the data; run git lfs pull"),
    "lfs of Windows": (LFS.replace("\n", "\r\n"), "is a Git LFS pointer"),
    "lfs with an extension": (
        LFS.replace("oid", f"ext-0-foo sha256:{'1' * 64}\noid"), "is a Git LFS pointer"),
    "lfs of old": (LFS.replace("git-lfs.github.com", "hawser.github.com"), "is a Git LFS pointer"),
    "annex": ("/annex/objects/SHA256E-s123--0a1b.csv\n", "git-annex pointer, not the data"),
    "annex link": ("../.git/annex/objects/zW/1f/S--0a.csv/S--0a.csv", "run git annex get"),
    "page": ("<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>", "is a web page"),
    "page in capitals": ("\n<HTML>\n<HEAD><TITLE>404 Not Found</TITLE>", "is a web page"),
    "storage": ('<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
    "hub": ("Entry not found", "a server's answer ('Entry not found')"),
    "api": ('{"error":"Invalid username or password."}', "holds only a server's answer"),
    "raw": ("404: Not Found", "a server's answer ('404: Not Found')"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", READERS)
def test_no_reader_takes_them_for_prompts(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p.{suffix}"
    for data, message in STAND_INS.values():
        write(path, data)
        found = refusal(lambda: open_prompts(path))
        assert found.startswith(f"{path}: ") and message in found
    write(path, gzip.compress(b"prompt\na\n"))
    assert "is compressed (gzip); decompress it first" in refusal(lambda: open_prompts(path))


def test_one_among_many_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt\na\n")
    (tmp_path / "b.csv").write_text(LFS)
    assert "b.csv: is a Git LFS pointer" in refusal(lambda: open_prompts(tmp_path))


def test_prompts_about_them_are_prompts(tmp_path: Path) -> None:
    lines = ["a cat", *LFS.splitlines(), "<html>", "404: Not Found"]
    assert prompts(write(tmp_path / "p.txt", "\n".join(lines))) == lines
    for first in ("version https://git-lfs.github.com/spec/v1", "<html> poster", "BZh", "PK"):
        assert prompts(write(tmp_path / "p.txt", f"{first}\na cat\n")) == [first, "a cat"]


def test_members_of_an_archive(tmp_path: Path) -> None:
    members = {
        "a.txt": b"\xef\xbb\xbfa cat", "b.txt": LFS.encode(), "c.txt": "a cat".encode("utf-16-le"),
        "d.txt": "a cat".encode("utf-16"), "e.json": b'\xef\xbb\xbf{"n": 1}', "e.txt": b"a dog",
        "f.json": LFS.encode(), "f.txt": b"a fox",
    }  # fmt: skip
    with tarfile.open(tmp_path / "p.tar", "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    rows = read_all(tmp_path / "p.tar")
    assert [row["prompt"] for row in rows] == ["a cat", None, None, None, "a dog", None]
    found = codes(tmp_path / "p.tar")
    assert found == [None, "malformed", "encoding", "encoding", None, "malformed"]
    assert "run git lfs pull" in rows[1]["error"] and "run git lfs pull" in rows[5]["error"]
    assert rows[4]["n"] == 1


def test_files_of_runs_and_methods(tmp_path: Path) -> None:
    for name, read in {
        "masks.safetensors": NeuronMask.load,
        "s.safetensors": read_statistics,
        "s.pt": read_statistics,
        "c.json": read_calibration,
        "run.json": RunRecord.read,
        "00000.parquet": read_footer,
        "dedup.json": lambda path: DedupRecord.read(path.parent),
    }.items():
        path = write(tmp_path / name, LFS)
        with pytest.raises(IntegrityError, match=r"is a Git LFS pointer.*run git lfs pull"):
            read(path)
