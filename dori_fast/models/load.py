"""Loads a Denoiser from an embedded model, a local directory, a hub id or a pipeline."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from functools import cache
from itertools import chain
from typing import Any

import torch

from dori_fast.errors import UsageError
from dori_fast.models.backbones.registry import backbone_of, latent_shape
from dori_fast.models.backbones.unet.hung import hung_on
from dori_fast.models.components import Components
from dori_fast.models.denoiser import Denoiser
from dori_fast.models.engine.backbone import Backbone
from dori_fast.models.engine.execution import Execution, Switch
from dori_fast.models.files.directory import resolve_directory, unet_home
from dori_fast.models.files.hashes import file_hashes, tensors_sha256, text_sha256
from dori_fast.models.files.local_source import require_local
from dori_fast.models.gate import Reading, require_denoiser
from dori_fast.models.images.kinds import (
    NO_VAE_FACTOR,
    SUPPORTED,
    autoencoder_class,
    pipeline_scale_factor,
    vae_scale_factor,
)
from dori_fast.models.modules import open_text, open_unet, open_vae
from dori_fast.models.overlay import lay_over_
from dori_fast.models.schedules.vp import Schedule
from dori_fast.models.text.assemble import text_side
from dori_fast.models.text.encoders import PARTS, TextSide, TextSideXL
from dori_fast.models.text.hashes import text_hashes


def load(
    source: Any,
    *,
    revision: str | None = None,
    variant: str | None = None,
    local_files_only: bool = False,
    unet_weights: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "auto",
    batch_size: int | str = "auto",
    share: bool = True,
    attention: str = "auto",
    compile: Switch = "auto",
    channels_last: Switch = "auto",
    cuda_graphs: Switch = "auto",
    allow_tf32: bool = False,
) -> Denoiser:
    """Open a text-to-image diffusion model for scoring, pruning and attack.

    Only safetensors weights are read, and no code that comes with a model runs. Only a hub id may
    use the internet (never with ``HF_HUB_OFFLINE=1``).

    Args:
        source: ``"demo"``, ``"demo-finetuned"`` (the same, fine-tuned), a local diffusers
            directory, a hub id, or a diffusers pipeline in memory. A pipeline is evaluated without
            dropout and without gradients to its weights, and otherwise left as it is, so that it
            can be scored while it is trained.
        revision: branch, tag or commit of a hub id.
        variant: weight variant, such as ``"fp16"``, as in diffusers; not the dtype.
        local_files_only: True to read a hub id from earlier downloads only.
        unet_weights: safetensors file with some of the UNet's weights under diffusers' names, which
            replace the source's own; see :func:`dori_fast.models.overlay.lay_over_`.
        dtype: torch dtype or its name, or ``"auto"`` (float32 on a CPU, float16 on a GPU).
        device: any torch device, or ``"auto"`` (cuda if there is one).
        batch_size: samples per evaluation; ``"auto"`` depends on the model and the device,
            and on a GPU on whether gradients are taken.
        share: True to do the network's work that does not depend on the text once for all
            prompts, if the architecture is known; False to call the model's own forward for every
            sample.
        attention: ``"sdpa"``, torch's own, or ``"xformers"``; ``"auto"`` is sdpa.
        compile: compilation of the network's repeated parts with torch.compile, at their first run.
        channels_last: memory layout of convolution weights with the channels innermost.
        cuda_graphs: replay of recorded launches, for batches too small to keep a GPU busy.
        allow_tf32: True to let a GPU compute float32 convolutions and matrix products of the UNet
            in TF32, which is faster; ``docs/detectors.md`` has the error of scores. Default: False,
            IEEE float32 whatever torch's own switches say.

    compile, channels_last and cuda_graphs are True, False or ``"auto"``, which switches on only
    what pays on this device by ``docs/benchmarks.md`` (so far nothing). They change scores by
    rounding alone, as ``batch_size`` does. ``model.engine.execution`` has the resolved values.

    Returns:
        A :class:`Denoiser`. Its ``reading`` lists what is read otherwise than by the model's own
        pipeline.

    Raises:
        UsageError: no such source, an unsupported kind of model, or a switch that cannot be on
            here.
        IntegrityError: damaged weight files, weights that are not finite, or ``unet_weights`` of
            another UNet.
    """
    execution = Execution(attention, compile, channels_last, cuda_graphs, allow_tf32)
    how: dict[str, Any] = {"batch_size": batch_size, "share": share, "execution": execution}
    if not isinstance(source, str | os.PathLike):
        _refuse_for_pipelines(
            revision=revision,
            variant=variant,
            local_files_only=local_files_only,
            unet_weights=unet_weights,
        )
        return _from_pipeline(source, dtype, device, **how)
    device = _resolve_device(device)
    dtype = _resolve_dtype(dtype, device)
    name = os.fspath(source)
    if isinstance(source, os.PathLike):
        require_local(source)
        # a folder called as an embedded model is that folder
        name = os.path.join(os.curdir, name)
    directory, revision = resolve_directory(name, revision, variant, local_files_only)
    home = unet_home(name, directory)
    reading = require_denoiser(Components.of_directory(directory, home))
    unet = open_unet(home, dtype, device, variant)
    if reading.sample_size is not None:
        unet.register_to_config(sample_size=reading.sample_size)
    laid = {} if unet_weights is None else {"unet_weights": lay_over_(unet_weights, unet)}
    text = open_text(directory, reading, dtype, device, variant)
    if execution.on("channels_last", device):
        unet.to(memory_format=torch.channels_last)
    vae_class, vae_config = reading.vae

    def vae() -> Any:
        kind = vae_class and autoencoder_class(vae_class)
        return kind and open_vae(kind, directory, dtype, device, variant)

    if reading.xl and vae_class in SUPPORTED:
        # SDXL's scores depend on the factor of the VAE's config, which its weights must fit
        vae()
    factor = vae_scale_factor(vae_class, vae_config)
    return Denoiser(
        backbone=_backbone(unet, factor),
        text=text,
        schedule=Schedule(reading.schedule),
        vae=cache(vae),
        device=device,
        dtype=dtype,
        origin={"source": name, "revision": revision},
        hashes=lambda: {
            **source_hashes(
                name,
                revision,
                chain(*_parts(text).values(), ["scheduler"]),
                variant=variant,
                local_files_only=local_files_only,
            ),
            **_unusual(reading, factor),
            **laid,
        },
        reading=reading.notes,
        recipe={
            "source": name,
            "revision": revision,
            "variant": variant,
            "local_files_only": local_files_only,
            "unet_weights": unet_weights,
            "dtype": dtype,
            "device": device,
            "share": share,
            "attention": attention,
            "compile": compile,
            "channels_last": channels_last,
            "cuda_graphs": cuda_graphs,
            "allow_tf32": allow_tf32,
        },
        **how,
    )


def source_hashes(
    source: str,
    revision: str | None,
    parts: Iterable[str],
    *,
    variant: str | None = None,
    local_files_only: bool = False,
) -> dict[str, str]:
    """sha256 of the files of a model's parts, by path, without loading it; {} for a missing part.

    Raises:
        UsageError: no such source.
    """
    directory, _ = resolve_directory(source, revision, variant, local_files_only)
    homes = {part: directory for part in parts} | {"unet": unet_home(source, directory)}
    there = {part: home for part, home in homes.items() if (home / part).is_dir()}
    hashes: dict[str, str] = {}
    for part, home in there.items():
        hashes |= file_hashes(home, [part], variant)
    return hashes


def _refuse_for_pipelines(**options: Any) -> None:
    given = [name for name, value in options.items() if value]
    if given:
        raise UsageError(
            f"load: {given[0]} is for models that are read from files, not for a pipeline in"
            " memory; leave it out"
        )


def _backbone(unet: Any, factor: int, borrowed: bool = False) -> Backbone:
    """The engine's view of a UNet whose images are larger than its latents by the VAE's factor."""
    _, height, width = latent_shape(unet)
    return backbone_of(unet, (height * factor, width * factor), borrowed)


def _unusual(reading: Reading, factor: int) -> dict[str, str]:
    """Facts of SDXL's conditions that no hashed file holds, if other than the base model's."""
    found = {}
    if reading.xl and not reading.zero_for_empty:
        found["force_zeros_for_empty_prompt"] = "false"
    if reading.xl and factor != NO_VAE_FACTOR:
        found["vae_scale_factor"] = str(factor)
    return found


def _parts(text: TextSide | TextSideXL) -> dict[str, list[str]]:
    """Names of the parts that a score depends on, by kind."""
    second = ["_2"] if text.has_pooled else []
    return {
        "networks": ["unet", *(f"text_encoder{n}" for n in ["", *second])],
        "tokenizers": [f"tokenizer{n}" for n in ["", *second]],
    }


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
        raise UsageError(
            f"load: device {device!r} requested, but torch finds no CUDA device; use 'cpu'"
        )
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


def _from_pipeline(
    pipe: Any,
    dtype: torch.dtype | str,
    device: torch.device | str,
    **how: Any,
) -> Denoiser:
    """A view of a pipeline's modules, which are neither copied nor moved nor cast nor frozen."""
    reading = require_denoiser(Components.of_pipeline(pipe))
    has_dtype, has_device = _one_place(pipe, reading)
    to_device = has_device if device == "auto" else _resolve_device(device)
    to_dtype = has_dtype if dtype == "auto" else _resolve_dtype(dtype, to_device)
    if (to_dtype, to_device.type) != (has_dtype, has_device.type):
        raise UsageError(
            f"load: the pipeline is {has_dtype} on {has_device}, requested {to_dtype} on"
            f" {to_device}; move it first with pipe.to(...)"
        )
    factor = pipeline_scale_factor(pipe)
    backbone = _backbone(pipe.unet, factor, borrowed=True)
    wanted = how["execution"].channels_last
    if wanted != "auto" and wanted != backbone.channels_last:
        layout = "channels_last" if wanted else "contiguous_format"
        raise UsageError(
            f"load: channels_last={wanted}, but the pipeline's weights are laid out"
            f" otherwise; change them first with pipe.unet.to(memory_format=torch.{layout})"
        )
    pairs = PARTS[: 1 + reading.xl]
    text = text_side(
        [getattr(pipe, tokenizer) for tokenizer, _ in pairs],
        [getattr(pipe, encoder) for _, encoder in pairs],
        reading.zero_for_empty,
    )
    return Denoiser(
        backbone=backbone,
        text=text,
        schedule=Schedule(reading.schedule),
        vae=lambda: getattr(pipe, "vae", None),
        device=has_device,
        dtype=has_dtype,
        origin={"source": f"pipeline:{type(pipe).__name__}", "revision": None},
        hashes=lambda: {**_pipeline_hashes(pipe, text), **_unusual(reading, factor)},
        reading=reading.notes,
        **how,
    )


