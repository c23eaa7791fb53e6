"""The detector and the model of a record, with which verify scores rows again."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import dori_fast
from dori_fast.detect import Asthana, Cascade, NeMo, Ren, Sail, Wen
from dori_fast.errors import UsageError
from dori_fast.runs.methods.prune import prune
from dori_fast.runs.store.manifest import seal
from dori_fast.runs.store.record import RunRecord
from dori_fast.runs.verify.rescore import recorded_detector, tolerance_of, unlike
from dori_fast.runs.verify.verify import verify
from tests.runs.methods.test_prune_run import nemo
from tests.runs.scanning import Spelling, scanned


@pytest.mark.parametrize(
    "detector",
    [
        Wen(),
        Wen([3, 9], 3, guidance=2.0, total_steps=40),
        Wen(compat="wen", gen_seed=7),
        Cascade(Wen(5), 1.25),
        NeMo(4),
        NeMo(4, compat="nemo"),
        Asthana(2, norm_weight=0.5),
        Asthana(2, compat="asthana"),
        Ren([5], layer=2),
        Ren(compat="ren", gen_seed=3),
        Sail([1, 2]),
        Sail(compat="sail"),
    ],
    ids=lambda d: f"{type(d).__name__}-{getattr(d, 'compat', None)}",
)
def test_detectors_are_made_from_their_configuration(detector: Any) -> None:
    config = json.loads(json.dumps(detector.config()))
    again = recorded_detector(config)
    assert type(again) is type(detector) and again.config() == config


def test_detectors_that_cannot_be_made(model: Any, tmp_path: Path) -> None:
    scanned(model, ["a"], tmp_path / "run", detector=Spelling())
    with pytest.raises(UsageError, match="spelling"):
        verify(tmp_path / "run", model=model)
    assert not verify(tmp_path / "run", model=model, sample=0).findings
    with pytest.raises(UsageError, match="cannot be made from"):
        recorded_detector(Wen().config() | {"steps": 1, "guidance": 3.0})
    with pytest.raises(UsageError, match="no detector 'None'"):
        recorded_detector({})


def test_a_model_in_memory_has_to_be_given(model: Any, tmp_path: Path) -> None:
    from dori_fast.prune import Wanda

    masked = model.masked(Wanda(0.2, both_halves=False).localize(model, ["a cat"]))
    scanned(masked, ["a", "b"], tmp_path / "run")
    assert not verify(tmp_path / "run", model=masked).findings
    with pytest.raises(UsageError, match="had masks"):
        verify(tmp_path / "run")


def test_a_localisation_is_checked_but_not_computed_again(model: Any, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\na dog\n")
    prune(model, tmp_path / "p.txt", out=tmp_path / "run", method=nemo())
    seen = verify(tmp_path / "run", model=model)
    assert not seen.findings and seen.merkle_root
    assert seen.skipped == ["scores: these rows are not a scan's"]
    assert record_of(tmp_path / "run").execution == asdict(model.engine.execution)


def record_of(run: Path) -> RunRecord:
    return RunRecord.read(run / "run.json")


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rescored(run: Path, model: Any) -> str:
    """The line about scores; there must be no findings."""
    seen = verify(run, model=model, sample=1, seed=0)
    assert not seen.findings
    return next(line for line in seen.checked if "scored again" in line)


def spread(monkeypatch: Any) -> None:
    """Scores as if summed in another order."""
    true = Wen.per_seed
    monkeypatch.setattr(Wen, "per_seed", lambda *a: true(*a) * (1 + 1e-5))


def test_other_threads_may_change_scores_by_rounding(
    model: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    with threads(1):
        scanned(model, ["a cat", "a dog"], tmp_path / "run")
        assert rescored(tmp_path / "run", model) == "2 rows scored again, to the bit; seed 0"
    spread(monkeypatch)
    with threads(2):
        assert "within 0.001 (threads 1 then, 2 now)" in rescored(tmp_path / "run", model)
    with threads(1):
        assert len(verify(tmp_path / "run", model=model).findings) == 2


def test_other_precision_may_change_scores_by_rounding(
    tiny_directory: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    # of its own: it keeps work of the threads that it began with
    model = dori_fast.load(tiny_directory, device="cpu", batch_size=8)
    run = tmp_path / "run"
    scanned(model, ["a cat", "a dog"], run)
    record = record_of(run)
    assert record.execution["allow_tf32"] is False
    assert rescored(run, model) == "2 rows scored again, to the bit; seed 0"

    def edited(execution: dict[str, Any]) -> None:
        edit = record.model_copy(update={"execution": execution})
        (run / "run.json").write_text(edit.model_dump_json())
        seal(run)

    edited(record.execution | {"allow_tf32": True})
    spread(monkeypatch)
    assert "within 0.05 (allow_tf32 True then, False now)" in rescored(run, model)
    # a run before this field had its caller's switches, which concern a GPU's scores alone
    older = record.execution | {}
    del older["allow_tf32"]
    edited(older)
    assert len(verify(run, model=model, sample=1).findings) == 2
    on_a_gpu = record_of(run).model_copy(update={"model": record.model | {"device": "cuda"}})
    assert "allow_tf32 unknown then, False now" in unlike(on_a_gpu, model)
    assert tolerance_of(on_a_gpu, model) == 0.05 and tolerance_of(record, model) == 0.001


def test_workers_have_a_share_of_the_threads_each(tiny_directory: Path, tmp_path: Path) -> None:
    model = dori_fast.load(tiny_directory, batch_size=8)
    with threads(2):
        scanned(model, ["a cat", "a dog"], tmp_path / "run", shard_size=1, workers=2)
        assert "within 0.001 (threads 1 then, 2 now)" in rescored(tmp_path / "run", model)
    with threads(1):
        assert "to the bit" in rescored(tmp_path / "run", None)


def test_a_run_that_does_not_say_its_threads(model: Any, tmp_path: Path, monkeypatch: Any) -> None:
    run = tmp_path / "run"
    scanned(model, ["a cat", "a dog"], run)
    record = json.loads((run / "run.json").read_text())
    assert record.pop("threads") == torch.get_num_threads()
    (run / "run.json").write_text(json.dumps(record))
    seal(run)
    spread(monkeypatch)
    assert "(threads unknown then" in rescored(run, model)


def test_a_resume_with_other_threads_is_told(
    model: Any, tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    run, prompts = tmp_path / "run", ["a cat", "a dog"]
    with threads(1):
        scanned(model, prompts, run, shard_size=1)
    for number in (2, 2):
        (run / "shards" / "part-00001.parquet").unlink()
        with threads(number), caplog.at_level(logging.WARNING):
            assert scanned(model, prompts, run, shard_size=1).scored == 1
    assert caplog.text.count("begun with 1 threads, resumed with 2") == 1
    # one row of each: neither number holds for all rows
    spread(monkeypatch)
    for number in (1, 2):
        with threads(number):
            assert f"(threads unknown then, {number} now)" in rescored(run, model)
    assert (run / "run.json").read_text().count('"threads": null') == 1
