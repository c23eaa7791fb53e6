"""Searches of several prompts in lockstep, whose wanted tests fill batches together.

An evaluation of the network costs the same whether its batch is full or padded. A batch therefore
takes rows, a row being one seed of one test, in this order: tests that a search wants next, as many
of a test's seeds as there is room for (the others come with the next batch); then tests that a
search may want later, likeliest first. A search is sent the scores of wanted tests alone, so its
result does not depend on what else was scored.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from dori_fast._checks import require_finite
from dori_fast.errors import NonFiniteError
from dori_fast.ops import ms_ssim_pairs
from dori_fast.prune.nemo.candidates import Blocked
from dori_fast.prune.nemo.masked_rows import MaskedRows, Piece
from dori_fast.prune.nemo.walk import Ask, Asks

# the work before a layer is done in advance for at least so many tests per row computed for it
_WORTH = 2
# guesses looked at for one batch; those that do not fit into it have no end
_LOOK = 256


@dataclass(eq=False)
class Pending:
    """A blocked set and the noise differences of its seeds that were computed so far."""

    walk: Walk
    blocked: Blocked
    first: int
    parts: list[Tensor] = field(default_factory=list)
    done: int = 0

    @property
    def missing(self) -> int:
        """Number of seeds to compute."""
        return len(self.walk.seeds) - self.done


@dataclass(eq=False)
class Walk:
    """One prompt's search while it runs.

    Attributes:
        prompt: number of the prompt.
        seeds: numbers of the kept latents.
        delta: noise differences [S, C, H, W] of those with nothing blocked.
        dtype: dtype of the model.
        asks: the search, as a generator.
        tests: distinct blocked sets that the search wanted.
        error: the reason why the search ended early, or None.
    """

    prompt: int
    seeds: tuple[int, ...]
    delta: Tensor
    dtype: torch.dtype
    asks: Asks
    tests: set[Blocked] = field(default_factory=set)
    error: NonFiniteError | None = None
    _ask: Ask | None = None
    # with nothing blocked every noise difference equals itself
    _scores: dict[Blocked, float] = field(default_factory=lambda: {frozenset(): 1.0})
    _open: dict[Blocked, Pending] = field(default_factory=dict)

    @property
    def ask(self) -> Ask | None:
        """The test that is wanted next; None at the end."""
        return self._ask

    @property
    def wanted(self) -> Pending | None:
        """The test that is wanted next, with what was computed of it; None at the end."""
        return None if self._ask is None else self._test(self._ask.blocked, self._ask.first)

    def go_on(self) -> None:
        """Send the search all scores that are known, up to the first that is not."""
        try:
            self._ask = self._ask or next(self.asks)
            while (score := self._scores.get(self._ask.blocked)) is not None:
                if self._ask.blocked:
                    self.tests.add(self._ask.blocked)
                found = torch.tensor([score])
                require_finite("nemo", "similarities under masks", found, self.dtype)
                self._ask = self.asks.send(score)
        except StopIteration:
            self._ask = None
        except NonFiniteError as error:
            self._ask, self.error = None, error

    def ahead(self) -> Iterator[tuple[float, int, Pending]]:
        """Tests that may be wanted later: (-likelihood, prompt, test), likeliest first."""
        for guess in () if self._ask is None else self._ask.ahead(self._scores.get):
            yield -guess.likelihood, self.prompt, self._test(guess.blocked, guess.first)

    def _test(self, blocked: Blocked, first: int) -> Pending:
        return self._open.setdefault(blocked, Pending(self, blocked, first))

    def learn(self, test: Pending, score: float) -> None:
        """Note a test's score."""
        self._scores[test.blocked] = score
        del self._open[test.blocked]


