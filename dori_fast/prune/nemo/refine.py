"""Greedy refinement of a set of blocked neurons, in speculative batches with the greedy's answer.

The greedy of NeMo goes through groups of blocked neurons in order; a group is un-blocked for good
if the score stays below a threshold without it. Each test depends on the outcome of the one
before, so it is one mask at a time. Here the outcomes of the next tests are guessed, their masks
scored in one batch, and the outcomes accepted up to the first wrong guess: the sets that are
tested, and hence the answer, are the greedy's own, whatever the guesses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Score = Callable[[list[frozenset[Item]], Sequence[int]], Sequence[float]]
"""From blocked sets, and the numbers of the groups that they differ by, to their scores."""

# a test is speculated on if it will be of use with this probability
_WORTH = 0.6


@dataclass(frozen=True)
class Refined(Generic[Item]):
    """What a refinement leaves.

    Attributes:
        blocked: the items that stay blocked.
        dropped: for each group, whether it was un-blocked.
        tests: tests that the greedy makes, one a group.
        scored: sets that were scored, those after wrong guesses included.
        rounds: batches that they were scored in.
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
        blocked: what is blocked at first.
        groups: subsets of it in the order of the tests.
        score: scores of blocked sets; those of one call differ in the named groups alone.
        threshold: a group is dropped if the score without it is less.
        width: sets scored at once at most; 1 is the greedy itself.
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
    """What the next test will say, from what the last ones said."""

    def __init__(self) -> None:
        # most candidates of NeMo are dropped; old outcomes fade, layers differ
        self._drop, self._keep = 4.0, 1.0

    @property
    def drops(self) -> bool:
        return self._drop >= self._keep

    def learn(self, drop: bool) -> None:
        fade = 0.9
        self._drop, self._keep = fade * self._drop + drop, fade * self._keep + (not drop)

    def depth(self, width: int) -> int:
        """How many tests ahead are worth it."""
        right = max(self._drop, self._keep) / (self._drop + self._keep)
        depth, useful = 1, right
        while depth < width and useful >= _WORTH:
            depth, useful = depth + 1, useful * right
        return depth
