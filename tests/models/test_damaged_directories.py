"""A model directory with one damaged file is refused by a true sentence, or scores as before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel

import dori_fast as df
from dori_fast.errors import IntegrityError, UsageError
from tests.tiny_model import byte_tokenizer

PROMPTS = ["the red boat on the river", "a green door"]
POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)

# a file of the directory, and the same file of another model
Damage = Callable[[Path, Path], None]


def _removed(path: Path, other: Path) -> None:
    path.unlink()


def _emptied(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def _cut(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _a_pointer(path: Path, other: Path) -> None:
    path.write_text(POINTER)


def _swapped(path: Path, other: Path) -> None:
    if other.is_file():
        shutil.copyfile(other, path)
    else:
        path.write_text("{}")


DAMAGES: dict[str, Damage] = {
    "removed": _removed,
    "emptied": _emptied,
    "cut": _cut,
    "a pointer of Git LFS": _a_pointer,
    "another model's": _swapped,
}


def with_tokenizer_of_two_files(directory: Path) -> Path:
    """The layout of the released models: vocab.json and merges.txt in place of tokenizer.json."""
    for folder in directory.glob("tokenizer*"):
        whole = json.loads((folder / "tokenizer.json").read_text())["model"]
        (folder / "vocab.json").write_text(json.dumps(whole["vocab"]))
        merges = [m if isinstance(m, str) else " ".join(m) for m in whole["merges"]]
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
        (folder / "tokenizer.json").unlink()
    return directory


@pytest.fixture
def other(kind: str, tiny_directory: Path, tiny_sdxl_directory: Path, tmp_path: Path) -> Path:
    """A model of the other family, with wider text, a smaller vocabulary and larger latents.

    A part of another model of the very same shape would be another model, as its sha256 says.
    """
    source = tiny_directory if kind == "sdxl" else tiny_sdxl_directory
    copy = shutil.copytree(source, tmp_path / "other")
    config = CLIPTextConfig(vocab_size=520, hidden_size=48, num_hidden_layers=2, eos_token_id=519)
    for folder in copy.glob("text_encoder*"):
        CLIPTextModel(config).save_pretrained(folder)
    AutoencoderKL(
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
    ).save_pretrained(copy / "vae")
    for folder in copy.glob("tokenizer*"):
        shutil.rmtree(folder)
        byte_tokenizer(merges=()).save_pretrained(folder)
    return with_tokenizer_of_two_files(copy) if "two" in kind else copy


def score(directory: Path) -> torch.Tensor:
    return df.detect.Wen(seeds=2).score(df.load(directory, device="cpu", batch_size=2), PROMPTS)


def drawn(directory: Path) -> torch.Tensor:
    model = df.load(directory, device="cpu", batch_size=2)
    return model.generate(model.encode(PROMPTS), [0], steps=2)


@pytest.mark.parametrize("kind", ["sd", "sd of two tokenizer files", "sdxl"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_one_damaged_file_is_refused_or_changes_nothing(
    tiny_directory, tiny_sdxl_directory, other, tmp_path, kind, damage
):
    source = tiny_sdxl_directory if kind == "sdxl" else tiny_directory
    whole = shutil.copytree(source, tmp_path / "whole")
    if kind == "sd of two tokenizer files":
        with_tokenizer_of_two_files(whole)
    expected, image = score(whole), drawn(whole)
    files = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    untrue = []
    for name in files:
        broken = shutil.copytree(whole, tmp_path / "broken")
        DAMAGES[damage](broken / name, other / name)
        try:
            found = score(broken)
            # scores need no autoencoder
            assert name.parts[0] != "vae" or torch.equal(drawn(broken), image)
        except (UsageError, IntegrityError) as error:
            told = str(error)
            if not _is_true(told, name, damage):
                untrue.append(f"{name} {damage}: {told}")
        # anything else is the failure that this test looks for
        except Exception as error:
            untrue.append(f"{name} {damage}: {type(error).__name__}: {error}")
        else:
            if not torch.equal(found, expected):
                untrue.append(f"{name} {damage}: scored {found.tolist()}, not {expected.tolist()}")
        shutil.rmtree(broken)
    assert not untrue, "\n".join(untrue)


def _is_true(told: str, name: Path, damage: str) -> bool:
    """A refusal is one line, names the part, and names a pointer as one."""
    part = name.parts[0].removesuffix(".json")
    # an index of another model names parts that are not there
    named = part in told or "do not belong together" in told or "pass a complete" in told
    return "\n" not in told and named and (damage != "a pointer of Git LFS" or "Git LFS" in told)
