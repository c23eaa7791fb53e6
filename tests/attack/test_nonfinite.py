"""An attack whose loss is not finite is reported, and is no embedding that retrieves nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dori_fast as df
from dori_fast.attack import Dori, Tokens
from dori_fast.errors import NonFiniteError, UsageError
from dori_fast.mitigate import Wen, token_significance
from dori_fast.prune import NeMo, Wanda
from tests.overflowing_model import BAD, GOOD, nan_for_z, overflowing_encoder


@pytest.fixture(scope="module")
def spoiled(tiny_directory, tmp_path_factory):
    root = nan_for_z(tiny_directory, tmp_path_factory.mktemp("nan") / "model")
    return df.load(root, device="cpu", batch_size=8)


def test_one_failure_is_named_and_the_others_stay_as_they_are(spoiled, images):
    method = Dori(steps=3, draws=2)
    found = method.run(spoiled, [GOOD, BAD, "the cat"], images)
    assert found.failures == {1: "the loss was NaN or Inf in 3 of 3 steps"}
    assert found.steps.tolist() == [3, 0, 3] and found.evaluations.tolist() == [6, 6, 6]
    with pytest.raises(NonFiniteError, match="attack: problems 1 failed in float32, .* loss"):
        found.condition(spoiled)
    alone = method.run(spoiled, [GOOD], images[:1], ids=[0])
    assert torch.equal(alone.losses[:, 0], found.losses[:, 0])
    assert alone.failures == {} and len(alone.condition(spoiled)) == 1


def test_tokens_without_a_finite_gradient_are_no_result(spoiled, images):
    """The gradient of a choice goes through the row of each token, and z's is huge."""
    found = Tokens(steps=2, draws=2).run(spoiled, [GOOD, BAD], images[:2])
    assert found.failures == {
        0: "the gradients were NaN or Inf in all 2 steps",
        1: "the loss was NaN or Inf in 2 of 2 steps",
    }
    with pytest.raises(NonFiniteError, match="problems 0, 1 failed in float32"):
        found.condition(spoiled)


def test_a_loss_is_not_finite_if_one_of_its_parts_is_not(tiny_directory, images):
    """More draws than a batch holds: the loss is summed over two evaluations."""
    model = df.load(tiny_directory, device="cpu", batch_size=2)
    start = torch.full((1, 77, 32), 3e38)
    found = Dori(steps=2, draws=4).run(model, start, images[:1])
    assert not found.losses.isfinite().any() and set(found.failures) == {0}
    assert found.evaluations.tolist() == [8]


def test_a_diverging_attack_is_reported(model, images):
    found = Dori(steps=4, lr=3e38, draws=2).run(model, [GOOD] * 3, images)
    assert set(found.failures) == {0, 1, 2}
    assert "3 of 4 steps" in found.failures[0]
    with pytest.raises(NonFiniteError, match=r"problems 0, 1, 2 failed .*; lower lr"):
        found.condition(model)


@pytest.mark.parametrize("lr", [float("nan"), float("inf")])
def test_a_rate_that_is_no_number_is_refused(lr):
    with pytest.raises(UsageError, match="lr must be a finite number"):
        Dori(lr=lr)


def test_images_without_finite_latents_are_not_attacked(tiny_directory, tmp_path, images):
    root = overflowing_encoder(tiny_directory, tmp_path / "model")
    model = df.load(root, device="cpu", dtype="float16", batch_size=4)
    gray = torch.full((1, 16, 16, 3), 128, dtype=torch.uint8)
    assert model.latents(gray).isfinite().all()
    with pytest.raises(NonFiniteError, match="1 of 2 latents of the images are NaN or Inf in flo"):
        Dori(steps=1, draws=1).run(model, [GOOD] * 2, torch.cat([gray, images[:1]]))


def test_other_methods_refuse_what_is_not_finite(spoiled, images):
    statistics = df.prune.NeuronStatistics.collect(spoiled, [GOOD, "the cat"])
    for asked in (
        lambda: Wen(seeds=2).run(spoiled, [GOOD, BAD]),
        lambda: token_significance(spoiled, [BAD], 2),
        lambda: NeMo(statistics).localize(spoiled, [BAD]),
        lambda: Wanda(0.1, 1, joint=False).localize(spoiled, [GOOD, BAD]),
        lambda: df.evaluate.held_out_loss(spoiled, [BAD], images[:1]),
        lambda: spoiled.generate(spoiled.encode([GOOD, BAD]), [0], steps=1),
    ):
        with pytest.raises(NonFiniteError, match="NaN or Inf"):
            asked()
    assert np.isfinite(df.detect.Wen(seeds=2).score(spoiled, [GOOD])).all()
