"""From a source to a Denoiser: the embedded model, a local directory, a hub id or a pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.models.denoiser import Denoiser
from dori_fast.models.weights import file_hashes, first_nonfinite, state_hash

# package data, not an import: the demo room stands above this one
_EMBEDDED = {"demo": Path(__file__).parents[1] / "demo" / "model"}
_PARTS = ("unet", "text_encoder", "tokenizer", "scheduler", "vae")
_SCORED_PARTS = ("unet", "text_encoder")  # the weights that a score depends on


def load(
    source: Any,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "auto",
    batch_size: int | str = "auto",
    share: bool = True,
    attention: str = "auto",
) -> Denoiser:
    """Open a text-to-image diffusion model for scoring, pruning and attack.

    Only safetensors weights are read and no code that comes with a model is run. A hub id is the
    one source that may use the network (never with ``HF_HUB_OFFLINE=1``).

    Args:
        source: ``"demo"``, a local diffusers directory, a hub id, or a diffusers pipeline object.
        revision: branch, tag or commit; for hub ids only.
        dtype: ``"auto"`` (float32 on a CPU, float16 on a GPU), a torch dtype or its name.
        device: ``"auto"`` (cuda if there is one), or any torch device.
        batch_size: UNet samples per evaluation; ``"auto"`` depends on the model and the device.
        share: do the network's work that does not depend on the text once for all prompts, where
            the architecture is known; False calls the model's own forward for every sample.
        attention: ``"auto"`` (xformers where it is installed and can answer, else torch's own),
            ``"sdpa"`` or ``"xformers"``.

    Returns:
        A :class:`Denoiser` in evaluation mode with frozen weights.

    Raises:
        UsageError: no such source, or a kind of model that is not supported.
        IntegrityError: damaged weight files, or weights that are not finite.
    """
    how: dict[str, Any] = {"batch_size": batch_size, "share": share, "attention": attention}
    if hasattr(source, "unet") and hasattr(source, "text_encoder"):
        if revision is not None:
            raise UsageError("load: revision applies to hub ids, not to a pipeline in memory")
        return _from_pipeline(source, dtype, device, **how)
    device = _resolve_device(device)
    dtype = _resolve_dtype(dtype, device)
    name = str(source)
    directory, revision = _resolve_directory(name, revision)
    parts = _load_parts(directory, dtype)
    return Denoiser(
        **parts,
        vae=lambda: _load_vae(directory, dtype).to(device),
        device=device,
        dtype=dtype,
        origin={"source": name, "revision": revision},
        weight_hashes=lambda: file_hashes(directory, _SCORED_PARTS),
        **how,
    )


def _resolve_device(device: torch.device | str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise UsageError(
            f"load: unknown device {device!r}; use auto, cpu, cuda or cuda:N"
        ) from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"load: device {device!r} asked for, but torch sees no CUDA device")
    return resolved


def _resolve_dtype(dtype: torch.dtype | str, device: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    names = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp64": "float64"}
    resolved = getattr(torch, names.get(dtype, dtype), None)
    if not isinstance(resolved, torch.dtype) or not resolved.is_floating_point:
        raise UsageError(f"load: unknown dtype {dtype!r}; use auto, {', '.join(names)}")
    return resolved


def _resolve_directory(name: str, revision: str | None) -> tuple[Path, str | None]:
    """The local diffusers directory of a source, and the commit when it came from a hub."""
    directory = _EMBEDDED.get(name, Path(name))
    if directory.is_dir():
        if revision is not None:
            raise UsageError(
                f"load: revision applies to hub ids, but {name!r} is a local directory"
            )
        if not (directory / "unet" / "config.json").is_file():
            raise UsageError(
                f"load: {name!r} has no unet/config.json; expected a diffusers directory"
            )
        return directory, None
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        known = ", ".join(_EMBEDDED)
        raise UsageError(
            f"load: no model {name!r}; use {known}, a diffusers directory or a hub id (owner/name)"
        )
    return _download(name, revision)


def _download(name: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["model_index.json"]
    for part in _PARTS:
        patterns += [f"{part}/*.json", f"{part}/*.txt", f"{part}/*.safetensors"]
    try:
        directory = Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=["*.fp16.*", "*.non_ema.*"],
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UsageError(
            f"load: {name!r} could not be fetched from the hub ({type(error).__name__}); check the"
            " name and the connection, or give a local directory"
        ) from error
    # a snapshot's folder is named after the commit that the revision resolved to
    return directory, directory.name


def _load_parts(directory: Path, dtype: torch.dtype) -> dict[str, Any]:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    unet_class = json.loads((directory / "unet" / "config.json").read_text())["_class_name"]
    if unet_class != "UNet2DConditionModel":
        raise UsageError(
            f"load: {unet_class} is not supported; only UNet2DConditionModel is (SD 1.x, 2.x)"
        )
    unet = _open(UNet2DConditionModel, directory, "unet", torch_dtype=dtype)
    text_encoder = _open(CLIPTextModel, directory, "text_encoder", dtype=dtype)
    for part, module in (("unet", unet), ("text_encoder", text_encoder)):
        bad = first_nonfinite(module)
        if bad is not None:
            raise IntegrityError(
                f"load: {directory / part} holds NaN or Inf in {bad}; get the weights again"
            )
    return {
        "unet": unet,
        "text_encoder": text_encoder,
        "tokenizer": _open_config(CLIPTokenizer, directory, "tokenizer"),
        "scheduler_config": _scheduler_config(directory),
    }


def _open(kind: Any, directory: Path, part: str, **options: Any) -> Any:
    from safetensors import SafetensorError

    folder = directory / part
    if not any(folder.glob("*.safetensors")):
        raise UsageError(
            f"load: {folder} has no .safetensors weights (pickled weights are not read);"
            " convert them with diffusers' save_pretrained"
        )
    try:
        return kind.from_pretrained(folder, use_safetensors=True, local_files_only=True, **options)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise IntegrityError(f"load: {folder} cannot be read: {reason}") from error


def _open_config(kind: Any, directory: Path, part: str) -> Any:
    folder = directory / part
    if not folder.is_dir():
        raise UsageError(
            f"load: {directory} has no {part}/; expected a complete diffusers directory"
        )
    return kind.from_pretrained(folder, local_files_only=True)


def _scheduler_config(directory: Path) -> dict[str, Any]:
    path = directory / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        raise UsageError(f"load: {path} is missing; the noise schedule cannot be guessed")
    return dict(json.loads(path.read_text()))


def _load_vae(directory: Path, dtype: torch.dtype) -> Any:
    from diffusers import AutoencoderKL

    return _open(AutoencoderKL, directory, "vae", torch_dtype=dtype)


def _from_pipeline(
    pipe: Any,
    dtype: torch.dtype | str,
    device: torch.device | str,
    **how: Any,
) -> Denoiser:
    """A view of a pipeline's modules: nothing is copied, moved or cast."""
    has_dtype, has_device = pipe.unet.dtype, pipe.unet.device
    wants_device = has_device if device == "auto" else _resolve_device(device)
    wants_dtype = has_dtype if dtype == "auto" else _resolve_dtype(dtype, wants_device)
    if (wants_dtype, wants_device.type) != (has_dtype, has_device.type):
        raise UsageError(
            f"load: the pipeline is {has_dtype} on {has_device}, asked for {wants_dtype} on"
            f" {wants_device}; move it first with pipe.to(...)"
        )
    return Denoiser(
        unet=pipe.unet,
        text_encoder=pipe.text_encoder,
        tokenizer=pipe.tokenizer,
        scheduler_config=dict(pipe.scheduler.config),
        vae=lambda: pipe.vae,
        device=has_device,
        dtype=has_dtype,
        origin={"source": f"pipeline:{type(pipe).__name__}", "revision": None},
        weight_hashes=lambda: {part: state_hash(getattr(pipe, part)) for part in _SCORED_PARTS},
        **how,
    )
