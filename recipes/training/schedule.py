"""A learning rate that follows the clock, so that a run ends after the given minutes."""

from __future__ import annotations

import math
import time


class Clock:
    """Progress of a run of `minutes` minutes; `done` minutes were used by earlier processes."""

    def __init__(self, minutes: float, done: float = 0.0) -> None:
        self.minutes = minutes
        self.start = time.monotonic() - 60 * done

    @property
    def elapsed(self) -> float:
        """Minutes used so far, earlier processes included."""
        return (time.monotonic() - self.start) / 60

    @property
    def progress(self) -> float:
        """Share of the run that is over, at most 1."""
        return min(1.0, self.elapsed / self.minutes)


def cosine(peak: float, progress: float, step: int, warmup: int = 200) -> float:
    """Linear warm-up over `warmup` steps, then half a cosine from `peak` to 0 over the run."""
    return peak * min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * progress))
