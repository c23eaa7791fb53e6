"""What verify needs to score rows again: the detector and the model of a record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dori_fast.detect import Asthana, Cascade, Nemo, Ren, Sail, Wen
from dori_fast.errors import UsageError
from dori_fast.scan import verify
from dori_fast.scan.prune import prune
from dori_fast.scan.rescore import recorded_detector
from tests.scan.scanning import Spelling, scanned
from tests.scan.test_prune_run import nemo


@pytest.mark.parametrize(
    "detector",
    [
        Wen(),
        Wen([3, 9], 3, guidance=2.0, total_steps=40),
        Wen(compat="wen", gen_seed=7),
        Cascade(Wen(5), 1.25),
        Nemo(4),
        Nemo(4, compat="nemo"),
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
