"""Hugging Face datasets: saved ones are plain Arrow files, named ones need the library."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dori_fast.errors import UsageError
from dori_fast.runs.sources.hub import hub_files
from dori_fast.runs.sources.open import open_prompts
from dori_fast.runs.sources.where import Selection
from tests.runs.inputs import NASTY, prompts, read_all

TABLE = pa.table({"caption": NASTY, "n": range(len(NASTY))})


def saved(path: Path, batch: int = 4) -> Path:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=batch)
    return path


def test_arrow_files(tmp_path: Path) -> None:
    path = saved(tmp_path / "data-00000-of-00001.arrow")
    for size in (1, 3, 100):
        assert prompts(path, size=size) == NASTY
    assert [row["n"] for row in read_all(path)] == list(range(len(NASTY)))
    reader = open_prompts(path, selection=Selection.of(["n > 11"], []))
    assert [chunk.prompts for chunk in reader.chunks(9)] == [NASTY[12:]]
    assert reader.schema.names == []


def test_damaged_arrow_files(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole.arrow").read_bytes()
    path = tmp_path / "p.arrow"
    path.write_bytes(whole[:-200])
    with pytest.raises(UsageError, match=r"p\.arrow: record batch 3 cannot be read"):
        prompts(path)
    path.write_bytes(b"no arrow")
    with pytest.raises(UsageError, match="not an Arrow stream"):
        open_prompts(path)


def test_forms_that_are_refused() -> None:
    for name in ("hf:", "hf:a#b/c/d", "hf:a#train[:3]"):
        with pytest.raises(UsageError, match="not of the form hf:NAME"):
            hub_files(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "data/prompts",
            "no folder 'data/prompts'; check the path, or write hf:data/",
        ),
        ("./data/prompts", r"no folder '\./data/prompts'; check the path$"),
        ("a/b/c", r"no folder 'a/b/c'; check the path$"),
        ("data/p.csv", r"'data/p\.csv' is a file; leave out hf:"),
    ],
)
def test_what_is_here_never_goes_to_the_hub(
    tmp_path: Path, monkeypatch: Any, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "p.csv").write_text("prompt\na cat\n")
    # an import of the library would be the first step to the network
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=message):
        hub_files(f"hf:{name}")
    for other in ("hf:owner/prompts", "hf:squad", "hf:data/prompts@main"):
        with pytest.raises(UsageError, match="needs datasets"):
            hub_files(other)


@pytest.mark.needs("datasets")
def test_by_name(tmp_path: Path) -> None:
    """In a process of its own, since the library fixes its cache folder at import."""
    folder = tmp_path / "captions"
    folder.mkdir()
    pq.write_table(TABLE, folder / "train-00000-of-00001.parquet")
    scripted = tmp_path / "scripted"
    shutil.copytree(folder, scripted)
    (scripted / "scripted.py").write_text("raise SystemExit('remote code ran')")
    code = (
        "import sys; from dori_fast.runs.sources.open import open_prompts, input_sha256\n"
        "source = sys.argv[1]\n"
        "rows = [prompt for rows in open_prompts(source).chunks(4) for prompt in rows.prompts]\n"
        "print(len(rows), input_sha256(source) == input_sha256(source))\n"
        "for wrong in (sys.argv[2], source + '#gone'):\n"
        "    try: open_prompts(wrong)\n"
        "    except Exception as error: print(error)"
    )
    environment: dict[str, Any] = {
        **os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, f"hf:{folder}", f"hf:{scripted}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    read, script, split = done.stdout.splitlines()
    assert read == f"{len(NASTY)} True", done.stderr
    assert "scripted: cannot be loaded (Dataset scripts are no longer supported" in script
    assert "#gone: cannot be loaded (Unknown split" in split


@pytest.mark.needs("datasets")
def test_a_dataset_that_the_library_would_keep_in_memory(tmp_path: Path) -> None:
    folder = tmp_path / "captions"
    folder.mkdir()
    pq.write_table(TABLE, folder / "train.parquet")
    code = (
        "import sys, datasets; from dori_fast.runs.sources.open import open_prompts\n"
        "source = sys.argv[1]\n"
        "print(sum(len(rows) for rows in open_prompts('hf:' + source).chunks(4)))\n"
        "load = datasets.load_dataset\n"
        "for keep in (lambda d: datasets.Dataset.from_dict(d[:]), lambda d: d.select([2, 1])):\n"
        "    datasets.load_dataset = lambda *a, **k: keep(load(*a, **k))\n"
        "    try: open_prompts('hf:' + source)\n"
        "    except Exception as error: print(type(error).__name__, error)"
    )
    environment: dict[str, Any] = {
        **os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_IN_MEMORY_MAX_SIZE": "100000000",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    read, *refused = done.stdout.splitlines()
    assert read == str(len(NASTY)), done.stderr
    assert len(refused) == 2
    assert all("UsageError hf:" in line and "save them with to_parquet" in line for line in refused)


def test_a_saved_folder_is_read_without_hf(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(UsageError, match="is a folder of save_to_disk; leave out hf:"):
        hub_files(f"hf:{tmp_path}")
