"""NeMo's search for one prompt as a generator: it yields wanted tests and is sent their scores."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from dori_fast.prune.nemo.candidates import Blocked, Candidates
from dori_fast.prune.nemo.refine import Known, Trial, refine
from dori_fast.prune.nemo.result import Search

# share of the first candidates' tests that are followed by another
_FURTHER = 0.85


@dataclass(frozen=True)
class Ahead:
    """A test that the search may come to.

    Attributes:
        likelihood: estimated probability that it does.
        blocked: neurons blocked in the test.
        first: as in :class:`Ask`.
    """

    likelihood: float
    blocked: Blocked
    first: int


@dataclass(frozen=True)
class Ask:
    """A test that a search wants scored.

    Attributes:
        blocked: neurons blocked in the test.
        first: searched layer before which all tests of single neurons from here on in this layer,
            and in deeper ones, block the same neurons; 0 for tests of many layers.
        left: ``first`` of this test and the later ones of single neurons, one each; empty in
            earlier stages.
        ahead: function from the known scores to later tests, likeliest first.
    """

    blocked: Blocked
    first: int = 0
    left: tuple[int, ...] = field(default=(), repr=False)
    ahead: Callable[[Known[tuple[int, int]]], Iterator[Ahead]] = field(
        default=lambda known: iter(()), repr=False
    )


Asks = Generator[Ask, float, None]


def search(tries: Sequence[Candidates], threshold: float, found: Search) -> Asks:
    """Choose candidates, refine them, and write the outcome into ``found``.

    Args:
        tries: sets of candidates in the order of their tests.
        threshold: similarity above which noise differences are alike.
        found: result to complete.

    Yields:
        Each test; send its score. A set that was scored before is yielded again.
    """
    initial, similarity = yield from _first_below(tries, threshold)
    # if even the last candidates leave too much similarity, refinement must not raise it
    threshold = max(similarity, threshold)
    found.theta, found.k, found.threshold = initial.theta, initial.k, threshold
    found.initial, found.initial_similarity = initial.by_layer(), similarity
    slots = yield from refine_candidates(initial, threshold)
    found.refined = initial.by_layer(slots)
    found.refined_similarity = yield Ask(initial.blocked(slots))


def refine_candidates(
    candidates: Candidates, threshold: float
) -> Generator[Ask, float, frozenset[int]]:
    """The slots that stay blocked: without the others the score stays below the threshold.

    Whole layers are tested first, then single neurons. Yields each test; send its score.
    """
    slots = frozenset(range(len(candidates.neurons)))
    slots = yield from _refined(candidates, slots, candidates.layers(), threshold)
    singles = candidates.singles(slots)
    return (yield from _refined(candidates, slots, singles, threshold, single=True))


def _first_below(
    tries: Sequence[Candidates], threshold: float
) -> Generator[Ask, float, tuple[Candidates, float]]:
    """The first candidates whose similarity is not above the threshold, else the last ones."""
    sets = [frozenset(each.neurons) for each in tries]

    def ahead(number: int, known: Known[tuple[int, int]]) -> Iterator[Ahead]:
        for later in range(number + 1, len(sets)):
            if known(sets[later]) is None:
                yield Ahead(_FURTHER ** (later - number), sets[later], 0)

    for number, candidates in enumerate(tries):
        similarity = yield Ask(sets[number], ahead=partial(ahead, number))
        if not similarity > threshold:
            return candidates, similarity
    return tries[-1], similarity


def _refined(
    candidates: Candidates,
    slots: frozenset[int],
    groups: Sequence[frozenset[int]],
    threshold: float,
    single: bool = False,
) -> Generator[Ask, float, frozenset[int]]:
    """The slots that stay blocked of those given; ``single`` if each group is one neuron."""
    firsts = tuple(candidates.layer(group) if single else 0 for group in groups)

    def ask(trial: Trial[int]) -> Ask:
        def ahead(known: Known[tuple[int, int]]) -> Iterator[Ahead]:
            for guess in trial.ahead(lambda slots: known(candidates.blocked(slots))):
                blocked = candidates.blocked(guess.blocked)
                yield Ahead(guess.likelihood, blocked, firsts[guess.group])

        left = firsts[trial.group :] if single else ()
        return Ask(candidates.blocked(trial.blocked), firsts[trial.group], left, ahead)

    steps, score = refine(slots, groups, threshold), None
    while True:
        try:
            trial = next(steps) if score is None else steps.send(score)
        except StopIteration as end:
            blocked: frozenset[int] = end.value.blocked
            return blocked
        score = yield ask(trial)
