"""Wen's score against the peers' procedure, written out plainly."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

import dori_fast as df
from dori_fast.errors import UsageError

PROMPTS = ["a cup of coffee", "the cat", "", "a cup of coffee", "the in an on " * 30]


def peers_norms(model, prompt, latents, steps, guidance=7.5):
    """The released loop: CFG in one batch, [uncond, text], one norm per image and step."""
    tokens = model.tokenizer(
        ["", prompt], padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    )
    uncond, text = model.text_encoder(tokens["input_ids"])[0].split(1)
    n = latents.shape[0]
    embeddings = torch.cat([uncond.repeat(n, 1, 1), text.repeat(n, 1, 1)])
    scheduler = DDIMScheduler.from_config(model.schedule.sampler.config)
    scheduler.set_timesteps(50)
    norms = [[] for _ in range(n)]
    for t in scheduler.timesteps[:steps]:
        eps_uncond, eps_text = model.unet(torch.cat([latents] * 2), t, embeddings).sample.chunk(2)
        for i in range(n):
            norms[i].append((eps_text[i] - eps_uncond[i]).norm(p=2).item())
        guided = eps_uncond + guidance * (eps_text - eps_uncond)
        latents = scheduler.step(guided, t, latents).prev_sample
    return torch.tensor(norms).mean(dim=1)


@pytest.mark.parametrize("steps", [1, 3])
def test_scores_are_the_peers(model, steps):
    scores = df.detect.Wen(seeds=3, steps=steps).scores(model, PROMPTS)
    for p, prompt in enumerate(PROMPTS):
        expected = peers_norms(model, prompt, model.noise(range(3)), steps)
        torch.testing.assert_close(scores.per_seed[p], expected, rtol=2e-5, atol=1e-5)
    torch.testing.assert_close(scores.score, scores.per_seed.mean(dim=1))


def test_the_empty_prompt_scores_zero(model):
    assert df.detect.Wen().score(model, [""]).item() == 0.0


@pytest.mark.parametrize("steps", [1, 2])
def test_the_compatibility_mode_seeds_by_position(model, steps):
    detector = df.detect.Wen(seeds=4, steps=steps, compat="wen", gen_seed=5)
    scores = detector.scores(model, PROMPTS[:2], positions=[0, 31])
    for p, position in enumerate([0, 31]):
        torch.manual_seed(position + 5)
        latents = torch.randn(4, *model.latent_shape)
        expected = peers_norms(model, PROMPTS[p], latents, steps)
        torch.testing.assert_close(scores.per_seed[p], expected, rtol=2e-5, atol=1e-5)
    # the same prompt at two places has other noise, as in the released code
    twice = detector.scores(model, [PROMPTS[0]] * 2)
    assert twice.score[0] != twice.score[1]


def test_scores_do_not_depend_on_grouping_order_or_repetition(model):
    detector = df.detect.Wen(seeds=3)
    together = detector.scores(model, PROMPTS)
    alone = torch.cat([detector.score(model, [prompt]) for prompt in PROMPTS])
    assert torch.equal(together.score, alone)
    assert torch.equal(together.score.flip(0), detector.score(model, PROMPTS[::-1]))
    assert together.score[0] == together.score[3]


def test_a_seed_alone_scores_as_among_others(model):
    three = df.detect.Wen(seeds=[4, 8, 15]).scores(model, PROMPTS).per_seed
    one = df.detect.Wen(seeds=[8]).scores(model, PROMPTS).per_seed
    assert torch.equal(three[:, 1:2], one)


def test_more_seeds_than_the_batch(model):
    many = df.detect.Wen(seeds=11).scores(model, PROMPTS[:2]).per_seed
    assert torch.equal(many[:, :3], df.detect.Wen(seeds=3).scores(model, PROMPTS[:2]).per_seed)


def test_no_prompts(model):
    scores = df.detect.Wen().scores(model, [])
    assert scores.score.shape == (0,) and scores.per_seed.shape == (0, 4)


def test_each_prompt_costs_one_evaluation_per_seed(model):
    detector = df.detect.Wen(seeds=4)
    detector.scores(model, ["the unconditional predictions are kept from here on"])
    before = model.engine.evaluations
    detector.scores(model, [f"prompt {i}" for i in range(16)])
    assert model.engine.evaluations - before == 16 * 4


def test_lengths_are_reported(model):
    scores = df.detect.Wen().scores(model, PROMPTS)
    assert scores.truncated.tolist() == [False, False, False, False, True]
    assert scores.n_tokens[2] == 2 and scores.n_tokens[4] > 77


@pytest.mark.parametrize(
    "options",
    [
        {"seeds": 0},
        {"seeds": [-1]},
        {"seeds": [2**64]},
        {"steps": 0},
        {"steps": 51},
        {"compat": "x"},
    ],
)
def test_options_that_make_no_sense(options):
    with pytest.raises(UsageError):
        df.detect.Wen(**options)


def test_configurations_are_told_apart():
    configs = [
        df.detect.Wen().config(),
        df.detect.Wen(seeds=5).config(),
        df.detect.Wen(steps=2).config(),
        df.detect.Wen(steps=2, guidance=3).config(),
        df.detect.Wen(compat="wen").config(),
        df.detect.Wen(compat="wen", gen_seed=1).config(),
    ]
    assert len({repr(config) for config in configs}) == len(configs)


def test_registry():
    assert "wen" in df.detect.names()
    assert df.detect.get("wen", seeds=2).seeds == (0, 1)
    with pytest.raises(UsageError, match="no detector 'nobody'"):
        df.detect.get("nobody")
    with pytest.raises(UsageError, match="wen"):
        df.detect.get("wen", seed=3)
