"""Searches of several prompts at once: each as by itself, and their batches are full."""

from __future__ import annotations

import pytest
import torch

import dori_fast as df
from dori_fast.errors import NonFiniteError, UsageError
from dori_fast.models.engine.full_batches import FullBatches
from dori_fast.prune import NeMo, NeuronStatistics
from dori_fast.prune.nemo import lockstep

PROMPTS = ["a cup of coffee", "the cat in the hat on the mat", "ZZ 999 !", "a dog", "the cat"]


@pytest.fixture(scope="module")
def tiny(tiny_directory):
    # large values make the text count in a network of random weights
    model = df.load(tiny_directory, device="cpu", batch_size=32)
    for name in model.layers:
        model.unet.get_submodule(name).to_v.weight.data *= 1000
    clean = [f"picture {i} of the {i % 7} houses" for i in range(40)]
    return model, NeuronStatistics.collect(model, clean)


def searching(statistics, **options):
    usual = {"layers": "all", "threshold": 0.1, "theta_end": 4.0, "width": 4}
    return NeMo(statistics, **usual | options)


@pytest.fixture(scope="module")
def alone(tiny):
    """Each prompt's search by itself, by prompt."""
    model, statistics = tiny
    return {prompt: searching(statistics).search(model, prompt) for prompt in PROMPTS}


def test_together_in_any_order_is_one_by_one_to_the_bit(tiny, alone):
    model, statistics = tiny
    nemo, prompts = searching(statistics), [*PROMPTS, PROMPTS[1]]
    assert nemo.at_once(model) >= len(prompts)
    for order in (prompts, PROMPTS[::-1]):
        assert list(nemo.searches(model, order)) == [alone[prompt] for prompt in order]
    assert model.batch_size == 32
    assert all(sum(map(len, search.refined)) > 0 for search in alone.values())


def test_prompts_with_other_numbers_of_seeds_share_batches(tiny):
    model, statistics = tiny
    # keeps 2, 3, 3, 4 and 2 seeds
    nemo = searching(statistics, threshold=0.23)
    together = list(nemo.searches(model, PROMPTS))
    assert together == [nemo.search(model, prompt) for prompt in PROMPTS]
    assert len({len(search.seeds) for search in together}) > 1


def test_groups_and_embeddings_are_searched_alike(tiny, alone, monkeypatch):
    model, statistics = tiny
    nemo = searching(statistics)
    monkeypatch.setattr(NeMo, "at_once", lambda self, model: 3)
    assert list(nemo.searches(model, PROMPTS)) == [*alone.values()]
    found = list(nemo.searches(model, model.encode(PROMPTS[:4])))
    for search, prompt in zip(found, PROMPTS, strict=False):
        assert search.prompt == ""
        assert (search.refined, search.refined_similarity, search.evaluations) == (
            alone[prompt].refined,
            alone[prompt].refined_similarity,
            alone[prompt].evaluations,
        )


def test_work_done_in_advance_changes_no_bit(tiny, alone, monkeypatch):
    model, statistics = tiny
    nemo, seen = searching(statistics), []
    advance = model.engine.advance
    monkeypatch.setattr(
        model.engine, "advance", lambda s, layer: seen.append(layer) or advance(s, layer)
    )
    with_it = list(nemo.searches(model, PROMPTS[:4]))
    assert seen
    monkeypatch.setattr(lockstep, "_WORTH", 10**9)
    seen.clear()
    assert list(nemo.searches(model, PROMPTS[:4])) == with_it
    assert not seen
    assert with_it == [alone[prompt] for prompt in PROMPTS[:4]]


@pytest.mark.parametrize("halved", [True, False], ids=["halved", "raised"])
def test_without_memory_for_work_in_advance_it_is_left_out(tiny, alone, monkeypatch, halved):
    model, calls = tiny[0].copy(), []
    advance = model.engine.advance

    def limited(samples, layer):
        calls.append(layer)
        if len(calls) == 1:
            return advance(samples, layer)
        model.batch_size = 4
        if halved:
            return advance(samples, layer)
        raise torch.OutOfMemoryError("CUDA")

    monkeypatch.setattr(model.engine, "advance", limited)
    found = list(searching(tiny[1]).searches(model, PROMPTS))
    assert found == [*alone.values()]
    assert len(calls) == 2 and model.batch_size == 32


