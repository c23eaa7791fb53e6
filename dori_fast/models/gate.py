"""The gate that every model passes: supported, supported with a stated reading, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dori_fast.errors import UsageError
from dori_fast.models.backbones.unet.require import (
    corrected_size,
    require_pooled,
    require_text,
    require_unet,
)
from dori_fast.models.components import Components
from dori_fast.models.schedules.known import KnownSchedule, schedule_in_files, schedule_of
from dori_fast.models.text.encoders import PARTS
from dori_fast.models.text.recognize import require_encoder, require_tokenizer_class

_SD, _XL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
# they draw with the components of the stock pipelines, from another start or with more conditions
_SHARE_COMPONENTS = {
    f"{stem}{task}Pipeline": f"{stem}Pipeline"
    for stem in ("StableDiffusion", "StableDiffusionXL")
    for task in (
        *("Img2Img", "Inpaint", "ControlNet", "ControlNetImg2Img", "ControlNetInpaint"),
        *("ControlNetUnion", "ControlNetUnionImg2Img", "ControlNetUnionInpaint", "Adapter"),
        *("PAG", "PAGImg2Img", "PAGInpaint", "ControlNetPAG", "ControlNetPAGImg2Img"),
        "ControlNetPAGInpaint",
    )
} | {
    "CycleDiffusionPipeline": _SD,
    "LEditsPPPipelineStableDiffusion": _SD,
    "LEditsPPPipelineStableDiffusionXL": _XL,
    "LatentConsistencyModelImg2ImgPipeline": _SD,
    "LatentConsistencyModelPipeline": _SD,
    "SemanticStableDiffusionPipeline": _SD,
    "StableDiffusionAttendAndExcitePipeline": _SD,
    "StableDiffusionDiffEditPipeline": _SD,
    "StableDiffusionInpaintPipelineLegacy": _SD,
    "StableDiffusionModelEditingPipeline": _SD,
    "StableDiffusionPanoramaPipeline": _SD,
    "StableDiffusionParadigmsPipeline": _SD,
    "StableDiffusionPipelineSafe": _SD,
    "StableDiffusionPix2PixZeroPipeline": _SD,
    "StableDiffusionSAGPipeline": _SD,
}
# their constructors correct the sample_size of UNets that old releases of diffusers saved
_CORRECTS_SIZE = (
    *(f"StableDiffusion{task}Pipeline" for task in ("", "Img2Img", "Inpaint", "DiffEdit")),
    *(f"StableDiffusionPAG{task}Pipeline" for task in ("", "Img2Img", "Inpaint")),
    "CycleDiffusionPipeline",
    "LEditsPPPipelineStableDiffusion",
    "StableDiffusionInpaintPipelineLegacy",
    "StableDiffusionPipelineSafe",
)
_NEEDED = {
    _SD: ("unet", "scheduler", "tokenizer", "text_encoder"),
    _XL: ("unet", "scheduler", "tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2"),
}
_FAMILIES = {_SD: "SD 1.x and 2.x", _XL: "SDXL"}


@dataclass(frozen=True)
class Reading:
    """How a supported model is read.

    Attributes:
        xl: True for SDXL's two text encoders.
        zero_for_empty: True if the empty prompt's embeddings are zeros, as in SDXL's base model.
        schedule: the noise schedule.
        sample_size: height and width of latents that replace the UNet's ``sample_size``; None if
            that is right.
        vae: class and configuration of the image autoencoder, ``(None, {})`` without one.
        notes: sentences on what is read otherwise than by the model's own pipeline.
    """

    xl: bool
    zero_for_empty: bool
    schedule: KnownSchedule
    sample_size: int | None
    vae: tuple[str | None, Mapping[str, Any]]
    notes: tuple[str, ...] = ()


def require_denoiser(components: Components) -> Reading:
    """Check that a model is a text-to-image denoiser whose scores have a meaning.

    Everything that scores a model passes here: directories, hub ids, pipelines in memory, workers,
    ``accelerate`` and ``patch``. Only names and configurations are read, no weights.

    Raises:
        UsageError: it is not, with what is there, what is expected and a remedy.
    """
    stock, notes = _stock_of(components)
    _require_components(components, stock)
    xl = stock == _XL
    unet = components.configs["unet"]
    require_unet(components.classes["unet"], unet)
    encoders = [components.configs[encoder] for _, encoder in PARTS[: 1 + xl]]
    for (tokenizer, part), config in zip(PARTS, encoders, strict=False):
        require_encoder(components.classes[part], config, part)
        own = components.derived.get(tokenizer, components.classes[tokenizer])
        require_tokenizer_class(own, tokenizer)
    require_text(unet, sum(encoder.get("hidden_size", 512) for encoder in encoders), pooled=xl)
    if xl:
        require_pooled(unet, encoders[1])
    for name, own in components.derived.items():
        notes.append(
            f"{name} is of the class {own}: its parts and its forward are used, not other methods"
            f" that differ from those of {components.classes.get(name, stock)}"
        )
    schedule = _schedule_of(components)
    notes += [f"scheduler: {note}" for note in schedule.notes]
    size = corrected_size(unet) if _corrects_size(components) else None
    if size is not None:
        notes.append(
            f"unet: sample_size is {size}, not {unet['sample_size']}: {components.pipeline} sets it"
            " for UNets that diffusers saved before release 0.9"
        )
    zeros = components.options.get("force_zeros_for_empty_prompt", True)
    vae = _vae_of(components, xl)
    return Reading(xl, xl and bool(zeros), schedule, size, vae, tuple(notes))


def _corrects_size(components: Components) -> bool:
    """Whether the pipeline's constructor, which has not run for files, sets a sample_size."""
    return not components.modules and components.pipeline in _CORRECTS_SIZE


