"""Requests that a scan refuses, and faults that it survives."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dori_fast
from dori_fast.errors import IntegrityError, UsageError
from dori_fast.runs.errors import ScanInterrupted, StorageError
from tests.runs.inputs import write
from tests.runs.scanning import PROMPTS, Signalling, Spelling, scanned


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "seeds=0"),
        ({"seeds": 2**64}, "seeds="),
        ({"steps": 0}, "steps=0"),
        ({"steps": 51}, "steps"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": "many"}, "batch_size='many'"),
        ({"limit": -1}, "limit=-1"),
        ({"limit": 2**63}, "limit=9223372036854775808: "),
        ({"limit": 10**400}, r"limit=10{36}\.\.\.: "),
        ({"limit": 10**5000}, "limit=a huge number: "),
        ({"shard_size": 10**19}, "shard_size=10000000000000000000: "),
        ({"max_errors": -0.1}, "max_errors=-0.1"),
        ({"max_errors": math.nan}, "max_errors=nan"),
        ({"shard_size": 0}, "shard_size=0"),
        ({"resume": "maybe"}, "resume='maybe'"),
        ({"detector": "nope"}, "nope"),
        ({"detector": Spelling(), "seeds": 2}, "its own seeds"),
        ({"column": "nope"}, "nope"),
    ],
)
def test_wrong_arguments(model: Any, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as info:
        scanned(model, ["a"], tmp_path / "run", **options)
    assert "\n" not in str(info.value)
    assert not (tmp_path / "run").exists()


def test_another_input_or_model_is_refused(
    model: Any, tiny_directory: Path, tmp_path: Path
) -> None:
    from tests.tiny_model import save_tiny_sd

    out = tmp_path / "run"
    scanned(model, ["a", "b"], out)
    with pytest.raises(IntegrityError, match="input_sha256"):
        scanned(model, ["a", "c"], out)
    other = dori_fast.load(save_tiny_sd(tmp_path / "other", seed=1))
    with pytest.raises(IntegrityError, match=r"model\.files\.unet/"):
        scanned(other, ["a", "b"], out)
    with pytest.raises(IntegrityError, match=r"detector\.seeds"):
        scanned(model, ["a", "b"], out, seeds=2)
    assert scanned(model, ["a", "b"], out).scored == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drops_the_open_shard(model: Any, tmp_path: Path, number: int) -> None:
    out, before = tmp_path / "run", signal.getsignal(number)
    detector = Signalling(number)
    with pytest.raises(ScanInterrupted, match=signal.Signals(number).name):
        scanned(model, PROMPTS, out, detector=detector, shard_size=4)
    assert (detector.calls, detector.finished) == (3, 2), "a call in progress is cut short"
    assert signal.getsignal(number) is before
    assert sorted(p.name for p in (out / "shards").iterdir()) == [
        "part-00000.parquet",
        "part-00001.parquet",
    ]
    record = json.loads((out / "run.json").read_text())
    assert (record["state"], record["counts"]["rows"]) == ("interrupted", 8)
    result = scanned(model, PROMPTS, out, detector=Spelling(), shard_size=4)
    assert result.scored == len(PROMPTS) - 8
    assert [row["prompt"] for row in result.rows()] == PROMPTS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_run_directory_is_there(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    from dori_fast.runs import scan as run

    def hashed(path: Path) -> str:
        os.kill(os.getpid(), number)
        return digest(path)

    digest, before = run.input_sha256, signal.getsignal(number)
    monkeypatch.setattr(run, "input_sha256", hashed)
    with pytest.raises(ScanInterrupted, match=signal.Signals(number).name):
        scanned(model, PROMPTS, tmp_path / "run")
    assert signal.getsignal(number) is before
    assert not (tmp_path / "run").exists()


def test_a_signal_while_a_huge_file_is_hashed(model: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "p.txt", "a cat\n" * 1000)
    # takes no disk space, but a minute to hash
    os.truncate(path, 10**11)
    threading.Timer(1.0, os.kill, [os.getpid(), signal.SIGTERM]).start()
    began = time.monotonic()
    with pytest.raises(ScanInterrupted):
        scanned(model, path, tmp_path / "run")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("name", [".", "run", "deep/down/run"])
def test_results_among_the_prompts_are_refused(model: Any, tmp_path: Path, name: str) -> None:
    folder, link = tmp_path / "in", tmp_path / "link"
    folder.mkdir()
    (folder / "p.parquet").write_bytes(b"")
    link.symlink_to(folder)
    for source, out in [(folder, folder / name), (link, folder / name), (folder, link / name)]:
        with pytest.raises(UsageError, match="lies inside the input .*outside it"):
            scanned(model, source, out)
    assert [path.name for path in folder.iterdir()] == ["p.parquet"]


def test_results_beside_the_prompts_or_passed_over(model: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(pa.table({"prompt": ["a", "b"]}), folder / "p.parquet")
    options = {"detector": Spelling()}
    for out in (folder / "_runs" / "1", folder / ".run", tmp_path / "in-run"):
        for scored in (2, 0):
            assert scanned(model, folder, out, **options).scored == scored
    # a pattern may match the results once they exist
    (folder / "deep").mkdir()
    (folder / "p.parquet").rename(folder / "deep" / "p.parquet")
    pattern = f"{folder}/deep/**/p*.parquet"
    assert scanned(model, pattern, folder / "deep" / "run", **options).scored == 2
    with pytest.raises(UsageError, match="lies inside the input"):
        scanned(model, pattern, folder / "deep" / "run", **options)


def test_works_off_the_main_thread(model: Any, tmp_path: Path) -> None:
    found: list[int] = []
    thread = threading.Thread(
        target=lambda: found.append(
            scanned(model, ["a", "b"], tmp_path / "run", detector=Spelling()).counts.ok
        )
    )
    thread.start()
    thread.join()
    assert found == [2]


def test_a_full_disk_keeps_what_is_committed(model: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    prompts = [os.urandom(n).hex() for n in (20, 20, 40_000, 20)]
    path = tmp_path / "p.txt"
    path.write_text("\n".join(prompts))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(StorageError, match=r"part-00002.*run the same command again") as info:
            scanned(model, path, out, detector=Spelling(), shard_size=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(info.value)
    names = sorted(path.name for path in (out / "shards").iterdir())
    assert names == ["part-00000.parquet", "part-00001.parquet"]
    result = scanned(model, path, out, detector=Spelling(), shard_size=1)
    assert (result.scored, [row["prompt"] for row in result.rows()]) == (2, prompts)
