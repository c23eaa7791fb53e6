"""The released code itself, before and after df.patch; DORI_PEERS names the folder of checkouts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import drop_in

FEWER = {"wen": 50, "nemo": 3, "sail": 1.3}


@pytest.mark.peers
@pytest.mark.parametrize("name", sorted(drop_in.RUNS))
def test_same_results_from_fewer_evaluations(name, monkeypatch):
    monkeypatch.setattr(drop_in, "ROUNDS", 1)
    row = drop_in.RUNS[name](Path(os.environ["DORI_PEERS"]) / name)
    assert row["same"]
    assert row["released_samples"] >= FEWER[name] * row["ours_samples"]
