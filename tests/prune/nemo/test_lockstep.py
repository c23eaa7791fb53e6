"""Searches of several prompts at once: each as by itself, and their batches are full."""

from __future__ import annotations

import pytest
import torch

import dori_fast as df
from dori_fast.errors import NonFiniteError, UsageError
from dori_fast.prune import NeMo, NeuronStatistics
from dori_fast.prune.nemo import lockstep


@pytest.fixture(scope="module")
def demo():
    model = df.load("demo", device="cpu", batch_size=32)
    clean = [prompt for prompt, _ in df.demo.pairs("ordinary")]
    return model, NeuronStatistics.collect(model, clean)


@pytest.fixture(scope="module")
def prompts():
    memorized = [prompt for prompt, _ in df.demo.pairs("memorized")]
    return [*memorized[:5], df.demo.pairs("held_out")[3][0], memorized[1]]


def searching(model, statistics, **options):
    return NeMo(statistics, layers=model.layers[-2:], **{"width": 4, **options})


@pytest.fixture(scope="module")
def alone(demo, prompts):
    """Each prompt's search by itself, by prompt."""
    model, statistics = demo
    nemo = searching(model, statistics)
    return {prompt: nemo.search(model, prompt) for prompt in dict.fromkeys(prompts)}


def test_together_in_any_order_is_one_by_one_to_the_bit(demo, prompts, alone):
    model, statistics = demo
    nemo = searching(model, statistics)
    assert nemo.at_once(model) >= len(prompts) and model.batch_size == 32
    for order in (prompts, prompts[::-1]):
        assert list(nemo.searches(model, order)) == [alone[prompt] for prompt in order]
    assert model.batch_size == 32
    assert sum(search.memorized for search in alone.values()) >= 4


def test_groups_and_embeddings_are_searched_alike(demo, prompts, alone, monkeypatch):
    model, statistics = demo
    nemo = searching(model, statistics)
    monkeypatch.setattr(NeMo, "at_once", lambda self, model: 3)
    found = list(nemo.searches(model, model.encode(prompts[:4])))
    for search, prompt in zip(found, prompts, strict=False):
        assert search.prompt == ""
        assert (search.refined, search.refined_similarity, search.evaluations) == (
            alone[prompt].refined,
            alone[prompt].refined_similarity,
            alone[prompt].evaluations,
        )


def test_work_done_in_advance_changes_no_bit(demo, prompts, alone, monkeypatch):
    model, statistics = demo
    nemo, seen = searching(model, statistics), []
    advance = model.engine.advance
    monkeypatch.setattr(
        model.engine, "advance", lambda s, layer: seen.append(layer) or advance(s, layer)
    )
    with_it = list(nemo.searches(model, prompts[:4]))
    assert seen
    monkeypatch.setattr(lockstep, "_WORTH", 10**9)
    seen.clear()
    assert list(nemo.searches(model, prompts[:4])) == with_it
    assert not seen
    assert with_it == [alone[prompt] for prompt in prompts[:4]]


def test_one_mask_at_a_time_computes_what_it_needs_alone(demo, prompts):
    model, statistics = demo
    nemo = searching(model, statistics, width=1)
    assert nemo.at_once(model) == 1
    assert NeMo(statistics).at_once(model) == 1  # the default on a CPU
    before = model.engine.evaluations, model.engine.rows_computed
    found = nemo.search(model, prompts[0])
    assert model.engine.evaluations - before[0] == found.evaluations
    # batches of ten: the detection, shared noise, the tests, and the work before a layer at most
    rows = model.engine.rows_computed - before[1]
    assert 20 + 10 * found.tests <= rows <= 30 + 10 * found.tests


def test_several_prompts_fill_batches_with_wanted_tests(demo, prompts):
    model, statistics = demo
    before = model.engine.rows_computed
    found = list(searching(model, statistics).searches(model, prompts[:5]))
    rows = model.engine.rows_computed - before
    needed = sum(search.evaluations for search in found)
    # last batches of the stages, shared noise, work before layers, guesses at the end
    assert needed <= rows <= 1.25 * needed


def test_a_prompt_that_fails_leaves_the_others_alone(demo, prompts, alone):
    model, statistics = demo
    condition = model.encode(prompts[:3])
    broken = condition.embeddings.clone()
    broken[1, :] = torch.nan
    found = list(searching(model, statistics).searches(model, model.condition(broken)))
    assert isinstance(found[1], NonFiniteError) and "similarities of noise" in str(found[1])
    for i in (0, 2):
        assert found[i].refined == alone[prompts[i]].refined
        assert found[i].refined_similarity == alone[prompts[i]].refined_similarity
    with pytest.raises(NonFiniteError):
        searching(model, statistics).localize(model, model.condition(broken))


def test_a_score_that_is_not_finite_ends_one_search(demo, prompts, alone, monkeypatch):
    model, statistics = demo
    plain, calls = lockstep.ms_ssim_pairs, []

    def broken(first, second):
        scores = plain(first, second)
        calls.append(len(scores))
        # the sixth test that is scored, whichever prompt it belongs to
        if sum(calls[:-1]) < 6 <= sum(calls):
            scores[5 - sum(calls[:-1])] = torch.nan
        return scores

    monkeypatch.setattr(lockstep, "ms_ssim_pairs", broken)
    found = list(searching(model, statistics).searches(model, prompts[:4]))
    failed = [search for search in found if isinstance(search, NonFiniteError)]
    assert len(failed) == 1 and "similarities under masks" in str(failed[0])
    for search, prompt in zip(found, prompts, strict=False):
        assert search in failed or search == alone[prompt]


def test_a_model_with_a_mask_per_prompt_is_refused(demo, prompts, alone):
    model, statistics = demo
    masks = df.prune.stack([alone[prompts[0]].mask, alone[prompts[1]].mask])
    with pytest.raises(UsageError, match="a mask per prompt"):
        searching(model, statistics).searches(model.masked(masks), prompts[:2])
