"""What the story runs, and at which size; a place for every figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dori_fast.attack import Dori
from dori_fast.evaluate import SmallImages
from dori_fast.prune import NeMo, Wanda
from recipes.training.finetuned import HIDING, HOW

# NeMo's threshold leaves about the paper's share of copies; see benchmarks/quality/retrieval.py
NEMO = NeMo(layers="all", threshold=0.2, theta_end=0.25)
METHODS: dict[str, NeMo | Wanda] = {"nemo": NEMO, "wanda": HIDING}
# of benchmarks/quality/retrieval.py: brings photographs back before it injects pictures never seen
ATTACK: dict[str, Any] = {"objective": "min-snr", "snr_cap": 1.0, "lr": 0.02}
# a whole number of evaluations for the default size: 6 pictures of 4 seeds, 3 problems of 8 draws
BATCH = 24


@dataclass(frozen=True)
class Settings:
    """The story's size.

    Attributes:
        pictures: memorized photographs, the first ones.
        controls: pictures that the model never saw, attacked at the same budget.
        seeds: images drawn from each prompt or embedding.
        steps: of the attack, after which it is judged; 0 is the prompt.
        prompts: rows of the sample prompts to scan; all if None.
    """

    pictures: int = 6
    controls: int = 6
    seeds: int = 4
    steps: tuple[int, ...] = (0, 10, 25, 50)
    prompts: int | None = None

    def attack(self) -> Dori:
        """The attack on every model and every picture."""
        return Dori(max(1, *self.steps), **ATTACK, checkpoints=self.steps)

    def config(self) -> dict[str, Any]:
        """Everything that the results depend on besides the model, as plain JSON."""
        nemo = {name: x for name, x in NEMO.config().items() if name != "statistics"}
        return {
            **vars(self),
            "steps": list(self.steps),
            "attack": self.attack().config(),
            "nemo": nemo,
            "wanda": HIDING.config(),
            "generation": HOW,
            "threshold": SmallImages().threshold,
        }
