"""Damaged results, other runs, signals, clocks, memory and NaN: all states a scan may find."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

FINISHED = (0, [])


def code_and_violations(end: dict[str, Any]) -> tuple[int, list[str]]:
    return end["code"], end["violations"]


def test_damaged_shards_are_found_kept_aside_and_computed_again(experiment: Any) -> None:
    report = experiment("damaged_shards")
    assert code_and_violations(report["end"]) == FINISHED, report
    broken = [f"part-{index:05d}.parquet" for index in (0, 1, 2, 3, 4, 5, 29)]
    assert report["set_aside"] == broken


def test_without_the_hash_check_a_forged_score_would_stay(experiment: Any) -> None:
    report = experiment("forged_without_hash_check")
    assert "part-00005.parquet differs" in str(report["violations"])


def test_a_second_run_is_refused_and_a_dead_owners_lock_is_taken_over(experiment: Any) -> None:
    report = experiment("two_runs")
    second = report["second"]
    assert second["code"] == 2
    assert f"pid {report['pid']} on {os.uname().nodename}" in second["said"]
    assert code_and_violations(report["end"]) == FINISHED


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_signal(experiment: Any, number: int) -> None:
    report = experiment("terminated", number=int(number))
    assert (report["fault"]["code"], report["fault"]["violations"]) == (75, [])
    assert report["fault"]["said"].endswith("run the same command again to continue")
    assert report["seconds"] < 10
    assert code_and_violations(report["end"]) == FINISHED


def test_clocks_and_file_times_do_not_matter(experiment: Any) -> None:
    report = experiment("other_clocks")
    assert (report["code"], report["violations"]) == FINISHED
    assert code_and_violations(report["end"]) == FINISHED


def test_another_batch_size_may_go_on(experiment: Any) -> None:
    report = experiment("other_batches")
    assert report["code"] == 0 and report["off"] < 1e-4


@pytest.mark.parametrize("nth", [1, 2, 20])
def test_the_nth_evaluation_runs_out_of_memory(experiment: Any, nth: int) -> None:
    report = experiment("out_of_memory", nth=nth)
    assert report["code"] == 0 and report["off"] < 1e-4
    told = [line for line in report["said"] if "out of memory" in line]
    assert len(told) == 1 and "batches are of 4 samples now" in told[0]
    assert report["end"]["code"] == 0


def test_no_memory_even_for_one_sample(experiment: Any) -> None:
    report = experiment("out_of_memory", nth=None)
    assert report["code"] == 75
    assert "out of memory, even one sample at a time; " in report["said"][-1]
    assert len([line for line in report["said"] if "samples now" in line]) == 3
    assert report["end"]["code"] == 0


def test_nan_in_one_prompt_leaves_its_neighbours_alone(experiment: Any) -> None:
    report = experiment("nonfinite_prompt")
    assert report["code"] == 0, report["errors"]
    assert report["error"].startswith("nonfinite: ")
    assert report["others_equal"]


@pytest.mark.parametrize(
    ("more", "shown"),
    [
        (["--limit", "290"], "limit: null then, 290 now"),
        (["--column", "id"], 'column: "Caption" then, "id" now'),
    ],
)
def test_another_configuration_is_refused(experiment: Any, more: list[str], shown: str) -> None:
    report = experiment("changed", more=more)
    assert (report["code"], report["violations"]) == (4, [])
    assert shown in report["said"]
