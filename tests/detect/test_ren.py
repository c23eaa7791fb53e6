"""Ren et al.'s entropy against attention computed by hand from hooked layers."""

from __future__ import annotations

import pytest
import torch

import dori_fast as df
from dori_fast.errors import UsageError

PROMPTS = ["a cup of coffee", "the cat", "the in an on " * 30]
# in the order in which the UNet runs them
LAYERS = [
    "down_blocks.0.attentions.0",
    "mid_block.attentions.0",
    "up_blocks.1.attentions.0",
    "up_blocks.1.attentions.1",
]


@torch.no_grad()
def entropy_by_hand(model, prompt, noise, layer):
    attention = model.unet.get_submodule(f"{LAYERS[layer]}.transformer_blocks.0.attn2")
    seen = {}
    handles = [
        projection.register_forward_hook(lambda m, a, out, name=name: seen.update({name: out}))
        for name, projection in (("q", attention.to_q), ("k", attention.to_k))
    ]
    text = model.encode([prompt]).embeddings.expand(len(noise), -1, -1)
    model.unet(noise, torch.tensor(981), text)
    for handle in handles:
        handle.remove()
    n, width = attention.heads, seen["q"].shape[-1] // attention.heads
    maps = []
    for h in range(n):
        q, k = (seen[x][..., h * width : (h + 1) * width] for x in "qk")
        maps.append((q @ k.mT / width**0.5).softmax(-1).mean(1))
    received = torch.stack(maps).mean(0)
    return -(received * received.log()).sum(-1)


@pytest.mark.parametrize("layer", range(4))
def test_scores_are_the_definitions(model, layer):
    scores = df.detect.Ren(seeds=3, layer=layer).scores(model, PROMPTS)
    for p, prompt in enumerate(PROMPTS):
        expected = entropy_by_hand(model, prompt, model.noise(range(3)), layer)
        torch.testing.assert_close(scores.per_seed[p], expected, rtol=1e-5, atol=1e-6)


def test_the_compatibility_mode_seeds_by_position(model):
    scores = df.detect.Ren(seeds=2, compat="ren", gen_seed=9).scores(model, PROMPTS, [4, 5, 6])
    for p, prompt in enumerate(PROMPTS):
        torch.manual_seed(4 + p + 9)
        expected = entropy_by_hand(model, prompt, torch.randn(2, *model.latent_shape), 3)
        torch.testing.assert_close(scores.per_seed[p], expected, rtol=1e-5, atol=1e-6)


def test_the_network_is_not_run_to_its_end(model):
    before = model.engine.evaluations
    df.detect.Ren().scores(model, PROMPTS)
    assert model.engine.evaluations == before


def test_what_cannot_be_answered_is_refused(model, tiny_directory):
    with pytest.raises(UsageError, match=r"layer must be 0\.\.3, got 4"):
        df.detect.Ren(layer=4).scores(model, PROMPTS)
    plain = df.load(tiny_directory, device="cpu", share=False)
    with pytest.raises(UsageError, match="layers of this model are not known"):
        df.detect.Ren().scores(plain, PROMPTS)
