"""Pipelines that can be accelerated, and reasons why others cannot."""

from __future__ import annotations

from typing import Any

from dori_fast.errors import UsageError
from dori_fast.models import Denoiser
from dori_fast.models.backbones.unet.stock import Functions
from dori_fast.models.components import Components
from dori_fast.models.gate import require_denoiser
from dori_fast.models.text.encoders import PARTS
from dori_fast.models.text.recognize import require_tokenizer

_REMEDY = "pass a StableDiffusionPipeline or StableDiffusionXLPipeline (SD 1.x, SD 2.x, SDXL)"
_TRANSFORMERS = (
    "it has a transformer in place of a UNet: its layers mix text and image, so keys and values"
    " of the text change with every step"
)
# by a part of the class's name; the first match counts
_REASONS = {
    "ControlNet": "a ControlNet adds residuals to the UNet that go around what is shared here",
    "T2IAdapter": "an adapter's features go around what is shared here",
    "Inpaint": "it masks latents between the steps",
    "Img2Img": "it starts from an image, so its first step is not that of the scores",
    "PAG": "it runs a third, perturbed half beside the conditional and unconditional ones",
}


def check(pipe: Any, kind: Any = None) -> None:
    """Reject objects that cannot be accelerated.

    Args:
        pipe: The pipeline.
        kind: Class to treat it as; default: its own.

    Raises:
        UsageError: the object cannot be accelerated.
    """
    reason = _refusal(pipe, kind or type(pipe))
    if reason is not None:
        raise UsageError(f"accelerate: {_name(pipe)}: {reason}")


def _name(pipe: Any) -> str:
    return type(pipe).__name__


def _refusal(pipe: Any, kind: Any) -> str | None:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel

    if isinstance(pipe, Denoiser):
        return "a Denoiser shares all this work already; pass a diffusers pipeline"
    if not hasattr(pipe, "components"):
        return f"not a diffusers pipeline; {_REMEDY}"
    kinds: list[Any] = [StableDiffusionPipeline, StableDiffusionXLPipeline]
    stock = next((known for known in kinds if issubclass(kind, known)), None)
    if stock is None:
        return f"{_why_not(pipe)}; {_REMEDY}"
    if kind.__call__ is not stock.__call__:
        return (
            f"it has its own __call__, which may run unknown code between the steps; convert"
            f" it first: {stock.__name__}(**pipe.components)"
        )
    patched = Functions()[stock]
    if patched is not None:
        return f"{patched} is patched, so its denoising loop is unknown; undo the patch first"
    unet: Any = getattr(pipe.unet, "_orig_mod", pipe.unet)
    if not issubclass(type(unet), UNet2DConditionModel):
        return f"its UNet is a {type(unet).__name__}, not a UNet2DConditionModel"
    if unet.encoder_hid_proj is not None:
        return (
            "an image prompt (IP-Adapter) or another text projection is loaded, whose keys and"
            " values cannot be kept; pipe.unload_ip_adapter() first"
        )
    return None


def _why_not(pipe: Any) -> str:
    for part, reason in _REASONS.items():
        if part in _name(pipe):
            return reason
    if getattr(pipe, "transformer", None) is not None:
        return _TRANSFORMERS
    return "its denoising loop is unknown"


def require_scored(components: Components, who: str, *, tokenizers: bool = True) -> None:
    """Check that noise norms of a model have a meaning, by the gate that ``df.load`` passes.

    Args:
        components: the model.
        who: first words of the message.
        tokenizers: True to check the vocabularies too, which takes a tenth of a second.

    Raises:
        UsageError: they have none.
    """
    try:
        require_denoiser(components)
        for tokenizer, encoder in PARTS if tokenizers else ():
            if tokenizer in components.modules:
                there = components.modules
                require_tokenizer(there[tokenizer], there[encoder], tokenizer)
    except UsageError as error:
        raise UsageError(f"{who}: {str(error).removeprefix('load: ')}") from error
