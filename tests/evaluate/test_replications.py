"""Replication: drawn images, copies, and rates over images and prompts."""

from __future__ import annotations

import numpy as np
import pytest

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.evaluate import Replication, SmallImages, clopper_pearson, replication
from dori_fast.evaluate.similarity import THRESHOLD, similarity

DRAW = {"steps": 10, "guidance": 4.0}


@pytest.fixture(scope="module")
def model():
    return df.load("demo", device="cpu", batch_size=5)


def judged(similarities, threshold=0.6):
    return Replication(np.array(similarities), threshold, (0, 1, 2), 0.95, {})


def test_shares_over_images_and_over_prompts():
    found = judged([[0.9, 0.1, 0.2], [0.7, 0.8, 0.1], [0.1, 0.2, 0.6], [0.1, 0.1, 0.1]])
    assert found.copies.sum() == 3  # equal to the threshold is not above it
    assert found.rate == clopper_pearson(3, 12)
    assert found.replicated("any").tolist() == [True, True, False, False]
    assert found.replicated("median").tolist() == [False, True, False, False]
    assert found.prompt_rate() == clopper_pearson(2, 4)
    assert found.prompt_rate("median") == clopper_pearson(1, 4)
    summary = found.summary()
    assert summary["rate_over_images"][0] == 0.25 and summary["seeds"] == [0, 1, 2]
    with pytest.raises(UsageError, match="rule must be one of any, median"):
        found.replicated("mean")


def test_memorized_prompts_replicate_and_exchanged_images_do_not(model):
    pictures = [p for p in df.demo.images("memorized") if p.duplication == 64][:5]
    images = np.stack([p.image for p in pictures])
    condition = model.encode([p.prompt for p in pictures])
    found = replication(model, condition, images, seeds=2, keep_images=True, **DRAW)
    assert found.rate.value == 1.0 and found.threshold == THRESHOLD
    assert found.images.shape == (5, 2, 64, 64, 3)
    expected = model.generate(condition, range(2), **DRAW).numpy()
    # batches of another size may round another way
    assert np.abs(expected.astype(int) - found.images).max() <= 1
    np.testing.assert_array_equal(found.similarity, similarity(found.images, images[:, None]))
    others = replication(model, condition, images[[1, 2, 3, 4, 0]], seeds=[5], **DRAW)
    assert others.rate.value == 0.0 and others.seeds == (5,) and others.images is None
    assert others.config == {"measure": SmallImages().config(), **DRAW}


def test_what_does_not_fit_is_refused(model):
    condition = model.encode(["a", "b"])
    images = np.zeros((2, 64, 64, 3), dtype=np.uint8)
    with pytest.raises(UsageError, match="2 conditions, 1 images"):
        replication(model, condition, images[:1])
    with pytest.raises(UsageError, match="at least one seed"):
        replication(model, condition, images, seeds=[])
