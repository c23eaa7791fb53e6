"""The scan's benchmark: other scores of real weights are an error, of random weights a row."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks.peers import wen
from benchmarks.speed import end_to_end

SMALL = ["--device", "cpu", "--prompts", "1", "--seeds", "1", "--rounds", "2", "--batch-size", "1"]


def run(folder: Path, *arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit code, and the metrics of each provider with their medians or reasons."""
    code = end_to_end.main([*SMALL, "--results", str(folder), *arguments])
    found: dict[str, dict[str, str]] = {}
    with next(folder.glob("*.csv")).open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["provider"], {})[row["metric"]] = row["note"] or row["p50"]
    return code, found


def test_each_provider_has_rows_of_its_own(tmp_path: Path) -> None:
    names = ["dori_fast_plain", "dori_fast_cuda_graphs"]
    code, found = run(tmp_path, "--model", "demo", "--providers", *names)
    assert code == 0 and set(found) == set(names)
    assert float(found["dori_fast_plain"]["cpu_time"]) > 0
    assert "a cpu device has no CUDA graphs" in found["dori_fast_cuda_graphs"]["skipped"]


def test_other_scores_of_real_weights_are_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = wen.scores

    def shifted(*job):
        scores, norm = theirs(*job)
        return scores * 1.01, norm

    monkeypatch.setattr(end_to_end.peers, "scores", shifted)
    code, found = run(tmp_path, "--model", "demo", "--providers", "dori_fast")
    assert code == 1 and set(found["dori_fast"]) == {"failed"}
    assert "computes other scores" in found["dori_fast"]["failed"]
    random = tmp_path / "random"
    code, found = run(random, "--model", "sd14-narrow", "--providers", "dori_fast")
    assert code == 0 and set(found["dori_fast"]) == {"deviation", "cpu_time"}
    assert float(found["dori_fast"]["deviation"]) > 1e-4


def test_sdxl_is_compared_with_its_own_network(tmp_path: Path) -> None:
    code, found = run(tmp_path, "--model", "sdxl-narrow", "--providers", "eager", "dori_fast")
    assert code == 0 and "knows no SDXL" in found["eager"]["skipped"]
    assert float(found["dori_fast"]["deviation"]) < 1e-5
