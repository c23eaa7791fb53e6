"""The result of NeMo's search for one prompt."""

from __future__ import annotations

from dataclasses import dataclass, field

from dori_fast.models import NeuronMask


@dataclass
class Search:
    """The neurons of one prompt.

    Attributes:
        prompt: the prompt.
        layers: names of the searched cross-attentions.
        widths: number of neurons of each.
        alike: largest similarity of two seeds' noise differences; the prompt's detection score.
        seeds: indices of the seeds above the threshold; empty if the prompt is not memorized.
        initial: neurons blocked before refinement, by layer in order, with the released code's
            duplicates in its mode.
        initial_similarity: largest similarity of a seed's noise difference to its unblocked one.
        theta: z-score of the initial neurons.
        k: number of largest magnitudes per layer of the initial neurons.
        threshold: similarity that the refinement stayed below.
        refined: neurons that stay blocked, by layer.
        refined_similarity: similarity with the refined neurons blocked.
        evaluations: UNet sample evaluations that the search needs: the seeds of the detection, and
            the kept seeds of each test. It does not depend on other prompts. Padding, parts of the
            network and tests that were scored ahead in vain come on top; they are in
            ``model.engine.rows_computed``.
        tests: distinct masks that the search scored.
    """

    prompt: str
    layers: list[str]
    widths: dict[str, int]
    alike: float
    seeds: list[int] = field(default_factory=list)
    initial: list[list[int]] = field(default_factory=list)
    initial_similarity: float | None = None
    theta: float | None = None
    k: int | None = None
    threshold: float | None = None
    refined: list[list[int]] = field(default_factory=list)
    refined_similarity: float | None = None
    evaluations: int = 0
    tests: int = 0

    @property
    def memorized(self) -> bool:
        """Whether the prompt counts as memorized."""
        return bool(self.seeds)

    @property
    def mask(self) -> NeuronMask:
        """The refined neurons as one mask, M = 1."""
        lists = dict(zip(self.layers, self.refined, strict=False))
        return NeuronMask.blocking([lists], self.widths)
