"""How surrogates are drawn for a fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dori_fast.evaluate import CopySimilarity, SmallImages
from dori_fast.models.schedules.vp import DDIM_STEPS


@dataclass(frozen=True)
class Drawing:
    """How the pruned model draws surrogates; see :func:`dori_fast.finetune.surrogates`.

    Attributes:
        count: surrogates per prompt, the first ones among twice as many that are not replicated.
        steps: DDIM steps.
        guidance: guidance scale.
        measure: measure of replication, None for the descriptor of small images.
    """

    count: int = 4
    steps: int = DDIM_STEPS
    guidance: float = 7.5
    measure: CopySimilarity | None = None

    def config(self) -> dict[str, Any]:
        """The settings as plain JSON."""
        measure = (self.measure or SmallImages()).config()
        how = {"count": self.count, "steps": self.steps, "guidance": self.guidance}
        return {**how, "measure": measure}
