"""Rules that stop a problem of an attack before its budget is used up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dori_fast._checks import threshold_number


@dataclass(frozen=True)
class Progress:
    """The state of the A problems that still run.

    Attributes:
        step: number of steps done.
        problems: int64 [A] on the CPU, the problems' indices in the call.
        embeddings: [A, T, D].
        losses: [step, A], the loss before each step.
    """

    step: int
    problems: Tensor
    embeddings: Tensor
    losses: Tensor


Stop = Callable[[Progress], Tensor]
"""Returns which of the A problems are to stop, bool [A]."""


@dataclass(frozen=True)
class LossBelow:
    """Stop a problem when its mean loss over the last ``window`` steps is below ``threshold``.

    The loss of a single step varies with the timesteps that were drawn for it.
    """

    threshold: float
    window: int = 10

    def __post_init__(self) -> None:
        threshold_number("attack", self.threshold)

    def __call__(self, progress: Progress) -> Tensor:
        """bool [A]; False before ``window`` steps are done."""
        return (progress.losses[-self.window :].mean(0) < self.threshold) & (
            progress.step >= self.window
        )
