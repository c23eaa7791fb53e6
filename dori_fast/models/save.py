"""A Denoiser as files that others open, and as a copy with weights of its own."""

from __future__ import annotations

import copy
import os
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from dori_fast.errors import UsageError
from dori_fast.models.files.hashes import tensors_sha256
from dori_fast.models.text.encoders import TextSideXL

if TYPE_CHECKING:
    from dori_fast.models.denoiser import Denoiser


def save_pretrained(model: Denoiser, directory: str | os.PathLike[str]) -> None:
    """Write a diffusers directory of safetensors that a stock pipeline and ``df.load`` open.

    Its sampler is DDIM with the model's schedule and prediction type, whichever it came with.

    Raises:
        UsageError: a view under masks, which are no part of such a directory.
    """
    if model.masks is not None:
        raise UsageError(
            "save_pretrained: this view has masks; save those, or put them into the weights of a"
            " pipeline with df.prune.apply_"
        )
    parts = {
        "vae": model.vae,
        "unet": model.unet,
        "scheduler": model.schedule.sampler,
        **_text_parts(model._text),
    }
    _pipeline(parts).save_pretrained(os.fspath(directory), safe_serialization=True)


def own_copy(model: Denoiser) -> Denoiser:
    """A Denoiser with a UNet of its own, to be changed; everything else is shared.

    Whoever writes to the copy's weights calls ``copy.engine.weights_changed()`` afterwards.
    """
    own = copy.copy(model)
    own.engine = model.engine.copy()
    own.unet, own.recipe = own.engine.unet, None
    own._shared, own._load_vae = OrderedDict(), lambda: model.vae
    own._origin = {**model._origin, "source": f"weights changed after {model._origin['source']}"}
    own.__dict__.pop("_hashes", None)
    # of the files that were read, only those of the UNet's weights say nothing about the copy
    own._load_hashes = lambda: {
        **{name: sha for name, sha in model._hashes.items() if not _is_unet_weights(name)},
        "unet": tensors_sha256(own.unet.state_dict()),
    }
    return own


def _is_unet_weights(name: str) -> bool:
    return name in ("unet", "unet_weights") or (
        name.startswith("unet/") and name.endswith(".safetensors")
    )


def _text_parts(text: Any) -> dict[str, Any]:
    parts = {"tokenizer": text.tokenizer, "text_encoder": text.text_encoder}
    if isinstance(text, TextSideXL):
        parts |= {"tokenizer_2": text.tokenizer_2, "text_encoder_2": text.text_encoder_2}
        parts["force_zeros_for_empty_prompt"] = text.zero_for_empty
    return parts


def _pipeline(parts: dict[str, Any]) -> Any:
    if "text_encoder_2" in parts:
        from diffusers import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline(**parts, add_watermarker=False)
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
