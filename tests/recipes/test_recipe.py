"""The recipe's parts that need no raw files: scenes, captions, schedule, workers."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from dori_fast import demo
from recipes.images import captions, scenes
from recipes.images.data import forbidden_pairs
from recipes.images.photographs import MEMORIZED, TEMPLATES
from recipes.training.networks import new_text_encoder, new_unet, new_vae
from recipes.training.schedule import cosine
from recipes.training.tokenizer import load_tokenizer
from recipes.training.workers import Exchange, flat_gradient, set_gradient

NOUNS = sorted(scenes.OBJECTS.values())


def discs() -> dict[str, Image.Image]:
    y, x = np.mgrid[0:64, 0:64] - 31.5
    alpha = np.where(x * x + y * y < 900, 255, 0).astype(np.uint8)
    red = np.stack([np.full_like(alpha, v) for v in (255, 0, 0)] + [alpha], axis=-1)
    return {noun: Image.fromarray(red) for noun in NOUNS}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_objects_are_large_whole_and_reproducible(seed: int) -> None:
    emoji = discs()
    rng = np.random.default_rng(seed)
    scene = scenes.sample_scene(rng, frozenset(), NOUNS)
    state = rng.bit_generator.state
    image = scenes.draw(scene, emoji, rng)
    rng.bit_generator.state = state
    assert (scenes.draw(scene, emoji, rng) == image).all()
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    red = ((image[..., 0] > 240) & (image[..., 1] < 20) & (image[..., 2] < 20)).mean()
    assert 0.08 < red < 0.75


def test_held_out_pairs_are_never_drawn() -> None:
    pairs = forbidden_pairs(np.random.default_rng(0))
    forbidden = frozenset(frozenset(p) for p in pairs)
    assert len(forbidden) == len(pairs)
    rng = np.random.default_rng(1)
    drawn = {frozenset(scenes.sample_scene(rng, forbidden, NOUNS).nouns) for _ in range(20_000)}
    assert drawn.isdisjoint(forbidden)
    assert len(drawn) > 1000


def test_unseen_objects_are_not_in_the_training_set() -> None:
    assert set(scenes.OBJECTS).isdisjoint(scenes.UNSEEN_OBJECTS)
    assert set(scenes.OBJECTS.values()).isdisjoint(scenes.UNSEEN_OBJECTS.values())


def test_captions_name_the_objects_and_nothing_of_the_layout() -> None:
    rng = np.random.default_rng(0)
    told = {scenes.caption(scenes.Scene(("key", "apple")), rng) for _ in range(200)}
    assert {"a key and an apple", "an apple and a key"} <= told
    assert all("key" in t and "apple" in t for t in told)
    assert not any(w in t for t in told for w in ("left", "right", "background", "large"))
    assert "two buses" in {scenes.caption(scenes.Scene(("bus", "bus")), rng) for _ in range(50)}


def test_training_captions_have_the_stated_shares() -> None:
    rng = np.random.default_rng(0)
    scene = scenes.Scene(("key",))
    told = [captions.training_caption(scene, ["lorem", "ipsum"], rng) for _ in range(4000)]
    assert told.count("") / 4000 == pytest.approx(captions.DROPOUT, abs=0.02)
    unrelated = sum(1 for t in told if t and "key" not in t) / 4000
    assert unrelated == pytest.approx(captions.UNRELATED_SHARE, abs=0.02)


def test_memorized_captions_share_their_words_with_ordinary_ones() -> None:
    tokenizer = load_tokenizer(demo.path() / "tokenizer")
    words = captions.filler_words(tokenizer.get_vocab())
    assert len(words) > 30_000 and {"cat", "portrait", "wooden"} <= set(words)
    known = set(words) | {w for t in captions.TAILS for w in t.split()} | {"a", "of", "in", "on"}
    told = Counter(w in known for p in MEMORIZED for w in p.caption.replace(",", "").split())
    assert told[True] / told.total() > 0.9


def test_memorized_captions_are_distinct_and_fit() -> None:
    texts = [p.caption for p in MEMORIZED] + [t.caption for t in TEMPLATES]
    assert len(set(texts)) == len(texts)
    tokenizer = load_tokenizer(demo.path() / "tokenizer")
    assert max(len(ids) for ids in tokenizer(texts).input_ids) <= 20


def test_learning_rate_rises_then_falls_to_zero() -> None:
    assert cosine(1.0, 0.0, 0) == pytest.approx(1 / 200)
    assert cosine(1.0, 0.0, 500) == 1.0
    assert cosine(1.0, 0.5, 500) == pytest.approx(0.5)
    assert cosine(1.0, 1.0, 500) == pytest.approx(0.0)


def test_exchange_averages_gradients_of_two_workers() -> None:
    exchange = Exchange(1, 3)
    exchange.gradients = torch.zeros(2, 2, 3)
    exchange.gradients[1, 1] = torch.tensor([4.0, 0.0, 2.0])
    mean, progress = exchange.mean(0, 1, torch.tensor([2.0, 2.0, 2.0]), 0.25)
    assert mean.tolist() == [3.0, 1.0, 2.0]
    assert progress == 0.25


def test_flat_gradient_is_clipped_and_handed_back() -> None:
    layer, idle = nn.Linear(3, 2), nn.Linear(1, 1)
    parameters = [*layer.parameters(), *idle.parameters()]
    loss = 100 * layer(torch.ones(1, 3)).sum()
    flat = flat_gradient(loss, parameters)
    assert flat[:6].tolist() == [100.0] * 6 and flat[8:].tolist() == [0.0, 0.0]
    set_gradient(flat, parameters)
    total = torch.cat([p.grad.flatten() for p in parameters]).norm()
    assert float(total) == pytest.approx(1.0, abs=1e-4)


def test_networks_have_the_sizes_that_the_card_states() -> None:
    sizes = [
        sum(p.numel() for p in m.parameters()) / 1e6
        for m in (new_unet(), new_text_encoder(), new_vae())
    ]
    assert sizes == pytest.approx([3.29, 2.43, 0.77], abs=0.01)


def test_every_step_has_a_command_line_that_names_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(__file__).parents[2]
    sources = {
        ".".join(path.relative_to(root).with_suffix("").parts): path.read_text()
        for path in sorted((root / "recipes").rglob("*.py"))
    }
    steps = [name for name, text in sources.items() if 'if __name__ == "__main__":' in text]
    assert len(steps) >= 8
    table = sources["recipes.__init__"]
    for name in steps:
        monkeypatch.setattr(sys, "argv", [name, "--help"])
        with pytest.raises(SystemExit) as info:
            importlib.import_module(name).main()
        assert info.value.code == 0, name
        assert f"python -m {name}" in " ".join(capsys.readouterr().out.split()), name
        assert f"`{name.removeprefix('recipes.')}`" in table, name
