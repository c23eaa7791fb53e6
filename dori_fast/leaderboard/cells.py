"""The leaderboard's cells: computed one by one, each kept in a file of its own."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dori_fast.demo.story.stages import once, same_or_new
from dori_fast.errors import IntegrityError
from dori_fast.evaluate import quality, replication
from dori_fast.leaderboard.mitigations import Mitigation, View, mitigated
from dori_fast.leaderboard.settings import ATTACKS, SETS, Settings, stacked
from dori_fast.models import Denoiser
from dori_fast.runs.store.record import model_identity
from recipes.training.finetuned import HOW

Cell = dict[str, NDArray[Any]]
QUALITY = "quality"


class Cells:
    """The cells of one mitigation, in a folder.

    Args:
        folder: of this mitigation; made if need be.
        name: the mitigation's.
        mitigation: run when the first cell that lacks asks for it, so not at all for a finished
            folder.
        model: the embedded one.
        settings: of the leaderboard.
        say: is told what begins.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        mitigation: Mitigation,
        model: Denoiser,
        settings: Settings,
        say: Callable[[str], None],
    ) -> None:
        self.folder, self.name, self.mitigation = folder, name, mitigation
        self.model, self.settings, self.say = model, settings, say
        folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def view(self) -> View:
        """The mitigated model.

        Raises:
            IntegrityError: it is not the one that earlier cells of the folder are of.
        """
        self.say(f"{self.name}: mitigating {self.settings.pictures} photographs")
        of = self.settings.chosen("memorized")
        prompts = [picture.prompt for picture in of]
        view = mitigated(self.name, self.mitigation, self.model, prompts, stacked(of))
        same_or_new(self.folder / "model.json", model_identity(view(len(of)).config()))
        return view

    def all(self) -> dict[str, Cell]:
        """Every cell by ``<attack> <set>``, and ``quality``; what lacks is computed.

        Raises:
            IntegrityError: a file is damaged, or of another model.
        """
        found = {
            f"{attack} {which}": self._cell(
                f"{attack}-{which}", partial(self._attacked, attack, which)
            )
            for attack in ATTACKS
            for which in SETS
        }
        return {**found, QUALITY: self._cell(QUALITY, self._quality)}

    def _cell(self, name: str, compute: Callable[[], Cell]) -> Cell:
        path = self.folder / f"{name}.npz"
        once(path, compute)
        try:
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise IntegrityError(
                f"{path}: cannot be read — remove it and run the same command again"
            ) from error

    def _attacked(self, attack: str, which: str) -> Cell:
        """``similarity <budget>``, float64 [P, S]."""
        of = self.settings.chosen(which)
        view, images = self.view(len(of)), stacked(of)
        self.say(f"{self.name}: attacking {len(of)} {which} pictures, start {attack}")
        prompts, ids = [p.prompt for p in of], [f"{which} {row}" for row in range(len(of))]
        found = self.settings.attack(attack).run(view, prompts, images, start=attack, ids=ids)
        seeds, cell = self.settings.seeds, Cell()
        for budget in self.settings.budgets:
            drawn = replication(view, found.condition(view, budget), images, seeds=seeds, **HOW)
            cell[f"similarity {budget}"] = drawn.similarity
        return cell

    def _quality(self) -> Cell:
        """The quality kept on held-out pairs, as JSON."""
        of = self.settings.chosen("held_out")
        view = self.view(len(of))
        self.say(f"{self.name}: quality on {len(of)} held-out pairs")
        prompts = [picture.prompt for picture in of]
        kept = quality(
            view, self.model, prompts, stacked(of), seeds=self.settings.seeds, **HOW
        ).summary()
        return {"json": np.array(json.dumps(kept))}
