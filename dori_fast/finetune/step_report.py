"""The figures of one fine-tuning step."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class StepReport:
    """The figures of one step; losses are those before its update.

    Attributes:
        step: number of the step, from 1.
        steps: number of steps in all.
        lr: learning rate.
        trigger_loss: loss of surrogates under the triggers; None without an attack.
        prompt_loss: loss of surrogates under the memorized prompts; None if they are left out.
        redirected_loss: loss of noised memorized images that are trained toward surrogates under
            the triggers; None if it has no weight.
        retained_loss: loss of retained pairs; None if they have no weight.
        attack_first: mean loss of the inner attack's first step; None without an attack.
        attack_last: mean loss of its last step. Both losses are of the memorized images and should
            rise during training.
        gradient_norm: norm of the gradients before clipping.
        evaluations: UNet samples with a backward pass so far, including those of the attack.
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
