"""Distances, discrepancies and agreement against their definitions, pair by pair."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.evaluate.locality import (
    agreement,
    feed_forward_discrepancy,
    pairwise_distances,
    value_discrepancy,
)
from dori_fast.models import NeuronMask, WeightMask

PROMPTS = ["a cup of coffee", "the cat on the mat", "another the in an on"]


@pytest.fixture(scope="module")
def model(tiny_directory):
    return df.load(tiny_directory, device="cpu", dtype="float64", batch_size=4)


def mean_over_pairs(rows, of):
    return np.mean([of(a, b) for a, b in combinations(rows, 2)])


def test_distances_of_pairs():
    points = torch.randn(5, 3, 4)
    expected = [float((a.double() - b.double()).norm()) for a, b in combinations(points, 2)]
    np.testing.assert_allclose(pairwise_distances(points), expected, rtol=1e-12)
    with pytest.raises(UsageError, match="at least 2 points"):
        pairwise_distances(points[:1])


def test_discrepancies_are_those_of_hooks(model):
    condition, seen = model.encode(PROMPTS), {}

    def keep(name):
        return lambda module, inputs, output: seen.__setitem__(name, (inputs[0], output))

    second = {n: m for n, m in model.unet.named_modules() if n.endswith("ff.net.2")}
    values = {n: m.to_v for n, m in model.unet.named_modules() if n.endswith("attn2")}
    hooks = [m.register_forward_hook(keep(n)) for n, m in {**second, **values}.items()]
    timestep, noise = model.timesteps(50)[0], model.noise([7])
    with torch.no_grad():
        model.unet(noise.expand(3, -1, -1, -1), timestep, condition.embeddings)
    for hook in hooks:
        hook.remove()

    def distance(a, b):
        return float((a - b).norm())

    found = feed_forward_discrepancy(model, condition, seed=7)
    assert set(found) == set(second) and min(found.values()) > 0
    for name, value in found.items():
        assert value == pytest.approx(mean_over_pairs(seen[name][0], distance), rel=1e-6)
    found = value_discrepancy(model, condition)
    assert set(found) == set(values) == set(model.layers)
    for name, value in found.items():
        assert value == pytest.approx(mean_over_pairs(seen[name][1], distance), rel=1e-6)


def test_agreement_with_and_without_empty_sets():
    sets = [{0, 1, 2}, {1, 2, 3}, set(), set()]
    masks = NeuronMask.blocking(
        [{"some": sorted(s), "none": []} for s in sets], {"some": 6, "none": 4}
    )
    found = agreement(masks)
    # one pair shares 2 of 4, four pairs have one empty side, one has two
    assert found["some"].iou == pytest.approx(0.5 / 5)
    assert found["some"].iou_empty_as_one == pytest.approx(1.5 / 6)
    assert found["some"].empty_pairs == pytest.approx(1 / 6)
    assert np.isnan(found["none"].iou) and found["none"].iou_empty_as_one == 1.0
    assert found["none"].empty_pairs == 1.0


def test_agreement_of_weights():
    pruned = torch.rand(4, 5, 7, generator=torch.Generator().manual_seed(0)) > 0.4

    def iou(a, b):
        return float((a & b).sum() / (a | b).sum())

    found = agreement(WeightMask({"layer": pruned}))["layer"]
    assert found.iou == pytest.approx(mean_over_pairs(pruned, iou), rel=1e-6)
    assert found.iou_empty_as_one == pytest.approx(found.iou) and found.empty_pairs == 0
    with pytest.raises(UsageError, match="at least 2 masks"):
        agreement(WeightMask({"layer": pruned[:1]}))