class Lockstep:
    """Runs searches to their ends.

    Args:
        rows: source of noise differences.
        guess: whether to fill batches with tests that may be wanted later.
    """

    def __init__(self, rows: MaskedRows, guess: bool) -> None:
        self._rows, self._guess = rows, guess

    def run(self, walks: Sequence[Walk]) -> None:
        """Run all searches; one that fails does not change the others."""
        for walk in walks:
            walk.go_on()
        while active := [walk for walk in walks if walk.ask is not None]:
            self._batch(active)
            for walk in active:
                walk.go_on()

    def _batch(self, active: Sequence[Walk]) -> None:
        size = self._rows.model.batch_size
        chosen = _fill(_in_order(active, size), size)
        advanced = self._advance(active, [test for test, _ in chosen])
        room = size - sum(count for _, count in chosen)
        if self._guess and room:
            chosen += _fill(self._likely(active, [test for test, _ in chosen], advanced), room)
        pieces = [_piece(test, count) for test, count in chosen]
        found = self._rows.differences(pieces, advanced).split([count for _, count in chosen])
        for (test, count), part in zip(chosen, found, strict=True):
            test.done += count
            # a copy of what waits does not keep the whole batch in memory
            test.parts.append(part.clone() if test.missing else part)
        _score([test for test, _ in chosen if not test.missing])

    def _likely(
        self, active: Sequence[Walk], chosen: Sequence[Pending], advanced: bool
    ) -> Iterator[Pending]:
        """Tests beside the chosen ones that may be wanted later, likeliest first.

        ``advanced`` if they must start, as those do, at the first layer of them all.
        """
        first, seen = min(test.first for test in chosen), {id(test) for test in chosen}
        guesses = heapq.merge(*(walk.ahead() for walk in active))
        for _, _, test in islice(guesses, _LOOK):
            if id(test) not in seen and (not advanced or self._begun(test, first)):
                seen.add(id(test))
                yield test

    def _advance(self, active: Sequence[Walk], chosen: Sequence[Pending]) -> bool:
        """Whether the chosen tests start at the first layer of them all, with the rest done once.

        The work before that layer is done for all searches that test neurons in it, if not yet.
        """
        rows, first = self._rows, min(test.first for test in chosen)
        if rows.place(first) == 0 or not rows.in_advance:
            return False
        users = [
            (test, walk.ask.left.count(first))
            for walk in active
            if walk.ask is not None and (test := walk.wanted) is not None
            if test in chosen or (test.first >= first and first in walk.ask.left)
        ]
        new = [(test, tests) for test, tests in users if not self._begun(test, first)]
        if not new:
            return all(self._begun(test, first) for test in chosen)
        size, pieces = rows.model.batch_size, [_piece(test, whole=True) for test, _ in new]
        samples = sum(len(piece.latents) for piece in pieces)
        spared = sum(len(test.walk.seeds) * tests for test, tests in new)
        if spared < _WORTH * -(-samples // size) * size:
            return False
        return rows.begin(pieces, first)

    def _begun(self, test: Pending, first: int) -> bool:
        return self._rows.has(_piece(test, whole=True), first)


def _in_order(active: Sequence[Walk], size: int) -> list[Pending]:
    """Wanted tests in the order in which they enter a batch.

    First those that have begun. Then those of a search that must hurry, so that it does not stay
    behind alone; those of the stages before single neurons, since they use no work done in advance;
    and those of deep layers, so that the searches share such work layer by layer.
    """
    rounds = sum(len(walk.seeds) * len(walk.ask.left) for walk in active if walk.ask) / size

    def key(walk: Walk) -> tuple[bool, bool, bool, int, int]:
        test, ask = walk.wanted, walk.ask
        if test is None or ask is None:
            raise AssertionError("an active search wants a test")
        left = len(ask.left)
        return test.done == 0, left < rounds, left > 0, -test.first, -left

    return [test for walk in sorted(active, key=key) if (test := walk.wanted) is not None]


def _fill(tests: Iterable[Pending], room: int) -> list[tuple[Pending, int]]:
    """Tests in order with the number of seeds of each that fit into ``room``."""
    chosen = []
    for test in tests if room > 0 else ():
        count = min(room, test.missing)
        chosen.append((test, count))
        room -= count
        if room == 0:
            break
    return chosen


def _piece(test: Pending, count: int = 0, whole: bool = False) -> Piece:
    """The next seeds of a test, or all of them."""
    seeds = test.walk.seeds
    part = seeds if whole else seeds[test.done : test.done + count]
    return Piece(test.walk.prompt, test.blocked, part)


def _score(tests: Sequence[Pending]) -> None:
    """Score tests whose seeds are all computed.

    The score is the largest MS-SSIM, over seeds, of the seed's noise difference with and without
    the block. As in a call of the released code, the seeds of one mask share a data range.
    """
    by_seeds: dict[int, list[Pending]] = {}
    for test in tests:
        by_seeds.setdefault(len(test.walk.seeds), []).append(test)
    for group in by_seeds.values():
        plain = torch.stack([test.walk.delta for test in group])
        blocked = torch.stack([torch.cat(test.parts) for test in group])
        for test, score in zip(group, ms_ssim_pairs(plain, blocked).amax(1).tolist(), strict=True):
            test.walk.learn(test, score)
