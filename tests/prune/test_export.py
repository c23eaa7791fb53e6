"""Masks in the weights of plain networks and pipelines, in torch's pruning, and in files."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.utils import prune as torch_prune

import dori_fast as df
from dori_fast.errors import IntegrityError, UsageError
from dori_fast.prune import NeuronMask, WeightMask, stack

PROMPT = "a cup of coffee"
KINDS = ["neurons", "weights"]


@pytest.fixture(scope="module")
def model(tiny_directory):
    return df.load(tiny_directory, device="cpu", batch_size=4)


@pytest.fixture
def unet(model):
    return copy.deepcopy(model.unet)


def random_mask(model, kind, seed=0):
    """A mask of about a third of two layers, and of nothing in a third layer."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "neurons":
        linears = [(name, model.unet.get_submodule(name).to_v) for name in model.layers[:3]]
        shapes = [(name, (1, layer.out_features)) for name, layer in linears]
    else:
        linears = list(model.engine.second_linears.items())[:3]
        shapes = [(name, (1, *layer.weight.shape)) for name, layer in linears]
    chosen = {n: torch.rand(shape, generator=generator) > 0.7 for n, shape in shapes[:2]}
    chosen[shapes[2][0]] = torch.zeros(shapes[2][1], dtype=torch.bool)
    if kind == "weights":
        return WeightMask(chosen)
    return NeuronMask({name: (~picked).float() for name, picked in chosen.items()})


def parameter_names(mask):
    """Names of the weights of the two masked layers."""
    suffix = ".to_v.weight" if isinstance(mask, NeuronMask) else ".weight"
    return {name + suffix for name in mask.layers[:2]}


def same_weights(one, two):
    """Compare bit for bit, so that the sign of a zero and NaN count."""
    state = two.state_dict()
    assert set(one.state_dict()) == set(state)
    return all(
        torch.equal(value.view(torch.int32), state[name].view(torch.int32))
        for name, value in one.state_dict().items()
    )


