"""Findings of verify in runs that were changed, and none in a whole one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dori_fast
from dori_fast.errors import UsageError
from dori_fast.runs.store.manifest import Manifest, list_report, seal
from dori_fast.runs.verify.result import Verification
from dori_fast.runs.verify.verify import verify
from tests.runs.scanning import scanned
from tests.tiny_model import save_tiny_sd

SHARD = "shards/part-00001.parquet"


@pytest.fixture(scope="module")
def place(model: Any, tmp_path_factory: Any) -> Path:
    """A run of 20 rows in 3 shards and its input; do not change it."""
    root: Path = tmp_path_factory.mktemp("verify")
    (root / "p.txt").write_text("".join(f"prompt {i}\n" for i in range(20)))
    scanned(model, root / "p.txt", root / "run", shard_size=8)
    return root


@pytest.fixture
def run(place: Path, tmp_path: Path) -> Path:
    shutil.copytree(place / "run", tmp_path / "run")
    return tmp_path / "run"


def found(run: Path, **options: Any) -> dict[str, str]:
    """Findings about files, by place."""
    return {f.where: f.what for f in verify(run, files_only=True, **options).findings}


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def snapshot(run: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_a_whole_run(run: Path, model: Any) -> None:
    before = snapshot(run)
    seen = verify(run, model=model, sample=0.5, seed=3)
    assert (seen.findings, seen.skipped, seen.rescored) == ([], [], 10)
    assert "10 rows scored again, to the bit; seed 3" in seen.checked
    assert seen.merkle_root == Manifest.read(run).merkle_root
    assert not verify(run, files_only=True, root=seen.merkle_root).findings
    assert snapshot(run) == before


def test_the_model_is_found_where_the_run_had_it(run: Path) -> None:
    seen = verify(run)
    assert (seen.findings, seen.rescored) == ([], 8)
    assert any(line.startswith("8 rows scored again, to the bit") for line in seen.checked)


def test_a_flipped_bit_in_any_byte_of_a_shard(model: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    scanned(model, ["a", "b"], run, seeds=1)
    path = run / "shards" / "part-00000.parquet"
    whole = path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    # every byte of the footer region, and some of the data; the bit varies with the byte
    for byte in [*range(0, footer, 31), *range(footer, len(whole))]:
        flip(path, 8 * byte + byte % 8)
        named = {name.split("/")[-1] for name in found(run)}
        assert "part-00000.parquet" in named, f"byte {byte} of {len(whole)}"
        path.write_bytes(whole)
    assert not found(run)


@pytest.mark.parametrize("name", ["part-00000", "part-00001", "part-00002"])
def test_a_deleted_shard(run: Path, name: str) -> None:
    (run / "shards" / f"{name}.parquet").unlink()
    assert found(run)[f"shards/{name}.parquet"] == "missing"
    # also without the manifest: by the count of rows in run.json
    (run / "manifest.json").unlink()
    assert found(run)[f"shards/{name}.parquet"] == "missing"


def test_shards_of_another_run_or_place(run: Path, model: Any, tmp_path: Path) -> None:
    scanned(model, [f"prompt {i}" for i in range(20)], tmp_path / "other", shard_size=8, seeds=2)
    shutil.copy(tmp_path / "other" / SHARD, run / SHARD)
    seal(run)
    assert list(found(run)) == [SHARD]
    assert "belongs to another run" in found(run)[SHARD]
    shutil.copy(run / "shards" / "part-00000.parquet", run / SHARD)
    seal(run)
    assert "holds rows from 0, not 8" in found(run)[SHARD]


def test_a_shard_too_many(run: Path) -> None:
    shutil.copy(run / SHARD, run / "shards" / "part-00003.parquet")
    assert [f.what for f in verify(run, files_only=True).findings][0].startswith("not listed")
    seal(run)
    assert "holds rows from 8, not 24" in found(run)["shards/part-00003.parquet"]


def test_a_root_noted_elsewhere_proves_editing_of_run_and_manifest(run: Path) -> None:
    noted = Manifest.read(run).merkle_root
    path = run / "run.json"
    path.write_text(path.read_text().replace('"seconds": ', '"seconds": 9'))
    assert "run.json" in found(run)
    seal(run)
    assert not found(run)
    assert "not the one that was noted" in found(run, root=noted)["manifest.json"]


def edit_list(manifest: dict[str, Any]) -> None:
    manifest["files"][SHARD] = "0" * 64


def edit_root(manifest: dict[str, Any]) -> None:
    manifest["merkle_root"] = "0" * 64


def drop_file(manifest: dict[str, Any]) -> None:
    del manifest["files"][SHARD]


@pytest.mark.parametrize("edit", [edit_list, edit_root, drop_file])
def test_an_edited_manifest(run: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = run / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))
    assert "Merkle root is not that of its list" in found(run)["manifest.json"]


def test_no_manifest_or_a_damaged_one(run: Path) -> None:
    (run / "manifest.json").write_text("{")
    assert "damaged" in found(run)["manifest.json"]
    (run / "manifest.json").unlink()
    assert "missing; the run is not finished" in found(run)["manifest.json"]


def test_a_swapped_weight_file(
    place: Path, run: Path, tiny_directory: Path, tmp_path: Path
) -> None:
    copy, other = tmp_path / "model", save_tiny_sd(tmp_path / "other", seed=1)
    shutil.copytree(tiny_directory, copy)
    assert not verify(run, model=copy).findings
    name = "unet/diffusion_pytorch_model.safetensors"
    shutil.copy(other / name, copy / name)
    seen = verify(run, model=copy)
    assert [f.where for f in seen.findings] == [f"model file {name}"]
    assert seen.rescored == 0
    (copy / name).unlink()
    assert "missing now" in verify(run, model=copy).findings[0].what


@pytest.mark.parametrize("both", [False, True])
def test_weights_of_a_variant(
    place: Path, tiny_directory: Path, tmp_path: Path, both: bool
) -> None:
    shutil.copytree(tiny_directory, tmp_path / "model")
    weights = list((tmp_path / "model").rglob("*.safetensors"))
    for path in weights:
        path.rename(path.with_suffix(".fp16.safetensors"))
    half = dori_fast.load(tmp_path / "model", variant="fp16", batch_size=8)
    scanned(half, place / "p.txt", tmp_path / "run")
    if both:
        # weights that the run did not read
        other = save_tiny_sd(tmp_path / "other", seed=1)
        for path in weights:
            shutil.copy(other / path.relative_to(tmp_path / "model"), path)
    seen = verify(tmp_path / "run")
    assert (seen.findings, seen.rescored) == ([], 8)
    damaged = weights[0].with_suffix(".fp16.safetensors")
    flip(damaged, 8 * (damaged.stat().st_size - 1))
    name = damaged.relative_to(tmp_path / "model")
    assert [f.where for f in verify(tmp_path / "run").findings] == [f"model file {name}"]


def test_scores_that_the_model_does_not_give(run: Path, model: Any, monkeypatch: Any) -> None:
    from dori_fast.detect import Wen

    true = Wen.per_seed
    # a shard with right checksums, but with other scores than the model's
    monkeypatch.setattr(Wen, "per_seed", lambda *a: true(*a) * (1 + 1e-6))
    seen = verify(run, model=model, sample=1, seed=0)
    assert len(seen.findings) == 20
    assert seen.findings[0].where == "shards/part-00000.parquet"
    assert seen.findings[0].what.startswith("row 0: score")


def test_on_another_device_scores_may_differ_by_rounding(
    run: Path, model: Any, monkeypatch: Any
) -> None:
    from dori_fast.detect import Wen

    record = json.loads((run / "run.json").read_text())
    record["device_name"] = "another"
    (run / "run.json").write_text(json.dumps(record))
    seal(run)
    true = Wen.per_seed
    monkeypatch.setattr(Wen, "per_seed", lambda *a: true(*a) * (1 + 1e-5))
    seen = verify(run, model=model, sample=1, seed=0)
    assert not seen.findings
    assert any("within 0.001 (device another then" in line for line in seen.checked)
    monkeypatch.setattr(Wen, "per_seed", lambda *a: true(*a) * 1.01)
    assert len(verify(run, model=model, sample=1, seed=0).findings) == 20


def test_the_input(place: Path, run: Path, model: Any) -> None:
    text = (place / "p.txt").read_text()
    try:
        (place / "p.txt").write_text(text + "more\n")
        assert found(run)[str(place / "p.txt")] == "its sha256 is not the one in run.json"
    finally:
        (place / "p.txt").write_text(text)


def test_the_report(run: Path) -> None:
    root = Manifest.read(run).merkle_root
    (run / "report.html").write_text("<p>")
    assert any("report.html" in line for line in verify(run, files_only=True).skipped)
    list_report(run)
    assert not found(run, root=root)
    assert not any("report.html" in line for line in verify(run, files_only=True).skipped)
    (run / "report.html").write_text("<p>!")
    assert list(found(run)) == ["report.html"]
    # listed again, which no root can reveal
    list_report(run)
    seen = verify(run, files_only=True, root=root)
    assert not seen.findings
    assert seen.skipped[0].startswith("report.html against the noted root, which does not cover it")


def test_a_reopened_run_has_the_same_root(run: Path, place: Path, model: Any) -> None:
    root = Manifest.read(run).merkle_root
    again = scanned(model, place / "p.txt", run, shard_size=8, batch_size=4, max_errors=5)
    assert (again.scored, again.merkle_root) == (0, root)
    (run / SHARD).unlink()
    with pytest.raises(UsageError):
        scanned(model, place / "p.txt", run, resume="never")
    again = scanned(model, place / "p.txt", run, shard_size=8)
    assert again.scored == 8
    assert not found(run, root=again.merkle_root)


def test_an_interrupted_run(run: Path, place: Path, model: Any, monkeypatch: Any) -> None:
    from dori_fast.detect import Wen

    (run / SHARD).unlink()
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(Wen, "scores", lambda *_, **__: 1 / 0)
        scanned(model, place / "p.txt", run, shard_size=8)
    names = found(run)
    assert "not finished" in names["manifest.json"] and "interrupted" in names["run.json"]
    # committed files have no findings
    assert set(names) == {"manifest.json", "run.json"}
    scanned(model, place / "p.txt", run, shard_size=8)
    assert not found(run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample": -0.1}, "sample=-0.1"),
        ({"sample": 1.1}, "sample=1.1"),
        ({"model": "no such model"}, "--files-only"),
    ],
)
def test_wrong_arguments(run: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        verify(run, **options)
    with pytest.raises(UsageError, match="no run directory"):
        verify(run / "shards")


def test_findings_name_place_and_next_command(run: Path) -> None:
    (run / SHARD).unlink()
    seen: Verification = verify(run, files_only=True)
    assert str(seen.findings[0]).startswith(f"{SHARD}: missing; run the command that made {run}")
