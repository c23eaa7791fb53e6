"""Masks: a batch of different ones against single runs of the plain network."""

from __future__ import annotations

import copy

import pytest
import torch

import dori_fast as df
from dori_fast.errors import IntegrityError, UsageError
from dori_fast.models import NeuronMask, WeightMask, stack
from dori_fast.models.in_place import apply_
from dori_fast.models.masks import Masks

SEEDS = [0, 3]
PROMPT = "a cup of coffee"


def random_masks(model, n, layers=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    names = model.layers if layers is None else [model.layers[i] for i in layers]
    widths = {name: model.unet.get_submodule(name).to_v.out_features for name in names}
    return NeuronMask(
        {name: (torch.rand(n, w, generator=generator) > 0.5).float() for name, w in widths.items()}
    )


def hooked_epsilon(model, masks, row, prompt, latents, timestep):
    """One mask by forward hooks on to_v, as in NeMo's released code."""
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
        one = model.masked(masks[row])
        score = df.detect.Wen(seeds=2, steps=2).score(one, [prompt])
        torch.testing.assert_close(together[row], score[0], rtol=1e-5, atol=1e-6)
        alone = one.generate(one.encode([prompt]), [5], steps=2, guidance=3.0)
        assert (images[row].int() - alone[0].int()).abs().max() <= 1


def test_a_masked_model_is_described_as_another_model(model):
    described = [
        model.config(),
        *(model.masked(random_masks(model, 1, seed=s)).config() for s in (0, 1)),
    ]
    assert described[0]["masks"] is None
    assert len({str(d) for d in described}) == 3


def test_masks_that_do_not_fit(model):
    with pytest.raises(UsageError, match="no cross-attention 'nowhere'"):
        model.masked(NeuronMask({"nowhere": torch.ones(1, 16)}))
    with pytest.raises(UsageError, match=r"needs factors \[M, 16\], got \[1, 5\]"):
        model.masked(NeuronMask({model.layers[0]: torch.ones(1, 5)}))
    view = model.masked(random_masks(model, 2))
    with pytest.raises(UsageError, match="2 masks, one per prompt, got 3 prompts"):
        view.encode(["a", "b", "c"])
    with pytest.raises(UsageError, match=r"\[2, 3\] masks do not go together"):
        view.masked(random_masks(model, 3))


def random_pruning(model, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layers = [name for name, _ in model.unet.named_modules() if name.endswith("ff.net.2")]
    shapes = {name: model.unet.get_submodule(name).weight.shape for name in layers}
    return WeightMask(
        {name: torch.rand(n, *shape, generator=generator) > 0.7 for name, shape in shapes.items()}
    )


def pruned_epsilon(model, masks, row, prompt, latents, timestep):
    """The plain network with its weights set to zero."""
    unet = copy.deepcopy(model.unet)
    for name, mask in masks.pruned.items():
        unet.get_submodule(name).weight.data[mask[row]] = 0
    text = model.encode([prompt]).embeddings.expand(len(latents), -1, -1)
    with torch.no_grad():
        return unet(latents, torch.tensor(timestep), text).sample


def test_64_weight_masks_in_one_call_are_64_single_runs(model):
    masks, latents = random_pruning(model, 64), model.noise(SEEDS)
    view = model.masked(masks)
    eps = view.epsilon(view.encode([PROMPT] * 64), latents, 961)
    for row in range(64):
        expected = pruned_epsilon(model, masks, row, PROMPT, latents, 961)
        assert (eps[row] - expected).norm() <= 1e-5 * expected.norm()
    alone = model.masked(masks[7])
    single = alone.epsilon(alone.encode([PROMPT]), latents, 961)[0]
    assert (eps[7] - single).norm() <= 1e-5 * single.norm()


def test_a_weight_mask_and_a_neuron_mask_of_one_view(model):
    neurons, weights = random_masks(model, 1), random_pruning(model, 3)
    latents = model.noise(SEEDS)
    view = model.masked(neurons).masked(weights)
    eps = view.epsilon(view.encode(["one", "two", "three"]), latents, 500)
    blocked = copy.copy(model)
    blocked.unet = copy.deepcopy(model.unet)
    for name, scale in neurons.scales.items():
        blocked.unet.get_submodule(name).to_v.weight.data *= scale[0][:, None]
    for row, prompt in enumerate(["one", "two", "three"]):
        expected = pruned_epsilon(blocked, weights, row, prompt, latents, 500)
        assert (eps[row] - expected).norm() <= 1e-5 * expected.norm()


def test_gradients_pass_through_pruned_layers(model):
    masks, latents = random_pruning(model, 2), model.noise(SEEDS)
    text = model.encode(["one", "two"]).embeddings
    together, alone = (text.clone().requires_grad_() for _ in range(2))
    view = model.masked(masks)
    view.epsilon(view.condition(together), latents, 500).square().sum().backward()
    for row in range(2):
        unet = copy.deepcopy(model.unet)
        for name, mask in masks.pruned.items():
            unet.get_submodule(name).weight.data[mask[row]] = 0
        eps = unet(latents, torch.tensor(500), alone[row].expand(2, -1, -1)).sample
        eps.square().sum().backward()
    torch.testing.assert_close(together.grad, alone.grad, rtol=1e-4, atol=1e-6)


def test_masks_stack_join_and_come_back_from_a_file(model, tmp_path):
    one, two = random_masks(model, 1, layers=[0, 1]), random_masks(model, 2, layers=[1, 2], seed=1)
    both = stack([one, two])
    assert len(both) == 3 and both.layers == tuple(model.layers[:3])
    assert both.neurons(0)[model.layers[2]] == []
    assert both[2].neurons() == {model.layers[0]: [], **two.neurons(1)}
    joined, union = one | two, (one | two).any()
    assert len(joined) == 2
    layer = model.layers[1]
    blocked = {*one.neurons(0)[layer], *two.neurons(0)[layer], *two.neurons(1)[layer]}
    assert set(union.neurons()[layer]) == blocked
    assert joined.counts()[layer][1] == len({*one.neurons(0)[layer], *two.neurons(1)[layer]})
    both.save(tmp_path / "n.safetensors", source="a test")
    assert NeuronMask.load(tmp_path / "n.safetensors").sha256() == both.sha256()

    weights = random_pruning(model, 2)
    weights.save(tmp_path / "w.safetensors")
    assert WeightMask.load(tmp_path / "w.safetensors").sha256() == weights.sha256()
    assert (weights[0] | weights[1]).sha256() == weights.any().sha256()
    assert stack([weights[0], weights[1]]).sha256() == weights.sha256()
    with pytest.raises(IntegrityError, match="wanted a mask of neurons, found weights"):
        NeuronMask.load(tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(IntegrityError, match="cannot be read"):
        WeightMask.load(tmp_path / "w.safetensors")


def test_masks_are_taken_in_turn(model):
    for masks in (random_masks(model, 3), random_pruning(model, 3)):
        assert masks.in_turn(5).sha256() == masks.take([0, 1, 2, 0, 1]).sha256()
        assert masks.in_turn([7, 2]).sha256() == masks.take([1, 2]).sha256()
        assert len(masks[0].in_turn(2)) == 2


def test_weight_masks_that_do_not_fit(model):
    layer = random_pruning(model, 1).layers[0]
    with pytest.raises(UsageError, match="'nowhere' is not the second linear layer"):
        model.masked(WeightMask({"nowhere": torch.zeros(1, 4, 4, dtype=torch.bool)}))
    with pytest.raises(UsageError, match=r"needs masks \[M, 16, 64\], got \[1, 4, 4\]"):
        model.masked(WeightMask({layer: torch.zeros(1, 4, 4, dtype=torch.bool)}))


def test_neurons_are_listed_by_layer():
    mask = NeuronMask.blocking([{"a": [2, 0]}, {}], {"a": 3, "b": 2}, factor=0.5)
    assert mask.scales["a"].tolist() == [[0.5, 1, 0.5], [1, 1, 1]]
    assert mask.neurons() == {"a": [0, 2], "b": []}
    with pytest.raises(UsageError, match="a has neurons 0..2"):
        NeuronMask.blocking([{"a": [3]}], {"a": 3})
    with pytest.raises(UsageError, match="no layer 'c'"):
        NeuronMask.blocking([{"c": [0]}], {"a": 3})


def test_a_missing_mask_is_never_a_network_without_a_mask(model, tmp_path):
    scales = random_masks(model, 4).scales
    masks = NeuronMask(scales, frozenset({1, 3}))
    weights = WeightMask(
        {"down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2": torch.zeros(4, 2, 3).bool()},
        frozenset({3}),
    )
    for wrong in (masks, masks[1], masks[-1], masks | random_masks(model, 1), weights):
        with pytest.raises(UsageError, match=r"is missing, since its row was quarantined"):
            Masks().joined(wrong, torch.device("cpu"))
    with pytest.raises(UsageError, match="mask 1 of 4 is missing"):
        model.masked(masks)
    with pytest.raises(UsageError, match="mask 0 of 1 is missing"):
        apply_(masks[3], copy.deepcopy(model.unet))
    plain = NeuronMask(scales)
    assert masks.present == [0, 2] and masks[2].missing == frozenset()
    assert masks.take([2, 0]).sha256() == plain.take([2, 0]).sha256()
    # controls take the masks that are there
    assert masks.in_turn(3).sha256() == plain.take([0, 2, 0]).sha256()
    with pytest.raises(UsageError, match="is missing"):
        masks.take([1, 3]).in_turn(2)
    assert masks.any().missing == frozenset() and masks.take([1, 3]).any().missing == {0}
    assert (masks[1] | plain).missing == {0, 1, 2, 3}
    assert stack([plain, masks, plain]).missing == {5, 7}
    assert masks.sha256() != plain.sha256()
    for mask in (masks, weights):
        mask.save(tmp_path / "m.safetensors", method="nemo")
        assert type(mask).load(tmp_path / "m.safetensors").missing == mask.missing
    with pytest.raises(UsageError, match="missing"):
        NeuronMask(scales, frozenset({4}))


def test_a_file_of_masks_whose_missing_numbers_are_none_of_its_masks_is_damaged(tmp_path):
    path = tmp_path / "masks.safetensors"
    NeuronMask({"a": torch.ones(2, 3)}, frozenset({1})).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"missing":"1"', b'"missing":"7"'))
    assert path.read_bytes() != whole
    with pytest.raises(IntegrityError, match=r"masks\.safetensors: damaged \(.*0\.\.1"):
        NeuronMask.load(path)
