"""NeMo's greedy refinement of a set of blocked neurons, and guesses of its next tests.

NeMo's greedy search goes through groups of blocked neurons in order: whole layers, then single
neurons. It un-blocks a group for good if the score stays below a threshold without it. Each test
depends on the outcome of the one before. The search is written as a generator that yields one test
at a time and is sent its score, so that whoever runs it may run many searches side by side. With
each test come guesses of the tests after it, for both outcomes, likeliest first. They only say
which scores may be worth having early: the tested sets, and hence the result, are those of the
greedy search whatever is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from itertools import count
from typing import Generic, TypeVar

Item = TypeVar("Item")
Known = Callable[[frozenset[Item]], float | None]
"""From a blocked set to its score, or None if it was not scored yet."""


@dataclass(frozen=True)
class Guess(Generic[Item]):
    """A test that the search may come to.

    Attributes:
        likelihood: estimated probability that it does.
        blocked: items blocked in the test.
        group: number of the group that the test is about.
    """

    likelihood: float
    blocked: frozenset[Item]
    group: int


@dataclass(frozen=True)
class Trial(Generic[Item]):
    """The next test of a greedy search.

    Attributes:
        blocked: items blocked in the test.
        group: number of the group that is un-blocked in it.
        ahead: function from the known scores to guesses of later tests, likeliest first.
    """

    blocked: frozenset[Item]
    group: int
    ahead: Callable[[Known[Item]], Iterator[Guess[Item]]]


@dataclass(frozen=True)
class Refined(Generic[Item]):
    """The result of a refinement.

    Attributes:
        blocked: items that stay blocked.
        dropped: True for each group that was un-blocked.
    """

    blocked: frozenset[Item]
    dropped: tuple[bool, ...]


def refine(
    blocked: frozenset[Item], groups: Sequence[frozenset[Item]], threshold: float
) -> Generator[Trial[Item], float, Refined[Item]]:
    """Un-block, one after the other, the groups without which the score stays below a threshold.

    Args:
        blocked: items blocked at first.
        groups: subsets of ``blocked`` in the order of the tests.
        threshold: score below which a group is dropped.

    Yields:
        Each test; send its score.
    """
    dropped: list[bool] = []
    rate = _DropRate()
    for number, group in enumerate(groups):
        trial = blocked - group
        ahead = partial(_ahead, blocked, groups, number, threshold, rate.estimate)
        drop = (yield Trial(trial, number, ahead)) < threshold
        blocked = trial if drop else blocked
        dropped.append(drop)
        rate.learn(drop)
    return Refined(blocked, tuple(dropped))


def _ahead(
    blocked: frozenset[Item],
    groups: Sequence[frozenset[Item]],
    number: int,
    threshold: float,
    drops: float,
    known: Known[Item],
) -> Iterator[Guess[Item]]:
    """Unknown tests after that of group ``number``, in falling order of likelihood.

    Args:
        blocked: items blocked before that test.
        groups: as in :func:`refine`.
        number: number of the next test's group.
        threshold: as in :func:`refine`.
        drops: probability that a test drops its group.
        known: scores so far.
    """
    order = count()
    open_ = [(-1.0, next(order), blocked, number)]
    while open_:
        negative, _, before, group = heappop(open_)
        if group == len(groups):
            continue
        trial = before - groups[group]
        score = known(trial)
        if score is not None:
            # the outcome is certain, and the test costs nothing
            after = trial if score < threshold else before
            heappush(open_, (negative, next(order), after, group + 1))
            continue
        if group != number:
            yield Guess(-negative, trial, group)
        heappush(open_, (negative * drops, next(order), trial, group + 1))
        heappush(open_, (negative * (1 - drops), next(order), before, group + 1))


class _DropRate:
    """The share of tests that drop their group, from the latest outcomes."""

    def __init__(self) -> None:
        # NeMo drops most candidates; old outcomes fade because layers differ
        self._drop, self._keep = 4.0, 1.0

    @property
    def estimate(self) -> float:
        return self._drop / (self._drop + self._keep)

    def learn(self, drop: bool) -> None:
        fade = 0.9
        self._drop, self._keep = fade * self._drop + drop, fade * self._keep + (not drop)
