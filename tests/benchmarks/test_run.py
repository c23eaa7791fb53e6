"""The benchmarks measure what is right, in turn, and keep one row per thing measured."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks import harness
from benchmarks.harness import rows
from benchmarks.ops import merge, run
from benchmarks.ops.cases import CASES, stats
from benchmarks.speed.gpu import split
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
    # a problem has one time, however it was taken
    harness.record([dataclasses.replace(first, metric="graph_time", p50=2.0)])
    with path.open(newline="") as file:
        times = {(row["provider"], row["metric"], row["p50"]) for row in csv.DictReader(file)}
    assert times == {("cpp", "cpu_time", "1.0"), ("eager", "graph_time", "2.0")}


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


def recorded(folder: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """(metric, note) of a folder's rows by mode and provider."""
    (path,) = folder.glob("*.csv")
    with path.open(newline="") as file:
        return {
            (row["mode"], row["provider"]): (row["metric"], row["note"])
            for row in csv.DictReader(file)
        }


def test_a_case_that_fails_costs_its_own_rows_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = dataclasses.replace(CASES[0], shapes=((2, 1, 4, 8, 8),), dtypes=(torch.float32,))

    def broken(*inputs: object) -> torch.Tensor:
        raise RuntimeError("no such kernel")

    def absent(*inputs: object) -> torch.Tensor:
        raise harness.NotHere("eager is torchmetrics 1.3.2, found none")

    def wrong(*inputs: torch.Tensor) -> torch.Tensor:
        return small.eager(*inputs) * 1.001

    cases = [
        dataclasses.replace(small, mode="broken", eager=broken),
        dataclasses.replace(small, mode="absent", eager=absent),
        dataclasses.replace(small, mode="wrong", eager=wrong),
        dataclasses.replace(small, mode="good"),
    ]
    monkeypatch.setattr(run, "CASES", cases)
    command = ["--rounds", "2", "--device", "cpu", "--results", str(tmp_path)]
    assert run.main(command) == 1
    found = recorded(tmp_path)
    assert found["broken", "all"] == ("failed", "RuntimeError: no such kernel")
    assert found["absent", "all"] == ("skipped", "eager is torchmetrics 1.3.2, found none")
    assert found["wrong", "all"][0] == "failed" and "wrong eager" in found["wrong", "all"][1]
    assert found["good", "eager"] == found["good", "cpp"] == ("cpu_time", "")
    assert "2 cases failed" in capsys.readouterr().out
    # measured again, a number replaces the reason
    monkeypatch.setattr(run, "CASES", [dataclasses.replace(small, mode="broken")])
    assert run.main(command) == 0
    found = recorded(tmp_path)
    assert ("broken", "all") not in found and found["broken", "eager"] == ("cpu_time", "")


def test_the_baseline_of_ms_ssim_is_one_version_of_torchmetrics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = next(case for case in CASES if case.op == "ms_ssim")
    maps = case.make((1, 2, 1, 48, 48), torch.float32, "cpu")
    monkeypatch.setattr(stats, "_TORCHMETRICS", "1.9.0")
    with pytest.raises(harness.NotHere, match="eager is torchmetrics 1.9.0, found 1.3.2"):
        run.check(case, {"eager": case.eager}, maps)


def test_copies_of_the_inputs_fill_a_cache_three_times() -> None:
    x, listed = torch.randn(64, 4).t(), [torch.arange(8), "name"]
    copies = harness.rotated((x, listed, 3), 16 * x.nbytes)
    assert sum(c[0].nbytes + c[1][0].nbytes for c in copies) >= 3 * 16 * x.nbytes
    assert len({c[0].data_ptr() for c in copies}) == len(copies)
    for copied, (first, *rest), number in copies:
        assert torch.equal(copied, x) and copied.stride() == x.stride()
        assert torch.equal(first, listed[0]) and rest == ["name"] and number == 3
    assert len(harness.rotated((x,), 0)) == 8 and len(harness.rotated((x,), 2**40)) == 128


