"""Wen's detector with faults; as a program, a scan with it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import dori_fast
from dori_fast.detect import PromptScores, Wen

OPTIONS: dict[str, Any] = {"shard_size": 10}
LOADED = "(loaded)"


class Faulty(Wen):
    """Scores as :class:`Wen` does, with each fault ``times`` times in all processes together.

    Args:
        faults: fault to cause when a prompt is scored: "kill", "hang", "device", "raise", or
            "memory", after which the process has memory for 4 samples only. The prompt LOADED
            stands for the moment before a worker loads its model.
        marks: folder with a file for each fault that happened.
        times: number of times that each fault happens.
        pause: seconds added to every call.
    """

    def __init__(
        self, faults: dict[str, str], marks: Path, times: int = 1, pause: float = 0.0
    ) -> None:
        super().__init__(seeds=2)
        self.faults, self.marks, self.times, self.pause = faults, marks, times, pause

    def scores(
        self, model: Any, prompts: Sequence[str], positions: Sequence[int] | None = None
    ) -> PromptScores:
        time.sleep(self.pause)
        for prompt in prompts:
            if prompt in self.faults and self._is_due(self.faults[prompt]):
                self._meet(self.faults[prompt])
        return super().scores(model, prompts, positions)

    def _is_due(self, kind: str) -> bool:
        for number in range(self.times):
            try:
                (self.marks / f"{kind}-{number}").touch(exist_ok=False)
                return True
            except FileExistsError:
                continue
        return False

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if LOADED in self.faults and self._is_due(self.faults[LOADED]):
            self._meet(self.faults[LOADED])

    def _meet(self, kind: str) -> None:
        if kind == "memory":
            F.conv2d = refusing(4, F.conv2d)
            return
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "hang":
            time.sleep(600)
        elif kind == "device":
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        raise ValueError("no such luck")


class Rounding(Faulty):
    """A faulty detector whose scores depend on the batch size."""

    def per_seed(self, model: Any, condition: Any) -> Any:
        return rounded(model, super().per_seed(model, condition))


def rounded(model: Any, scores: torch.Tensor) -> torch.Tensor:
    """Scores as if their last bits depended on the batch size, as they do with large models."""
    return scores * (1 + 1e-6 * model.batch_size)


def refusing(samples: int, convolve: Any) -> Any:
    """A convolution by which a tiny UNet's last layer runs out of memory on larger batches.

    It replaces F.conv2d; a hook would be taken for somebody's change of the network.
    """

    def check(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(weight) == 4 and len(x) > samples:
            raise torch.OutOfMemoryError("CUDA out of memory")
        found: torch.Tensor = convolve(x, weight, *rest)
        return found

    return check


def main(model: str, prompts: str, out: str, engine: Any) -> None:
    """A scan by two workers that takes a while."""
    detector = Faulty({}, Path(out), pause=0.1)
    loaded = dori_fast.load(model, batch_size=8)
    dori_fast.scan(loaded, prompts, out=out, detector=detector, workers=2, engine=engine, **OPTIONS)


if __name__ == "__main__":
    main(*sys.argv[1:])
