"""The network's work that a call has spent: evaluations, and rows with padding."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dori_fast.models import Denoiser


class Spent:
    """The work of a model since this object was made, its views and added copies included."""

    def __init__(self, model: Denoiser) -> None:
        self._engine = model.engine
        self._evaluations, self._rows = -self._engine.evaluations, -self._engine.rows_computed

    def add(self, copy: Denoiser) -> None:
        """Add what a copy has computed since it was made."""
        self._evaluations += copy.engine.evaluations
        self._rows += copy.engine.rows_computed

    @property
    def evaluations(self) -> int:
        """UNet sample evaluations, without padding."""
        return self._evaluations + self._engine.evaluations

    @property
    def rows_computed(self) -> int:
        """UNet rows: samples, padding, and those of parts of the network."""
        return self._rows + self._engine.rows_computed

    @property
    def both(self) -> tuple[int, int]:
        """Evaluations and rows computed."""
        return self.evaluations, self.rows_computed
