"""Directories as people have them: read as diffusers' own pipeline reads them."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.models.files.directory import resolve_directory
from dori_fast.runs.verify.rescore import recorded_variant

PROMPTS = ["a red boat on the river", "a green door"]
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def of_an_old_release(directory):
    # StableDiffusionPipeline sets the sample_size of such a UNet to 64
    edit(directory / "unet/config.json", _diffusers_version="0.6.0", sample_size=32)


def with_openai_clips_config(directory):
    path = directory / "text_encoder/config.json"
    own = json.loads(path.read_text())
    path.write_text(json.dumps({"model_type": "clip", "text_config": own}))


def of_tuples(directory):
    for path in directory.glob("text_encoder*/config.json"):
        edit(path, return_dict=False)


def with_the_unet_in_a_variant(directory):
    (directory / UNET_FILE).rename(directory / UNET_FILE.replace(".safe", ".fp16.safe"))


@pytest.mark.parametrize(
    ("change", "xl", "variant", "note"),
    [
        (of_an_old_release, False, None, "unet: sample_size is 64, not 32: StableDiffusionPipe"),
        (with_openai_clips_config, False, None, None),
        (with_openai_clips_config, True, None, None),
        (of_tuples, False, None, None),
        (with_the_unet_in_a_variant, False, "fp16", None),
        (with_the_unet_in_a_variant, True, "fp16", None),
    ],
)
def test_a_directory_has_the_scores_of_its_pipeline(
    tiny_directory, tiny_sdxl_directory, tmp_path, change, xl, variant, note
):
    directory = shutil.copytree(tiny_sdxl_directory if xl else tiny_directory, tmp_path / "model")
    change(directory)
    pipe = DiffusionPipeline.from_pretrained(
        directory, variant=variant, torch_dtype=torch.float32, local_files_only=True
    )
    model = df.load(directory, device="cpu", batch_size=2, variant=variant)
    wen = df.detect.Wen(seeds=2)
    assert torch.equal(wen.score(model, PROMPTS), wen.score(df.load(pipe, batch_size=2), PROMPTS))
    assert (not model.reading) if note is None else model.reading[0].startswith(note)
    if variant is not None:
        files = model.config()["files"]
        assert UNET_FILE not in files and "text_encoder/model.safetensors" in files
        record = type("Record", (), {"model": {"files": files}})
        assert recorded_variant(record) == variant


def test_a_text_encoder_of_tuples_is_read_from_files_and_refused_in_memory(
    tiny_sdxl_directory, tmp_path
):
    # diffusers' own pipeline fails on them
    directory = shutil.copytree(tiny_sdxl_directory, tmp_path / "model")
    wen = df.detect.Wen(seeds=2)
    expected = wen.score(df.load(directory, device="cpu", batch_size=2), PROMPTS)
    of_tuples(directory)
    found = wen.score(df.load(directory, device="cpu", batch_size=2), PROMPTS)
    assert torch.equal(found, expected)
    pipe = DiffusionPipeline.from_pretrained(directory, local_files_only=True)
    with pytest.raises(UsageError, match=r"text_encoder returns tuples.*set pipe\.text_encoder\."):
        df.load(pipe)


def test_a_variant_of_no_part_is_refused(tiny_directory, tmp_path):
    with pytest.raises(UsageError, match=r"no weights of variant='fp16'; use variant=None"):
        df.load(tiny_directory, device="cpu", variant="fp16")
    directory = shutil.copytree(tiny_directory, tmp_path / "model")
    with_the_unet_in_a_variant(directory)
    with pytest.raises(UsageError, match=r"no weights of variant=None; use variant='fp16'"):
        df.load(directory, device="cpu")


@pytest.mark.parametrize(("variant", "fetched"), [("fp16", 2), ("bf16", 1), (None, 1)])
def test_plain_weights_are_fetched_of_parts_without_the_variant(
    monkeypatch, tiny_directory, tmp_path, variant, fetched
):
    from huggingface_hub.utils import filter_repo_objects

    there = shutil.copytree(tiny_directory, tmp_path / "there")
    shutil.copy(there / UNET_FILE, there / UNET_FILE.replace(".safe", ".fp16.safe"))
    names = [str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()]
    here, calls = tmp_path / "here", []

    def stand_in(name, *, allow_patterns, ignore_patterns, **options):
        calls.append(name)
        for found in filter_repo_objects(
            names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            (here / found).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(there / found, here / found)
        return str(here)

    monkeypatch.setattr("huggingface_hub.snapshot_download", stand_in)
    resolve_directory("somebody/model", None, variant, False)
    assert len(calls) == fetched
    assert (here / UNET_FILE).exists() == (variant is None)
    assert (here / "text_encoder/model.safetensors").exists() == (variant != "bf16")