def assert_runs_like_the_view(model, mask, unet):
    view, latents = model.masked(mask), model.noise([0, 1])
    text = model.encode([PROMPT]).embeddings.expand(2, -1, -1)
    with torch.no_grad():
        eps = unet(latents, torch.tensor(500), text).sample
    expected = view.epsilon(view.encode([PROMPT]), latents, 500)[0]
    assert (eps - expected).norm() <= 1e-5 * expected.norm()
    plain = model.epsilon(model.encode([PROMPT]), latents, 500)[0]
    assert (plain - expected).norm() > 1e-3 * expected.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_a_stock_pipeline_is_masked_and_comes_back_bit_for_bit(model, tiny_directory, kind):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_directory)
    mask = random_mask(model, kind)
    with torch.no_grad():
        # restoring must not rest on arithmetic that such values do not survive
        parameter = pipe.unet.get_parameter(sorted(parameter_names(mask))[0])
        parameter[0, :3] = torch.tensor([-0.0, torch.inf, torch.nan])
    before = copy.deepcopy(pipe.unet)
    with df.prune.apply_(mask, pipe) as applied:
        assert set(applied.names) == parameter_names(mask)
        assert not same_weights(pipe.unet, before)
    assert same_weights(pipe.unet, before)
    applied.restore()
    assert same_weights(pipe.unet, before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_masked_network_runs_like_the_view(model, unet, kind):
    mask = random_mask(model, kind)
    df.prune.apply_(mask, unet)
    assert_runs_like_the_view(model, mask, unet)


def test_factors_and_biases_are_scaled(model, unet):
    name = model.layers[0]
    attention = unet.get_submodule(name)
    attention.to_v = torch.nn.Linear(32, 16, bias=True)
    text, plain = torch.randn(2, 5, 32), copy.deepcopy(attention.to_v)
    mask = NeuronMask({name: torch.tensor([[0.0, 0.5, -2.0, *[1.0] * 13]])})
    with df.prune.apply_(mask, unet) as applied:
        assert set(applied.names) == {f"{name}.to_v.weight", f"{name}.to_v.bias"}
        torch.testing.assert_close(attention.to_v(text), plain(text) * mask.scales[name])
    assert torch.equal(attention.to_v(text), plain(text))


def test_masks_one_over_the_other_are_undone_in_reverse(model, unet):
    before = copy.deepcopy(unet)
    one, two = (random_mask(model, "weights", seed) for seed in (0, 1))
    with df.prune.apply_(one, unet), df.prune.apply_(two, unet):
        assert_runs_like_the_view(model, one | two, unet)
    assert same_weights(unet, before)


@pytest.mark.parametrize("kind", KINDS)
def test_torchs_pruning_takes_a_mask_over(model, unet, kind):
    mask = random_mask(model, kind)
    layers = df.prune.torch_prune_(mask, unet)
    assert len(layers) == 2
    assert all(torch_prune.is_pruned(layer) and hasattr(layer, "weight_orig") for layer in layers)
    assert_runs_like_the_view(model, mask, unet)
    with pytest.raises(UsageError, match=r"is pruned by torch.*prune.remove"):
        df.prune.apply_(mask, unet)
    for layer in layers:
        torch_prune.remove(layer, "weight")
    pruned = copy.deepcopy(model.unet)
    df.prune.apply_(mask, pruned)
    state = pruned.state_dict()
    assert all(torch.equal(value, state[n]) for n, value in unet.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_torchs_masks_come_back(model, unet, kind):
    mask = random_mask(model, kind)
    df.prune.torch_prune_(mask, unet)
    found = df.prune.from_torch_prune(unet)
    assert type(found) is type(mask)
    assert found.layers == mask.layers[:2]
    assert_runs_like_the_view(model, found, unet)
    one, two = (m.scales if kind == "neurons" else m.pruned for m in (found, mask))
    assert all(torch.equal(one[name], two[name]) for name in found.layers)


def test_what_others_pruned_with_torch_is_read(model, unet):
    values, linear = unet.get_submodule(model.layers[0]).to_v, unet.mid_block.attentions[0].proj_in
    torch_prune.ln_structured(values, "weight", amount=0.25, n=2, dim=0)
    rows = df.prune.from_torch_prune(unet)
    width = values.out_features
    assert len(rows.neurons()[model.layers[0]]) == round(width * 0.25)
    # pruned twice: torch keeps one mask of both; single weights are no neurons any more
    torch_prune.l1_unstructured(values, "weight", amount=0.5)
    mask = df.prune.from_torch_prune(unet)
    name = f"{model.layers[0]}.to_v"
    assert isinstance(mask, WeightMask) and mask.layers == (name,)
    assert torch.equal(mask.pruned[name][0], values.weight_mask == 0)
    if isinstance(linear, torch.nn.Conv2d):
        torch_prune.l1_unstructured(linear, "weight", amount=0.5)
        with pytest.raises(UsageError, match="proj_in .Conv2d, weight. is pruned, but masks are"):
            df.prune.from_torch_prune(unet)


def test_torchs_masks_that_a_mask_cannot_express(model, unet):
    with pytest.raises(UsageError, match="no layer is pruned by torch"):
        df.prune.from_torch_prune(unet)
    layer = next(iter(model.engine.second_linears))
    linear = unet.get_submodule(layer)
    torch_prune.custom_from_mask(linear, "bias", torch.zeros_like(linear.bias))
    with pytest.raises(UsageError, match="pruned bias whose neuron keeps weights"):
        df.prune.from_torch_prune(unet)
    torch_prune.custom_from_mask(linear, "weight", torch.zeros_like(linear.weight))
    with pytest.raises(UsageError, match="pruned bias, which a mask of weights cannot express"):
        df.prune.from_torch_prune(unet)
    torch_prune.remove(linear, "weight"), torch_prune.remove(linear, "bias")
    torch_prune.custom_from_mask(linear, "weight", torch.full_like(linear.weight, 0.5))
    with pytest.raises(UsageError, match="is scaled by its mask"):
        df.prune.from_torch_prune(unet)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_holds_what_changed_and_is_read_by_anyone(model, unet, kind, tmp_path):
    mask, path = random_mask(model, kind), tmp_path / "pruned.safetensors"
    df.prune.save_pruned(mask, model.unet, path, method="a test")
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == parameter_names(mask)
        assert file.metadata()["mask_sha256"] == mask.sha256()
        assert file.metadata()["method"] == "a test"
    stock = copy.deepcopy(unet)
    assert not stock.load_state_dict(load_file(path), strict=False).unexpected_keys
    assert_runs_like_the_view(model, mask, stock)
    before = copy.deepcopy(unet)
    with df.prune.load_pruned_(path, unet):
        assert same_weights(unet, stock)
    assert same_weights(unet, before)


def test_what_is_refused(model, unet, tmp_path):
    mask = random_mask(model, "neurons")
    with pytest.raises(UsageError, match=r"2 masks for one network; pick one, mask\[i\]"):
        df.prune.apply_(stack([mask, mask]), unet)
    with pytest.raises(UsageError, match=r"a Denoiser takes masks as a view: model.masked"):
        df.prune.apply_(mask, model)
    with pytest.raises(UsageError, match="pass a UNet or a pipeline with one, got str"):
        df.prune.apply_(mask, "model")
    with pytest.raises(UsageError, match=r"has no layer 'nowhere.to_v'"):
        df.prune.apply_(NeuronMask({"nowhere": torch.zeros(1, 16)}), unet)
    with pytest.raises(UsageError, match=r"the mask is for \[5\], weights are \[16, 32\]"):
        df.prune.apply_(NeuronMask({model.layers[0]: torch.zeros(1, 5)}), unet)
    with pytest.raises(UsageError, match="factors other than 0 and 1"):
        df.prune.torch_prune_(NeuronMask({model.layers[0]: torch.full((1, 16), 0.5)}), unet)
    with pytest.raises(UsageError, match="the mask changes nothing"):
        df.prune.save_pruned(NeuronMask({model.layers[0]: torch.ones(1, 16)}), unet, tmp_path / "x")


def test_an_adapter_is_refused_with_the_remedy(model, unet):
    class Adapter(torch.nn.Module):
        """What peft makes of a layer, as far as its place in the network goes."""

        def __init__(self, base_layer):
            super().__init__()
            self.base_layer = base_layer

    attention = unet.get_submodule(model.layers[0])
    attention.to_v = Adapter(attention.to_v)
    with pytest.raises(UsageError, match=r"to_v has an adapter; fuse it \(pipe.fuse_lora\(\)\)"):
        df.prune.apply_(random_mask(model, "neurons"), unet)


def test_files_that_are_not_pruned_checkpoints(model, unet, tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        df.prune.load_pruned_(tmp_path / "none.safetensors", unet)
    (tmp_path / "text.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(IntegrityError, match="cannot be read"):
        df.prune.load_pruned_(tmp_path / "text.safetensors", unet)
    random_mask(model, "weights").save(tmp_path / "mask.safetensors")
    with pytest.raises(IntegrityError, match="wanted a pruned checkpoint, found dori_fast.mask/1"):
        df.prune.load_pruned_(tmp_path / "mask.safetensors", unet)
    tensors = {"conv_in.weight": torch.zeros(1)}
    save_file(tensors, tmp_path / "other.safetensors", {"format": "dori_fast.pruned/1"})
    with pytest.raises(UsageError, match=r"this UNet has no parameter conv_in.weight \[1\]"):
        df.prune.load_pruned_(tmp_path / "other.safetensors", unet)
