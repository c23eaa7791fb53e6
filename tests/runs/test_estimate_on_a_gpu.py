"""The peak that an estimate measures on a GPU; imports little, for machines without the extras."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import dori_fast as df


@pytest.mark.gpu
def test_the_peak_on_a_gpu_is_that_of_scoring(tiny_directory: Path) -> None:
    """Loading tries batches to find a size for them."""
    pytest.importorskip("pyarrow")
    model = df.load(tiny_directory, device="cuda")
    torch.empty(10**9, dtype=torch.uint8, device="cuda")
    assert torch.cuda.max_memory_allocated() > 10**9
    found = df.estimate(model, ["a", "b", "c"], batch_size=2)
    assert torch.cuda.memory_allocated() <= found.peak_bytes < 10**9
