"""The attack against a plain loop of torch, and the independence of its problems."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

import dori_fast as df
from dori_fast.attack import Dori, LossBelow
from dori_fast.attack.draws import Draws, stream
from dori_fast.errors import UsageError
from dori_fast.models import NeuronMask, WeightMask
from tests.tiny_sdxl import POOLED

PROMPTS = ["a cup of coffee", "the cat on the mat", "another the in an on"]
IDS = ["astronaut", "cat", 7]


def plain_attack(model, image, prompt, problem, *, steps, batch, start=None, unet=None):
    """The released loop: diffusers' forward, trainable weights, `.backward()`, torch's Adam."""
    unet = copy.deepcopy(unet or model.unet).requires_grad_(True)
    x_0 = model.latents(image[None])
    begin = model.encode([prompt]).embeddings if start is None else start[None]
    embedding = begin.detach().clone().requires_grad_()
    adam = torch.optim.Adam([embedding], lr=0.1)
    draws, losses = Draws(model, [problem], 0, batch), []
    for _ in range(steps):
        timesteps, noise = (x[0] for x in draws.take([0]))
        a = model.alphas_cumprod[timesteps].view(-1, 1, 1, 1).to(x_0)
        x_t = a.sqrt() * x_0 + (1 - a).sqrt() * noise
        eps = unet(x_t, timesteps, embedding.expand(batch, -1, -1)).sample
        kind = model.schedule.prediction_type
        if kind == "v_prediction":
            eps = a.sqrt() * eps + (1 - a).sqrt() * x_t
        if kind == "sample":
            eps = (x_t - a.sqrt() * eps) / (1 - a).sqrt()
        loss = F.mse_loss(eps, noise)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.detach())
    return embedding.detach()[0], torch.stack(losses)


@pytest.mark.parametrize("batch", [4, 3, 20])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_it_is_the_plain_loop(tiny_directory, images, batch, kind):
    """One evaluation of 8 samples holds 2, 2 or a part of a problem."""
    model = df.load(tiny_directory, device="cpu", dtype="float64", batch_size=8)
    model.schedule.prediction_type = kind
    result = Dori(steps=3, draws=batch).run(model, PROMPTS, images, ids=IDS)
    for p in range(3):
        expected, losses = plain_attack(model, images[p], PROMPTS[p], IDS[p], steps=3, batch=batch)
        torch.testing.assert_close(result.embeddings[p], expected, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(result.losses[:, p], losses, rtol=1e-8, atol=1e-8)
    assert result.steps.tolist() == [3, 3, 3]
    assert result.evaluations.tolist() == [3 * batch] * 3


@pytest.mark.parametrize("cap", [1.0, 5.0])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_weights_of_min_snr(tiny_directory, images, kind, cap):
    """Compare with the weights of Hang et al. for each prediction type."""
    model = df.load(tiny_directory, device="cpu", dtype="float64", batch_size=8)
    model.schedule.prediction_type = kind
    x_0, draws = model.latents(images[:1]), Draws(model, [0], 0, 8)
    timesteps, noise = (x[0] for x in draws.take([0]))
    a = model.alphas_cumprod[timesteps]
    snr = a / (1 - a)
    weight = snr.clamp(max=cap) / {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[kind]
    assert 0 < (snr < cap).sum() < 8
    a = a.view(-1, 1, 1, 1)
    x_t = a.sqrt() * x_0 + (1 - a).sqrt() * noise
    text = model.encode(PROMPTS[:1]).embeddings
    with torch.no_grad():
        answer = model.unet(x_t, timesteps, text.expand(8, -1, -1)).sample
    target = {
        "epsilon": noise,
        "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * x_0,
        "sample": x_0.expand_as(noise),
    }[kind]
    expected = (weight.view(-1, 1, 1, 1) * (answer - target) ** 2).mean()
    result = Dori(steps=1, objective="min-snr", snr_cap=cap).run(model, PROMPTS[:1], images[:1])
    torch.testing.assert_close(result.losses[0, 0], expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("start", ["prompt", "gaussian"])
def test_an_answer_depends_on_no_neighbour(model, images, start):
    attack = Dori(steps=4, draws=4)
    together = attack.run(model, PROMPTS, images, start=start, ids=IDS)
    backwards = attack.run(model, PROMPTS[::-1], images.flip(0), start=start, ids=IDS[::-1])
    assert torch.equal(together.embeddings, backwards.embeddings.flip(0))
    for p in range(3):
        alone = attack.run(model, [PROMPTS[p]], images[p, None], start=start, ids=[IDS[p]])
        assert torch.equal(alone.embeddings[0], together.embeddings[p])
        assert torch.equal(alone.losses[:, 0], together.losses[:, p])


def test_the_loss_falls(model, images):
    result = Dori(steps=40, draws=8).run(model, None, images, start="gaussian")
    assert result.losses.shape == (40, 3)
    assert (result.losses[-10:].mean(0) < result.losses[:10].mean(0)).all()


def test_other_seeds_and_ids_are_other_draws(model, images):
    same = images[:1].expand(2, -1, -1, -1)
    first = Dori(steps=2, draws=2).run(model, PROMPTS[:1] * 2, same, ids=["a", "b"]).embeddings
    other = Dori(steps=2, draws=2, seed=1).run(model, PROMPTS[:1] * 2, same, ids=["a", "b"])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other.embeddings[0])


def test_starts(model, images):
    attack = Dori(steps=2, draws=2, checkpoints=[0])
    from_prompt = attack.run(model, PROMPTS, images)
    assert torch.equal(from_prompt.checkpoints[0], model.encode(PROMPTS).embeddings)
    others = attack.run(model, PROMPTS[1:] + PROMPTS[:1], images)
    assert torch.equal(others.checkpoints[0], model.encode(PROMPTS[1:] + PROMPTS[:1]).embeddings)
    gaussian = attack.run(model, None, images, start="gaussian", ids=IDS).checkpoints[0]
    drawn = torch.randn(77, 32, generator=stream("start", 0, "cat"))
    assert torch.equal(gaussian[1], drawn) and abs(float(gaussian.std()) - 1) < 0.05
    given = torch.randn(3, 77, 32)
    again = attack.run(model, given, images)
    assert torch.equal(again.checkpoints[0], given) and not torch.equal(again.embeddings, given)


def test_checkpoints_are_those_of_shorter_attacks(model, images):
    long = Dori(steps=6, draws=4, checkpoints=(6, 0, 2)).run(model, PROMPTS, images)
    assert list(long.checkpoints) == [0, 2, 6]
    short = Dori(steps=2, draws=4).run(model, PROMPTS, images)
    assert torch.equal(long.checkpoints[2], short.embeddings)
    assert torch.equal(long.checkpoints[6], long.embeddings)
    assert torch.equal(long.condition(model, 2).embeddings, short.embeddings)
    with pytest.raises(UsageError, match="no checkpoint at step 3; kept are 0, 2, 6"):
        long.condition(model, 3)


def test_an_attack_goes_on_where_another_stopped(model, images):
    """The moments are passed on and not modified."""
    first = Dori(steps=3, draws=4).run(model, PROMPTS[:1], images[:1], ids=["first"])
    moments = first.adam.exp_avg.clone()
    onward = Dori(steps=2, draws=4)
    found = onward.run(model, first.embeddings, images[:1], ids=["next"], adam=first.adam)
    assert found.steps.tolist() == [2] and found.adam.step.tolist() == [5]
    assert torch.equal(first.adam.exp_avg, moments) and first.adam.step.tolist() == [3]
    anew = onward.run(model, first.embeddings, images[:1], ids=["next"])
    assert not torch.equal(anew.embeddings, found.embeddings)

    embedding = model.encode(PROMPTS[:1]).embeddings.clone().requires_grad_()
    adam, x_0 = torch.optim.Adam([embedding], lr=0.1), model.latents(images[:1])
    for name, steps in (("first", 3), ("next", 2)):
        draws = Draws(model, [name], 0, 4)
        for _ in range(steps):
            timesteps, noise = (x[0] for x in draws.take([0]))
            a = model.alphas_cumprod[timesteps].view(-1, 1, 1, 1).to(x_0)
            x_t = a.sqrt() * x_0 + (1 - a).sqrt() * noise
            eps = model.unet(x_t, timesteps, embedding.expand(4, -1, -1)).sample
            adam.zero_grad()
            F.mse_loss(eps, noise).backward()
            adam.step()
    # Adam makes a step of the sign of slopes that are nothing but rounding
    close = (embedding - found.embeddings).abs() < 1e-3
    assert close.float().mean() > 0.99


def test_a_problem_that_stops_leaves_the_others_as_they_are(model, images):
    whole = Dori(steps=6, draws=4, checkpoints=[2]).run(model, PROMPTS, images)
    asked = []

    def second_one(progress):
        asked.append((progress.step, progress.problems.tolist(), tuple(progress.losses.shape)))
        return progress.problems == 1

    attack = Dori(steps=6, draws=4, stop=second_one, check_every=2)
    result = attack.run(model, PROMPTS, images)
    assert asked == [(2, [0, 1, 2], (2, 3)), (4, [0, 2], (4, 2))]
    assert result.steps.tolist() == [6, 2, 6] and result.evaluations.tolist() == [24, 8, 24]
    for p in (0, 2):
        assert torch.equal(result.embeddings[p], whole.embeddings[p])
    assert torch.equal(result.embeddings[1], whole.checkpoints[2][1])
    assert result.losses[:, 1].isnan().tolist() == [False] * 2 + [True] * 4


def test_stopping_by_the_loss(model, images):
    never = Dori(steps=4, draws=4, stop=LossBelow(0.0, window=1), check_every=1)
    assert never.run(model, PROMPTS, images).steps.tolist() == [4, 4, 4]
    soon = Dori(steps=4, draws=4, stop=LossBelow(float("inf"), window=2), check_every=1)
    assert soon.run(model, PROMPTS, images).steps.tolist() == [2, 2, 2]


def neuron_masks(model):
    widths = {name: model.unet.get_submodule(name).to_v.out_features for name in model.layers}
    return NeuronMask({name: (torch.rand(3, w) > 0.5).float() for name, w in widths.items()})


def weight_masks(model):
    name = next(iter(model.engine.second_linears))
    shape = model.unet.get_submodule(name).weight.shape
    return WeightMask({name: torch.rand(3, *shape) > 0.7})


@pytest.mark.parametrize("kind", [neuron_masks, weight_masks])
def test_each_problem_under_its_own_mask(model64, images, kind):
    masks, attack = kind(model64), Dori(steps=3, draws=4)
    together = attack.run(model64.masked(masks), PROMPTS, images, ids=IDS).embeddings
    plain = attack.run(model64, PROMPTS, images, ids=IDS).embeddings
    for p in range(3):
        view = model64.masked(masks[p])
        alone = attack.run(view, [PROMPTS[p]], images[p, None], ids=[IDS[p]]).embeddings[0]
        torch.testing.assert_close(together[p], alone, rtol=1e-8, atol=1e-8)
        assert (together[p] - plain[p]).abs().max() > 1e-3


def test_a_model_whose_layers_are_not_known(tiny_directory, images):
    shared, plain = (
        df.load(tiny_directory, device="cpu", dtype="float64", batch_size=8, share=s)
        for s in (1, 0)
    )
    attack = Dori(steps=3, draws=4)
    one, two = (attack.run(m, PROMPTS, images).embeddings for m in (shared, plain))
    torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-8)
    with pytest.raises(UsageError, match="not known"):
        Dori(steps=1, recompute=True).run(plain, PROMPTS, images)


def test_sdxl_keeps_the_pooled_embeddings_of_the_prompts(tiny_sdxl_directory, images):
    model = df.load(tiny_sdxl_directory, device="cpu", batch_size=8)
    attack = Dori(steps=2, draws=4, checkpoints=[0])
    result = attack.run(model, PROMPTS, images, start="gaussian")
    assert result.pooled.shape == (3, POOLED)
    assert torch.equal(result.pooled, model.encode(PROMPTS).one_row_each().pooled)
    assert not torch.equal(result.embeddings, result.checkpoints[0])
    assert result.condition(model).pooled is not None
    for missing in (None, torch.zeros(3, 77, 64)):
        with pytest.raises(UsageError, match="prompt"):
            attack.run(model, missing, images, start="gaussian")


def test_recomputing_keeps_less_and_changes_nothing(model, images):
    attack, kept = Dori(steps=2, draws=4), {}

    def run(recompute):
        attack.recompute, sizes = recompute, []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            found = attack.run(model, PROMPTS[:2], images[:2]).embeddings
        kept[recompute] = sum(sizes)
        return found

    assert torch.equal(run(False), run(True))
    assert kept[True] < 0.7 * kept[False]
    assert not model.engine.program.recompute


def test_float16_finds_what_float64_finds(tiny_directory, model64, images):
    half = df.load(tiny_directory, device="cpu", dtype="float16", batch_size=8)
    attack = Dori(steps=1, draws=8, checkpoints=[0])

    def first_slopes(model):
        """Adam's first step is lr times the sign of the gradient."""
        result = attack.run(model, None, images, start="gaussian")
        return (result.embeddings - result.checkpoints[0]).double(), result

    wide, _ = first_slopes(model64)
    narrow, result = first_slopes(half)
    assert result.embeddings.dtype == torch.float32 and result.steps.tolist() == [1, 1, 1]
    assert ((wide - narrow).abs() < 1e-3).double().mean() > 0.97


