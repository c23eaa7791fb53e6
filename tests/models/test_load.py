"""Loading: accepted sources, and refusals before any computation."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

import dori_fast as df
from dori_fast.errors import IntegrityError, UsageError
from dori_fast.models.files.directory import resolve_directory
from tests.tiny_model import save_tiny_sd

UNET_FILE = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def directory(tiny_directory, tmp_path):
    return shutil.copytree(tiny_directory, tmp_path / "model")


def test_a_directory_and_its_pipeline_are_the_same_model(tiny_directory):
    from_files = df.load(tiny_directory, device="cpu", batch_size=2)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_directory, local_files_only=True)
    from_memory = df.load(pipe, batch_size=2)
    assert from_memory.unet is pipe.unet
    for model in (from_files, from_memory):
        assert model.dtype == torch.float32 and model.device.type == "cpu"
    eps = [m.epsilon(m.encode(["a cat"]), m.noise([0]), 981) for m in (from_files, from_memory)]
    assert torch.equal(*eps)


def test_describe_names_every_file_that_scores_depend_on(tiny_directory):
    import hashlib

    files = df.load(tiny_directory, device="cpu").config()["files"]
    digest = hashlib.sha256((tiny_directory / UNET_FILE).read_bytes()).hexdigest()
    assert files[UNET_FILE] == digest
    expected = {"unet/config.json", "text_encoder/model.safetensors", "tokenizer/tokenizer.json"}
    assert expected | {"scheduler/scheduler_config.json"} <= set(files)
    assert not any(name.startswith("vae") for name in files)
    json.dumps(files)


@pytest.mark.parametrize("name", ["scheduler/scheduler_config.json", "unet/config.json"])
def test_another_configuration_is_described_as_another_model(directory, name):
    before = df.load(directory, device="cpu").config()
    config = json.loads((directory / name).read_text())
    key = "beta_end" if "beta_end" in config else "norm_eps"
    (directory / name).write_text(json.dumps({**config, key: config[key] * 1.01}))
    assert df.load(directory, device="cpu").config() != before


def test_a_pipeline_in_memory_is_described_by_what_it_holds(tiny_directory):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_directory, local_files_only=True)
    before = df.load(pipe).config()["files"]
    assert df.load(pipe).config()["files"] == before
    with torch.no_grad():
        next(pipe.unet.parameters()).view(-1)[0] += 1
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, beta_end=0.013)
    after = df.load(pipe).config()["files"]
    assert {name for name in after if after[name] != before[name]} == {"unet", "scheduler/config"}


def test_a_pipeline_is_neither_moved_nor_cast(tiny_directory):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_directory, local_files_only=True)
    with pytest.raises(UsageError, match="move it first"):
        df.load(pipe, dtype="bf16")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda d: shutil.rmtree(d / "unet"), UsageError, "unet/config.json"),
        (lambda d: shutil.rmtree(d / "tokenizer"), UsageError, "tokenizer"),
        (lambda d: shutil.rmtree(d / "scheduler"), UsageError, "schedule"),
        (lambda d: (d / UNET_FILE).rename(d / "unet/model.bin"), UsageError, "pickled"),
        (lambda d: (d / UNET_FILE).write_bytes(b""), IntegrityError, "cannot be read"),
        (
            lambda d: (d / UNET_FILE).write_bytes((d / UNET_FILE).read_bytes()[:-100]),
            IntegrityError,
            "cannot be read",
        ),
        (
            lambda d: (d / UNET_FILE).write_bytes(struct.pack("<Q", 2**63) + b"{}"),
            IntegrityError,
            "cannot be read",
        ),
    ],
    ids=["no-unet", "no-tokenizer", "no-scheduler", "pickle", "empty", "truncated", "header"],
)
def test_broken_directories(directory, change, error, message):
    change(directory)
    with pytest.raises(error, match=message):
        df.load(directory, device="cpu")


def test_weights_that_are_not_finite_are_named(directory):
    state = load_file(directory / UNET_FILE)
    state["conv_in.weight"][0, 0, 0, 0] = float("nan")
    save_file(state, directory / UNET_FILE)
    with pytest.raises(IntegrityError, match=r"NaN or Inf in conv_in\.weight"):
        df.load(directory, device="cpu")


def test_a_weight_of_the_wrong_shape(directory):
    state = load_file(directory / UNET_FILE)
    state["conv_in.weight"] = state["conv_in.weight"][:8].contiguous()
    save_file(state, directory / UNET_FILE)
    with pytest.raises(IntegrityError, match="cannot be read"):
        df.load(directory, device="cpu")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"in_channels": 9}, "not a text-to-image denoiser"),
        ({"class_embed_type": "timestep"}, "takes class labels"),
        ({"cross_attention_dim": 48}, "do not belong together"),
    ],
)
def test_architectures_it_does_not_know(tmp_path, overrides, message):
    with pytest.raises(UsageError, match=message):
        df.load(save_tiny_sd(tmp_path, **overrides), device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "no-such-model"}, "no model 'no-such-model'"),
        ({"source": "./no/such/dir"}, "no model"),
        ({"source": "demo", "dtype": "int8"}, "unknown dtype"),
        ({"source": "demo", "device": "warp"}, "unknown device"),
        ({"source": "demo", "revision": "main", "device": "cpu"}, "revision applies to hub ids"),
    ],
)
def test_requests_that_make_no_sense(options, message):
    with pytest.raises(UsageError, match=message):
        df.load(**options)


def test_a_hub_id_offline_is_one_clear_error(monkeypatch, tmp_path):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="could not be fetched"):
        df.load("nobody/nothing", device="cpu")


@pytest.fixture
def two_variants(tiny_directory, directory):
    """The model with a second set of weights, fp16 and of other values, as on the hub."""
    for path in directory.rglob("*.safetensors"):
        halved = {name: (t / 2).half() for name, t in load_file(path).items()}
        save_file(halved, path.with_name(f"{path.stem}.fp16.safetensors"), {"format": "pt"})
    return directory


def test_a_variant_is_read_and_described_instead_of_the_plain_weights(tiny_directory, two_variants):
    plain = df.load(two_variants, device="cpu")
    assert plain.config()["files"] == df.load(tiny_directory, device="cpu").config()["files"]
    model = df.load(two_variants, device="cpu", variant="fp16")
    stock = StableDiffusionPipeline.from_pretrained(
        two_variants, variant="fp16", local_files_only=True, safety_checker=None
    )
    for part in ("unet", "text_encoder", "vae"):
        ours, theirs = getattr(model, part).state_dict(), getattr(stock, part).state_dict()
        assert all(torch.equal(ours[name], theirs[name].float()) for name in theirs)
    assert not torch.equal(model.unet.conv_in.weight, plain.unet.conv_in.weight)
    names = {n for n in model.config()["files"] if n.endswith(".safetensors")}
    assert names == {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.fp16.safetensors",
    }


def test_a_variant_that_is_not_there_is_named(tiny_directory, two_variants):
    with pytest.raises(UsageError, match=r"no weights of variant='bf16'; use variant=None or"):
        df.load(two_variants, device="cpu", variant="bf16")
    (two_variants / UNET_FILE).unlink()
    with pytest.raises(UsageError, match=r"no weights of variant=None; use variant='fp16'"):
        df.load(two_variants, device="cpu")


@pytest.mark.parametrize(
    ("variant", "kept", "left"),
    [
        (None, "unet/diffusion_pytorch_model.safetensors", "unet/model.fp16.safetensors"),
        ("fp16", "unet/model.fp16.safetensors", "unet/diffusion_pytorch_model.safetensors"),
        ("fp16", "unet/model.fp16-00001-of-00002.safetensors", "vae/model.bf16.safetensors"),
        ("fp16", "unet/model.safetensors.index.fp16.json", "unet/model.fp16.bin"),
    ],
)
def test_what_is_fetched_of_a_hub_model(monkeypatch, tiny_directory, variant, kept, left):
    from huggingface_hub.utils import filter_repo_objects

    def stand_in(name, *, allow_patterns, ignore_patterns, **options):
        found = filter_repo_objects(
            [kept, left], allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        assert list(found) == [kept] and options == {"revision": "v1", "local_files_only": False}
        return str(tiny_directory)

    monkeypatch.setattr("huggingface_hub.snapshot_download", stand_in)
    home, _ = resolve_directory("somebody/model", "v1", variant, False)
    assert home == tiny_directory


def test_local_files_only_takes_what_was_downloaded_before(monkeypatch, tiny_directory, tmp_path):
    import huggingface_hub.constants as constants

    commit = "0" * 40
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--somebody--tiny"
    shutil.copytree(tiny_directory, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    model = df.load("somebody/tiny", device="cpu", local_files_only=True)
    assert model.config()["revision"] == commit
    with pytest.raises(UsageError, match="not among the downloaded models"):
        df.load("somebody/other", device="cpu", local_files_only=True)


@pytest.mark.parametrize(
    "options",
    [
        {"revision": "main"},
        {"variant": "fp16"},
        {"local_files_only": True},
        {"unet_weights": "x.safetensors"},
    ],
)
def test_what_is_about_files_is_refused_for_a_pipeline(tiny_directory, options):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_directory, local_files_only=True)
    with pytest.raises(UsageError, match=f"{next(iter(options))} is for models that are read"):
        df.load(pipe, **options)


def test_inputs_of_sdxl_beside_the_text_are_part_of_its_description(tiny_sdxl_directory, tmp_path):
    directory = shutil.copytree(tiny_sdxl_directory, tmp_path / "model")
    pipe = StableDiffusionXLPipeline.from_pretrained(directory, local_files_only=True)
    base = [df.load(source).config()["files"] for source in (directory, pipe)]
    assert all(files["vae_scale_factor"] == "2" for files in base)
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    index = directory / "model_index.json"
    changed = {**json.loads(index.read_text()), "force_zeros_for_empty_prompt": False}
    index.write_text(json.dumps(changed))
    for source, before in zip((directory, pipe), base, strict=True):
        model = df.load(source)
        assert model.config()["files"]["force_zeros_for_empty_prompt"] == "false"
        assert "force_zeros_for_empty_prompt" not in before
        assert model.unconditional.unique.any()


def test_a_path_is_a_folder_even_if_it_is_called_as_an_embedded_model(
    tiny_directory, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_directory, tmp_path / "demo")
    assert df.load(Path("demo")).latent_shape == (4, 8, 8)
    assert df.load("demo").config()["files"] != df.load(Path("demo")).config()["files"]
