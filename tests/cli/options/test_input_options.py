"""Inputs as the commands read them: lists without a header, and what stands in for a list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.cli.options.test_options import parameters

THREE = ["a red boat on the river", "the old clock tower at noon", "a green door"]
LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123456\n"


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    path = tmp_path / "listed.csv"
    path.write_text("".join(f'"{text}",{n}.png\n' for n, text in enumerate(THREE)))
    for n in range(3):
        picture = np.random.default_rng(n).integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{n}.png")
    return path


def read(run: Path) -> list[str]:
    shards = sorted((run / "shards").glob("*.parquet"))
    return [prompt for shard in shards for prompt in pq.read_table(shard)["prompt"].to_pylist()]


def test_every_command_that_takes_a_column_takes_no_header() -> None:
    found: dict[str, set[str]] = {"column": set(), "header": set()}
    for name, parameter in parameters():
        if parameter.name in found:
            found[parameter.name].add(name)
    assert found["column"] <= found["header"] and "locality" in found["header"]


def test_scan_without_a_header(cli: Any, tiny: str, listed: Path, tmp_path: Path) -> None:
    scan = ("scan", listed, "--model", tiny, "--seeds", "1", "--out", tmp_path / "run")
    refused = cli(*scan)
    assert refused.code == 2 and "or use --no-header if the first line is" in refused.err
    advised = cli(*scan, "--column", THREE[0])
    assert advised.code == 2 and "reads like a prompt; use --no-header" in advised.err
    which = cli(*scan, "--no-header")
    assert which.code == 2 and "name it with --column, such as --column 1" in which.err
    dry = cli(*scan, "--no-header", "--column", "1", "--dry-run", "--json")
    assert json.loads(dry.out)["rows"] == 3
    done = cli(*scan, "--no-header", "--column", "1")
    assert done.code == 0 and read(tmp_path / "run") == THREE, done.err
    other = cli(*scan, "--header", "--column", THREE[0])
    assert other.code == 4 and "selection.header: false then" in other.err


def test_methods_without_a_header(cli: Any, tiny: str, listed: Path, tmp_path: Path) -> None:
    how = ("--no-header", "--column", "1", "--model", tiny)
    pruned = cli("prune", "--prompts", listed, "--out", tmp_path / "masks", *how,
                 "--method", "wanda", "--steps", "1")  # fmt: skip
    assert pruned.code == 0 and read(tmp_path / "masks") == THREE, pruned.err
    attacked = cli("attack", "--prompts", listed, "--images", tmp_path, "--out", tmp_path / "found",
                   *how, "--image-column", "column_2", "--attack-steps", "1", "--draws", "1",
                   "--seeds", "1", "--steps", "1")  # fmt: skip
    assert attacked.code == 0 and read(tmp_path / "found") == THREE, attacked.err
    kept = tmp_path / "kept.csv"
    kept.write_text("".join(f"{line}\n" for line in ("prompt,image", "a,0.png", "b,1.png")))
    hidden = ("--masks", tmp_path / "masks")
    out = ("--out", tmp_path / "tuned")
    tuned = cli("finetune", "--prompts", listed, "--images", tmp_path, *hidden, *out, *how,
                "--retained", kept, "--image-column", "column_2",
                "--steps", "1", "--inner-steps", "1", "--inner-batch", "1", "--draws", "1",
                "--draw-steps", "1", "--surrogates", "1", "--retained-batch", "1")  # fmt: skip
    assert tuned.code == 0, tuned.err
    identity = json.loads((tmp_path / "tuned" / "run.json").read_text())["identity"]
    assert identity["memorized"]["rows"] == 3 and identity["memorized"]["header"] is False
    assert "header" not in identity["retained"]


def test_prompts_to_compare_with_have_no_header_either(cli: Any, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("".join(f"{text}\n" for text in THREE))
    record = cli("calibrate", tmp_path / "p.csv", "--out", tmp_path / "c.json", "--model", tiny,
                 "--seeds", "1", "--no-header", "--suspicious", tmp_path / "p.csv")  # fmt: skip
    assert record.code == 0 and "3 rows: 3 distinct" in record.err, record.err
    assert "3 memorized prompts" in record.err


@pytest.mark.parametrize("command", ["scan", "calibrate", "dedup"])
def test_a_pointer_is_named_before_the_model_is_loaded(
    cli: Any, tmp_path: Path, command: str
) -> None:
    for name in ("p.txt", "p.csv", "p.parquet"):
        (tmp_path / name).write_text(LFS)
        done = cli(command, tmp_path / name, "--out", tmp_path / "out", "--model", "demo")
        assert done.code == 2 and "is a Git LFS pointer, not the data; run git lfs pull" in done.err
    missing = cli(command, tmp_path / "a key", "--out", tmp_path / "out", "--model", "demo")
    assert missing.code == 2 and "a key: no such file or folder; check the path" in missing.err


def test_kept_options_of_images(cli: Any, tiny: str, listed: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    (tmp_path / "images" / "img").mkdir(parents=True)
    (tmp_path / "images" / "img" / "0.png").symlink_to(tmp_path / "0.png")
    table.write_text(f"prompt,image\n{THREE[0]},img\\0.png\n{THREE[1]},IMG\\0.png\n")
    done = cli("attack", "--prompts", table, "--images", tmp_path / "images", "--model", tiny,
               "--out", tmp_path / "run", "--attack-steps", "1", "--draws", "1", "--seeds", "1",
               "--steps", "1", "--json")  # fmt: skip
    rows = json.loads(done.out)["rows"]
    assert [row["status"] for row in rows] == ["ok", "quarantined"]
    assert "no file 'IMG\\\\0.png' in the folder" in rows[1]["error"]
