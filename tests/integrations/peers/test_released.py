"""The released code itself, before and after df.patch; DORI_PEERS names the folder of checkouts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.peers import scripts as peer_scripts
from benchmarks.peers import unlearning as peer_unlearning
from benchmarks.speed import drop_in

FEWER = {"wen": (50, 1.8, 1), "nemo": (3,), "sail": (1.3,)}


@pytest.mark.peers
@pytest.mark.parametrize("name", sorted(drop_in.RUNS))
def test_same_results_from_fewer_evaluations(name, monkeypatch):
    monkeypatch.setattr(drop_in, "ROUNDS", 1)
    for run, fewer in zip(drop_in.RUNS[name], FEWER[name], strict=True):
        row = run(Path(os.environ["DORI_PEERS"]) / name)
        assert row["same"]
        assert row["released_samples"] >= fewer * row["ours_samples"]


@pytest.mark.peers
@pytest.mark.parametrize("name", sorted(peer_scripts.SCRIPTS))
def test_own_scripts_give_the_same(name):
    row = peer_scripts.compare(name, Path(os.environ["DORI_PEERS"]) / name, 1)
    assert row["same"]
    assert row["released_samples"] > row["ours_samples"]


@pytest.mark.peers
def test_unlearning_attack_gives_the_same_from_fewer_runs():
    folder = Path(os.environ["DORI_PEERS"]) / "unlearndiffatk"
    projection, sampling = peer_unlearning.compare(folder, 1)
    assert projection["same"]
    assert sampling["same"]
    assert sampling["released_runs"] == 2 * peer_unlearning.STEPS
    assert sampling["ours_runs"] == peer_unlearning.STEPS + 1
