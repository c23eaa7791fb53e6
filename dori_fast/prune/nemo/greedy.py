"""NeMo's refinement of one prompt's candidates: whole layers, then single neurons."""

from __future__ import annotations

from collections.abc import Sequence

from dori_fast.prune.nemo.candidates import Rung
from dori_fast.prune.nemo.refine import refine
from dori_fast.prune.nemo.scorer import Scorer


def refined(rung: Rung, scorer: Scorer, threshold: float) -> frozenset[int]:
    """The slots of a rung that stay blocked: the others keep the score below the threshold."""

    def pruned(slots: frozenset[int], groups: list[frozenset[int]]) -> frozenset[int]:
        layers = [rung.layer(group) for group in groups]

        def score(trials: list[frozenset[int]], tested: Sequence[int]) -> list[float]:
            first = min(layers[i] for i in tested)
            return scorer.scores([rung.blocked(trial) for trial in trials], first)

        return refine(slots, groups, score, threshold, scorer.width).blocked

    slots = pruned(frozenset(range(len(rung.neurons))), rung.layers())
    return pruned(slots, rung.singles(slots))
