"""Attacks and size of the leaderboard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dori_fast.attack import Dori
from dori_fast.demo import DemoImage, images
from dori_fast.demo.facts import GENERATION, reproduced
from dori_fast.demo.story.settings import ATTACK, BATCH
from dori_fast.errors import UsageError
from dori_fast.evaluate import SmallImages

SETS = ("memorized", "control")
# attacks by their start; an embedding drawn from N(0, I) has far to go, hence the paper's rate
ATTACKS: dict[str, dict[str, Any]] = {"prompt": ATTACK, "gaussian": {**ATTACK, "lr": 0.1}}


@dataclass(frozen=True)
class Settings:
    """Size of the leaderboard.

    Attributes:
        images: Number of memorized photographs.
        controls: Number of images that the model never saw, attacked at the same budgets.
        held_out: Number of untrained pairs to measure the quality on; at least 2.
        seeds: Images drawn per embedding and per held-out prompt.
        budgets: Attack steps after which the attack is judged, ascending; 0 is the start.

    Raises:
        UsageError: a number is out of range, or exceeds the number of shipped images.
    """

    images: int = 12
    controls: int = 12
    held_out: int = 24
    seeds: int = 4
    budgets: tuple[int, ...] = (0, 10, 25, 50, 150)

    def __post_init__(self) -> None:
        if self.seeds < 1 or not self.budgets or min(self.budgets) < 0:
            raise UsageError("leaderboard: needs 1 or more seeds, and budgets of 0 or more steps")
        if list(self.budgets) != sorted(set(self.budgets)):
            raise UsageError(f"leaderboard: budgets must ascend, got {list(self.budgets)}")
        for name, least, most in (
            ("images", 1, len(reproduced())),
            ("controls", 1, len(_held_out("control"))),
            ("held_out", 2, len(_held_out("composition"))),
        ):
            if not least <= getattr(self, name) <= most:
                raise UsageError(f"leaderboard: {name} must be {least}..{most}")

    def chosen(self, which: str) -> list[DemoImage]:
        """The images of a set, or the pairs for the quality (``"held_out"``)."""
        if which == "memorized":
            return reproduced()[: self.images]
        if which == "control":
            return _held_out("control")[: self.controls]
        return _held_out("composition")[: self.held_out]

    def attack(self, name: str) -> Dori:
        """An attack, with a checkpoint at every budget."""
        return Dori(max(1, *self.budgets), **ATTACKS[name], checkpoints=self.budgets)

    @property
    def batch_size(self) -> int:
        """Samples per forward: the story's, or fewer if both sets are smaller; at least 8 draws."""
        return min(BATCH, max(8, self.drawn("memorized"), self.drawn("control")))

    def drawn(self, which: str) -> int:
        """Number of images drawn for a set, the denominator of its rates."""
        return {"memorized": self.images, "control": self.controls}[which] * self.seeds

    def config(self) -> dict[str, Any]:
        """Everything that the rows depend on besides model and mitigation, as plain JSON."""
        return {
            "pictures": self.images,
            "controls": self.controls,
            "held_out": self.held_out,
            "seeds": self.seeds,
            "budgets": list(self.budgets),
            "attacks": {name: self.attack(name).config() for name in ATTACKS},
            "generation": GENERATION,
            "threshold": SmallImages().threshold,
        }


def _held_out(kind: str) -> list[DemoImage]:
    return [image for image in images("held_out") if image.kind == kind]
