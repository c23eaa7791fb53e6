"""The attack's benchmark: the peers' loop and ours find the same embeddings, and both are timed."""

from __future__ import annotations

import csv

import pytest
import torch

from benchmarks.speed import attack


def test_it_checks_times_and_records(tmp_path, capsys):
    small = ["--problems", "2", "--steps", "1", "--batch", "2", "--rounds", "2"]
    assert attack.main([*small, "--results", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "float64: embeddings" in said and "times the peers'" in said
    with next(tmp_path.glob("*.csv")).open(newline="") as file:
        rows = {row["provider"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"eager", "one_by_one", "dori_fast"}
    assert all(row["shape"] == "demo:2x1x2" and float(row["p50"]) > 0 for row in rows.values())


def test_another_attack_is_not_timed(monkeypatch):
    monkeypatch.setattr(attack.Problems, "ours", lambda self: torch.zeros_like(self.eager()))
    with pytest.raises(SystemExit, match="nothing was timed"):
        attack.check("float64", 1, 2, "cpu")


def test_random_weights_give_their_distance_as_a_row(tmp_path):
    small = ["--problems", "1", "--steps", "1", "--batch", "1", "--rounds", "2", "--device", "cpu"]
    assert attack.main([*small, "--model", "sd14-narrow", "--results", str(tmp_path)]) == 0
    with next(tmp_path.glob("*.csv")).open(newline="") as file:
        rows = list(csv.DictReader(file))
    far = {row["provider"]: float(row["p50"]) for row in rows if row["metric"] == "deviation"}
    # epsilon-prediction: a wrong target would lead both loops apart
    assert far["eager"] == 0 and far["dori_fast"] < 1e-4 and far["one_by_one"] < 1e-4
    assert {row["provider"] for row in rows if row["metric"] != "deviation"} == set(far)
