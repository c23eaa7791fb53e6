"""What a step of fine-tuning says of itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class StepReport:
    """The figures of one step; losses are those before its update.

    Attributes:
        step: its number, from 1.
        steps: how many there will be.
        lr: learning rate.
        trigger_loss: of surrogates under the triggers; None without an adversary.
        prompt_loss: of surrogates under the memorized prompts; None if they are left out.
        redirected_loss: of noised memorized pictures that shall lead to surrogates under the
            triggers; None if that has no weight.
        retained_loss: of retained pairs; None if they have no weight.
        attack_first: mean loss of the inner attack's first step; None without an adversary.
        attack_last: mean loss of its last one. Both are of the memorized pictures: they should
            rise as training goes on.
        gradient_norm: before clipping.
        evaluations: UNet samples with a backward pass so far, the attack's included.
    """

    step: int
    steps: int
    lr: float
    trigger_loss: float | None
    prompt_loss: float | None
    redirected_loss: float | None
    retained_loss: float | None
    attack_first: float | None
    attack_last: float | None
    gradient_norm: float
    evaluations: int

    def summary(self) -> dict[str, Any]:
        """Plain JSON, such as a line of a log."""
        return asdict(self)
