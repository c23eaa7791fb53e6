"""The gate: every model is supported, supported with a stated reading, or refused with a reason."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.models.components import Components
from dori_fast.models.gate import require_denoiser
from tests.models.pipelines import made_of, text_pipelines

PROMPTS = ["a red boat on the river", "a green door"]


@pytest.fixture(scope="module")
def pipelines(tiny_directory, tiny_sdxl_directory):
    return [
        StableDiffusionPipeline.from_pretrained(tiny_directory, local_files_only=True),
        StableDiffusionXLPipeline.from_pretrained(tiny_sdxl_directory, local_files_only=True),
    ]


@torch.no_grad()
def score_by_hand(pipe, steps_offset=1):
    """Wen's score of two seeds at the first timestep, on the pipeline's own objects."""
    noise = torch.stack(
        [torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    )
    scores = []
    for prompt in PROMPTS:
        if hasattr(pipe, "text_encoder_2"):
            text, empty, pooled, no_pooled = pipe.encode_prompt(prompt, device="cpu")
            ids = torch.tensor([[16, 16, 0, 0, 16, 16]], dtype=text.dtype).expand(2, -1)
            added = [{"text_embeds": p.expand(2, -1), "time_ids": ids} for p in (pooled, no_pooled)]
        else:
            text, empty = pipe.encode_prompt(prompt, "cpu", 1, True)
            added = [None, None]
        conditional, unconditional = (
            pipe.unet(noise, 980 + steps_offset, t.expand(2, -1, -1), added_cond_kwargs=a).sample
            for t, a in zip((text, empty), added, strict=True)
        )
        scores.append((conditional - unconditional).flatten(1).norm(dim=1).mean())
    return torch.stack(scores).double()


def test_every_text_pipeline_of_diffusers_is_refused_or_scored_as_by_hand(pipelines):
    sd, xl = pipelines
    parts = {**sd.components, **xl.components}
    expected = {False: score_by_hand(sd), True: score_by_hand(xl)}
    scored, refused, unmade = [], [], []
    for name, kind in text_pipelines().items():
        made = [made_of(kind, p) for p in (sd.components, xl.components, parts, {})]
        for pipe in (p for p in made if p is not None):
            try:
                model = df.load(pipe, batch_size=2)
            except UsageError:
                refused.append(name)
                continue
            score = df.detect.Wen(seeds=2).score(model, PROMPTS).double()
            assert torch.allclose(score, expected[hasattr(pipe, "text_encoder_2")], rtol=1e-5), name
            scored.append(name)
        if not any(made):
            unmade.append(name)
    # the exact lists follow diffusers; these are facts of any of its versions
    assert {"StableDiffusionPipeline", "StableDiffusionXLPipeline"} <= set(scored)
    assert {"StableDiffusionImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"} <= set(scored)
    assert not {"FluxPipeline", "StableDiffusion3Pipeline", "KolorsPipeline"} & set(scored)
    assert not {"TextToVideoZeroPipeline", "AnimateDiffPipeline"} & set(scored)
    assert len(refused) > 200 and len(unmade) < 40, unmade


def test_every_text_pipeline_of_diffusers_is_refused_or_read_as_a_stock_one_from_files(
    tiny_directory, tiny_sdxl_directory, tmp_path
):
    stock = {False: "StableDiffusionPipeline", True: "StableDiffusionXLPipeline"}
    read = set()
    for source in (tiny_directory, tiny_sdxl_directory):
        index = json.loads((source / "model_index.json").read_text())
        for name in text_pipelines():
            copy = tmp_path / "model"
            if not copy.exists():
                copy.mkdir()
            for part in source.iterdir():
                link = copy / part.name
                if not link.exists() and part.is_dir():
                    link.symlink_to(part)
            (copy / "model_index.json").write_text(json.dumps({**index, "_class_name": name}))
            try:
                reading = require_denoiser(Components.of_directory(copy))
            except UsageError as error:
                assert name in str(error) or stock[source == tiny_sdxl_directory] != name
                continue
            assert reading.xl == (source == tiny_sdxl_directory), name
            assert (name in stock.values()) == (not reading.notes)
            read.add(name)
        shutil.rmtree(tmp_path / "model")
    assert {*stock.values(), "StableDiffusionImg2ImgPipeline"} <= read


def test_another_pipeline_of_the_same_components_says_how_it_is_read(pipelines):
    model = df.load(StableDiffusionImg2ImgPipeline(**pipelines[0].components), batch_size=2)
    (note,) = model.reading
    assert "StableDiffusionImg2ImgPipeline" in note and "from noise and text alone" in note
    assert df.load(pipelines[0]).reading == ()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda pipe: pipe.unet, "a UNet2DConditionModel is one module.*pass the whole pipeline"),
        (lambda pipe: pipe.text_encoder, "a CLIPTextModel is one module"),
        (lambda pipe: df.load(pipe), "a Denoiser already"),
        (lambda pipe: pipe.components, "a dict is no model"),
        (lambda pipe: None, "a NoneType is no model"),
        (lambda pipe: b"demo", "a bytes is no model"),
        (lambda pipe: 5, "a int is no model"),
        (lambda pipe: pipe.scheduler, "a DDIMScheduler is no model"),
    ],
)
def test_what_is_no_model_is_refused_by_its_class(pipelines, source, message):
    with pytest.raises(UsageError, match=message):
        df.load(source(pipelines[0]))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_class_embeds": 10}, "takes class labels"),
        ({"class_embed_type": "timestep"}, "takes class labels"),
        ({"time_cond_proj_dim": 16}, "guidance-distilled"),
        ({"encoder_hid_dim": 32, "encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim"),
        ({"sample_size": None}, "sample_size is None"),
        ({"sample_size": [8]}, "sample_size is .*8"),
        ({"sample_size": "8"}, "sample_size is '8'"),
        ({"in_channels": 9}, "from 9 to 4 channels"),
        ({"out_channels": 8}, "from 4 to 8 channels"),
        ({"time_embedding_type": "fourier"}, "takes noise levels"),
        ({"cross_attention_dim": [32, 16]}, "several widths"),
        ({"cross_attention_dim": 48}, "do not belong together"),
        ({"addition_embed_type": "text", "addition_embed_type_num_heads": 4}, "'text' embeddings"),
    ],
)
def test_a_unet_of_more_than_text_is_refused_in_memory_and_from_files(
    tiny_directory, tmp_path, pipelines, config, message
):
    overrides = {**pipelines[0].unet.config, **config}
    parts = {**pipelines[0].components, "unet": UNet2DConditionModel(**_buildable(overrides))}
    parts["unet"].register_to_config(**config)
    with pytest.raises(UsageError, match=message):
        df.load(StableDiffusionPipeline(**parts, requires_safety_checker=False))
    directory = shutil.copytree(tiny_directory, tmp_path / "model")
    path = directory / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    with pytest.raises(UsageError, match=message):
        df.load(directory, device="cpu")


def _buildable(config):
    """A configuration of which diffusers makes a UNet, though its registered one differs."""
    wrong = ("sample_size", "cross_attention_dim", "addition_embed_type")
    stock = {"sample_size": 8, "cross_attention_dim": 32, "addition_embed_type": None}
    known = UNet2DConditionModel._get_init_keys(UNet2DConditionModel)
    return {n: stock[n] if n in wrong else v for n, v in config.items() if n in known}


def test_pooled_text_of_another_width_is_refused(tiny_sdxl_directory, tmp_path):
    directory = shutil.copytree(tiny_sdxl_directory, tmp_path / "model")
    path = directory / "text_encoder_2" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "projection_dim": 16}))
    with pytest.raises(UsageError, match="pooled text has 16"):
        df.load(directory, device="cpu")


@pytest.mark.parametrize("missing", ["unet", "scheduler", "tokenizer", "text_encoder"])
def test_a_pipeline_without_a_part_that_a_score_needs_names_it(pipelines, missing):
    for stock, kind in zip(
        pipelines, (StableDiffusionPipeline, StableDiffusionXLPipeline), strict=True
    ):
        parts = {**stock.components, missing: None}
        if kind is StableDiffusionXLPipeline and missing == "text_encoder":
            continue
        with pytest.raises(UsageError, match=f"has no {missing}, without which"):
            df.load(kind(**parts))
