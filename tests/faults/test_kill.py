"""A scan killed at random or at any point of a commit loses no row and doubles none."""

from __future__ import annotations

from typing import Any

import pytest


def check_moments(report: dict[str, Any]) -> None:
    """Check that kills hit scoring and committing; a dozen kills are too few for that."""
    states = [kill["state"] for kill in report["kills"] if kill["code"] == -9]
    assert states.count("scoring") + states.count("committing") >= 0.9 * len(states), states
    assert min(states.count("scoring"), states.count("committing")) >= 0.1 * len(states), states


def check_campaign(report: dict[str, Any], wanted: int) -> None:
    kills = [kill for kill in report["kills"] if kill["code"] == -9]
    assert len(kills) >= wanted, "the crashes have to happen"
    assert [kill["violations"] for kill in report["kills"] if kill["violations"]] == []
    for end in report["ends"]:
        assert (end["code"], end["violations"]) == (0, []), end
        assert end["excess"] <= 0, "more than one shard of work was lost to a kill"


def test_200_kills_at_random(experiment: Any) -> None:
    report = experiment("random_kills", wanted=200, seed=0, fast=True)
    check_campaign(report, 200)
    check_moments(report)


@pytest.mark.nightly
def test_1000_kills_at_random(experiment: Any) -> None:
    report = experiment("random_kills", wanted=1000, seed=1, fast=True)
    check_campaign(report, 1000)
    check_moments(report)


def test_kills_of_a_scan_that_runs_a_network(experiment: Any) -> None:
    check_campaign(experiment("random_kills", wanted=12, seed=2, fast=False), 12)


def test_killed_while_it_resumes_five_deep(experiment: Any) -> None:
    report = experiment("deep_kills", depth=5, seed=0)
    assert [kill["code"] for kill in report["kills"]] == [-9] * 6
    assert all(kill["violations"] == [] for kill in report["kills"])
    assert (report["end"]["code"], report["end"]["violations"]) == (0, [])
    assert report["end"]["excess"] <= 0, "at most one shard of work a kill"


def test_killed_at_every_point_of_a_commit(experiment: Any) -> None:
    report = experiment("point_kills")
    assert [kill["code"] for kill in report["kills"]] == [-9] * 5
    assert [kill["state"] for kill in report["kills"]] == ["committing"] * 5
    assert all(kill["violations"] == [] for kill in report["kills"])
    assert (report["end"]["code"], report["end"]["violations"]) == (0, [])


def test_a_broken_commit_is_noticed_and_resuming_repairs_it(experiment: Any) -> None:
    report = experiment("broken_kills", most=40, seed=1)
    last = report["kills"][-1]
    assert last["code"] == -9 and "does not open" in str(last["violations"])
    assert (report["end"]["code"], report["end"]["violations"]) == (0, [])
