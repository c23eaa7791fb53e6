"""Whether a UNet can run as a stage program.

A UNet that may compute anything else than ``program`` runs whole, by its own forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

# these change how attention is computed; others (IP-Adapter, masks) change its result
_PROCESSORS = {"AttnProcessor", "AttnProcessor2_0", "XFormersAttnProcessor"}
_CONFIG = {
    "center_input_sample": False,
    "class_embed_type": None,
    "num_class_embeds": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "attention_type": "default",
}
_RESNET = {
    "up": False,
    "down": False,
    "time_embedding_norm": "default",
    "skip_time_act": False,
    "output_scale_factor": 1.0,
}
_TRANSFORMER = {"is_input_continuous": True, "caption_projection": None, "adaln_single": None}
_LAYER = {
    "norm_type": "layer_norm",
    "pos_embed": None,
    "only_cross_attention": False,
    "_chunk_size": None,
}
_ATTENTION = {
    "group_norm": None,
    "spatial_norm": None,
    "norm_q": None,
    "norm_k": None,
    "norm_cross": None,
    "added_kv_proj_dim": None,
    "residual_connection": False,
    "rescale_output_factor": 1.0,
    "is_causal": False,
}
_ADDED_EMBEDDINGS = (None, "text_time")
_BLOCKS = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"}


def refusal(unet: Any) -> str | None:
    """The reason why a UNet's work cannot be shared stage by stage, or None if it can."""
    return next(_objections(unet), None)


def _objections(unet: Any) -> Iterator[str]:
    if type(unet).__name__ != "UNet2DConditionModel":
        yield f"{type(unet).__name__} is not a UNet2DConditionModel"
        return
    yield from _differences("UNet config", unet.config, _CONFIG)
    if unet.config.addition_embed_type not in _ADDED_EMBEDDINGS:
        yield f"UNet config: addition_embed_type is {unet.config.addition_embed_type!r}"
    if type(unet.mid_block).__name__ != "UNetMidBlock2DCrossAttn":
        yield f"mid block {type(unet.mid_block).__name__}"
    if unet.conv_norm_out is None:
        yield "no conv_norm_out"
    for block in [*unet.down_blocks, *unet.up_blocks]:
        if type(block).__name__ not in _BLOCKS:
            yield f"block {type(block).__name__}"
        if any(getattr(block, name, None) for name in ("s1", "s2", "b1", "b2")):
            yield "FreeU is on"
    has_cross_attention = False
    for name, module in unet.named_modules():
        kind = type(module).__name__
        if kind == "ResnetBlock2D":
            yield from _differences(name, module, _RESNET)
            if module.time_emb_proj is None:
                yield f"{name} has no time embedding"
        elif kind == "Transformer2DModel":
            yield from _differences(name, module, _TRANSFORMER)
        elif kind == "BasicTransformerBlock":
            yield from _differences(name, module, _LAYER)
            if module.attn2 is None or not module.attn2.is_cross_attention:
                yield f"{name} has no cross-attention"
            has_cross_attention = True
        elif kind == "Attention":
            yield from _attention_objections(name, module)
        elif kind in ("DualTransformer2DModel", "GatedSelfAttentionDense"):
            yield f"{name} is a {kind}"
        yield from _hook_objections(name, module)
    if not has_cross_attention:
        yield "no cross-attention"


def _attention_objections(name: str, attention: Any) -> Iterator[str]:
    yield from _differences(name, attention, _ATTENTION)
    processor = type(attention.processor).__name__
    if processor not in _PROCESSORS:
        yield f"{name} runs a {processor}"


def _hook_objections(name: str, module: nn.Module) -> Iterator[str]:
    """Modules whose parts the program calls one by one must have no hooks of their own."""
    bypassed = type(module).__name__ in {
        *_BLOCKS,
        "Attention",
        "BasicTransformerBlock",
        "ResnetBlock2D",
        "Transformer2DModel",
        "UNet2DConditionModel",
        "UNetMidBlock2DCrossAttn",
    }
    hooked = module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook")
    if bypassed and hooked:
        yield f"{name or 'the UNet'} has forward hooks"


def _differences(name: str, found: Any, wanted: dict[str, Any]) -> Iterator[str]:
    for key, value in wanted.items():
        has = getattr(found, key, value)
        if has != value:
            yield f"{name}: {key} is {has!r}"
