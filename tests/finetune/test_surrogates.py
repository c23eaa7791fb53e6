"""The choice of surrogates, and the pool of triggers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dori_fast.attack import Dori
from dori_fast.attack.draws import stream
from dori_fast.errors import IntegrityError, UsageError
from dori_fast.evaluate import SmallImages
from dori_fast.finetune import Checkpoint, Pool, surrogates
from dori_fast.finetune.triggers import Triggers, embeddings_of
from dori_fast.models import NeuronMask

PROMPTS = ["a cup of coffee", "the cat on the mat", "another the in an on"]
HOW = {"steps": 2, "guidance": 2.0}


@pytest.fixture(scope="module")
def drawn(model):
    return model.generate(model.encode(PROMPTS), range(4), **HOW)


class Verdicts:
    """A measure that returns given similarities."""

    threshold = 0.5

    def __init__(self, copies):
        self.copies = np.array(copies, dtype=np.float64)

    def __call__(self, drawn, original):
        assert drawn.shape[:2] == self.copies.shape and len(original) == len(drawn)
        return self.copies


def test_copies_are_left_out_repeated_or_borrowed(model, drawn):
    measure = Verdicts([[1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 1]])
    found = surrogates(model, PROMPTS, drawn[:, 0], measure=measure, count=2, candidates=4, **HOW)
    assert found.images.dtype == torch.uint8 and found.own.tolist() == [2, 0, 1]
    assert torch.equal(found.images[0], drawn[0, [1, 2]])
    assert torch.equal(found.images[1], drawn[2, [2, 2]])
    assert torch.equal(found.images[2], drawn[2, [2, 2]])
    summary = found.summary()
    assert summary["prompts_without_their_own"] == 1 and summary["prompts_with_too_few"] == 2


def test_the_real_measure_finds_the_copies(model, drawn):
    """The model's own image of seed 0 is a copy of itself."""
    found = surrogates(
        model, PROMPTS, drawn[:, 0].numpy(), measure=SmallImages(0.999), count=1, **HOW
    )
    assert (found.similarity[:, 0] > 0.999).all() and found.similarity.shape == (3, 2)
    own = [p for p in range(3) if found.own[p]]
    assert own and all(torch.equal(found.images[p, 0], drawn[p, 1]) for p in own)


def test_what_cannot_be_done_is_refused(model, drawn):
    with pytest.raises(UsageError, match="every candidate of every prompt is a copy"):
        surrogates(model, PROMPTS, drawn[:, 0], measure=Verdicts(np.ones((3, 2))), count=1, **HOW)
    with pytest.raises(UsageError, match="3 images, 1 prompts"):
        surrogates(model, PROMPTS[:1], drawn[:, 0], measure=SmallImages())
    with pytest.raises(UsageError, match="count must be"):
        surrogates(model, PROMPTS, drawn[:, 0], measure=SmallImages(), count=5, candidates=4)


def pool(model, **settings):
    kept = embeddings_of(model, ["a house", "a tree"])
    return Triggers(Pool(**settings), embeddings_of(model, PROMPTS), kept, seed=0), kept


def test_every_trigger_has_its_turn(model):
    triggers, _ = pool(model, starts=("prompt", "gaussian"), per_step=4)
    turns = [triggers.chosen(step) for step in range(4)]
    assert [len(rows) for rows in turns] == [4, 2, 4, 2]
    for first in (0, 2):
        assert sorted(torch.cat(turns[first : first + 2]).tolist()) == list(range(6))
    assert torch.cat(turns[:2]).tolist() != torch.cat(turns[2:]).tolist()
    assert triggers.images(torch.tensor([1, 4])).tolist() == [1, 1]


def test_where_triggers_begin_and_go_on(model):
    starts = ("prompt", "gaussian", "retained")
    attack, images = Dori(steps=2, draws=2, checkpoints=[0]), torch.zeros(3, 16, 16, 3).byte()
    rows = torch.tensor([1, 4, 7])
    for limit, ages in ((None, [2, 2, 2]), (4, [2, 4, 2])):
        triggers, kept = pool(model, starts=starts, restart_after=limit)
        found = []
        for step in range(3):
            found.append(triggers.sharpen(attack, model, images, rows, step))
            assert triggers.age[rows].tolist() == [ages[step]] * 3
            assert triggers.adam.step[rows].tolist() == [ages[step]] * 3
        first, second, third = (x.checkpoints[0] for x in found)
        assert torch.equal(first[0], triggers._prompts[1])
        gaussian = torch.randn(77, 32, generator=stream("beginning", 0, "4:0"))
        assert torch.equal(first[1], gaussian)
        assert any(torch.equal(first[2], one) for one in kept)
        anew = second if limit is None else third
        assert torch.equal(anew[0], first[0]) and not torch.equal(anew[1], first[1])
        if limit is not None:
            assert torch.equal(second, found[0].embeddings)
        assert torch.equal(triggers.embeddings[rows], found[2].embeddings)


def test_pools_are_checked():
    with pytest.raises(UsageError, match="starts must be of"):
        Pool(("noise",))
    with pytest.raises(UsageError, match="at least 1"):
        Pool(per_step=0)
    with pytest.raises(UsageError, match="at least 1"):
        Pool(restart_after=0)


def test_damaged_checkpoints_are_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(UsageError, match="no such file"):
        Checkpoint.load(path)
    Checkpoint(3, 10, {"a": torch.ones(4)}, {"settings": {"x": [1, 2]}}).save(path)
    again = Checkpoint.load(path)
    assert (again.step, again.evaluations) == (3, 10) and torch.equal(
        again.tensors["a"], torch.ones(4)
    )
    again.require({"settings": {"x": (1, 2)}})
    with pytest.raises(UsageError, match="different are settings"):
        again.require({"settings": {"x": [1]}})
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(IntegrityError, match="not a readable"):
        Checkpoint.load(path)
    NeuronMask({"a": torch.ones(1, 2)}).save(path)
    with pytest.raises(
        IntegrityError, match="wanted a checkpoint of fine-tuning, found dori_fast.mask"
    ):
        Checkpoint.load(path)
