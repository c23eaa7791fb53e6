"""Speculative refinement gives the greedy's answer, whatever the score function."""

from __future__ import annotations

import random

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
    return frozenset(items), groups, score, threshold, rng.randint(1, 9)


@pytest.mark.parametrize("block", range(10))
def test_a_thousand_random_score_functions(block):
    for seed in range(100 * block, 100 * block + 100):
        blocked, groups, score, threshold, width = random_case(seed)
        calls = []

        def batch(trials, tested, score=score, calls=calls):
            calls.append(len(trials))
            assert len(trials) == len(tested)
            return [score(trial) for trial in trials]

        found = refine(blocked, groups, batch, threshold, width)
        assert (found.blocked, found.dropped) == greedy(blocked, groups, score, threshold)
        assert (found.scored, found.rounds) == (sum(calls), len(calls))
        assert found.tests == len(groups) and max(calls) <= width


def test_trials_of_a_batch_differ_in_the_named_groups_alone():
    blocked, groups = frozenset(range(12)), [frozenset([i]) for i in range(12)]
    state = {"blocked": blocked}

    def score(trials, tested):
        named = frozenset().union(*(groups[i] for i in tested))
        assert len({trial - named for trial in trials}) == 1
        return [0.0 if len(trial) % 3 else 1.0 for trial in trials]

    refine(state["blocked"], groups, score, 0.5, 4)


def test_mostly_dropped_candidates_cost_few_rounds_and_little_waste():
    rng = random.Random(0)
    needed = set(rng.sample(range(150), 8))
    groups = [frozenset([i]) for i in range(150)]

    def score(trials, tested):
        return [0.0 if needed <= trial else 1.0 for trial in trials]

    found = refine(frozenset(range(150)), groups, score, 0.5, 8)
    assert found.blocked == needed
    assert found.rounds <= 40 and found.scored <= 1.4 * found.tests


def test_nothing_to_refine():
    found = refine(frozenset(), [], lambda trials, tested: [], 0.5, 4)
    assert (found.blocked, found.dropped, found.scored) == (frozenset(), (), 0)


def test_a_score_that_is_not_a_number_keeps_the_block():
    found = refine(frozenset([1]), [frozenset([1])], lambda t, _: [float("nan")] * len(t), 0.5, 4)
    assert found.blocked == {1}
