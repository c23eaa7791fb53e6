"""NeMo's search against the released procedure run step by step on the plain network."""

from __future__ import annotations

import pytest
import torch

import dori_fast as df
from benchmarks.peers.nemo import PeerSearch
from dori_fast.errors import UsageError
from dori_fast.prune import NeMo, NeuronStatistics
from dori_fast.prune.nemo.candidates import CandidateSets

CLEAN = [f"picture {i} of the {i % 7} houses" for i in range(40)]
PROMPTS = ["a cup of coffee", "the cat in the hat on the mat", "ZZ 999 !"]


@pytest.fixture(scope="module")
def model(tiny_directory):
    # large values make the text count in a network of random weights
    model = df.load(tiny_directory, device="cpu", batch_size=32)
    for name in model.layers:
        model.unet.get_submodule(name).to_v.weight.data *= 1000
    return model


@pytest.fixture(scope="module")
def statistics(model):
    return NeuronStatistics.collect(model, CLEAN)


@pytest.fixture(scope="module")
def demo():
    model = df.load("demo", device="cpu")
    clean = [prompt for prompt, _ in df.demo.pairs("ordinary")]
    return model, NeuronStatistics.collect(model, clean)


def released(model, statistics, prompt, nemo):
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(10, *model.latent_shape, generator=generator)
    return PeerSearch(
        model,
        prompt,
        nemo.layers(model),
        statistics,
        nemo.threshold,
        noise,
        model.timesteps(50)[:2],
        nemo.theta_end,
    ).run()


def assert_same(found, peer):
    assert found.seeds == peer.seeds
    assert found.initial == peer.initial
    assert found.refined == peer.refined
    if found.seeds:
        assert found.initial_similarity == pytest.approx(peer.initial_similarity, abs=1e-4)
        assert found.refined_similarity == pytest.approx(peer.refined_similarity, abs=1e-4)


# a shorter ladder leaves half as many candidates to refine
@pytest.mark.parametrize(
    ("prompt", "threshold", "theta_end"),
    [
        *((prompt, 0.1, 3.0) for prompt in PROMPTS),
        *((prompt, 0.3, 1.0) for prompt in PROMPTS),
        pytest.param(PROMPTS[0], 0.1, 1.0, marks=pytest.mark.nightly),
    ],
)
def test_reference_mode_is_the_released_procedure(model, statistics, prompt, threshold, theta_end):
    nemo = NeMo(
        statistics, layers="all", mode="reference", threshold=threshold, theta_end=theta_end
    )
    found = nemo.search(model, prompt)
    assert_same(found, released(model, statistics, prompt, nemo))
    # no candidates suffice here, so the refinement works against the similarity reached
    assert found.memorized == (threshold == 0.1)
    assert not found.memorized or 0 < sum(map(len, found.refined)) < sum(map(len, found.initial))


# the last layer has a sixth of the candidates
@pytest.mark.parametrize("last", [1, pytest.param(7, marks=pytest.mark.nightly)])
def test_reference_mode_on_the_embedded_model(demo, last):
    model, statistics = demo
    prompt = df.demo.pairs("memorized")[5][0]
    nemo = NeMo(statistics, layers=model.layers[-last:], mode="reference")
    found, peer = nemo.search(model, prompt), released(model, statistics, prompt, nemo)
    assert_same(found, peer)
    assert found.memorized and sum(map(len, found.refined)) > 0
    assert peer.evaluations >= 2.0 * found.evaluations


def test_any_width_gives_the_same_neurons(demo):
    model, statistics = demo
    prompt = df.demo.pairs("memorized")[1][0]
    before, spent, found = model.engine.evaluations, [], []
    for width in (1, 5):
        nemo = NeMo(statistics, layers=model.layers[-2:], width=width)
        found.append(nemo.search(model, prompt))
        spent.append(model.engine.evaluations - before)
        before += spent[-1]
    one, many = found
    assert (one.initial, one.refined, one.seeds) == (many.initial, many.refined, many.seeds)
    assert one.refined_similarity == pytest.approx(many.refined_similarity, abs=1e-5)
    # the greedy itself wastes nothing: every mask once, and the unblocked run
    assert one.evaluations == 10 + len(one.seeds) * one.tests == spent[0]
    # what is scored ahead in vain is spent, but not needed
    assert (many.evaluations, many.tests) == (one.evaluations, one.tests)
    assert one.evaluations < spent[1]


def test_masks_of_several_prompts(demo):
    model, statistics = demo
    memorized, ordinary = df.demo.pairs("memorized")[1][0], df.demo.pairs("held_out")[3][0]
    nemo = NeMo(statistics, layers=model.layers[-2:])
    masks = nemo.localize(model, [memorized, ordinary])
    assert len(masks) == 2
    assert masks[0].neurons() == nemo.search(model, memorized).mask.neurons()
    search = nemo.search(model, ordinary)
    assert search.memorized == (search.alike > nemo.threshold)
    view = model.masked(masks)
    assert view.epsilon(view.encode([memorized, ordinary]), model.noise([0]), 981).isfinite().all()


def test_a_prompt_that_is_not_memorized_blocks_nothing(model, statistics):
    found = NeMo(statistics, threshold=1.5).search(model, PROMPTS[0])
    assert not found.memorized and found.evaluations == 10
    assert sum(count.sum() for count in found.mask.counts().values()) == 0


def test_layers(model, statistics):
    encoder = [name for name in model.layers if not name.startswith("up_blocks")]
    assert NeMo(statistics).layers(model) == encoder
    assert NeMo(statistics, layers=model.layers[::-2]).layers(model) == model.layers[1::2]
    with pytest.raises(UsageError, match="no cross-attention 'nowhere'"):
        NeMo(statistics, layers=["nowhere"]).layers(model)
    few = NeuronStatistics.collect(model, CLEAN, encoder)
    with pytest.raises(UsageError, match="the statistics lack up_blocks"):
        NeMo(few, layers="all").localize(model, ["a"])


def test_candidates_by_hand():
    magnitudes = [torch.tensor([9.0, 1.0, 5.0])]
    sets = CandidateSets(magnitudes, [torch.zeros(3)], [torch.ones(3)], twice=True)
    tries = sets.down_to()
    assert [(each.theta, each.k) for each in tries[:2]] == [(5.0, 0), (4.75, 1)]
    assert (len(tries), tries[-1].theta, tries[-1].k) == (16, 1.25, 15)
    assert tries[0].neurons == ((0, 0),)  # 5 is not above 5
    assert tries[1].neurons == ((0, 0), (0, 2), (0, 0))
    once = CandidateSets(magnitudes, [torch.zeros(3)], [torch.ones(3)], twice=False).down_to()
    assert once[1].neurons == ((0, 0), (0, 2))
    assert tries[1].layers() == [frozenset({0, 1, 2})]
    # an end between two steps is not reached; the first step is always tested
    for end, last in ((4.9, 5.0), (4.75, 5.0), (1.2, 1.25), (1.1, 1.25), (0.0, 0.25)):
        assert sets.down_to(end)[-1].theta == last


def test_bad_arguments(statistics, model):
    for wrong in ({"mode": "x"}, {"width": 0}, {"theta_end": 5}):
        with pytest.raises(UsageError, match="nemo: "):
            NeMo(statistics, **wrong)
    with pytest.raises(UsageError, match="no prompts"):
        NeMo(statistics).localize(model, [])
