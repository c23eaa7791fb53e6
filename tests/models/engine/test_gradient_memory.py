"""Out of memory with gradients: steps are repeated in smaller evaluations, results stay."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

import dori_fast as df
from dori_fast.attack import Dori, Tokens
from dori_fast.mitigate import Wen, token_significance
from dori_fast.models.engine.full_batches import FullBatches
from dori_fast.models.engine.gradients import differentiating
from tests.finetune.material import IMAGES, PROMPTS, train, tuning, weights
from tests.models.engine.limited import Memory

FORWARD_BACKWARD = pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])


@pytest.fixture(scope="module")
def load(tiny_directory):
    return lru_cache(lambda size: df.load(tiny_directory, dtype="float64", batch_size=size))


@pytest.fixture(scope="module")
def large(load):
    return load(32)


@pytest.fixture(scope="module")
def starts(large):
    """Embeddings, since a prompt's may depend on the batch size in the last bits."""
    return large.encode(PROMPTS).embeddings


def attacked(model, starts, draws, steps=2, **options):
    before = model.engine.evaluations, model.engine.rows_computed
    result = Dori(steps=steps, draws=draws, **options).run(model, starts, IMAGES)
    return result, model.engine.evaluations - before[0], model.engine.rows_computed - before[1]


@pytest.mark.parametrize(
    ("limit", "refused", "draws", "backward"),
    [(16, [32], 8, False), (8, [32, 16], 8, True), (8, [32, 16], 20, False)],
)
def test_an_attack_ends_as_with_smaller_batches(
    load, large, starts, limit, refused, draws, backward
):
    """A batch holds two problems, one, or a part of one."""
    memory = Memory(limit, backward=backward)
    with memory.of(large.unet):
        found, evaluations, rows = attacked(large, starts, draws)
    assert memory.refused == refused and memory.live == 0
    assert large.batch_size == 32
    small, wanted, fewer = attacked(load(limit), starts, draws)
    for name in ("embeddings", "losses", "steps", "evaluations"):
        assert torch.equal(getattr(found, name), getattr(small, name)), name
    # the failed tries cost rows but are no evaluations
    assert evaluations == wanted == 2 * 3 * draws and rows > fewer
    # other batches change the order of sums alone
    whole = attacked(large, starts, draws)[0]
    torch.testing.assert_close(found.embeddings, whole.embeddings, rtol=1e-9, atol=1e-9)


@FORWARD_BACKWARD
def test_what_was_summed_before_the_failure_does_not_count(load, starts, backward):
    """The third evaluation of the second step fails; the others of its step are repeated."""
    model, memory = load(8), Memory(backward=backward, failing=(5,))
    with memory.of(model.unet):
        found = attacked(model, starts, 8, steps=3)[0]
    assert memory.refused == [8] and model.batch_size == 8
    whole = attacked(model, starts, 8, steps=3)[0]
    torch.testing.assert_close(found.losses, whole.losses, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.embeddings, whole.embeddings, rtol=1e-9, atol=1e-9)


def test_recomputing_problems_are_cut_as_well(load, large, starts):
    memory = Memory(8)
    with memory.of(large.unet):
        found = attacked(large, starts, 8, recompute=True)[0]
    assert memory.refused[0] == 32 and memory.live == 0
    assert not large.engine.program.recompute
    assert torch.equal(found.embeddings, attacked(load(8), starts, 8)[0].embeddings)


def test_an_attack_with_tokens_ends_as_without_a_limit(large):
    attack, memory = Tokens(steps=2, draws=8, tokens=2), Memory(8, backward=True)
    with memory.of(large.unet):
        found = attack.run(large, PROMPTS, IMAGES)
    assert memory.refused == [32, 16] and memory.live == 0 and large.batch_size == 32
    whole = attack.run(large, PROMPTS, IMAGES)
    assert torch.equal(found.tokens, whole.tokens)
    torch.testing.assert_close(found.losses, whole.losses, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("seeds", "backward"), [(4, True), (20, False)])
def test_a_mitigation_ends_as_without_a_limit(large, seeds, backward):
    method, memory = Wen(0.0, iterations=2, seeds=seeds), Memory(8, backward=backward)
    with memory.of(large.unet):
        found = method.run(large, PROMPTS)
        # one that is found in the first iteration serves the others
        assert memory.refused == [32, 16]
        significant = token_significance(large, PROMPTS, seeds)
    assert memory.live == 0 and large.batch_size == 32
    whole = method.run(large, PROMPTS)
    torch.testing.assert_close(found.losses, whole.losses, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.embeddings, whole.embeddings, rtol=1e-9, atol=1e-9)
    wanted = token_significance(large, PROMPTS, seeds)
    torch.testing.assert_close(significant, wanted, rtol=1e-9, atol=1e-9)


