"""Descriptions of files and folders that are no diffusers directory, each with its remedy."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from dori_fast._text import read_stand_in

_SHOWN = 6
# Stable Diffusion XL's header has 0.2 MB
_HEADER_BYTES = 10_000_000
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar")
WEIGHT_SUFFIXES = (".safetensors", *_PICKLES, ".gguf", ".onnx")
_LORA = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_config.json")
_FUSE = (
    "load the model that it belongs to with diffusers, then load_lora_weights(), fuse_lora(),"
    " unload_lora_weights() and save_pretrained(DIR), and give DIR"
)


def is_model(folder: Path) -> bool:
    """Whether a folder has a UNet, as every supported diffusers directory does."""
    return (folder / "unet" / "config.json").is_file()


def listing(folder: Path) -> str:
    """The first names in a folder."""
    names = _names(folder)
    if names is None:
        return "files that cannot be listed"
    rest = len(names) - _SHOWN
    shown = ", ".join(names[:_SHOWN])
    return (f"{shown} and {rest} more" if rest > 0 else shown) or "nothing"


def about_folder(folder: Path) -> str:
    """Description of a folder that is no diffusers directory, and the remedy after "; "."""
    names = _names(folder)
    if names is None:
        return "cannot be listed; make it readable"
    if (folder / "snapshots").is_dir():
        return _cache_of_a_model(folder)
    cached = [_hub_id(name) for name in names if name.startswith("models--")]
    if cached:
        return f"is a download cache of the hub; give a hub id: {_some(cached)}"
    inside = [str(folder / name) for name in names if is_model(folder / name)]
    if inside:
        return f"has no unet/config.json, but holds models; use {_some(inside, ' or ')}"
    if "config.json" in names and is_model(folder.parent):
        return f"is one part of a model; use {str(folder.parent)!r}"
    if any(name in names for name in _LORA):
        return f"holds LoRA weights, not a model; {_FUSE}"
    if any(name.startswith(("optimizer.", "random_states_", "rng_state")) for name in names):
        return (
            "has no unet/config.json: it is a training checkpoint; save the trained pipeline with"
            " diffusers' save_pretrained(DIR), and give DIR"
        )
    if "model_index.json" in names:
        return (
            f"has no unet/config.json: its model_index.json is of {_pipeline(folder)}; use a"
            " Stable Diffusion 1.x, 2.x or XL"
        )
    single = [name for name in names if name.lower().endswith(WEIGHT_SUFFIXES)]
    if single:
        return (
            f"has no unet/config.json, but weights in one file ({_some(single)}), which cannot be"
            f" read yet; {_convert(folder / single[0])}"
        )
    return (
        f"has no unet/config.json, it holds {listing(folder)}; use a diffusers directory, as"
        " save_pretrained() writes it"
    )


def about_unet_alone(folder: Path) -> str:
    """Description of a folder with a UNet and no other part, and the remedy."""
    weights = sorted(str(path) for path in (folder / "unet").glob("*.safetensors"))
    named = weights[0] if weights else f"{folder}/unet/diffusion_pytorch_model.safetensors"
    return (
        "has a unet/ alone, such as a training checkpoint; give the model that was trained, and"
        f" {named!r} as unet_weights"
    )


def about_file(path: Path) -> str:
    """Description of a file where a model was expected, and the remedy after "; "."""
    suffix = path.suffix.lower()
    if reason := read_stand_in(path):
        return reason
    if path.name == "model_index.json" or is_model(path.parent):
        return f"is a file of a diffusers directory; use {str(path.parent)!r}"
    if is_model(path.parent.parent):
        return f"is a file of a diffusers directory; use {str(path.parent.parent)!r}"
    if suffix == ".json":
        return "is a JSON file; use the diffusers directory that holds all parts of the model"
    if suffix in _ARCHIVES:
        return "is an archive; unpack it, and give the diffusers directory in it"
    if suffix == ".gguf":
        return "holds quantized weights (GGUF), which are not read; get the model as safetensors"
    if suffix in _PICKLES:
        return f"is a pickled checkpoint, which is never opened; {_convert(path)}"
    if suffix == ".safetensors":
        return _about_weights(path)
    return "is a file; use a diffusers directory, as save_pretrained() writes it"


def _about_weights(path: Path) -> str:
    names = _tensor_names(path)
    if any("lora" in name.lower() for name in names):
        return f"holds LoRA weights, not a model; {_FUSE}"
    if "time_embedding.linear_1.weight" in names:
        return (
            "holds a UNet's weights alone; give the model that they belong to, and this file as"
            " unet_weights"
        )
    xl = any(name.startswith("conditioner.") for name in names)
    what = "is a single file with a whole model, which cannot be read yet"
    if not any(name.startswith("model.diffusion_model.") for name in names):
        what = "is a single file of weights, which cannot be read yet"
    return f"{what}; {_convert(path, 'StableDiffusionXLPipeline' if xl else None)}"


def _convert(path: Path, pipeline: str | None = None) -> str:
    kind = pipeline or "StableDiffusionPipeline"
    return (
        f"convert it with diffusers: {kind}.from_single_file({str(path)!r}).save_pretrained(DIR),"
        " and give DIR"
    )


def _cache_of_a_model(folder: Path) -> str:
    try:
        commit = (folder / "refs" / "main").read_text().strip()
    except (OSError, UnicodeDecodeError):
        commit = ""
    commits = [name for name in _names(folder / "snapshots") or [] if name != commit]
    named = [str(folder / "snapshots" / name) for name in ([commit] if commit else commits)]
    of = f" of {_hub_id(folder.name)!r}" if folder.name.startswith("models--") else ""
    if not named:
        return f"is a download cache{of} without a snapshot; download the model again"
    return f"is a download cache{of}; use its snapshot {_some(named, ' or ')}"


def _hub_id(name: str) -> str:
    return name.removeprefix("models--").replace("--", "/", 1)


def _pipeline(folder: Path) -> str:
    try:
        return str(json.loads((folder / "model_index.json").read_text())["_class_name"])
    except (OSError, ValueError, KeyError, TypeError):
        return "an unknown pipeline"


def _tensor_names(path: Path) -> set[str]:
    """Names in the header of a safetensors file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            return set(json.loads(file.read(size))) if size <= _HEADER_BYTES else set()
    except (OSError, ValueError, RecursionError, TypeError):
        return set()


def _names(folder: Path) -> list[str] | None:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return None


def _some(names: Iterable[str], joint: str = ", ") -> str:
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return joint.join(map(repr, listed[:_SHOWN])) + more
