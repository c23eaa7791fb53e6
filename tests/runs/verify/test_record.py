"""Findings of verify in a run.json that was edited, or that no run has written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.runs.store.manifest import seal
from dori_fast.runs.store.record import hash_identity, model_identity
from dori_fast.runs.verify.verify import verify
from tests.runs.scanning import scanned
from tests.runs.verify.test_verify import SHARD, found


@pytest.fixture(scope="module")
def place(model: Any, tmp_path_factory: Any) -> Path:
    """A run of 12 rows in 2 shards and its input; do not change it."""
    root: Path = tmp_path_factory.mktemp("record")
    (root / "p.txt").write_text("".join(f"prompt {i}\n" for i in range(12)))
    scanned(model, root / "p.txt", root / "run", shard_size=8, seeds=1)
    return root


@pytest.fixture
def run(place: Path, tmp_path: Path) -> Path:
    shutil.copytree(place / "run", tmp_path / "run")
    return tmp_path / "run"


def changed(value: Any) -> Any:
    if isinstance(value, dict):
        return {**value, "another": 1}
    if isinstance(value, list):
        return [*value, 1]
    if isinstance(value, bool) or value is None:
        return 7
    return value + 1 if isinstance(value, int | float) else f"{value}x"


def test_each_field_of_run_json(run: Path) -> None:
    path = run / "run.json"
    record = json.loads(path.read_text())
    places = [(key,) for key in record]
    places += [
        (key, name) for key, part in record.items() if isinstance(part, dict) for name in part
    ]
    for keys in places:
        edited = json.loads(path.read_text())
        inner = edited
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = changed(inner[keys[-1]])
        before = path.read_bytes()
        path.write_text(json.dumps(edited, indent=2) + "\n")
        assert "run.json" in found(run), keys
        path.write_bytes(before)
    assert len(places) > 30 and not found(run)


@pytest.mark.parametrize("key", ["identity", "model"])
def test_an_emptied_part_of_run_json(run: Path, key: str) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {key: {}}))
    seal(run)
    seen = verify(run)
    assert [f.where for f in seen.findings] == ["run.json"]
    assert seen.skipped == ["rows, input, weights and scores: run.json was edited"]


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda part: part.pop(key)


@pytest.mark.parametrize(
    ("part", "change", "what"),
    [
        ("identity", {"shard_size": 0}, "identity.shard_size: Input should be greater"),
        ("identity", {"shard_size": "many"}, "identity.shard_size: Input should be a valid int"),
        ("identity", {"shard_size": None}, "identity.shard_size: Input should be a valid int"),
        ("identity", without("shard_size"), "identity.shard_size: Field required"),
        ("identity", without("input_sha256"), "identity.input_sha256: Field required"),
        ("identity", {"detector": "wen"}, "identity.detector: Input should be a valid dict"),
        ("model", without("files"), "model.files: Field required"),
        ("model", {"files": {"unet/x": 1}}, "model.files.unet/x: Input should be a valid string"),
        ("model", {"dtype": "int8"}, "model.dtype: Input should be"),
        ("model", without("masks"), "model.masks: Field required"),
        ("execution", {"speed": "high"}, "execution.speed"),
    ],
)
def test_a_sealed_run_json_that_no_run_has_written(
    run: Path, part: str, change: Any, what: str
) -> None:
    record = json.loads((run / "run.json").read_text())
    change(record[part]) if callable(change) else record[part].update(change)
    if part == "model":
        record["identity"]["model"] = model_identity(record["model"])
    record["run_hash"] = hash_identity(record["identity"])
    (run / "run.json").write_text(json.dumps(record))
    seal(run)
    seen = verify(run)
    assert [f.where for f in seen.findings] == ["run.json"]
    assert what in seen.findings[0].what
    assert seen.skipped == ["rows, input, weights and scores: run.json was edited"]


def test_a_run_turned_into_a_fine_tuning(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    record["identity"] = {"fine_tuning": {}, "model": record["identity"]["model"]}
    record["run_hash"] = hash_identity(record["identity"])
    (run / "run.json").write_text(json.dumps(record))
    seal(run)
    assert "identity.shard_size: Field required" in found(run)["run.json"]
    # a fine-tuning run has neither of these and is not faulty
    shutil.rmtree(run / "shards")
    (run / "manifest.json").unlink()
    with pytest.raises(UsageError, match="fine-tuning has no rows"):
        verify(run)


def test_folders_in_the_place_of_files(run: Path, place: Path, model: Any) -> None:
    for name in (SHARD, "run.json"):
        (run / name).unlink()
        (run / name).mkdir()
        seen = verify(run)
        assert "cannot be read (Is a directory)" in {
            f.what for f in seen.findings if f.where == name
        }
    with pytest.raises(IntegrityError, match=r"run\.json: cannot be read .* move it away"):
        scanned(model, place / "p.txt", run, shard_size=8, seeds=1)
