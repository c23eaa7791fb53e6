"""Methods, attack and size of the story."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dori_fast.attack import Dori
from dori_fast.demo.facts import GENERATION, HIDING
from dori_fast.evaluate import SmallImages
from dori_fast.prune import NeMo, Wanda

# this threshold leaves about the paper's share of copies; see benchmarks/quality/retrieval.py
NEMO = NeMo(layers="all", threshold=0.2, theta_end=0.25)
METHODS: dict[str, NeMo | Wanda] = {"nemo": NEMO, "wanda": HIDING}
# retrieves memorized photographs in fewer steps than it injects unseen images; found by
# benchmarks/quality/retrieval.py
ATTACK: dict[str, Any] = {"objective": "min-snr", "snr_cap": 1.0, "lr": 0.02}
# no batch of the default size is padded: 6 images of 4 seeds, 3 problems of 8 draws
BATCH = 24


@dataclass(frozen=True)
class Settings:
    """Size of the story.

    Attributes:
        images: Number of memorized photographs.
        controls: Number of images that the model never saw, attacked at the same budget.
        seeds: Images drawn per prompt or embedding.
        steps: Attack steps after which the attack is judged; 0 is the prompt itself.
        prompts: Number of sample prompts to scan; None: all.
    """

    images: int = 6
    controls: int = 6
    seeds: int = 4
    steps: tuple[int, ...] = (0, 10, 25, 50)
    prompts: int | None = None

    def attack(self) -> Dori:
        """The attack on every model and every image."""
        return Dori(max(1, *self.steps), **ATTACK, checkpoints=self.steps)

    def config(self) -> dict[str, Any]:
        """Everything that the results depend on besides the model, as plain JSON."""
        nemo = {name: x for name, x in NEMO.config().items() if name != "statistics"}
        return {
            "pictures": self.images,
            "controls": self.controls,
            "seeds": self.seeds,
            "steps": list(self.steps),
            "prompts": self.prompts,
            "attack": self.attack().config(),
            "nemo": nemo,
            "wanda": HIDING.config(),
            "generation": GENERATION,
            "threshold": SmallImages().threshold,
        }
