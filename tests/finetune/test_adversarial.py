"""Adversarial fine-tuning on a tiny model: its training data, gradients and reproducibility."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline

import dori_fast as df
from dori_fast.attack import Dori
from dori_fast.attack.draws import stream
from dori_fast.errors import UsageError
from dori_fast.finetune import Checkpoint, Pool
from dori_fast.finetune.batches import Group, backward
from dori_fast.models import NeuronMask
from tests.finetune.material import (
    IMAGES,
    PROMPTS,
    RETAINED,
    SURROGATES,
    train,
    tuning,
    weights,
)


def test_the_original_stays_as_it_is(model):
    before, described = weights(model), model.config()
    eps = model.epsilon_shared(model.encode(PROMPTS), model.share_noise([0], 500))
    tuned = train(tuning(), model)
    assert torch.equal(weights(model), before) and model.config() == described
    again = model.epsilon_shared(model.encode(PROMPTS), model.share_noise([0], 500))
    assert torch.equal(again, eps)
    assert not torch.equal(weights(tuned), before)
    assert not any(p.requires_grad for p in [*tuned.unet.parameters(), *model.unet.parameters()])
    assert all(p.grad is None for p in tuned.unet.parameters())
    hashes, old = tuned.config()["files"], described["files"]
    assert hashes["unet"] not in old.values()
    assert hashes["text_encoder/model.safetensors"] == old["text_encoder/model.safetensors"]


def test_it_repeats_to_the_bit_and_seeds_matter(model):
    first = weights(train(tuning(), model))
    torch.manual_seed(99)
    torch.randn(7)
    assert torch.equal(weights(train(tuning(), model)), first)
    assert not torch.equal(weights(train(tuning(seed=1), model)), first)
    other_attack = tuning(attack=Dori(steps=2, draws=2, seed=1))
    assert not torch.equal(weights(train(other_attack, model)), first)


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("ema", "restart_after"),
    [
        (None, 4),
        (0.9, None),
        pytest.param(None, None, marks=pytest.mark.nightly),
        pytest.param(0.9, 4, marks=pytest.mark.nightly),
    ],
)
def test_a_killed_run_resumed_is_the_uninterrupted_run(model, tmp_path, ema, restart_after):
    pool = Pool(("prompt", "gaussian", "retained"), per_step=4, restart_after=restart_after)
    method, path = tuning(steps=7, ema=ema, pool=pool), tmp_path / "run.safetensors"
    reports = []
    whole = train(method, model, on_step=reports.append)

    def kill(report):
        if report.step == 5:
            raise Killed

    with pytest.raises(Killed):
        train(method, model, on_step=kill, on_checkpoint=lambda c: c.save(path), checkpoint_every=2)
    checkpoint, rest = Checkpoint.load(path), []
    assert checkpoint.step == 4
    resumed = train(method, model, resume=checkpoint, on_step=rest.append)
    assert torch.equal(weights(resumed), weights(whole))
    assert rest == reports[4:]
    # the file is read anew by whoever resumes: nothing of it was written to
    assert torch.equal(weights(train(method, model, resume=checkpoint)), weights(whole))


def test_a_finished_run_resumed_is_finished(model):
    kept = []
    tuned = train(tuning(steps=2), model, on_checkpoint=kept.append, checkpoint_every=10)
    assert [c.step for c in kept] == [2]
    assert torch.equal(weights(train(tuning(steps=2), model, resume=kept[0])), weights(tuned))


def test_another_run_is_refused(model):
    kept = []
    train(tuning(steps=2), model, on_checkpoint=kept.append)
    with pytest.raises(UsageError, match="different are settings"):
        train(tuning(steps=3), model, resume=kept[0])
    with pytest.raises(UsageError, match="different are pictures"):
        tuning(steps=2).run(
            model,
            PROMPTS,
            IMAGES.flip(0),
            surrogates=SURROGATES,
            retained=RETAINED,
            resume=kept[0],
        )
    with pytest.raises(UsageError, match="different are prompts"):
        tuning(steps=2).run(
            model,
            PROMPTS[::-1],
            IMAGES,
            surrogates=SURROGATES,
            retained=RETAINED,
            resume=kept[0],
        )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("at_once", [2, 100])
def test_the_gradients_are_those_of_a_plain_loop(tiny_directory, kind, at_once):
    model = df.load(tiny_directory, device="cpu", dtype="float64").copy()
    model.schedule.prediction_type = kind
    model.unet.requires_grad_(True)
    x_0 = torch.randn(5, *model.latent_shape, dtype=torch.float64)
    text = torch.randn(5, 77, 32, dtype=torch.float64)
    groups = {"one": Group(x_0[:2], text[:2], 0.5), "two": Group(x_0[2:], text[2:], 2.0)}
    losses = backward(model, groups, stream("x", 0, 0), at_once=at_once, autocast=None)
    found = [p.grad.clone() for p in model.unet.parameters()]
    model.unet.zero_grad()

    generator = stream("x", 0, 0)
    t = torch.randint(1000, (5,), generator=generator)
    noise = torch.randn(x_0.shape, generator=generator).double()
    a = model.alphas_cumprod[t].view(-1, 1, 1, 1)
    x_t = a.sqrt() * x_0 + (1 - a).sqrt() * noise
    target = {
        "epsilon": noise,
        "sample": x_0,
        "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * x_0,
    }[kind]
    answer = model.unet(x_t, t, text).sample
    one, two = F.mse_loss(answer[:2], target[:2]), F.mse_loss(answer[2:], target[2:])
    (0.5 * one + 2 * two).backward()
    torch.testing.assert_close(torch.stack([losses["one"], losses["two"]]), torch.stack([one, two]))
    for gradient, parameter in zip(found, model.unet.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-8, atol=1e-10)


def test_steps_are_those_of_adamw_with_clipping_and_average(tiny_directory):
    """Without an attack, a run equals a short torch loop."""
    model = df.load(tiny_directory, device="cpu", batch_size=8)
    method = tuning(steps=3, attack=None, clip=0.5, ema=0.9, at_once=100)
    reports = []
    tuned = train(method, model, on_step=reports.append)
    assert all(r.trigger_loss is None and r.attack_last is None for r in reports)

    plain = model.copy()
    parameters = list(plain.unet.requires_grad_(True).parameters())
    adam = torch.optim.AdamW(parameters, lr=1.0, weight_decay=0.01)
    average = [p.detach().clone() for p in parameters]
    surrogates = model.latents(SURROGATES.flatten(0, 1)).unflatten(0, (3, 2))
    kept = model.latents(torch.stack([torch.from_numpy(x) for _, x in RETAINED]))
    prompts = model.encode(PROMPTS).embeddings
    captions = model.encode([prompt for prompt, _ in RETAINED]).embeddings
    for step, report in enumerate(reports):
        rows = torch.randperm(9, generator=stream("turn", 0, step // 3)).split(4)[step % 3] % 3
        rows, generator = rows.repeat_interleave(2), stream("batch", 0, step)
        which = torch.randint(2, rows.shape, generator=generator)
        pairs = torch.randint(5, (3,), generator=generator)
        groups = {
            "prompts": Group(surrogates[rows, which], prompts[rows], 1.0),
            "retained": Group(kept[pairs], captions[pairs], 1.0),
        }
        adam.zero_grad()
        losses = backward(plain, groups, generator, at_once=100, autocast=None)
        assert float(losses["prompts"]) == report.prompt_loss
        norm = torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        assert float(norm) == report.gradient_norm > 0.5
        rate = 1e-3 * min((step + 1) / 2, (1 + math.cos(math.pi * step / 3)) / 2)
        assert report.lr == pytest.approx(rate)
        adam.param_groups[0]["lr"] = report.lr
        adam.step()
        decay = min(0.9, (2 + step) / (11 + step))
        for old, new in zip(average, parameters, strict=True):
            old.lerp_(new.detach(), 1 - decay)
    found = torch.cat([x.flatten() for x in average])
    torch.testing.assert_close(weights(tuned), found, rtol=0, atol=1e-7)


def test_the_losses_fall(model):
    reports = []
    method = tuning(steps=40, lr=3e-3, pool=Pool(per_step=4, restart_after=20))
    train(method, model, on_step=reports.append)

    def mean(name, rows):
        return sum(getattr(r, name) for r in reports[rows]) / 8

    for name in ("trigger_loss", "prompt_loss", "retained_loss"):
        assert mean(name, slice(-8, None)) < 0.9 * mean(name, slice(8)), name
    assert [r.step for r in reports] == list(range(1, 41))
    # 4 triggers (3 at the end of a turn) x 2 steps x 2 draws, 2 x 2 surrogates each, 3 pairs
    per_step = [4 * (4 + 4) + 3] * 2 + [1 * (4 + 4) + 3]
    assert reports[2].evaluations == sum(per_step)


def test_the_attack_meets_the_updated_weights(model):
    """The engine keeps nothing that it computed with older weights, even if read in between."""
    seen = []

    class Spy(Dori):
        def run(self, current, prompts, images, **options):
            cached = current.epsilon_shared(
                current.encode(PROMPTS), current.share_noise([0, 1], 500)
            )
            uncond = current.epsilon_uncond(
                current.encode(PROMPTS), current.share_noise([0, 1], 500)
            )
            assert not any(p.requires_grad for p in current.unet.parameters())
            text = current.encode(PROMPTS).embeddings
            plain = [
                current.unet(current.noise([s]).expand(3, -1, -1, -1), 500, text).sample
                for s in (0, 1)
            ]
            torch.testing.assert_close(cached, torch.stack(plain, 1), rtol=1e-4, atol=1e-5)
            empty = current.unconditional.embeddings
            alone = current.unet(current.noise([0]), 500, empty).sample
            torch.testing.assert_close(uncond[:1], alone, rtol=1e-4, atol=1e-5)
            found = super().run(current, prompts, images, **options)
            frozen = copy.copy(current)
            frozen = frozen.copy()
            anew = super().run(frozen, prompts, images, **options)
            assert torch.equal(found.embeddings, anew.embeddings)
            seen.append(cached)
            return found

    train(tuning(steps=3, attack=Spy(steps=2, draws=2), lr=1e-2), model)
    assert len(seen) == 3
    assert (seen[0] - seen[1]).abs().max() > 1e-3 and (seen[1] - seen[2]).abs().max() > 1e-3


def test_a_new_directory_opens_everywhere(model, tmp_path):
    tuned = train(tuning(), model)
    tuned.save_pretrained(tmp_path / "tuned")
    again = df.load(tmp_path / "tuned", device="cpu", batch_size=8)
    assert torch.equal(weights(again), weights(tuned))
    drawn = tuned.generate(tuned.encode(PROMPTS), [0, 1], steps=3)
    assert torch.equal(again.generate(again.encode(PROMPTS), [0, 1], steps=3), drawn)
    assert not list((tmp_path / "tuned").rglob("*.bin"))
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "tuned")
    pipe.set_progress_bar_config(disable=True)
    picture = pipe(
        PROMPTS[0], num_inference_steps=3, latents=tuned.noise([0]), output_type="np"
    ).images
    difference = (torch.from_numpy(picture[0]) * 255 - drawn[0, 0].float()).abs().max()
    assert difference < 1.5


def test_lower_precision_where_asked(model):
    plain, low = (
        weights(train(tuning(steps=1, autocast=precision), model))
        for precision in (None, torch.bfloat16)
    )
    start = weights(model)
    assert low.dtype == torch.float32 and not torch.equal(low, plain)
    moved = F.cosine_similarity(low - start, plain - start, dim=0)
    assert 0.8 < moved < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"at_once": 0}, "at least 1"),
        ({"attack": None, "with_prompts": False}, "nothing to remove"),
        ({"ema": 1.0}, "ema must be between"),
        ({"autocast": torch.float16}, "bfloat16 or None"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(UsageError, match=message):
        tuning(**options)


def test_inputs_are_checked(model, tiny_directory, tiny_sdxl_directory, tmp_path):
    run, given = tuning().run, {"surrogates": SURROGATES, "retained": RETAINED}
    with pytest.raises(UsageError, match="3 images, 2 prompts, surrogates of 3"):
        run(model, PROMPTS[:2], IMAGES, **given)
    with pytest.raises(UsageError, match="no retained pairs"):
        run(model, PROMPTS, IMAGES, surrogates=SURROGATES, retained=[])
    other = [("a dog", RETAINED[0][1][:8])]
    with pytest.raises(UsageError, match="images of different sizes"):
        run(model, PROMPTS, IMAGES, surrogates=SURROGATES, retained=other)
    layer = model.layers[0]
    width = model.unet.get_submodule(layer).to_v.out_features
    view = model.masked(NeuronMask({layer: torch.zeros(1, width)}))
    with pytest.raises(UsageError, match="pruned view makes the surrogates"):
        run(view, PROMPTS, IMAGES, **given)
    with pytest.raises(UsageError, match="has masks"):
        view.save_pretrained(tmp_path / "view")
    half = df.load(tiny_directory, device="cpu", dtype="bfloat16")
    with pytest.raises(UsageError, match="load it with dtype='float32'"):
        run(half, PROMPTS, IMAGES, **given)
    large = df.load(tiny_sdxl_directory, device="cpu")
    with pytest.raises(UsageError, match="SDXL"):
        run(large, PROMPTS, IMAGES, **given)


def test_gradients_that_are_not_finite_end_the_run(tiny_directory):
    model = df.load(tiny_directory, device="cpu", batch_size=8)
    model.unet.conv_in.weight.data[0] = float("inf")
    with pytest.raises(UsageError, match="gradients of step 1 are not finite"):
        train(tuning(attack=None), model)
