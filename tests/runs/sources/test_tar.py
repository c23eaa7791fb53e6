"""Webdataset archives: samples, columns, and members that are refused."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from dori_fast.errors import UsageError
from dori_fast.runs.sources import tar as tar_file
from dori_fast.runs.sources.open import input_sha256, open_prompts
from dori_fast.runs.sources.where import Selection
from tests.runs.inputs import NASTY, codes, prompts, read_all
from tests.runs.scanning import Spelling, scanned

Members = list[tuple[str, bytes | str]]


def tar(path: Path, members: Members, format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            raw = data.encode() if isinstance(data, str) else data
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return path


def sample(i: int, text: str, **meta: Any) -> Members:
    key = f"00000/{i:09d}"
    # not an image: decoding it fails
    return [(f"{key}.jpg", b"\xff" * 700), (f"{key}.json", json.dumps(meta)), (f"{key}.txt", text)]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_samples(tmp_path: Path, format: int) -> None:
    members = [m for i, text in enumerate(NASTY) for m in sample(i, text, URL=f"u{i}", width=i)]
    path = tar(tmp_path / "0.tar", members, format)
    rows = read_all(path)
    # a mark at the start of a file is no part of its text
    assert [row["prompt"] for row in rows] == [text.removeprefix("\ufeff") for text in NASTY]
    assert [row["key"] for row in rows[:2]] == ["00000/000000000", "00000/000000001"]
    assert [(row["URL"], row["width"]) for row in rows[:2]] == [("u0", 0), ("u1", 1)]


def test_the_prompt_may_be_a_json_key(tmp_path: Path) -> None:
    members: Members = [
        ("a.x.jpg", b""), ("a.json", '{"caption": "A", "key": "a", "n": 1}'),
        ("b.json", '{"caption": 3}'), ("c.jpg", b""), ("d.json", "[1]"), ("e.json", b"\xff"),
    ]  # fmt: skip
    path = tar(tmp_path / "0.tar", members)
    assert prompts(path) == ["A", None, None, None, None]
    assert codes(path) == [None, "type", "null", "malformed", "encoding"]
    assert [row["key"] for row in read_all(path)] == ["a", "b", "c", "d", "e"]
    both = tar(tmp_path / "1.tar", sample(0, "text", caption="json"))
    assert (prompts(both), prompts(both, "caption")) == (["text"], ["json"])
    with pytest.raises(UsageError, match=r"no 'words' among 'txt', 'caption'"):
        open_prompts(both, "words")
    with pytest.raises(UsageError, match=r"no \.txt members and no prompt key among 'n'"):
        open_prompts(tar(tmp_path / "2.tar", [("a.json", '{"n": 1}')]))
    assert read_all(tar(tmp_path / "3.tar", [])) == []


def test_texts_that_are_no_prompts(tmp_path: Path) -> None:
    members: Members = [("a.txt", "x" * 1_000_001), ("b.txt", b"caf\xe9"), ("c.jpg", b""),
                        ("d.txt", "x" * 16_000_001), ("e.txt", "")]  # fmt: skip
    path = tar(tmp_path / "0.tar", members)
    assert codes(path) == ["too_long", "encoding", "null", "too_long", None]


def test_a_sample_whose_json_is_broken(tmp_path: Path) -> None:
    meta = ('{"caption": "A", "similarity": 0.9}', '{"caption": bro', '{"similarity": 0.1}')
    path = tar(tmp_path / "0.tar", [(f"{i}.json", text) for i, text in enumerate(meta)])
    both = [m for i, text in enumerate(meta) for m in ((f"{i}.json", text), (f"{i}.txt", "T"))]
    texts = tar(tmp_path / "1.tar", both)
    assert (codes(path), codes(texts)) == ([None, "malformed", "null"], [None, "malformed", None])
    for archive in (path, texts):
        assert _keys(archive, "similarity > 0.3") == ["0", "1"]
        assert _keys(archive, "similarity > 0.3", "key > '0'") == ["1"]
        assert _keys(archive, "key != '1'") == ["0", "2"]


def _keys(path: Path, *where: str) -> list[str]:
    chunks = open_prompts(path, selection=Selection.of(where)).chunks(2)
    return [key for chunk in chunks for key in chunk.extra["key"].to_pylist()]


@pytest.mark.parametrize("name", ["../x.txt", "/x.txt", "a/../../x.txt"])
def test_names_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    path = tar(tmp_path / "0.tar", [("a.txt", "fine"), (name, "x")])
    with pytest.raises(UsageError, match=f"0.tar: member '{name}' leaves"):
        open_prompts(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("a.txt")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(UsageError, match=r"member 'a\.txt' is a link or no plain file"):
        open_prompts(path)


def test_damage(tmp_path: Path) -> None:
    whole = tar(tmp_path / "0.tar", sample(0, "first") + sample(1, "second")).read_bytes()
    path = tmp_path / "cut.tar"
    path.write_bytes(whole[: whole.index(b"second") + 3])
    with pytest.raises(UsageError, match=r"cut off within '00000/000000001\.txt'"):
        open_prompts(path)
    header = bytearray(whole)
    header[whole.index(b"00000/000000001.json") + 3] ^= 0xFF
    path.write_bytes(header)
    after = r"cut off or damaged after '00000/000000001\.jpg'"
    with pytest.raises(UsageError, match=after):
        open_prompts(path)
    path.write_bytes(whole[: whole.index(b"00000/000000001.json")])
    with pytest.raises(UsageError, match=after):
        open_prompts(path)
    path.write_bytes(b"\x1f\x8b" + bytes(600))
    with pytest.raises(UsageError, match=r"is compressed \(gzip\); decompress it first"):
        open_prompts(path)
    path.write_bytes(b"\x1f\x8a" + bytes(600))
    with pytest.raises(UsageError, match="not a readable tar archive"):
        open_prompts(path)


def test_what_lies_behind_the_end(tmp_path: Path) -> None:
    first, second = (tar(tmp_path / f"{i}.tar", sample(i, "x")).read_bytes() for i in range(2))
    path = tmp_path / "both.tar"
    path.write_bytes(first + second)
    after = r"^\S*both\.tar: has data behind the end mark after '00000/000000000\.txt'"
    for read in (open_prompts, input_sha256):
        with pytest.raises(UsageError, match=after):
            read(path)
    path.write_bytes(first + bytes(tar_file._READ_BYTES) + b"\1")
    with pytest.raises(UsageError, match=after):
        open_prompts(path)
    path.write_bytes(first + bytes(2 * tarfile.RECORDSIZE))
    assert prompts(path) == ["x"]


def test_an_archive_made_on_a_mac(tmp_path: Path) -> None:
    members: Members = [m for i, text in enumerate("ab") for m in sample(i, text, n=i)]
    plain = tar(tmp_path / "0.tar", members)
    added: Members = [(".DS_Store", "x"), ("__MACOSX/00000/._0.jpg", "x"), ("PaxHeader/a.txt", "x")]
    added += [(".Trashes/501/a.txt", "x"), (".Spotlight-V100/a.txt", "x"), (".git/HEAD.txt", "x")]
    for name, data in members:
        folder, _, base = name.rpartition("/")
        added += [(f"{folder}/._{base}", b"\0\5\x16\7" + bytes(28)), (name, data)]
    added += [("00000/Thumbs.db", "x"), ("desktop.ini", "x"), ("00000/.txt", "no prompt")]
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        mac = tar(tmp_path / "1.tar", added, format)
        assert read_all(mac) == read_all(plain)
        assert [row["prompt"] for row in read_all(mac)] == ["a", "b"]
        assert input_sha256(mac) == input_sha256(plain)
    named = tmp_path / "2.tar"
    with tarfile.open(named, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, raw in members:
            info = tarfile.TarInfo(f"./{name}")
            data = raw.encode() if isinstance(raw, str) else raw
            info.size, info.pax_headers = len(data), {"LIBARCHIVE.xattr.com.apple.x": "AAAA"}
            archive.addfile(info, io.BytesIO(data))
    assert [row["prompt"] for row in read_all(named)] == ["a", "b"]
    # what is skipped must not leave the archive either
    with pytest.raises(UsageError, match=r"member '\.\./\.DS_Store' leaves"):
        open_prompts(tar(tmp_path / "3.tar", [("../.DS_Store", "x")]))


def test_two_members_of_one_name(tmp_path: Path) -> None:
    path = tar(tmp_path / "0.tar", [("a.jpg", ""), ("b.txt", "1"), ("b.jpg", ""), ("b.txt", "2")])
    with pytest.raises(UsageError, match=r"0\.tar: two members 'b\.txt' in one sample"):
        open_prompts(path)


def test_a_chain_of_long_names(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 4
    header = info.tobuf(tarfile.GNU_FORMAT) + b"abc\0" + bytes(508)
    path = tar(tmp_path / "0.tar", [("a.txt", "x")])
    path.write_bytes(header * 3000 + path.read_bytes())
    with pytest.raises(UsageError, match=r"0\.tar: not a readable tar archive.*recursion"):
        open_prompts(path)


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "0.tar"
    info = tarfile.TarInfo("a")
    info.type, info.size = tarfile.XHDTYPE, 2**32
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(2**32 + 2048)
    tracemalloc.start()
    with pytest.raises(UsageError, match=r"a header of 4,294,967,296 bytes"):
        open_prompts(path)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    monkeypatch.setattr(tar_file, "_MAX_MEMBERS", 5)
    many = tar(tmp_path / "1.tar", [(f"{i}.txt", "x") for i in range(6)])
    with pytest.raises(UsageError, match=r"more than 5 members, up to '5\.txt'"):
        open_prompts(many)


def test_the_digest_is_that_of_the_texts(tmp_path: Path) -> None:
    members = sample(0, "a", n=1) + sample(1, "b", n=2)
    digest = input_sha256(tar(tmp_path / "0.tar", members))
    recolored = [(n, b"\xfe" * 700 if n.endswith("jpg") else d) for n, d in members]
    assert input_sha256(tar(tmp_path / "1.tar", recolored)) == digest
    edited = [(n, "c" if d == "b" else d) for n, d in members]
    assert input_sha256(tar(tmp_path / "2.tar", edited)) != digest


def test_a_scan_of_archives(model: Any, tmp_path: Path) -> None:
    for part in range(2):
        members = [m for i in range(3) for m in sample(i, f"p{part}{i}", similarity=i / 10)]
        tar(tmp_path / f"{part:05d}.tar", members)
    pattern = tmp_path / "{00000..00001}.tar"
    where = ["similarity > 0.05"]
    result = scanned(model, pattern, tmp_path / "run", detector=Spelling(), where=where)
    assert [row["prompt"] for row in result.rows()] == ["p01", "p02", "p11", "p12"]
    reader = open_prompts(pattern, selection=Selection.of(keep=["key"]))
    assert reader.schema.names == ["key"]
