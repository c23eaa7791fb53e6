"""Masks on cross-attention values: a batch of different masks against hooked single runs."""

from __future__ import annotations

import pytest
import torch

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.models.samples import ValueMasks
from tests.tiny_model import save_tiny_sd

SEEDS = [0, 3]
PROMPT = "a cup of coffee"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return df.load(save_tiny_sd(tmp_path_factory.mktemp("tiny")), device="cpu", batch_size=8)


def random_masks(model, n, layers=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    names = model.layers if layers is None else [model.layers[i] for i in layers]
    widths = {name: model.unet.get_submodule(name).to_v.out_features for name in names}
    return ValueMasks(
        {name: (torch.rand(n, w, generator=generator) > 0.5).float() for name, w in widths.items()}
    )


def hooked_epsilon(model, masks, row, prompt, latents, timestep):
    """One mask by forward hooks on to_v, as NeMo's released code does it."""
    handles = [
        model.unet.get_submodule(name).to_v.register_forward_hook(
            lambda module, args, out, scale=scale[row]: out * scale
        )
        for name, scale in masks.scales.items()
    ]
    try:
        text = model.encode([prompt]).embeddings.expand(len(latents), -1, -1)
        with torch.no_grad():
            return model.unet(latents, torch.tensor(timestep), text).sample
    finally:
        for handle in handles:
            handle.remove()


def test_64_masks_in_one_call_are_64_single_runs(model):
    masks, latents = random_masks(model, 64), model.noise(SEEDS)
    view = model.masked(masks)
    eps = view.epsilon(view.encode([PROMPT] * 64), latents, 961)
    for row in range(64):
        expected = hooked_epsilon(model, masks, row, PROMPT, latents, 961)
        assert (eps[row] - expected).norm() <= 1e-5 * expected.norm()


def test_one_mask_for_all_prompts(model):
    masks, latents = random_masks(model, 1), model.noise(SEEDS)
    view = model.masked(masks)
    prompts = [PROMPT, "the cat", PROMPT]
    eps = view.epsilon(view.encode(prompts), latents, 500)
    for p, prompt in enumerate(prompts):
        expected = hooked_epsilon(model, masks, 0, prompt, latents, 500)
        assert (eps[p] - expected).norm() <= 1e-5 * expected.norm()


def test_the_original_is_unchanged(model):
    condition, latents = model.encode([PROMPT]), model.noise(SEEDS)
    before = model.epsilon(condition, latents, 500)
    model.masked(random_masks(model, 1)).epsilon(condition, latents, 500)
    assert torch.equal(before, model.epsilon(condition, latents, 500))


@pytest.mark.parametrize("layer", range(4))
def test_what_lies_before_the_first_masked_layer_is_shared(model, layer):
    masks = random_masks(model, 5, layers=range(layer, 4))
    shared = model.share_up_to(layer, model.encode([PROMPT]), model.share(model.noise(SEEDS), 961))
    view = model.masked(masks)
    eps = view.epsilon_shared(view.encode([PROMPT] * 5), shared)
    for row in range(5):
        expected = hooked_epsilon(model, masks, row, PROMPT, model.noise(SEEDS), 961)
        assert (eps[row] - expected).norm() <= 1e-5 * expected.norm()


def test_the_unconditional_half_has_the_mask_too(model):
    masks = random_masks(model, 3)
    view = model.masked(masks)
    condition = view.encode(["one", "two", "three"])
    shared = view.share(view.noise(SEEDS), 961)
    eps = view.epsilon_uncond(condition[1:], shared)
    for i, row in enumerate([1, 2]):
        expected = hooked_epsilon(model, masks, row, "", model.noise(SEEDS), 961)
        assert (eps[i] - expected).norm() <= 1e-5 * expected.norm()


def test_scores_and_images_under_one_mask_each(model):
    masks, prompts = random_masks(model, 9), [f"prompt {i % 4}" for i in range(9)]
    together = df.detect.Wen(seeds=2, steps=2).score(model.masked(masks), prompts)
    images = model.masked(masks)
    images = images.generate(images.encode(prompts), [5], steps=2, guidance=3.0)
    for row, prompt in enumerate(prompts):
        alone = ValueMasks({name: scale[row : row + 1] for name, scale in masks.scales.items()})
        one = model.masked(alone)
        score = df.detect.Wen(seeds=2, steps=2).score(one, [prompt])
        torch.testing.assert_close(together[row], score[0], rtol=1e-5, atol=1e-6)
        picture = one.generate(one.encode([prompt]), [5], steps=2, guidance=3.0)
        assert (images[row].int() - picture[0].int()).abs().max() <= 1


def test_a_masked_model_is_described_as_another_model(model):
    described = [
        model.describe(),
        *(model.masked(random_masks(model, 1, seed=s)).describe() for s in (0, 1)),
    ]
    assert described[0]["masks"] is None
    assert len({str(d) for d in described}) == 3


def test_masks_that_do_not_fit(model):
    with pytest.raises(UsageError, match="no cross-attention 'nowhere'"):
        model.masked(ValueMasks({"nowhere": torch.ones(1, 16)}))
    with pytest.raises(UsageError, match=r"needs factors \[M, 16\], got \[1, 5\]"):
        model.masked(ValueMasks({model.layers[0]: torch.ones(1, 5)}))
    view = model.masked(random_masks(model, 2))
    with pytest.raises(UsageError, match="2 masks, one per prompt, got 3 prompts"):
        view.encode(["a", "b", "c"])
    with pytest.raises(UsageError, match="has masks already"):
        view.masked(random_masks(model, 2))
