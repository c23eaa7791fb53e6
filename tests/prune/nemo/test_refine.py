"""The greedy refinement, and the guesses of its next tests."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from dori_fast.prune.nemo.refine import refine


def greedy(blocked, groups, score, threshold):
    """The sequential procedure, one test after the other."""
    dropped = []
    for group in groups:
        drop = score(blocked - group) < threshold
        blocked = blocked - group if drop else blocked
        dropped.append(drop)
    return blocked, tuple(dropped)


def run(blocked, groups, score, threshold, guesses=0):
    """The refinement, with scores of so many guesses taken with each test, and the batches."""
    steps, known, batches = refine(blocked, groups, threshold), {}, []
    try:
        trial = next(steps)
        while True:
            if trial.blocked not in known:
                ahead = [guess for guess, _ in zip(trial.ahead(known.get), range(guesses))]  # noqa: B905
                assert all(a.likelihood >= b.likelihood for a, b in pairwise(ahead))
                assert not any(guess.blocked in known for guess in ahead)
                batches.append([trial.blocked, *(guess.blocked for guess in ahead)])
                known |= {each: score(each) for each in batches[-1]}
            trial = steps.send(known[trial.blocked])
    except StopIteration as end:
        return end.value, batches


def random_case(seed):
    """A set of blocked items, its groups in random order, and a score function on its subsets."""
    rng = random.Random(seed)
    n = rng.randint(1, 40)
    items = list(range(n))
    rng.shuffle(items)
    if rng.random() < 0.5:
        groups = [frozenset([item]) for item in items]
    else:
        cuts = sorted(rng.sample(range(n + 1), rng.randint(0, min(n, 6))))
        groups = [
            frozenset(items[a:b]) for a, b in zip([0, *cuts], [*cuts, n], strict=True) if b > a
        ]
    kind = seed % 4
    weights = [rng.random() ** rng.choice([1, 6]) for _ in range(n)]
    if kind < 2:  # un-blocking never lowers it

        def score(blocked):
            return sum(weights) - sum(weights[i] for i in blocked)
    elif kind == 2:  # interactions of either sign

        def score(blocked):
            left = [i for i in range(n) if i not in blocked]
            return sum(weights[i] * (-1) ** (i * j) for i in left for j in left if i <= j)
    else:  # no order at all

        def score(blocked):
            return random.Random(hash((seed, tuple(sorted(blocked))))).random()

    threshold = rng.uniform(0, 1) * (1 if kind == 3 else sum(weights))
    return frozenset(items), groups, score, threshold, rng.randint(0, 8)


@pytest.mark.parametrize("block", range(10))
def test_a_thousand_random_score_functions(block):
    for seed in range(100 * block, 100 * block + 100):
        blocked, groups, score, threshold, guesses = random_case(seed)
        found, batches = run(blocked, groups, score, threshold, guesses)
        assert (found.blocked, found.dropped) == greedy(blocked, groups, score, threshold)
        assert len(batches) <= len(groups)


def test_mostly_dropped_candidates_are_guessed_ahead():
    rng = random.Random(0)
    needed = set(rng.sample(range(150), 8))
    groups = [frozenset([i]) for i in range(150)]
    found, batches = run(
        frozenset(range(150)), groups, lambda trial: 0.0 if needed <= trial else 1.0, 0.5, 7
    )
    assert found.blocked == needed
    assert len(batches) <= 40


def test_both_outcomes_of_a_test_are_guessed():
    groups = [frozenset([i]) for i in range(3)]
    trial = next(refine(frozenset(range(3)), groups, 0.5))
    assert trial.blocked == {1, 2}
    ahead = list(trial.ahead({}.get))
    assert {(guess.blocked, guess.group) for guess in ahead} == {
        (frozenset(left), group)
        for group, sets in {1: ({2}, {0, 2}), 2: ((), {1}, {0}, {0, 1})}.items()
        for left in sets
    }
    # it drops at first sight: all gone is likelier than all kept
    order = [guess.blocked for guess in ahead]
    assert order.index(frozenset()) < order.index(frozenset({0, 1}))
    # once an outcome is known, its other branch is no longer guessed
    known = {frozenset({1, 2}): 0.0, frozenset({2}): 1.0}
    assert [guess.blocked for guess in trial.ahead(known.get)] == [frozenset({1})]


def test_nothing_to_refine():
    found, batches = run(frozenset(), [], lambda trial: 0.0, 0.5)
    assert (found.blocked, found.dropped, batches) == (frozenset(), (), [])


def test_a_score_that_is_not_a_number_keeps_the_block():
    found, _ = run(frozenset([1]), [frozenset([1])], lambda trial: float("nan"), 0.5)
    assert found.blocked == {1}
