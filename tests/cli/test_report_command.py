"""dori-fast report, of real runs of a tiny model."""

from __future__ import annotations

import csv
import hashlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.report.pages.test_page import HOSTILE, Reader


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("input")
    quoted = HOSTILE.replace('"', '""')
    rows = [f'"{quoted}",yes', "a dog,no", "a cat,yes", "a house,no", "a tree,", '"\x00",no']
    path = folder / "p.csv"
    path.write_text("prompt,known\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def scanned(cli: Any, tiny: str, prompts: Path, tmp_path: Path) -> Path:
    done = cli("scan", prompts, "--out", tmp_path / "run", "--model", tiny, "--max-errors", "9")
    assert done.code == 0, done.err
    return tmp_path / "run"


def test_a_scan(cli: Any, scanned: Path, tiny: str) -> None:
    done = cli("report", scanned)
    assert done.code == 0, done.err
    assert done.out.strip() == str(scanned / "report.html")
    read = Reader((scanned / "report.html").read_text(encoding="utf-8"))
    assert HOSTILE in read.text and "script" not in read.tags
    assert {"Scores", "Highest-scored prompts"} <= set(read.text)
    assert "Detection" not in read.text and "Calibration" not in read.text
    assert read.tags.count("img") == 1
    weights = Path(tiny) / "unet" / "diffusion_pytorch_model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in read.text


def test_a_scan_with_labels(cli: Any, scanned: Path) -> None:
    done = cli("report", scanned, "--label", "known", "--out", scanned / "other.html")
    assert done.code == 0, done.err
    text = (scanned / "other.html").read_text(encoding="utf-8")
    assert "2 rows count as memorized (column known: 1, memorized, true, yes), 3 do not" in text
    assert re.search(r"<td>AUC</td><td>\d\.\d\d \[\d\.\d\d, \d\.\d\d\]</td>", text)
    assert "cannot resolve a false-positive rate" in text
    wrong = cli("report", scanned, "--label", "known", "--positive", "maybe")
    assert wrong.code == 2 and "its values are" in wrong.err and "--positive" in wrong.err
    missing = cli("report", scanned, "--label", "nope")
    assert missing.code == 2 and "no column 'nope'" in missing.err


def test_images_are_kept_for_later_pages(cli: Any, scanned: Path, tiny: str) -> None:
    command = ("report", scanned, "--images", "2", "--seeds", "2", "--steps", "1")
    done = cli(*command, "--model", tiny)
    assert done.code == 0, done.err
    assert cli("report", scanned).code == 0
    read = Reader((scanned / "report.html").read_text(encoding="utf-8"))
    assert read.tags.count("img") == 1 + 4
    other = cli(*command, "--model", "demo")
    assert other.code == 4 and "scanned another model" in other.err


def test_a_calibrated_scan(cli: Any, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "clean.txt").write_text("".join(f"clean {i}\n" for i in range(10)))
    common = ("--model", tiny)
    assert cli("calibrate", tmp_path / "clean.txt", "--out", tmp_path / "c.json", *common).code == 0
    out = tmp_path / "run"
    done = cli("scan", tmp_path / "clean.txt", "--out", out, *common, "--calibration",
               tmp_path / "c.json", "--fpr", "0.2")  # fmt: skip
    assert done.code == 0, done.err
    assert cli("report", out).code == 0
    # 2 of 11 may be above; the scan is of the clean prompts themselves
    assert "10.00% [0.25%, 44.50%]" in (out / "report.html").read_text(encoding="utf-8")


def test_a_localisation_and_an_attack(cli: Any, tiny: str, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "cat.png")
    rows = tmp_path / "rows.csv"
    rows.write_text("prompt,image\n<b>a cat</b>,cat.png\na dog,none.png\n")
    common = ("--model", tiny, "--device", "cpu")
    for command in (
        ("prune", "--prompts", rows, "--out", tmp_path / "p", "--method", "wanda", "--sparsity",
         "0.1", "--steps", "1"),
        ("attack", "--prompts", rows, "--images", tmp_path, "--out", tmp_path / "a",
         "--attack-steps", "1", "--draws", "2", "--seeds", "2", "--steps", "1", "--max-errors",
         "0.5"),
    ):  # fmt: skip
        done = cli(*command, *common)
        assert done.code == 0, done.err
    for name, images in (("p", 1), ("a", 1)):
        done = cli("report", tmp_path / name)
        assert done.code == 0, done.err
        read = Reader((tmp_path / name / "report.html").read_text(encoding="utf-8"))
        assert read.tags.count("img") == images and "<b>a cat</b>" in read.text
        file = tmp_path / f"{name}.csv"
        assert cli("export", tmp_path / name, "--format", "csv", "--out", file).code == 0
        header, first, *_ = csv.reader(file.open(encoding="utf-8", newline=""))
        assert first[header.index("prompt")] == "<b>a cat</b>"
    assert "Quarantined rows" in read.text
    figures = cli("export", tmp_path / "p", "--format", "lm-eval", "--out", tmp_path / "x")
    assert figures.code == 2 and "is of dori-fast prune" in figures.err
    wrong = cli("report", tmp_path / "p", "--label", "image")
    assert wrong.code == 2 and "is for scans" in wrong.err


def test_directories_that_are_none(cli: Any, scanned: Path, tmp_path: Path) -> None:
    nothing = cli("report", tmp_path / "none")
    assert nothing.code == 2 and "no run.json" in nothing.err
    shard = next((scanned / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:-20])
    damaged = cli("report", scanned)
    assert damaged.code == 4 and str(shard.name) in damaged.err
    shard.unlink()
    empty = cli("report", scanned)
    assert empty.code == 2 and "no rows yet" in empty.err


def test_a_page_needs_no_torch(scanned: Path) -> None:
    code = (
        "import sys; from dori_fast.runs.store.reopen import open_run;"
        "from dori_fast.report import scan_page; scan_page(open_run(sys.argv[1]));"
        "sys.exit('torch was loaded' if 'torch' in sys.modules else 0)"
    )
    subprocess.run([sys.executable, "-c", code, str(scanned)], check=True)
