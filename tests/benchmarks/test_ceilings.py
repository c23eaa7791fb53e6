"""The ceilings that results are held against: plausible, measured once, the longer time binds."""

from __future__ import annotations

import pytest
import torch

from benchmarks.ceilings import Ceilings
from benchmarks.harness import cpu_seconds


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Ceilings:
    """10 GB/s, or 100 GB/s for what fits a cache; 2 TFLOP/s in float32, 1 in bfloat16."""
    monkeypatch.setattr(
        Ceilings, "_measure_bandwidth", lambda self, moved: 1e11 if moved <= 2**20 else 1e10
    )
    monkeypatch.setattr(
        Ceilings, "_measure_rate", lambda self, dtype: 2e12 if dtype == torch.float32 else 1e12
    )
    return Ceilings("cpu", cpu_seconds)


def test_the_longer_time_binds(known: Ceilings) -> None:
    few, many = 10**3, 10**12
    assert known.seconds(bytes=10**10, flops=few, dtype=torch.float32) == 1.0
    assert known.seconds(bytes=10**4, flops=many, dtype=torch.float32) == 0.5
    assert known.seconds(bytes=10**6, flops=few, dtype=torch.float32) == 1e-5
    assert known.seconds(bytes=0, flops=many, dtype=torch.float32) == 0.5
    assert known.seconds(bytes=0, flops=0, dtype=torch.float32) == 0.0


def test_arithmetic_in_float32_counts_where_it_is_faster(known: Ceilings) -> None:
    assert known.seconds(bytes=0, flops=10**12, dtype=torch.bfloat16) == 0.5


def test_a_gpu_copies_more_than_its_cache_holds(known: Ceilings) -> None:
    gpu = Ceilings("cuda", cpu_seconds)
    assert gpu.bandwidth(100) == 1e10 and known.bandwidth(100) == 1e11


def test_a_copy_and_a_product_are_timed_here() -> None:
    measured: list[int] = []

    def timer(call: object, repeats: int) -> float:
        measured.append(repeats)
        return cpu_seconds(call, repeats)

    ceilings = Ceilings("cpu", timer)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # between a floppy disk and twenty times the fastest memory and processor of today
        assert 1e7 < ceilings.bandwidth(2**22) < 1e13
        assert 1e8 < ceilings.rate(torch.float32) < 1e14
        once = len(measured)
        assert ceilings.bandwidth(2**22 - 5) == ceilings.bandwidth(2**22)
        assert len(measured) == once
    finally:
        torch.set_num_threads(threads)