def test_the_commit_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    harness.commit_id.cache_clear()
    monkeypatch.setenv("DORI_COMMIT", "0123abc")
    assert harness.commit_id() == "0123abc"
    harness.commit_id.cache_clear()
    monkeypatch.delenv("DORI_COMMIT")
    assert harness.commit_id() != "0123abc"


def test_rows_of_several_calls_are_merged(tmp_path: Path) -> None:
    old = harness.make_row([1.0], **FACTS)
    old = dataclasses.replace(old, timestamp="2026-01-01T00:00:00+00:00")
    new = dataclasses.replace(old, p50=2.0, timestamp="2026-01-02T00:00:00+00:00")
    other = dataclasses.replace(old, metric="share", unit="%", note="of all", roofline_pct=3.5)
    # the newer of two rows wins, whatever the order of the folders
    for name, content in {"second": [new], "first": [old, other], "empty": []}.items():
        if content:
            harness.record(content, tmp_path / name)
    (tmp_path / "first" / "stages.csv").write_text("stage,state\nops,ok\n")
    into = tmp_path / "results"
    folders = [str(tmp_path / name) for name in ("second", "first")]
    assert merge.main([*folders, "--into", str(into)]) == 0
    (path,) = into.glob("*.csv")
    assert {(r.metric, r.p50, r.note, r.roofline_pct) for r in merge.rows_of(path)} == {
        ("cpu_time", 2.0, "", None),
        ("share", 1.0, "of all", 3.5),
    }
    assert merge.main([str(tmp_path / "empty"), "--into", str(into)]) == 1


def test_the_shares_of_a_profile() -> None:
    ops = [("aten::cudnn_convolution", 6.0), ("aten::addmm", 2.0), ("aten::native_group_norm", 1.0)]
    ops += [("aten::_scaled_dot_product_flash_attention", 0.5), ("aten::mul", 0.5)]
    assert split.shares(ops) == {
        "convolution": 60.0,
        "linear": 20.0,
        "norm": 10.0,
        "attention": 5.0,
        "elementwise": 5.0,
    }
    # overlapping kernels count once
    assert split.busy_share([(0, 10), (5, 20), (30, 40)]) == 75.0
    assert split.busy_share([]) == 0.0 and split.shares([]) == {}


@pytest.mark.gpu
def test_a_replay_takes_the_kernel_s_time_and_a_launch_the_cpu_s() -> None:
    x = torch.randn(2**26, device="cuda")
    call = lambda: x.add_(1)  # noqa: E731
    replayed = harness.graph_seconds([call] * 8)
    by_replay, by_events = min(replayed() for _ in range(5)), harness.gpu_seconds(call, 5)
    # 512 MiB moved: longer than a launch, so both timers see the kernel alone
    assert 0.5 * by_events < by_replay < 1.2 * by_events
    assert harness.enqueue_seconds(call, 5) < by_replay
    with pytest.raises(RuntimeError):
        harness.graph_seconds([lambda: x.sum().item()])


def test_providers_of_a_case_are_timed_in_one_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stand-in for the GPU: what is decided, not what is measured."""
    x = torch.ones(4)
    calls = {"eager": torch.neg, "ours": torch.abs}
    bound = {name: lambda call=call: call(x) for name, call in calls.items()}

    def events(call, repeats):
        call()
        return 7e-6

    def graph(replayed):
        assert len(replayed) > 1, "one copy would stay in the cache"
        if refused in {call.func for call in replayed}:
            raise RuntimeError("operation not permitted when stream is capturing")
        return lambda: 3e-6

    monkeypatch.setattr(harness, "gpu_seconds", events)
    monkeypatch.setattr(harness, "graph_seconds", graph)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    card = type("Card", (), {"L2_cache_size": 60 * 2**20})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    refused = None
    assert run.timed(calls, (x,), bound, 2, events) == (
        "graph_time",
        {"eager": [3e-6] * 2, "ours": [3e-6] * 2},
    )
    refused = torch.abs
    assert run.timed(calls, (x,), bound, 2, events) == (
        "time",
        {"eager": [7e-6] * 2, "ours": [7e-6] * 2},
    )
    assert "ours cannot be recorded as a graph" in capsys.readouterr().out
