"""A Denoiser written to a directory, and a copy with weights of its own."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

import dori_fast as df
from tests.tiny_model import save_tiny_sd
from tests.tiny_sdxl import save_tiny_sdxl

PROMPTS = ["a cup of coffee", ""]


@pytest.fixture
def model(tiny_directory):
    return df.load(tiny_directory, device="cpu", batch_size=4)


@pytest.mark.parametrize(
    ("save", "kind"),
    [(save_tiny_sd, StableDiffusionPipeline), (save_tiny_sdxl, StableDiffusionXLPipeline)],
)
def test_what_is_written_is_the_same_model(tmp_path, save, kind):
    model = df.load(save(tmp_path / "first"), device="cpu", batch_size=4)
    model.save_pretrained(tmp_path / "second")
    again = df.load(tmp_path / "second", device="cpu", batch_size=4)
    one, two = (m.generate(m.encode(PROMPTS), [0], steps=2) for m in (model, again))
    assert torch.equal(one, two)
    pipe = kind.from_pretrained(tmp_path / "second")
    third = df.load(pipe, batch_size=4)
    assert torch.equal(third.generate(third.encode(PROMPTS), [0], steps=2), one)
    third.save_pretrained(tmp_path / "third")
    index = json.loads((tmp_path / "third" / "model_index.json").read_text())
    assert index["_class_name"] == kind.__name__
    weights = [p for p in (tmp_path / "third").rglob("*") if p.suffix in (".bin", ".pt", ".ckpt")]
    assert not weights


def test_the_embedded_model_keeps_its_prediction_type(tmp_path):
    model = df.load("demo", device="cpu")
    model.save_pretrained(tmp_path / "copy")
    again = df.load(str(tmp_path / "copy"), device="cpu")
    assert again.schedule.prediction_type == "sample"
    assert torch.equal(again.alphas_cumprod, model.alphas_cumprod)
    condition = model.encode(["a portrait of an astronaut"])
    assert torch.equal(again.encode(["a portrait of an astronaut"]).unique, condition.unique)
    for name, value in model.unet.state_dict().items():
        assert torch.equal(again.unet.state_dict()[name], value)
    # the place of a tensor in memory may change how a CPU rounds
    torch.testing.assert_close(
        again.epsilon(condition, again.noise([3]), 400),
        model.epsilon(condition, model.noise([3]), 400),
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_copy_has_weights_of_its_own(model):
    """Kept predictions are discarded when the weights change."""
    condition, before = model.encode(PROMPTS), model.config()
    eps = model.epsilon_shared(condition, model.share_noise([0], 300))
    own = model.copy()
    assert own.vae is model.vae and own.unet is not model.unet
    assert own.config()["files"] != before["files"]
    view = own.masked(df.prune.NeuronMask({own.layers[0]: torch.ones(1, 16)}))
    for asked in (own, view):
        assert torch.equal(asked.epsilon_shared(condition, asked.share_noise([0], 300)), eps)

    with torch.no_grad():
        for parameter in own.unet.parameters():
            parameter.add_(0.05)
    own.engine.weights_changed()
    text = condition.embeddings
    with torch.no_grad():
        plain = own.unet(own.noise([0]).expand(2, -1, -1, -1), 300, text).sample[:, None]
    assert (plain - eps).abs().max() > 1e-2
    for asked in (own, view):
        changed = asked.epsilon_shared(condition, asked.share_noise([0], 300))
        torch.testing.assert_close(changed, plain, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.epsilon_shared(condition, model.share_noise([0], 300)), eps)
    assert model.config() == before


def test_a_copy_keeps_how_it_was_loaded(tiny_directory):
    whole = df.load(tiny_directory, device="cpu", batch_size=3, share=False).copy()
    assert whole.batch_size == 3 and whole.engine.not_shared is not None
    model = df.load(tiny_directory, device="cpu", batch_size=5, channels_last=True)
    shared = model.copy()
    assert shared.batch_size == 5 and shared.engine.not_shared is None
    assert shared.engine.execution == model.engine.execution
    assert shared.engine.execution.channels_last
