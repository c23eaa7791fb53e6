"""Wanda against the released procedure, written with hooks on the plain diffusers UNet."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from diffusers import DDIMScheduler

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.models import NeuronMask, WeightMask

PROMPTS = ["a cup of coffee", "the cat", "a cup of coffee", "photo of a rocket at dusk"]
OPTIONS = {"sparsity": 0.1, "steps": 3, "total_steps": 20, "seeds": 2}


@pytest.fixture(scope="module")
def model(model64):
    return model64


def released_norms(model, prompts, seeds, steps, total_steps, guidance, both_halves=True):
    """Column norms of unit-length inputs by (step, layer), and the UNet evaluations spent.

    One prompt and seed at a time, both halves of guidance in one batch, whose every token counts.
    """
    unet, squares, step, evaluations = model.unet, defaultdict(float), 0, 0
    scheduler = DDIMScheduler.from_config(model.schedule.sampler.config)
    scheduler.set_timesteps(total_steps)

    def record(name):
        def hook(module, args):
            counted = args[0] if both_halves else args[0][-1:]
            rows = torch.nn.functional.normalize(counted.reshape(-1, counted.shape[-1]), dim=1)
            squares[step, name] = squares[step, name] + rows.square().sum(0)

        return hook

    handles = [
        module.register_forward_pre_hook(record(name))
        for name, module in unet.named_modules()
        if name.endswith("ff.net.2")
    ]
    try:
        for prompt in prompts:
            texts = [prompt] if guidance == 1.0 else ["", prompt]
            text = torch.cat([model.encode([t]).embeddings for t in texts])
            for seed in seeds:
                latents = model.noise([seed])
                for step, t in enumerate(scheduler.timesteps[:steps]):  # noqa: B007 (hooks read it)
                    with torch.no_grad():
                        eps = unet(torch.cat([latents] * len(texts)), t, text).sample
                    evaluations += len(eps)
                    if guidance != 1.0:
                        eps = eps[:1] + guidance * (eps[1:] - eps[:1])
                    latents = scheduler.step(eps[-1:], t, latents).prev_sample
    finally:
        for handle in handles:
            handle.remove()
    return {key: value.sqrt() for key, value in squares.items()}, evaluations


def released_mask(
    model,
    prompts,
    *,
    sparsity,
    steps,
    total_steps,
    seeds,
    guidance=7.5,
    select_ratio=0.0,
    base=None,
    both_halves=True,
):
    """Bool [O, I] by layer; sorts as the released code does."""
    walk = (range(seeds), steps, total_steps, guidance, both_halves)
    target, _ = released_norms(model, prompts, *walk)
    # as many base prompts as target prompts, which the released code walks through in pairs
    base = [""] * len(prompts) if base is None else base
    base_norms, _ = released_norms(model, base, *walk)
    votes = defaultdict(float)
    for (step, name), norm in target.items():
        weight = model.unet.get_submodule(name).weight.detach().abs()
        score, base_score = weight * norm, weight * base_norms[step, name]
        order = torch.sort(score, dim=1, descending=True).indices
        mask = torch.zeros_like(score)
        mask.scatter_(1, order[:, : int(sparsity * score.shape[1])], 1)
        votes[name] = votes[name] + mask * (score > base_score)
    return {name: vote > select_ratio * steps for name, vote in votes.items()}


def assert_same(mask, row, expected):
    assert set(mask.layers) == set(expected)
    for name, pruned in expected.items():
        assert torch.equal(mask.pruned[name][row], pruned), name
    assert any(pruned.any() for pruned in expected.values())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance": 1.0},
        {"select_ratio": 0.5},
        {"both_halves": False},
        {"base": ["a dog", "the tree", "a sea", "one cloud"]},
        {"base": ["a dog", "the tree", "a sea", "one cloud"], "guidance": 1.0},
    ],
    ids=str,
)
def test_joint_masks_are_those_of_the_released_procedure(model, options):
    options = {**OPTIONS, **options}
    mask = df.prune.Wanda(**options).localize(model, PROMPTS)
    assert len(mask) == 1
    assert_same(mask, 0, released_mask(model, PROMPTS, **options))


def test_masks_per_prompt_are_those_of_the_released_procedure(model):
    mask = df.prune.Wanda(**OPTIONS, joint=False).localize(model, PROMPTS)
    assert len(mask) == len(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        assert_same(mask, row, released_mask(model, [prompt], **OPTIONS))
    assert_same(mask, 2, {name: pruned[0] for name, pruned in mask.pruned.items()})


def test_a_memorized_prompt_of_the_demo_model():
    model = df.load("demo", device="cpu", dtype="float64", batch_size=4)
    prompt = df.demo.pairs("memorized")[0][0]
    options = {"sparsity": 0.02, "steps": 3, "total_steps": 50, "seeds": 1}
    mask = df.prune.Wanda(**options).localize(model, [prompt])
    assert_same(mask, 0, released_mask(model, [prompt], **options))


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_other_predictions_walk_by_their_epsilon(model, prediction, monkeypatch):
    monkeypatch.setattr(model.schedule, "prediction_type", prediction)
    mask = df.prune.Wanda(**OPTIONS, joint=False).localize(model, PROMPTS[:2])
    model.schedule.sampler.register_to_config(prediction_type=prediction)
    try:
        assert_same(mask, 1, released_mask(model, PROMPTS[1:2], **OPTIONS))
    finally:
        model.schedule.sampler.register_to_config(prediction_type="epsilon")


def test_evaluations_with_base_prompts(model):
    found = df.prune.Wanda(**OPTIONS, base=["a dog", "a tree"]).run(model, PROMPTS)
    seeds, steps = OPTIONS["seeds"], OPTIONS["steps"]
    assert found.evaluations == seeds + (2 + len(PROMPTS)) * seeds * (2 * steps - 1)
    unguided = df.prune.Wanda(**OPTIONS, guidance=1.0, base=["a dog"]).run(model, PROMPTS)
    assert unguided.evaluations == (1 + len(PROMPTS)) * seeds * steps


def test_base_prompts_are_averaged(model):
    one = df.prune.Wanda(**OPTIONS, base=["a dog"]).localize(model, PROMPTS)
    twice = df.prune.Wanda(**OPTIONS, base=["a dog"] * 4).localize(model, PROMPTS)
    empty = df.prune.Wanda(**OPTIONS).localize(model, PROMPTS)
    spelled_out = df.prune.Wanda(**OPTIONS, base=[""]).localize(model, PROMPTS)
    assert one.sha256() == twice.sha256() != empty.sha256() == spelled_out.sha256()


@pytest.mark.parametrize("joint", [True, False])
def test_evaluations_and_what_is_not_repeated(model, joint):
    before = model.engine.evaluations
    found = df.prune.Wanda(**OPTIONS, joint=joint).run(model, PROMPTS)
    prompts, seeds, steps = len(PROMPTS), OPTIONS["seeds"], OPTIONS["steps"]
    assert found.evaluations == seeds * steps + prompts * seeds * (2 * steps - 1)
    assert found.evaluations == model.engine.evaluations - before
    walk = (range(seeds), steps, OPTIONS["total_steps"], 7.5)
    spent = sum(released_norms(model, p, *walk)[1] for p in (PROMPTS, [""] * prompts))
    assert spent == 4 * prompts * seeds * steps


def test_masks_do_not_depend_on_the_batch_size(tiny_directory, model):
    expected = [
        df.prune.Wanda(**OPTIONS, joint=joint).localize(model, PROMPTS).sha256()
        for joint in (True, False)
    ]
    for batch_size in (1, 3, 64):
        other = df.load(tiny_directory, device="cpu", dtype="float64", batch_size=batch_size)
        for joint, sha256 in zip((True, False), expected, strict=True):
            mask = df.prune.Wanda(**OPTIONS, joint=joint).localize(other, PROMPTS)
            assert mask.sha256() == sha256


def test_nothing_is_changed_and_the_counts_are_reported(model):
    weights = {n: p.clone() for n, p in model.unet.named_parameters()}
    found = df.prune.Wanda(**OPTIONS).run(model, PROMPTS)
    assert all(torch.equal(p, weights[n]) for n, p in model.unet.named_parameters())
    for name, share in found.density().items():
        columns = weights[f"{name}.weight"].shape[1]
        assert share.item() == found.mask.counts()[name].item() / weights[f"{name}.weight"].numel()
        most = int(OPTIONS["sparsity"] * columns) * OPTIONS["steps"] / columns
        assert 0 < share.item() <= most


def test_requests_that_cannot_be_carried_out(model):
    with pytest.raises(UsageError, match="no prompts"):
        df.prune.Wanda(**OPTIONS).localize(model, [])
    with pytest.raises(UsageError, match=r"sparsity 0.001 marks no weight.* at least 0.0078"):
        df.prune.Wanda(sparsity=0.001).localize(model, PROMPTS)
    with pytest.raises(UsageError, match=r"steps must be 1..50 \(total_steps\), got 51"):
        df.prune.Wanda(steps=51)
    with pytest.raises(UsageError, match="sparsity must be in 0..1"):
        df.prune.Wanda(sparsity=1.5)
    with pytest.raises(UsageError, match="base must have prompts"):
        df.prune.Wanda(base=[])
    with pytest.raises(UsageError, match="at least one seed"):
        df.prune.Wanda(seeds=[])
    layer = model.layers[0]
    masked = model.masked(NeuronMask({layer: torch.ones(1, 16)}))
    with pytest.raises(UsageError, match="the model is masked"):
        df.prune.Wanda(**OPTIONS).localize(masked, PROMPTS)


def test_the_mask_goes_back_into_the_model_and_a_file(model, tmp_path):
    mask = df.prune.Wanda(**OPTIONS, joint=False).localize(model, PROMPTS)
    view = model.masked(mask)
    eps = view.epsilon(view.encode(PROMPTS), model.noise([0]), 500)
    assert not torch.allclose(eps, model.epsilon(model.encode(PROMPTS), model.noise([0]), 500))
    mask.save(tmp_path / "mask.safetensors")
    assert WeightMask.load(tmp_path / "mask.safetensors").sha256() == mask.sha256()
