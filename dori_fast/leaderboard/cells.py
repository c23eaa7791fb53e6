"""Cells of the leaderboard, computed one by one, each kept in its own file."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dori_fast.demo.facts import GENERATION
from dori_fast.demo.story.stages import once, same_or_new, stacked
from dori_fast.errors import IntegrityError
from dori_fast.evaluate import quality, replication
from dori_fast.leaderboard.mitigations import Mitigation, View, mitigated
from dori_fast.leaderboard.settings import ATTACKS, SETS, Settings
from dori_fast.models import Denoiser
from dori_fast.runs.store.record import model_identity

Cell = dict[str, NDArray[Any]]
QUALITY = "quality"


class Cells:
    """The cells of one mitigation, in a folder.

    Args:
        folder: Folder of this mitigation; created if missing.
        name: Name of the mitigation.
        mitigation: The mitigation; run for the first missing cell, so never for a finished folder.
        model: The embedded model.
        settings: Size of the leaderboard.
        say: Called with one line as each computation starts.
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
            IntegrityError: earlier cells of the folder belong to another model.
        """
        self.say(f"{self.name}: mitigating {self.settings.images} photographs")
        memorized = self.settings.chosen("memorized")
        prompts = [image.prompt for image in memorized]
        view = mitigated(self.name, self.mitigation, self.model, prompts, stacked(memorized))
        same_or_new(self.folder / "model.json", model_identity(view(len(memorized)).config()))
        return view

    def all(self) -> dict[str, Cell]:
        """Every cell by ``<attack> <set>``, and ``quality``; missing cells are computed.

        Raises:
            IntegrityError: a file is damaged, or belongs to another model.
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
                cell = dict(file)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise IntegrityError(
                f"{path}: cannot be read; remove it and run the same command again"
            ) from error
        for part, values in cell.items():
            # NaN is above no threshold, so it would count as no copy
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise IntegrityError(
                    f"{path}: {part} holds NaN or Inf; remove it and run the same command again"
                )
        return cell

    def _attacked(self, attack: str, which: str) -> Cell:
        """``similarity <budget>``, float64 [P, S]."""
        chosen = self.settings.chosen(which)
        view, images = self.view(len(chosen)), stacked(chosen)
        self.say(f"{self.name}: attacking {len(chosen)} {which} images, start {attack}")
        prompts = [image.prompt for image in chosen]
        ids = [f"{which} {row}" for row in range(len(chosen))]
        found = self.settings.attack(attack).run(view, prompts, images, start=attack, ids=ids)
        seeds, cell = self.settings.seeds, Cell()
        for budget in self.settings.budgets:
            drawn = replication(
                view, found.condition(view, budget), images, seeds=seeds, **GENERATION
            )
            cell[f"similarity {budget}"] = drawn.similarity
        return cell

    def _quality(self) -> Cell:
        """The quality kept on held-out pairs, as JSON."""
        pairs = self.settings.chosen("held_out")
        view = self.view(len(pairs))
        self.say(f"{self.name}: quality on {len(pairs)} held-out pairs")
        prompts = [pair.prompt for pair in pairs]
        kept = quality(
            view, self.model, prompts, stacked(pairs), seeds=self.settings.seeds, **GENERATION
        ).summary()
        return {"json": np.array(json.dumps(kept))}
