"""What is on this disk is read or refused at once; only hub ids go to the network."""

from __future__ import annotations

import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.models.files.directory import resolve_directory
from tests.cli.conftest import cli

__all__ = ["cli"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: Any) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError(f"went to the network: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: Any) -> Path:
    """A working directory with all kinds of things that are no diffusers directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    models = tmp_path / "models"
    files: dict[str, list[str]] = {
        "whole.safetensors": ["model.diffusion_model.x", "first_stage_model.y"],
        "xl.safetensors": ["model.diffusion_model.x", "conditioner.embedders.0.y"],
        "unet.safetensors": ["time_embedding.linear_1.weight", "conv_in.weight"],
        "lora.safetensors": ["lora_unet_down.lora_up.weight"],
        "odd.safetensors": ["x"],
    }
    models.mkdir()
    for name, tensors in files.items():
        save_file({tensor: torch.zeros(1) for tensor in tensors}, models / name)
    for name in ("a.ckpt", "a.pt", "a.bin", "a.gguf", "a.zip", "a.txt", "index.json"):
        (models / name).write_bytes(b"no weights")
    (models / "pointer.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0a\n"
    )
    tree = {
        "ldm": ["model.safetensors", "v1-inference.yaml"],
        "lora": ["pytorch_lora_weights.safetensors"],
        "accelerate": ["optimizer.bin", "random_states_0.pkl", "model.safetensors"],
        "flux": ["transformer/config.json"],
        "trained": ["unet/config.json", "unet/diffusion_pytorch_model.safetensors"],
        "empty": [],
        "models--owner--name": ["snapshots/abc/unet/config.json", "snapshots/abc/vae/config.json"],
        "models--owner--gone": ["snapshots/.keep"],
        "hub/models--owner--name": ["refs/main"],
        "with space/sd": ["unet/config.json", "vae/config.json"],
    }
    for folder, names in tree.items():
        (models / folder).mkdir(parents=True)
        for name in names:
            path = models / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
    (models / "flux" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (models / "lost").symlink_to(tmp_path / "nowhere")
    return tmp_path


def refusal(source: Any, **how: Any) -> str:
    began = time.monotonic()
    with pytest.raises(UsageError) as info:
        df.load(source, device="cpu", **how)
    assert time.monotonic() - began < 5
    text = str(info.value)
    assert text.startswith("load: ") and "\n" not in text and "; " in text
    return text


@pytest.mark.parametrize(
    ("name", "what", "remedy"),
    [
        ("whole.safetensors", "a whole model", "StableDiffusionPipeline.from_single_file("),
        ("xl.safetensors", "a whole model", "StableDiffusionXLPipeline.from_single_file("),
        ("odd.safetensors", "a single file of weights", "save_pretrained(DIR)"),
        ("unet.safetensors", "a UNet's weights alone", "as unet_weights"),
        ("lora.safetensors", "LoRA weights, not a model", "fuse_lora()"),
        ("pointer.safetensors", "a Git LFS pointer", "git lfs pull"),
        ("a.ckpt", "pickled", "from_single_file('models/a.ckpt')"),
        ("a.pt", "pickled", "from_single_file"),
        ("a.bin", "pickled", "from_single_file"),
        ("a.gguf", "quantized weights", "as safetensors"),
        ("a.zip", "an archive", "unpack it"),
        ("a.txt", "is a file", "a diffusers directory"),
        ("index.json", "a JSON file", "the diffusers directory"),
        ("ldm", "weights in one file ('model.safetensors')", "from_single_file"),
        ("lora", "LoRA weights, not a model", "fuse_lora()"),
        ("accelerate", "a training checkpoint", "save_pretrained(DIR)"),
        ("flux", "of FluxPipeline", "Stable Diffusion 1.x"),
        ("trained", "unet/ alone", "model.safetensors' as unet_weights"),
        ("empty", "it holds nothing", "a diffusers directory"),
        ("models--owner--name", "cache of 'owner/name'", "models--owner--name/snapshots/abc'"),
        ("models--owner--name/snapshots", "holds models", "snapshots/abc'"),
        ("models--owner--gone", "without a snapshot", "download the model again"),
        ("hub", "a download cache of the hub", "a hub id: 'owner/name'"),
        ("with space", "holds models", "use 'models/with space/sd'"),
        ("with space/sd/unet", "one part of a model", "use 'models/with space/sd'"),
        ("with space/sd/unet/config.json", "a file of a", "use 'models/with space/sd'"),
        ("lost", "is a link to", "correct the link"),
    ],
)
def test_what_is_here_is_named(here: Path, name: str, what: str, remedy: str) -> None:
    # one slash, as a hub id has; a path by its form; absolute; an object
    for source in (f"models/{name}", f"./models/{name}", here / "models" / name):
        text = refusal(source)
        assert what in text, text
        # the remedy names the path as it was given
        assert remedy.removeprefix("use '") in text.replace(f"{here}/", ""), text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("models/sd15", "no 'sd15' in '{here}/models', which holds a.bin, a.ckpt,"),
        ("models/sd15", "or give its revision, such as main, if it is a hub id"),
        ("./models/sd15", "no 'sd15' in '{here}/models'"),
        ("models/sd15/unet", "no 'sd15' in '{here}/models'"),
        ("models/a.txt/unet", "'models/a.txt' is not a folder"),
        ("modles/whole.safetensors", "no 'modles' in '{here}', which holds"),
        ("/nowhere/model", "no 'nowhere' in '/'"),
        ("~/models/sd", "no 'home' in '{here}'"),
        ("~nobody-of-this-name/sd", "no model '~nobody-of-this-name/sd'"),
        ("owner/name/", "check the path"),
        ("owner/name/sub", "hub ids have the form owner/name"),
        ("", "the name of the model is empty; use demo"),
        (" ", "the name of the model is empty"),
        ("no-such-model", "no model 'no-such-model'; use demo, demo-finetuned, a diffusers"),
        ("owner/my model", "hub ids have letters, digits"),
        ("owner/-name", "hub ids have letters, digits"),
        ("owner/name@v1", "use 'owner/name' with revision 'v1'"),
        ("hf:owner/name", "hf: is for datasets of prompts; use 'owner/name'"),
        ("https://huggingface.co/owner/name", "is an address; use the hub id 'owner/name'"),
        (
            "https://huggingface.co/owner/name/tree/v1?x",
            "use the hub id 'owner/name' with revision 'v1'",
        ),
        ("https://huggingface.co/datasets/owner/name", "is an address; download the model"),
        ("https://example.org/m.safetensors", "is an address; download the model"),
        ("models\\ldm", "write the path with slashes: 'models/ldm'"),
        ("C:\\models\\sd", "a path of Windows, on this machine"),
        ("C:/models/sd", "a path of Windows, on this machine"),
        ("x" * 5000, "cannot be opened (File name too long)"),
        ("a\0b", "no model"),
    ],
)
def test_what_is_not_here_is_a_path_or_no_hub_id(here: Path, name: str, message: str) -> None:
    assert message.format(here=here) in refusal(name)


def test_an_object_that_is_a_path_is_no_hub_id(here: Path) -> None:
    assert "no 'owner' in" in refusal(Path("owner/name"))


def test_a_home_directory_and_a_slash_at_the_end_are_read(here: Path, tiny_directory: Path) -> None:
    shutil.copytree(tiny_directory, here / "home" / "sd")
    for name in ("~/sd", "home/sd", "home/sd/", "./home/sd", str(here / "home" / "sd")):
        directory, commit = resolve_directory(name, None, None, False)
        assert os.path.samefile(directory, here / "home" / "sd") and commit is None
    with pytest.raises(UsageError, match="revision applies to hub ids"):
        resolve_directory("home/sd", "main", None, False)


@pytest.mark.parametrize(("name", "revision"), [("owner/name", None), ("models/sd15", "main")])
def test_hub_ids_go_to_the_hub(here: Path, name: str, revision: str | None) -> None:
    with pytest.raises(AssertionError, match=f"went to the network: .'{name}'"):
        resolve_directory(name, revision, None, False)


def test_a_run_is_refused_with_exit_code_2(here: Path, cli: Any) -> None:
    (here / "p.txt").write_text("a red boat\n")
    for name in ("models/whole.safetensors", "models/sd15", "models/trained"):
        done = cli("scan", "p.txt", "--out", "run", "--model", name)
        assert done.code == 2 and name in done.err
    assert not (here / "run").exists()