def test_one_mask_at_a_time_computes_what_it_needs_alone(tiny):
    model, statistics = tiny
    nemo = searching(statistics, width=1)
    assert nemo.at_once(model) == 1
    assert NeMo(statistics).at_once(model) == 1  # the default on a CPU
    before = model.engine.evaluations, model.engine.rows_computed
    found = nemo.search(model, PROMPTS[0])
    assert model.engine.evaluations - before[0] == found.evaluations
    # batches of ten: the detection, shared noise, the tests, and the work before three layers
    rows = model.engine.rows_computed - before[1]
    assert 20 + 10 * found.tests < rows <= 50 + 10 * found.tests


def test_several_prompts_fill_batches_with_wanted_tests(tiny):
    model, statistics = tiny
    before = model.engine.rows_computed
    found = list(searching(statistics).searches(model, PROMPTS[:5]))
    rows = model.engine.rows_computed - before
    needed = sum(search.evaluations for search in found)
    # last batches of the stages, shared noise, work before layers, guesses at the end
    assert needed <= rows <= 1.25 * needed


def test_a_prompt_that_fails_leaves_the_others_alone(tiny, alone):
    model, statistics = tiny
    condition = model.encode(PROMPTS[:3])
    broken = condition.embeddings.clone()
    broken[1, :] = torch.nan
    found = list(searching(statistics).searches(model, model.condition(broken)))
    assert isinstance(found[1], NonFiniteError) and "similarities of noise" in str(found[1])
    for i in (0, 2):
        assert found[i].refined == alone[PROMPTS[i]].refined
        assert found[i].refined_similarity == alone[PROMPTS[i]].refined_similarity
    with pytest.raises(NonFiniteError):
        searching(statistics).localize(model, model.condition(broken))


def test_a_score_that_is_not_finite_ends_one_search(tiny, alone, monkeypatch):
    model, statistics = tiny
    plain, calls = lockstep.ms_ssim_pairs, []

    def broken(first, second):
        scores = plain(first, second)
        calls.append(len(scores))
        # the sixth test that is scored, whichever prompt it belongs to
        if sum(calls[:-1]) < 6 <= sum(calls):
            scores[5 - sum(calls[:-1])] = torch.nan
        return scores

    monkeypatch.setattr(lockstep, "ms_ssim_pairs", broken)
    found = list(searching(statistics).searches(model, PROMPTS[:4]))
    failed = [search for search in found if isinstance(search, NonFiniteError)]
    assert len(failed) == 1 and "similarities under masks" in str(failed[0])
    for search, prompt in zip(found, PROMPTS, strict=False):
        assert search in failed or search == alone[prompt]


def test_a_model_with_a_mask_per_prompt_is_refused(tiny, alone):
    model, statistics = tiny
    masks = df.prune.stack([alone[PROMPTS[0]].mask, alone[PROMPTS[1]].mask])
    with pytest.raises(UsageError, match="a mask per prompt"):
        searching(statistics).searches(model.masked(masks), PROMPTS[:2])


def test_batches_that_did_not_fit_are_not_tried_again(tiny, alone, monkeypatch):
    model = tiny[0].copy()
    run, sizes = FullBatches._run, []

    def limited(self, *arguments):
        sizes.append(self.size)
        if self.size > 8:
            raise torch.OutOfMemoryError("CUDA")
        return run(self, *arguments)

    monkeypatch.setattr(FullBatches, "_run", limited)
    monkeypatch.setattr(NeMo, "at_once", lambda self, model: 1)
    found = list(searching(tiny[1]).searches(model, PROMPTS[:2]))
    assert [search.refined for search in found] == [alone[p].refined for p in PROMPTS[:2]]
    assert (sizes.count(32), sizes.count(16)) == (1, 1) and model.batch_size == 8
