"""Full, failing and forbidden disks: committed shards stay, and the same command resumes."""

from __future__ import annotations

import errno
from typing import Any

import pytest


def check(report: dict[str, Any], code: int = 75) -> dict[str, Any]:
    """The fault ended the scan with this code and no damage; resumed, it is the undisturbed run."""
    if reason := report.get("left_out"):
        pytest.skip(reason)
    fault, end = report["fault"], report["end"]
    assert fault["code"] == code, fault["errors"]
    assert fault["violations"] == []
    assert fault["said"].startswith("error: ") and "; " in fault["said"], fault["errors"]
    assert (end["code"], end["violations"]) == (0, []), end
    return fault


@pytest.mark.parametrize(
    ("call", "nth"), [*(("fsync", n) for n in (1, 2, 5, 9)), *(("replace", n) for n in (2, 5, 9))]
)
def test_the_nth_call_fails(experiment: Any, call: str, nth: int) -> None:
    report = experiment("failing_call", call=call, nth=nth, number=errno.EIO)
    # the first call probes the directory, before any work
    first = (call, nth) == ("fsync", 1)
    check(report, 2 if first else 75)


def test_a_signature_that_is_refused_harms_nothing(experiment: Any) -> None:
    report = experiment("failing_call", call="replace", nth=1, number=errno.EIO)
    assert (report["fault"]["code"], report["fault"]["violations"]) == (0, [])


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EIO", "EROFS", "EACCES", "EPERM"])
def test_a_write_is_refused(experiment: Any, name: str) -> None:
    fault = check(experiment("refused_write", number=getattr(errno, name)))
    assert "part-00002.parquet could not be written" in fault["said"]
    assert "run the same command again" in fault["said"]


def test_a_limit_of_file_sizes(experiment: Any) -> None:
    assert "could not be written" in check(experiment("file_size_limit"))["said"]


def test_a_disk_that_is_really_full(experiment: Any) -> None:
    report = experiment("full_disk")
    assert "free some space" in check(report)["said"]
    assert 0 < report["committed"] < 30


@pytest.mark.parametrize("part", ["run", "shards"])
def test_a_read_only_place_is_refused_before_any_work(experiment: Any, part: str) -> None:
    fault = check(experiment("read_only", part=part), 2)
    assert "cannot be written" in fault["said"] and fault["asked"] == 0


def test_a_forbidden_place_is_refused_before_any_work(experiment: Any) -> None:
    fault = check(experiment("no_permission"), 2)
    assert "cannot be written" in fault["said"] and fault["asked"] == 0


@pytest.mark.parametrize(("streams", "code"), [([2], 0), ([1, 2], 1)])
def test_nobody_to_talk_to(experiment: Any, streams: list[int], code: int) -> None:
    report = experiment("full_terminal", streams=streams)
    # progress and warnings may be lost, but results that cannot be printed are no success
    assert (report["fault"]["code"], report["fault"]["violations"]) == (code, [])
    assert (report["end"]["code"], report["end"]["violations"]) == (0, [])
