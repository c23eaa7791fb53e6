"""Detectors on the embedded model, where the truth is known."""

from __future__ import annotations

import pytest
import torch

import dori_fast as df
from dori_fast.evaluate import auc

# repeated so often in training that the model card counts them as reproduced
OFTEN = 16


@pytest.fixture(scope="module")
def model():
    return df.load("demo", device="cpu")


@pytest.fixture(scope="module")
def prompts():
    memorized = [p.prompt for p in df.demo.images("memorized") if p.duplication >= OFTEN]
    return memorized, [p.prompt for p in df.demo.images("held_out")[::2]]


def test_wens_score_tells_memorized_prompts_from_others(model, prompts):
    scores = [df.detect.Wen(seeds=4).score(model, split) for split in prompts]
    assert auc(*scores).value >= 0.97


def test_scores_are_bitwise_independent_of_batches_order_and_threads(model, prompts):
    # 36 samples: two batches
    mixed = [*prompts[0][:3], *prompts[1][:5], ""]
    detector = df.detect.Wen(seeds=4)
    together = detector.scores(model, mixed).per_seed
    assert torch.equal(together.flip(0), detector.scores(model, mixed[::-1]).per_seed)
    assert torch.equal(together[3], detector.scores(model, mixed[3:4]).per_seed[0])
    threads = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            assert torch.equal(
                together, detector.scores(df.load("demo", device="cpu"), mixed).per_seed
            )
    finally:
        torch.set_num_threads(threads)