def test_squares_summed_before_the_failure_do_not_count(load):
    """Each prompt's 8 seeds are one evaluation; that of the last prompt fails."""
    model, method, memory = load(8), Wen(0.0, iterations=1, seeds=8), Memory(failing=(2,))
    with memory.of(model.unet):
        found = method.run(model, PROMPTS)
    assert memory.refused == [8] and model.batch_size == 8
    torch.testing.assert_close(
        found.embeddings, method.run(model, PROMPTS).embeddings, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(("limit", "backward"), [(16, True), (8, False)])
def test_fine_tuning_ends_as_without_a_limit(large, limit, backward):
    memory, seen = Memory(limit, backward=backward), []
    options = {"on_checkpoint": lambda checkpoint: seen.append(checkpoint.run)}
    with memory.of(large.unet):
        found = train(tuning(steps=2), large, **options)
    # inner attacks are padded to 32 samples, a training pass has 8 + 8 + 3; later ones fit
    attacks, passes = ([32], [19]) if limit == 16 else ([32, 16], [19, 16])
    assert memory.refused == attacks + passes and memory.live == 0
    assert found.batch_size == large.batch_size == 32
    whole = train(tuning(steps=2), large, **options)
    assert seen[0] == seen[-1]
    torch.testing.assert_close(weights(found), weights(whole), rtol=1e-9, atol=1e-9)


@FORWARD_BACKWARD
def test_passes_of_a_training_step_that_failed_leave_no_gradient(large, backward):
    method = tuning(steps=2, attack=None, at_once=4)
    # 8 + 3 samples in passes of 4: the last one fails
    memory = Memory(backward=backward, failing=(2,))
    with memory.of(large.unet):
        found = train(method, large)
    assert memory.refused == [3]
    whole = train(method, large)
    torch.testing.assert_close(weights(found), weights(whole), rtol=1e-9, atol=1e-9)


def test_one_sample_is_the_floor_and_the_batch_size_comes_back(large, starts):
    memory = Memory(0)
    with memory.of(large.unet), pytest.raises(torch.OutOfMemoryError, match="pretended"):
        attacked(large, starts, 8)
    assert memory.refused == [32, 16, 8, 4, 2, 1] and large.batch_size == 32
    with memory.of(large.unet), pytest.raises(torch.OutOfMemoryError):
        train(tuning(attack=None), large)
    assert not any(p.requires_grad or p.grad is not None for p in large.unet.parameters())


def test_an_evaluation_whose_graph_is_a_callers_is_not_cut(large, starts):
    memory, leaf = Memory(8), starts.clone().requires_grad_()
    with memory.of(large.unet), pytest.raises(torch.OutOfMemoryError):
        large.epsilon(large.condition(leaf), large.noise([0]), 961)
    assert memory.refused == [32] and large.batch_size == 32


def test_only_an_automatic_size_is_replaced_and_every_one_comes_back():
    probed = []

    def probe(size):
        return lambda: probed.append(size) or size

    batches = FullBatches(32, lambda: None, automatic=True)
    with batches.differentiating("plain", probe(8)):
        assert batches.size == 8
        batches.size = 4
        with batches.differentiating("other", probe(2)):
            assert batches.size == 4
            batches.size = 2
        assert batches.size == 2
    assert batches.size == 32
    # a kind is probed once, and never raises the size
    for kind, size, expected in (("plain", 16, 8), ("recompute", 64, 32)):
        with batches.differentiating(kind, probe(size)):
            assert batches.size == expected
    batches.size = 16
    with batches.differentiating("plain", probe(1)):
        assert batches.size == 16
    with FullBatches(32, lambda: None, automatic=False).differentiating("plain", probe(1)):
        pass
    assert probed == [8, 64]


def test_a_size_halved_without_gradients_is_still_nobodys_choice():
    batches = FullBatches(32, lambda: None, automatic=True)

    def step():
        if batches.size > 16:
            raise torch.OutOfMemoryError("CUDA")

    batches.fitted(step)
    with batches.differentiating("plain", lambda: 4):
        assert batches.size == 4
    assert batches.size == 16


def test_a_teacher_of_repeated_passes_is_counted_once(large):
    spent = []
    for memory in (Memory(), Memory(4)):
        before = large.engine.evaluations
        with memory.of(large.unet):
            train(tuning(steps=1, distil=True, attack=None, with_prompts=True, at_once=8), large)
        spent.append(large.engine.evaluations - before)
    assert memory.refused and spent[0] == spent[1] == 3


def test_on_a_cpu_gradients_have_the_batch_size_of_scores(tiny_directory):
    for model in (df.load(tiny_directory, device="cpu"), df.load(tiny_directory).copy()):
        with differentiating(model.engine):
            assert model.batch_size == model.engine.batches.automatic == 32


@pytest.mark.gpu
def test_on_a_gpu_gradients_have_a_batch_size_of_their_own(tiny_directory, monkeypatch):
    """Half of what a batch of 64 takes with its graph must give a smaller size, and an attack."""
    from dori_fast.models.engine import batch_size

    model = df.load(tiny_directory, device="cuda")
    backbone, program = model.engine.backbone, model.engine.program
    needed = batch_size.peak_bytes(backbone, program, 64, gradients=True)
    assert needed > batch_size.peak_bytes(backbone, program, 64)
    monkeypatch.setattr(batch_size, "_free_bytes", lambda device: needed // 2)
    with differentiating(model.engine):
        assert model.batch_size <= 32
        assert model.batch_size < model.engine.batches.automatic
    assert Dori(steps=1, draws=8).run(model, PROMPTS, IMAGES).embeddings.isfinite().all()
    assert model.batch_size == model.engine.batches.automatic
