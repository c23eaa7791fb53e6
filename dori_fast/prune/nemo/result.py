"""What NeMo found for one prompt."""

from __future__ import annotations

from dataclasses import dataclass, field

from dori_fast.models import NeuronMask


@dataclass
class Search:
    """A search of NeMo.

    Attributes:
        prompt: whose neurons were searched.
        layers: names of the cross-attentions that were searched.
        widths: their numbers of neurons.
        alike: largest similarity of two seeds' noise differences; the prompt's detection score.
        seeds: places of the seeds that were above the threshold; none: not memorized.
        initial: neurons blocked before refinement, by layer in order, with the released code's
            duplicates in its mode.
        initial_similarity: largest similarity of a seed's noise difference to its unblocked one.
        theta: z-score at which the initial neurons were found.
        k: number of largest magnitudes at which they were found.
        threshold: what the refinement stayed below.
        refined: neurons that stay blocked, by layer.
        refined_similarity: similarity with those.
        evaluations: UNet sample evaluations used, prefixes of the network not counted.
        tests: distinct masks that were scored.
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
