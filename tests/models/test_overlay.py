"""Files with some of a UNet's weights: loading them over a source, and writing them."""

from __future__ import annotations

import hashlib

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

import dori_fast as df
from dori_fast.errors import IntegrityError, UsageError
from dori_fast.models import save_difference
from tests.tiny_model import save_tiny_sd


@pytest.fixture(scope="module")
def erased(tiny_directory, tmp_path_factory):
    """A file as from ESD-x: new weights of the cross-attentions alone."""
    unet = df.load(tiny_directory, device="cpu").unet
    path = tmp_path_factory.mktemp("esd") / "esd-x.safetensors"
    found = {n: -2 * p for n, p in unet.state_dict().items() if ".attn2." in n}
    save_file(found, path)
    return path


def test_laid_over_a_source_it_is_what_a_stock_pipeline_makes_of_it(tiny_directory, erased):
    model = df.load(tiny_directory, device="cpu", batch_size=2, unet_weights=erased)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_directory, local_files_only=True)
    pipe.unet.load_state_dict(load_file(erased), strict=False)
    for name, value in pipe.unet.state_dict().items():
        assert torch.equal(model.unet.state_dict()[name], value), name
    models = (
        model,
        df.load(pipe, batch_size=2),
        df.load(tiny_directory, device="cpu", batch_size=2),
    )
    eps = [m.epsilon(m.encode(["a cat"]), m.noise([0]), 981) for m in models]
    assert torch.equal(eps[0], eps[1]) and not torch.equal(eps[0], eps[2])


def test_the_model_is_described_as_another_one(tiny_directory, erased):
    before = df.load(tiny_directory, device="cpu").config()
    after = df.load(tiny_directory, device="cpu", unet_weights=erased).config()
    assert after["files"].pop("unet_weights") == hashlib.sha256(erased.read_bytes()).hexdigest()
    assert after == before


def test_it_takes_the_models_dtype(tiny_directory, erased):
    model = df.load(tiny_directory, device="cpu", dtype="bf16", unet_weights=erased)
    assert {p.dtype for p in model.unet.parameters()} == {torch.bfloat16}


def renamed(prefix):
    return lambda tensors: {prefix + name: t for name, t in tensors.items()}


def changed(value):
    def change(tensors):
        return {**tensors, min(tensors): value(tensors[min(tensors)])}

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (renamed("unet."), r"'unet\.down_blocks.*; cut the prefix 'unet\.'"),
        (renamed("model.diffusion_model."), "CompVis' names"),
        (lambda t: {**renamed("unet.")(t), "text_encoder.x": torch.ones(1)}, "cut the prefix"),
        (lambda t: {**t, "a.lora_A.weight": torch.ones(1)}, r"1 of its \d+ names.*an adapter"),
        (lambda t: {**t, "nowhere": torch.ones(1)}, "'nowhere'; is it of another architecture"),
        (lambda t: {}, "holds no weights"),
        (changed(lambda t: t[:1].contiguous()), r"attn2\.to_k\.weight is \[1, 32\], the UNet's"),
        (changed(lambda t: t.to(torch.int8)), "quantized weights"),
        (changed(lambda t: t * torch.nan), r"NaN or Inf in .*attn2\.to_k\.weight as torch.float32"),
        # finite in float64, but not in the model's dtype
        (changed(lambda t: t.double() * 1e300), r"NaN or Inf in .*to_k\.weight"),
    ],
)
def test_every_weight_is_checked(tiny_directory, erased, tmp_path, spoil, message):
    path = tmp_path / "spoilt.safetensors"
    save_file(spoil(load_file(erased)), path)
    with pytest.raises(IntegrityError, match=message):
        df.load(tiny_directory, device="cpu", unet_weights=path)


def test_files_that_cannot_be_read(tiny_directory, erased, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(erased.read_bytes()[:-9])
    with pytest.raises(IntegrityError, match="not a readable safetensors"):
        df.load(tiny_directory, device="cpu", unet_weights=tmp_path / "cut.safetensors")
    with pytest.raises(UsageError, match="no such file"):
        df.load(tiny_directory, device="cpu", unet_weights=tmp_path / "none")


@pytest.fixture
def model(tiny_directory):
    return df.load(tiny_directory, device="cpu")


def test_a_difference_gives_the_changed_model_again(model, tiny_directory, tmp_path):
    tuned, path = model.copy(), tmp_path / "difference.safetensors"
    with torch.no_grad():
        tuned.unet.conv_in.weight[0] += 1
    assert save_difference(tuned, model, path, method="a test") == ["conv_in.weight"]
    assert list(load_file(path)) == ["conv_in.weight"]
    again = df.load(tiny_directory, device="cpu", unet_weights=path)
    for name, value in tuned.unet.state_dict().items():
        assert torch.equal(again.unet.state_dict()[name], value)
    # a copy is described by its own weights, not by the file that it began with
    assert "unet_weights" not in again.copy().config()["files"]


def test_differences_that_cannot_be_written(model, tmp_path):
    path = tmp_path / "x"
    with pytest.raises(UsageError, match="the same weights"):
        save_difference(model.copy(), model, path)
    masked = model.masked(df.prune.NeuronMask({model.layers[0]: torch.zeros(1, 16)}))
    with pytest.raises(UsageError, match="save_pruned"):
        save_difference(masked, model, path)
    wider = df.load(save_tiny_sd(tmp_path / "wider", layers_per_block=2), device="cpu")
    with pytest.raises(UsageError, match="one architecture"):
        save_difference(wider, model, path)
    assert not path.exists()
