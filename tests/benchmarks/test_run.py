"""The benchmarks measure what is right, in turn, and keep one row per thing measured."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks import harness
from benchmarks.harness import rows
from benchmarks.ops import run
from benchmarks.ops.cases import CASES
from tests.ops.contract import NOT_IN_CPP

FACTS = {
    "op": "noise_difference",
    "mode": "pairs",
    "provider": "eager",
    "metric": "cpu_time",
    "unit": "us",
    "x": 6,
    "bytes": 48,
    "flops": 18,
    "shape": "2x3",
    "dtype": "float32",
    "threads": 1,
    "command": "python -m benchmarks.ops.run",
}


def test_a_new_row_replaces_the_old_one_and_leaves_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    first = harness.make_row([1.0, 2.0, 3.0, 4.0, 5.0], **FACTS)
    assert (first.p20, first.p50, first.p80) == (1.8, 3.0, 4.2)
    assert (
        first.repro_cmd == "python -m benchmarks.ops.run --threads 1" and first.roofline_pct is None
    )
    path = harness.record([first, dataclasses.replace(first, provider="cpp", p50=1.0)])
    assert harness.record([dataclasses.replace(first, p50=9.0)]) == path
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [(row["provider"], row["p50"]) for row in found] == [("cpp", "1.0"), ("eager", "9.0")]
    assert list(found[0]) == [field.name for field in dataclasses.fields(harness.Row)]


def test_rows_from_before_a_column_was_added_are_kept(tmp_path: Path) -> None:
    row = harness.make_row([1.0, 2.0], **FACTS, roofline_pct=50.0)
    path = harness.record([row], tmp_path)
    with path.open(newline="") as file:
        old = [{**r, "provider": "cpp"} for r in csv.DictReader(file)]
    with path.open("w", newline="") as file:
        names = [name for name in old[0] if name != "roofline_pct"]
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(old)
    harness.record([row], tmp_path)
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [(r["provider"], r["roofline_pct"]) for r in found] == [("cpp", ""), ("eager", "50.0")]
    assert found[0]["p50"] == found[1]["p50"] == "1.5"


def test_providers_are_timed_in_turn() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in ("a", "b", "c")}

    def timer(call: object, repeats: int) -> float:
        calls_before = len(order)
        call()
        return float(len(order) - calls_before)

    samples = harness.interleave(calls, timer, rounds=3)
    assert samples == {name: [1.0] * 3 for name in calls}
    assert order[-9:] == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


def test_a_wrong_provider_is_not_timed() -> None:
    case = CASES[0]
    inputs = case.make((2, 1, 4, 8, 8), torch.float32, "cpu")
    run.check(case, {"eager": case.eager}, inputs)
    with pytest.raises(AssertionError, match="noise_difference shared_uncond wrong"):
        run.check(case, {"wrong": lambda *x: case.eager(*x) * 1.001}, inputs)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param(case, dtype, id=f"{case.op}-{case.mode}-{dtype}")
        for case in CASES
        for dtype in case.dtypes
    ],
)
def test_every_case_compares_equal_things(case: object, dtype: torch.dtype) -> None:
    shape = (3, *case.shapes[0][1:])
    inputs = case.make(shape, dtype, "cpu")
    calls = run.providers(case, "cpu", with_compile=False)
    assert set(calls) == {"eager", "reference" if case.op in NOT_IN_CPP else "cpp"}
    run.check(case, calls, inputs)
    assert case.traffic(shape, dtype.itemsize) > 0 and case.flops(shape) > 0


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(CASES[0], shapes=((2, 1, 4, 8, 8),), dtypes=(torch.float32,))
    monkeypatch.setattr(run, "CASES", (small,))
    threads = torch.get_num_threads()
    try:
        assert run.main(["--rounds", "3", "--no-write", "--op", small.op]) == 0
    finally:
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == run.HEADER
    assert [line.split()[4] for line in lines[1:] if "2x1x4x8x8" in line][:2] == ["eager", "cpp"]
