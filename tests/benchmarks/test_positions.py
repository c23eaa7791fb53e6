"""A prediction has the same bits at every position of a batch, whoever its neighbors are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import dori_fast as df
from benchmarks.speed.gpu.positions import at_positions

PROMPTS = ["a cup of coffee", "the cat", "a dog in the snow", "two chairs"]


def assert_equal_bits(found: list[torch.Tensor]) -> None:
    apart = [float((x.double() - found[0].double()).abs().max()) for x in found]
    assert all(torch.equal(x, found[0]) for x in found), f"differences by position: {apart}"


@pytest.mark.parametrize("channels_last", [False, True])
def test_on_a_cpu(tiny_directory: Path, channels_last: bool) -> None:
    how = {"batch_size": 4, "channels_last": channels_last}
    model = df.load(tiny_directory, device="cpu", **how)
    found = at_positions(model, PROMPTS, [0, 1, 2, 3])
    assert_equal_bits(found)
    # another prompt would have shown
    other = at_positions(model, PROMPTS[::-1], [0])[0]
    assert not torch.equal(other, found[0])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("switch", [None, "channels_last", "cuda_graphs", "compile"])
def test_on_a_gpu(tiny_directory: Path, dtype: str, switch: str | None) -> None:
    switches = {} if switch is None else {switch: True}
    model = df.load(tiny_directory, device="cuda", dtype=dtype, batch_size=4, **switches)
    assert_equal_bits(at_positions(model, PROMPTS, [0, 1, 2, 3]))
