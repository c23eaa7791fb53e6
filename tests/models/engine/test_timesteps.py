"""Own timesteps for each sample of a batch, and gradients, against the plain network one by one."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.models import NeuronMask
from dori_fast.models.backbones.unet.program import added_conditions
from dori_fast.models.probes import prediction

P, B = 3, 2
TIMESTEPS = torch.tensor([[0, 999], [500, 500], [21, 7]])


@pytest.fixture(scope="module")
def sources(tiny_directory, tiny_sdxl_directory):
    return {"sd": tiny_directory, "sdxl": tiny_sdxl_directory, "demo": "demo"}


def load(sources, name, dtype, **options):
    return df.load(sources[name], device="cpu", dtype=dtype, **{"batch_size": 4, **options})


def problem(model):
    """Text, pooled text (SDXL) and latents, the same for every dtype."""
    generator = torch.Generator().manual_seed(0)
    like = model.unconditional
    shapes = [like.unique.shape[1:], *([like.pooled.shape[1:]] if like.pooled is not None else [])]
    text = [torch.randn(P, *shape, generator=generator).to(model.dtype) for shape in shapes]
    latents = torch.randn(P, B, *model.latent_shape, generator=generator)
    return text[0], text[1] if len(text) > 1 else None, latents.to(model.dtype)


def plain(model, text, pooled, latents):
    """The model's own forward, each sample alone."""
    rows = []
    for p in range(P):
        row = None if pooled is None else pooled[p : p + 1]
        added = added_conditions(row, model.image_size)
        rows.append(
            torch.cat(
                [
                    model.unet(
                        latents[p, b : b + 1],
                        TIMESTEPS[p, b],
                        text[p : p + 1],
                        added_cond_kwargs=added,
                    ).sample
                    for b in range(B)
                ]
            )
        )
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["sd", "sdxl", "demo"])
@pytest.mark.parametrize(
    ("dtype", "value", "slope"), [("float64", 1e-12, 1e-10), ("float32", 1e-5, 1e-5)]
)
@pytest.mark.parametrize("share", [True, False])
def test_values_and_gradients_are_the_plain_forwards(sources, name, dtype, value, slope, share):
    model = load(sources, name, dtype, share=share)
    assert (model.engine.not_shared is None) == share
    text, pooled, latents = problem(model)
    ours, theirs = (text.clone().requires_grad_() for _ in range(2))
    output = prediction(model, model.condition(ours, pooled), latents, TIMESTEPS)
    expected = plain(model, theirs, pooled, latents)
    assert (output - expected).norm() <= value * expected.norm()
    for outputs in (output, expected):
        (outputs - latents).square().mean().backward()
    assert (ours.grad - theirs.grad).norm() <= slope * theirs.grad.norm()
    assert all(parameter.grad is None for parameter in model.unet.parameters())


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_latents_shared_by_all_prompts(sources, name):
    model = load(sources, name, "float64")
    text, pooled, latents = problem(model)
    condition = model.condition(text, pooled)
    together = model.epsilon(condition, latents[0], TIMESTEPS[0])
    shared = model.epsilon_shared(condition, model.share(latents[0], TIMESTEPS[0]))
    assert torch.equal(together, shared)
    for b in range(B):
        alone = model.epsilon(condition, latents[0, b : b + 1], int(TIMESTEPS[0, b]))
        assert (together[:, b : b + 1] - alone).norm() <= 1e-12 * alone.norm()


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_a_prediction_and_its_gradient_depend_on_no_neighbour(sources, name):
    model = load(sources, name, "float32")
    text, pooled, latents = problem(model)

    def answer(rows):
        leaf = text[rows].clone().requires_grad_()
        condition = model.condition(leaf, None if pooled is None else pooled[rows])
        eps = model.epsilon(condition, latents[rows], TIMESTEPS[rows])
        eps.square().sum().backward()
        return eps.detach(), leaf.grad

    together = answer([0, 1, 2])
    for p in range(P):
        for one, of_all in zip(answer([p]), together, strict=True):
            assert torch.equal(one[0], of_all[p])


