"""Scans for tests, with detectors that need no network."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import dori_fast
from dori_fast.detect import PromptScores
from dori_fast.runs.result import ScanResult
from tests.runs.inputs import NASTY

PROMPTS = [*NASTY, "a cat", "a dog", "a cat", "the thin hen " * 30, "A cat", "a cat "]


class Spelling:
    """A detector that needs no network: letters of the prompt, by position in the alphabet."""

    name = "spelling"

    def __init__(self, bad: str | None = None) -> None:
        self.bad = bad
        self.asked: list[str] = []
        self.positions: list[int] = []

    def config(self) -> dict[str, Any]:
        return {"name": self.name}

    def scores(
        self, model: Any, prompts: Sequence[str], positions: Sequence[int] | None = None
    ) -> PromptScores:
        self.asked += prompts
        self.positions += positions or []
        per_seed = torch.tensor([[float(len(p)), float(sum(map(ord, p)) % 97)] for p in prompts])
        for i, prompt in enumerate(prompts):
            if prompt == self.bad:
                per_seed[i, 1] = math.nan
        sizes = torch.tensor([len(p) for p in prompts])
        return PromptScores(per_seed.mean(dim=1), per_seed, sizes, sizes > 77)


class Signalling(Spelling):
    """Sends the process a signal in the middle of its third call."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.calls, self.finished = number, 0, 0

    def scores(self, *args: Any, **kwargs: Any) -> PromptScores:
        self.calls += 1
        if self.calls == 3:
            os.kill(os.getpid(), self.number)
        result = super().scores(*args, **kwargs)
        self.finished += 1
        return result


def scanned(model: Any, prompts: Any, out: Path, **options: Any) -> ScanResult:
    return dori_fast.scan(model, prompts, out=out, **options)