def test_slopes_that_overflow_are_left_out(model, images):
    broken = copy.copy(model)
    broken.latents = lambda images: (
        model.latents(images) * torch.tensor([1.0, float("inf"), 1.0]).view(3, 1, 1, 1)
    )
    result = Dori(steps=2, draws=4, checkpoints=[0]).run(broken, PROMPTS, images)
    assert result.steps.tolist() == [2, 0, 2] and result.evaluations.tolist() == [8, 8, 8]
    assert torch.equal(result.embeddings[1], result.checkpoints[0][1])
    assert result.embeddings.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"draws": 0}, "at least 1"),
        ({"objective": "velocity"}, "objective must be one of epsilon, min-snr"),
        ({"snr_cap": 0.0}, "snr_cap must be above 0"),
        ({"steps": 5, "checkpoints": [6]}, "checkpoints must be 0..5"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(UsageError, match=message):
        Dori(**options)


def test_problems_are_checked(model, images):
    attack = Dori(steps=1)
    with pytest.raises(UsageError, match="give a prompt"):
        attack.run(model, None, images)
    with pytest.raises(UsageError, match="3 images but 2 prompts"):
        attack.run(model, PROMPTS[:2], images)
    with pytest.raises(UsageError, match="3 images but 1 ids"):
        attack.run(model, PROMPTS, images, ids=[0])
    with pytest.raises(UsageError, match="start must be one of"):
        attack.run(model, PROMPTS, images, start="noise")
    with pytest.raises(UsageError, match="no images"):
        attack.run(model, [], images[:0])
    with pytest.raises(UsageError, match="resize"):
        attack.run(model, PROMPTS[:1], torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