def _one_place(pipe: Any, reading: Reading) -> tuple[torch.dtype, torch.device]:
    """The UNet's dtype and device, which must be those of the text embeddings."""
    names = [encoder for _, encoder in PARTS[: 1 + reading.xl]]
    dtype, device = pipe.unet.dtype, pipe.unet.device
    for name in names:
        part = getattr(pipe, name)
        # SDXL's embeddings have the dtype of the second encoder
        fits = part.device == device and (name != names[-1] or part.dtype == dtype)
        if not fits or device.type == "meta":
            raise UsageError(
                f"load: the pipeline's {name} is {part.dtype} on {part.device}, its unet {dtype} on"
                f" {device}; move and cast it whole with pipe.to(device, dtype), without offloading"
            )
    return dtype, device


def _pipeline_hashes(pipe: Any, text: TextSide | TextSideXL) -> dict[str, str]:
    """Hashes of modules in memory, as :func:`file_hashes` has them for files."""
    parts = _parts(text)
    hashes = {name: tensors_sha256(getattr(pipe, name).state_dict()) for name in parts["networks"]}
    hashes |= text_hashes(text)
    for name in ("unet", "scheduler"):
        config = dict(getattr(pipe, name).config)
        # names of filled-in keys, in an order that differs between processes
        config.pop("_use_default_values", None)
        hashes[f"{name}/config"] = text_sha256(json.dumps(config, sort_keys=True, default=str))
    if hung := hung_on(pipe.unet):
        hashes["unet/hung"] = text_sha256(json.dumps(hung))
    return hashes
