"""Which pipelines can be accelerated, and why the others cannot."""

from __future__ import annotations

from typing import Any

from dori_fast.errors import UsageError
from dori_fast.models import Denoiser

_REMEDY = (
    "pass a StableDiffusionPipeline or StableDiffusionXLPipeline (SD 1.x, SD 2.x, SDXL), or open"
    " the model with df.load"
)
_TRANSFORMERS = (
    "it has a transformer in place of a UNet: its layers mix text and picture, so keys and values"
    " of the text change with every step"
)
# by a part of the class's name, the first that fits
_REASONS = {
    "ControlNet": "a ControlNet adds residuals to the UNet that go around what is shared here",
    "T2IAdapter": "an adapter's features go around what is shared here",
    "Inpaint": "it masks latents between the steps",
    "Img2Img": "it starts from a picture, so its first step is not that of the scores",
    "PAG": "it runs a third, perturbed half beside the conditional and unconditional ones",
}


def check(pipe: Any, kind: Any = None) -> None:
    """Refuse what cannot be accelerated.

    Args:
        pipe: a pipeline.
        kind: the class that it is taken for, its own by default.

    Raises:
        UsageError: saying what was passed, why it cannot be, and what can.
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
            f"it has a __call__ of its own, which may do between the steps what is not known here;"
            f" convert it first: {stock.__name__}(**pipe.components)"
        )
    unet: Any = getattr(pipe.unet, "_orig_mod", pipe.unet)
    if not issubclass(type(unet), UNet2DConditionModel):
        return f"its UNet is a {type(unet).__name__}, not a UNet2DConditionModel"
    if unet.encoder_hid_proj is not None:
        return (
            "an image prompt (IP-Adapter) or another text projection is loaded, whose keys and"
            " values are not known here; pipe.unload_ip_adapter() first"
        )
    return None


def _why_not(pipe: Any) -> str:
    for part, reason in _REASONS.items():
        if part in _name(pipe):
            return reason
    if getattr(pipe, "transformer", None) is not None:
        return _TRANSFORMERS
    return "its denoising loop is not known here"


def has_unconditional(pipe: Any) -> bool:
    """Whether the pipeline can run the unconditional pass that the scores need.

    A guidance-distilled UNet (LCM) takes the guidance scale as an input and has none.
    """
    return pipe.unet.config.time_cond_proj_dim is None
