"""scan --dry-run: the number of rows, and time, memory and bytes from a probe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dori_fast.errors import UsageError
from dori_fast.runs.estimate import estimate
from tests.runs.scanning import Spelling, scanned


def test_against_the_scan(model: Any, tmp_path: Path) -> None:
    prompts: list[object] = [f"prompt {i} {i * 7919}" for i in range(300)] + [None]
    found = estimate(model, prompts, detector=Spelling(), shard_size=100)
    assert (found.rows, found.quarantined, found.shards) == (301, 1, 4)
    assert 0 < found.probed <= 100
    assert found.seconds > 0 and found.rate > 0
    assert found.peak_bytes > 50_000_000
    result = scanned(model, prompts, tmp_path / "run", detector=Spelling(), shard_size=100)
    written = sum(shard.stat().st_size for shard in result.shards)
    assert 0.5 * written < found.written_bytes < 2 * written


def test_a_limit_and_an_input_without_prompts(model: Any) -> None:
    assert estimate(model, ["a", "b", "c"], detector=Spelling(), limit=2).rows == 2
    with pytest.raises(UsageError, match="2048 of the list of prompts can be scored"):
        estimate(model, [None] * 5, detector=Spelling())
    with pytest.raises(UsageError, match="2048 of the list of prompts can be scored"):
        estimate(model, [], detector=Spelling())
