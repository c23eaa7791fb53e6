"""When a problem of an attack may stop before its budget is used up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Progress:
    """Where the problems that still go on stand.

    Attributes:
        step: how many steps they have taken.
        problems: int64 [A] on the CPU, their places in the call's problems.
        embeddings: [A, T, D].
        losses: [step, A], the loss before each step.
    """

    step: int
    problems: Tensor
    embeddings: Tensor
    losses: Tensor


Stop = Callable[[Progress], Tensor]
"""Says which of the A problems have gone far enough, bool [A]."""


@dataclass(frozen=True)
class LossBelow:
    """Stop a problem whose loss has been below ``threshold`` in the mean of the last steps.

    A single step's loss says little: it depends on the timesteps that were drawn for it.
    """

    threshold: float
    window: int = 10

    def __call__(self, progress: Progress) -> Tensor:
        """bool [A]; False before ``window`` steps are done."""
        return (progress.losses[-self.window :].mean(0) < self.threshold) & (
            progress.step >= self.window
        )
