"""Memory and file descriptors do not grow with the number of rows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from dori_fast.detect import PromptScores
from dori_fast.runs.progress import Progress
from tests.runs.scanning import scanned

ROWS = 240_000


class Constant:
    """A detector that costs nothing, so that only the scan itself is measured."""

    name = "constant"

    def config(self) -> dict[str, Any]:
        return {"name": self.name}

    def scores(
        self, model: Any, prompts: Sequence[str], positions: Sequence[int] | None = None
    ) -> PromptScores:
        n = len(prompts)
        truncated = torch.zeros(n, dtype=torch.bool)
        return PromptScores(torch.ones(n), torch.ones(n, 4), torch.full((n,), 9), truncated)


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_memory_is_flat(model: Any, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p{suffix}"
    words = "a prompt of about the usual length of a caption, number"
    with path.open("w") as file:
        file.write("id;prompt\n" if suffix == ".csv" else "")
        for i in range(ROWS):
            row = f'{i};"{words} {i}"' if suffix == ".csv" else f'{{"prompt": "{words} {i}"}}'
            file.write(f"{row}\n")
    seen: list[tuple[int, float, int]] = []

    def look(progress: Progress) -> None:
        descriptors = len(os.listdir("/proc/self/fd"))
        seen.append((progress.done, resident_megabytes(), descriptors))

    result = scanned(model, path, tmp_path / "run", detector=Constant(), on_progress=look)
    assert result.counts.ok == ROWS
    middle = [row for row in seen if ROWS // 3 < row[0] <= 2 * ROWS // 3]
    end = [row for row in seen if row[0] > 2 * ROWS // 3]
    # a third of the rows kept as Python objects would be more than 20 MB; medians, since the
    # allocator may still release another test's memory
    assert median(row[1] for row in end) - median(row[1] for row in middle) < 10
    assert max(row[2] for row in end) <= max(row[2] for row in middle)
