"""NeMo's greedy refinement of a set of blocked neurons, in speculative batches.

NeMo's greedy search goes through groups of blocked neurons in order: whole layers, then single
neurons. It un-blocks a group for good if the score stays below a threshold without it. Each test
depends on the outcome of the one before, so masks are scored one at a time. Here the outcomes of
the next tests are guessed, their masks scored in one batch, and the outcomes accepted up to the
first wrong guess. The tested sets, and hence the result, are those of the greedy search whatever
the guesses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from dori_fast.prune.nemo.candidates import Candidates
from dori_fast.prune.nemo.scorer import Scorer

Item = TypeVar("Item")
Score = Callable[[list[frozenset[Item]], Sequence[int]], Sequence[float]]
"""From blocked sets, and the indices of the groups that they differ by, to their scores."""

# score a test ahead of time if its result will be needed with at least this probability
_WORTH = 0.6


def refine_candidates(candidates: Candidates, scorer: Scorer, threshold: float) -> frozenset[int]:
    """The slots that stay blocked: without the others the score stays below the threshold.

    Whole layers are tested first, then single neurons.
    """

    def refined(slots: frozenset[int], groups: list[frozenset[int]]) -> frozenset[int]:
        layers = [candidates.layer(group) for group in groups]

        def score(trials: list[frozenset[int]], tested: Sequence[int]) -> list[float]:
            first = min(layers[i] for i in tested)
            return scorer.scores([candidates.blocked(trial) for trial in trials], first)

        return refine(slots, groups, score, threshold, scorer.width).blocked

    slots = refined(frozenset(range(len(candidates.neurons))), candidates.layers())
    return refined(slots, candidates.singles(slots))


@dataclass(frozen=True)
class Refined(Generic[Item]):
    """The result of a refinement.

    Attributes:
        blocked: items that stay blocked.
        dropped: True for each group that was un-blocked.
        tests: tests of the greedy search, one per group.
        scored: scored sets, including those after wrong guesses.
        rounds: batches of scored sets.
    """

    blocked: frozenset[Item]
    dropped: tuple[bool, ...]
    tests: int
    scored: int
    rounds: int


def refine(
    blocked: frozenset[Item],
    groups: Sequence[frozenset[Item]],
    score: Score[Item],
    threshold: float,
    width: int,
) -> Refined[Item]:
    """Un-block, one after the other, the groups without which the score stays below a threshold.

    Args:
        blocked: items blocked at first.
        groups: subsets of ``blocked`` in the order of the tests.
        score: function that scores blocked sets; those of one call differ in the given groups only.
        threshold: score below which a group is dropped.
        width: largest number of sets scored at once; 1 is the plain greedy search.
    """
    dropped: list[bool] = []
    scored = rounds = 0
    guess = _Guess()
    while len(dropped) < len(groups):
        start = len(dropped)
        stop = min(start + guess.depth(width), len(groups))
        trials, remaining = [], blocked
        for group in groups[start:stop]:
            trials.append(remaining - group)
            remaining = trials[-1] if guess.drops else remaining
        found = score(trials, range(start, stop))
        scored, rounds = scored + len(trials), rounds + 1
        guessed = guess.drops
        for trial, value in zip(trials, found, strict=True):
            drop = value < threshold
            blocked = trial if drop else blocked
            dropped.append(drop)
            guess.learn(drop)
            if drop != guessed:
                break
    return Refined(blocked, tuple(dropped), len(groups), scored, rounds)


class _Guess:
    """A guess of the next test's outcome from the last outcomes."""

    def __init__(self) -> None:
        # NeMo drops most candidates; old outcomes fade because layers differ
        self._drop, self._keep = 4.0, 1.0

    @property
    def drops(self) -> bool:
        return self._drop >= self._keep

    def learn(self, drop: bool) -> None:
        fade = 0.9
        self._drop, self._keep = fade * self._drop + drop, fade * self._keep + (not drop)

    def depth(self, width: int) -> int:
        """The number of tests that are worth scoring ahead."""
        right = max(self._drop, self._keep) / (self._drop + self._keep)
        depth, useful = 1, right
        while depth < width and useful >= _WORTH:
            depth, useful = depth + 1, useful * right
        return depth
