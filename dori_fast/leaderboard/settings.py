"""What the leaderboard runs, and at which size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dori_fast.attack import Dori
from dori_fast.demo import Picture, pictures
from dori_fast.demo.story.settings import ATTACK, BATCH
from dori_fast.errors import UsageError
from dori_fast.evaluate import SmallImages
from recipes.training.finetuned import HOW, reproduced

SETS = ("memorized", "control")
# the start of each attack; from N(0, I) an embedding has far to go, hence the paper's rate
ATTACKS: dict[str, dict[str, Any]] = {"prompt": ATTACK, "gaussian": {**ATTACK, "lr": 0.1}}


@dataclass(frozen=True)
class Settings:
    """The leaderboard's size.

    Attributes:
        pictures: memorized photographs, the first ones.
        controls: pictures that the model never saw, attacked at the same budgets.
        held_out: pairs that were never trained on, for the quality; at least 2.
        seeds: images drawn from each embedding, and from each held-out prompt.
        budgets: attack steps after which it is judged, ascending; 0 is the start.

    Raises:
        UsageError: a number out of range, or more pictures than there are.
    """

    pictures: int = 12
    controls: int = 12
    held_out: int = 24
    seeds: int = 4
    budgets: tuple[int, ...] = (0, 10, 25, 50, 150)

    def __post_init__(self) -> None:
        if self.seeds < 1 or not self.budgets or min(self.budgets) < 0:
            raise UsageError("leaderboard: needs 1 or more seeds, and budgets of 0 or more steps")
        if list(self.budgets) != sorted(set(self.budgets)):
            raise UsageError(f"leaderboard: budgets must ascend, got {list(self.budgets)}")
        wanted = {"pictures": 1, "controls": 1, "held_out": 2}
        there = {
            "pictures": len(reproduced()),
            "controls": len(_held_out("control")),
            "held_out": len(_held_out("composition")),
        }
        for name, least in wanted.items():
            if not least <= getattr(self, name) <= there[name]:
                raise UsageError(f"leaderboard: {name} must be {least}..{there[name]}")

    def chosen(self, which: str) -> list[Picture]:
        """The pictures of a set, or the pairs for the quality (``"held_out"``)."""
        if which == "memorized":
            return reproduced()[: self.pictures]
        if which == "control":
            return _held_out("control")[: self.controls]
        return _held_out("composition")[: self.held_out]

    def attack(self, name: str) -> Dori:
        """An attack, with a checkpoint at every budget."""
        return Dori(max(1, *self.budgets), **ATTACKS[name], checkpoints=self.budgets)

    @property
    def batch_size(self) -> int:
        """Samples at a time: the story's, or fewer where a set is smaller; for 8 draws at least."""
        return min(BATCH, max(8, self.images("memorized"), self.images("control")))

    def images(self, which: str) -> int:
        """How many images a rate of a set is over."""
        return {"memorized": self.pictures, "control": self.controls}[which] * self.seeds

    def config(self) -> dict[str, Any]:
        """Everything that the rows depend on besides model and mitigation, as plain JSON."""
        return {
            **vars(self),
            "budgets": list(self.budgets),
            "attacks": {name: self.attack(name).config() for name in ATTACKS},
            "generation": HOW,
            "threshold": SmallImages().threshold,
        }


def stacked(of: list[Picture]) -> NDArray[np.uint8]:
    """uint8 [P, H, W, 3] of P pictures."""
    return np.stack([picture.image for picture in of])


def _held_out(kind: str) -> list[Picture]:
    return [picture for picture in pictures("held_out") if picture.kind == kind]
