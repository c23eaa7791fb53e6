"""Quality against plain loops; equal models do not differ, a broken one does."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.evaluate import GridHistograms, held_out_loss, kernel_distance, quality, similarity
from dori_fast.evaluate.quality_kept import bootstrap_mean, seed_diversity

PROMPTS = ["a cup of coffee", "the cat on the mat", "another the in an on"]
HOW = {"seeds": 3, "steps": 3, "guidance": 2.0, "draws": 4}
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (3, 16, 16, 3), np.uint8)


def plain_mmd(x, y, paired):
    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    m, total, cross, terms = len(x), 0.0, 0.0, 0
    for i in range(m):
        for j in range(m):
            if i != j:
                total += (k(x[i], x[j]) + k(y[i], y[j])) / (m * (m - 1))
            if i != j or not paired:
                cross, terms = cross + k(x[i], y[j]), terms + 1
    return total - 2 * cross / terms


@pytest.mark.parametrize("paired", [False, True])
def test_the_distance_is_that_of_plain_loops(paired):
    x, y = RANDOM.normal(size=(7, 5)), RANDOM.normal(0.5, 2, size=(7, 5))
    whole = kernel_distance(x, y, paired=paired, subsets=3)
    assert whole.value == pytest.approx(plain_mmd(x.tolist(), y.tolist(), paired), rel=1e-10)
    assert whole.error == pytest.approx(0, abs=1e-12) and whole.size == 7
    part = kernel_distance(x, y, paired=paired, subsets=4, size=4, seed=3)
    random, found = np.random.default_rng(3), []
    for _ in range(4):
        one = random.permutation(7)[:4]
        two = one if paired else random.permutation(7)[:4]
        found.append(plain_mmd(x[one].tolist(), y[two].tolist(), paired))
    assert part.value == pytest.approx(np.mean(found), rel=1e-10)
    assert part.error == pytest.approx(np.std(found, ddof=1) / 2, rel=1e-10)


def test_the_distance_has_no_bias_and_sees_another_distribution():
    same = [
        kernel_distance(RANDOM.normal(size=(20, 3)), RANDOM.normal(size=(20, 3)), subsets=2).value
        for _ in range(300)
    ]
    assert abs(np.mean(same)) < 4 * np.std(same) / math.sqrt(300)
    x = RANDOM.normal(size=(200, 3))
    assert kernel_distance(x, RANDOM.normal(1, 1, (200, 3)), size=50).value > 1
    assert kernel_distance(x, x, paired=True, size=50).value == pytest.approx(0, abs=1e-12)
    # pairs that depend on each other are as far apart as any others
    near = [
        kernel_distance(z, z + 1e-3 * RANDOM.normal(size=z.shape), paired=True, subsets=2).value
        for z in RANDOM.normal(size=(50, 20, 3))
    ]
    assert abs(np.mean(near)) < 1e-2


def test_features_are_histograms_of_cells():
    images = RANDOM.integers(0, 256, (2, 9, 12, 3), np.uint8)
    found = GridHistograms(cells=2, bins=4)(images)
    assert found.shape == (2, 4 * 4 * 4)
    np.testing.assert_allclose((found**2).sum(1), found.shape[1])
    counts = np.zeros(4)
    for row in range(4):
        for column in range(6, 12):
            counts[images[1, row, column, 2] // 64] += 1
    blocks = found.reshape(2, 4, 4, 4)
    np.testing.assert_allclose(blocks[1, 1, 2] ** 2 / 4, counts / 24)
    stripes = np.zeros((1, 16, 16, 3), np.uint8)
    stripes[:, :, ::4] = 255
    across = GridHistograms(1, 4)(stripes).reshape(4, 4)[3]
    along = GridHistograms(1, 4)(stripes.swapaxes(1, 2)).reshape(4, 4)[3]
    assert across.argmax() == 0 and along.argmax() == 2
    flat = GridHistograms(1, 4)(np.full((1, 8, 8, 3), 9, np.uint8)).reshape(4, 4)[3]
    np.testing.assert_allclose(flat, 1)


def test_the_loss_is_that_of_the_plain_network(tiny_directory):
    model = df.load(tiny_directory, device="cpu", dtype="float64")
    found = held_out_loss(model, PROMPTS, IMAGES, draws=2, seed=5)
    generator = torch.Generator().manual_seed(5)
    t = torch.randint(1000, (3, 2), generator=generator)
    noise = torch.randn(3, 2, *model.latent_shape, generator=generator).double()
    x_0, text = model.latents(torch.from_numpy(IMAGES)), model.encode(PROMPTS).embeddings
    for p in range(3):
        losses = []
        for b in range(2):
            a = model.alphas_cumprod[t[p, b]]
            x_t = a.sqrt() * x_0[p] + (1 - a).sqrt() * noise[p, b]
            answer = model.unet(x_t[None], t[p, b], text[[p]]).sample[0]
            losses.append(float(((answer - noise[p, b]) ** 2).mean()))
        assert found[p] == pytest.approx(np.mean(losses), rel=1e-6)


def test_equal_models_differ_in_nothing(model):
    found = quality(model, model, PROMPTS, IMAGES, **HOW)
    assert found.distance.value == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(found.same_seed, 1)
    kept = json.loads(json.dumps(found.summary()))
    for name in ("similarity_to_pair", "diversity", "held_out_loss"):
        assert kept[name]["change"] == [0, 0, 0]
    assert kept["prompts"] == 3 and kept["seeds"] == [0, 1, 2]


def test_a_broken_model_is_noticed(model):
    broken = model.copy()
    generator = torch.Generator().manual_seed(1)
    for weight in broken.unet.parameters():
        weight.data += 0.3 * torch.randn(weight.shape, generator=generator)
    broken.engine.weights_changed()
    found = quality(broken, model, PROMPTS, IMAGES, **HOW)
    assert found.distance.value > 5 * found.distance.error and found.distance.value > 0.01
    assert found.same_seed.max() < 0.9
    assert found.summary()["held_out_loss"]["change"][1] > 0


def test_figures_are_those_of_the_drawn_images(model):
    found = quality(model, model, PROMPTS, IMAGES, **HOW)
    drawn = model.generate(model.encode(PROMPTS), range(3), steps=3, guidance=2.0).numpy()
    np.testing.assert_allclose(found.to_pair[0], similarity(drawn, IMAGES[:, None]).mean(1))
    flat = GridHistograms()(drawn.reshape(9, 16, 16, 3))
    to_real = kernel_distance(flat, GridHistograms()(IMAGES))
    assert found.distance_to_pairs == (to_real, to_real)
    features = flat.reshape(3, 3, -1)
    for p in range(3):
        gaps = [
            np.linalg.norm(features[p, i] - features[p, j]) / math.sqrt(features.shape[-1])
            for i, j in ((0, 1), (0, 2), (1, 2))
        ]
        assert found.diversity[0][p] == pytest.approx(np.mean(gaps))
    one = quality(model, model, PROMPTS, IMAGES, **(HOW | {"seeds": [7]}))
    assert one.summary()["diversity"]["changed"] is None
    assert np.isnan(seed_diversity(features[:, :1])).all()


def test_the_bootstrap_covers():
    hits = 0
    for seed in range(200):
        values = np.random.default_rng(seed).normal(3, 1, 40)
        interval = bootstrap_mean(values, 0.9, seed)
        hits += interval.low <= 3 <= interval.high
    assert 165 <= hits <= 194


def test_wrong_inputs_are_refused(model):
    with pytest.raises(UsageError, match="3 images, 2 prompts"):
        quality(model, model, PROMPTS[:2], IMAGES)
    with pytest.raises(UsageError, match="at least one seed"):
        quality(model, model, PROMPTS, IMAGES, seeds=0)
    with pytest.raises(UsageError, match="one prompt for each image"):
        held_out_loss(model, PROMPTS[:2], IMAGES)
    with pytest.raises(UsageError, match="needs 2 samples"):
        kernel_distance(np.zeros((1, 2)), np.zeros((1, 2)))
    with pytest.raises(UsageError, match="pairs need as many"):
        kernel_distance(np.zeros((3, 2)), np.zeros((2, 2)), paired=True)
    with pytest.raises(UsageError, match="must be"):
        kernel_distance(np.zeros((3, 2)), np.zeros((2, 3)))
    with pytest.raises(UsageError, match="pass uint8"):
        GridHistograms()(IMAGES.astype(float))
    with pytest.raises(UsageError, match="use fewer"):
        GridHistograms(32)(IMAGES)