def test_no_gradient_is_kept_of_what_the_text_has_no_part_in(sources):
    """The backward pass skips the prefix and the weights."""
    model = load(sources, "sd", "float32", batch_size=P * B)
    text, _, latents = problem(model)
    condition = model.condition(text.requires_grad_())
    prefix = model.engine._prefix(
        model.engine.program,
        model.samples(condition, latents, TIMESTEPS).shared,
        torch.arange(P * B),
    )
    assert not any(t.requires_grad for t in (prefix.x, *prefix.kept))

    def flops(run):
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    output = prediction(model, condition, latents, TIMESTEPS)
    backward = flops(lambda: torch.autograd.grad(output.square().sum(), text))
    plain_text = text.detach().requires_grad_().repeat_interleave(B, 0)
    flat = latents.flatten(0, 1)
    output = model.unet(flat, TIMESTEPS.flatten(), plain_text).sample
    whole = flops(lambda: torch.autograd.grad(output.square().sum(), plain_text))
    assert backward < whole


def test_masks_go_with_their_problems(sources):
    model = load(sources, "sd", "float64")
    text, _, latents = problem(model)
    widths = {name: model.unet.get_submodule(name).to_v.out_features for name in model.layers}
    masks = NeuronMask({name: (torch.rand(P, w) > 0.5).float() for name, w in widths.items()})
    view = model.masked(masks)
    together = view.epsilon(view.condition(text), latents, TIMESTEPS)
    for p in range(P):
        one = model.masked(masks[p])
        alone = one.epsilon(one.condition(text[p : p + 1]), latents[p : p + 1], TIMESTEPS[p, None])
        assert (together[p] - alone[0]).norm() <= 1e-12 * alone.norm()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_what_the_network_is_trained_to_answer_becomes_epsilon(sources, kind):
    schedule = load(sources, "sd", "float64").schedule
    schedule.prediction_type = kind
    x_0, eps = torch.randn(P, 4, 8, 8).double(), torch.randn(P, B, 4, 8, 8).double()
    x_t = df.ops.add_noise(x_0, eps, schedule.alphas_cumprod[TIMESTEPS])
    target = schedule.target(x_0, eps, TIMESTEPS)
    found = schedule.epsilon(target.flatten(0, 1), x_t.flatten(0, 1), TIMESTEPS.flatten())
    torch.testing.assert_close(found, eps.flatten(0, 1))
    # each sample is converted with its own timestep
    for n, t in enumerate(TIMESTEPS.flatten().tolist()):
        one = schedule.epsilon(target.flatten(0, 1)[n : n + 1], x_t.flatten(0, 1)[n : n + 1], t)
        torch.testing.assert_close(found[n : n + 1], one)


def test_a_velocity_is_diffusers(sources):
    from diffusers import DDPMScheduler

    schedule = load(sources, "sd", "float32").schedule
    schedule.prediction_type = "v_prediction"
    x_0, eps = torch.randn(P, 4, 8, 8), torch.randn(P, B, 4, 8, 8)
    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    expected = theirs.get_velocity(
        x_0.repeat_interleave(B, 0), eps.flatten(0, 1), TIMESTEPS.flatten()
    )
    torch.testing.assert_close(schedule.target(x_0, eps, TIMESTEPS).flatten(0, 1), expected)


def test_timesteps_that_do_not_fit_are_refused(sources):
    model = load(sources, "sd", "float32")
    text, _, latents = problem(model)
    condition = model.condition(text)
    for wrong in (TIMESTEPS[:, 0], TIMESTEPS.float(), TIMESTEPS.T):
        with pytest.raises(UsageError, match="timestep must be"):
            model.epsilon(condition, latents, wrong)
    with pytest.raises(UsageError, match="timestep must be"):
        model.share(latents[0], TIMESTEPS)