def _vae_of(components: Components, xl: bool) -> tuple[str | None, Mapping[str, Any]]:
    if "vae" in components.classes:
        return components.classes["vae"], components.configs["vae"]
    if xl and "vae" in components.missing:
        # the size of images is an input of SDXL's UNet, and the VAE's factor decides it
        raise UsageError(
            f"load: {components.where} has no vae/, but model_index.json names"
            f" {components.missing['vae']}, on whose factor SDXL's scores depend; restore it, or"
            " set vae to [null, null] there"
        )
    return None, {}


def _schedule_of(components: Components) -> KnownSchedule:
    pipeline = components.pipeline or ""
    if components.modules:
        return schedule_of(components.modules["scheduler"], pipeline=pipeline)
    listed, config = components.classes["scheduler"], components.configs["scheduler"]
    return schedule_in_files(config, listed, pipeline=pipeline)


def _stock_of(components: Components) -> tuple[str, list[str]]:
    """The stock pipeline as which a model is read, and a note if it has another one."""
    kind = components.pipeline
    if kind is None:
        return (_XL if "text_encoder_2" in components.classes else _SD), []
    if kind in _NEEDED:
        return kind, []
    if kind in _SHARE_COMPONENTS:
        stock = _SHARE_COMPONENTS[kind]
        return stock, [
            f"read as {stock}, from noise and text alone: whatever else a {kind} takes (images,"
            " masks, adapters, guidance) is not part of a score"
        ]
    parts = "a transformer" if "transformer" in components.classes else "another network"
    raise UsageError(
        f"load: {components.where}: a {kind} is not supported, since it draws with {parts} or in"
        f" another way; use a {_SD} ({_FAMILIES[_SD]}) or a {_XL} ({_FAMILIES[_XL]})"
    )


def _require_components(components: Components, stock: str) -> None:
    where, there = components.where, components.classes
    if components.options.get("requires_aesthetics_score"):
        raise UsageError(
            f"load: {where} is SDXL's refiner (requires_aesthetics_score), which refines images of"
            " another model and does not draw them from noise; load SDXL's base model"
        )
    if missing := [name for name in _NEEDED[stock] if name not in there]:
        raise UsageError(
            f"load: {where} has no {' and no '.join(missing)}, without which no prompt can be"
            f" scored; pass a complete {stock}"
        )
    if stock == _SD and "text_encoder_2" in there:
        raise UsageError(
            f"load: {where}: a {_SD} has one text encoder, and text_encoder_2 is there too; name"
            f" the pipeline {_XL} if it is one"
        )
