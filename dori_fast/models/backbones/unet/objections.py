"""Reasons why a UNet cannot run as the stages of ``program``.

The program calls the parts of some modules one by one, in place of their forward. Each of these
must therefore be exactly diffusers' class, run diffusers' code, have no hooks, and have every
attribute that its forward reads as the program assumes; the tables list those attributes. The
attributes that the program reads too (heads, use_linear_projection, conv_shortcut) may be anything,
and so may the modules that it calls as wholes. Checkpointing, slices of attention and upcasts
change no value but by rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from dori_fast.models.backbones.unet.stock import (
    Functions,
    changed_code,
    global_hooks,
    hooks,
    is_plain,
    processors,
)

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
# what UNet2DConditionModel.forward applies only where it is there
_UNET = {"class_embedding": None, "encoder_hid_proj": None, "time_embed_act": None}
_RESNET = {
    "upsample": None,
    "downsample": None,
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
FREEU = ("s1", "s2", "b1", "b2")


def refusal(unet: Any) -> str | None:
    """The reason why a UNet's work cannot be shared stage by stage, or None if it can."""
    return next(_Objections().of(unet), None)


class _Objections:
    """One pass over a UNet, from the outside in; the first objection comes first."""

    def __init__(self) -> None:
        from diffusers import UNet2DConditionModel
        from diffusers.models.attention import BasicTransformerBlock, FeedForward
        from diffusers.models.attention_processor import Attention
        from diffusers.models.resnet import ResnetBlock2D
        from diffusers.models.transformers.transformer_2d import Transformer2DModel
        from diffusers.models.unets import unet_2d_blocks as blocks

        self._functions = Functions()
        self._unet: tuple[type, ...] = (UNet2DConditionModel,)
        self._down: tuple[type, ...] = (blocks.DownBlock2D, blocks.CrossAttnDownBlock2D)
        self._mid: tuple[type, ...] = (blocks.UNetMidBlock2DCrossAttn,)
        self._up: tuple[type, ...] = (blocks.UpBlock2D, blocks.CrossAttnUpBlock2D)
        self._resnet, self._transformer = (ResnetBlock2D,), (Transformer2DModel,)
        self._layer, self._attention = (BasicTransformerBlock,), (Attention,)
        self._feed_forward = (FeedForward,)

    def of(self, unet: Any) -> Iterator[str]:
        if type(unet) not in self._unet:
            yield f"{type(unet).__name__} is not a UNet2DConditionModel"
            return
        if global_hooks():
            yield "torch calls hooks for every module"
        yield from self._code("", unet, self._unet)
        yield from _differences("UNet config", unet.config, _CONFIG)
        yield from _differences("UNet", unet, _UNET)
        if unet.config.addition_embed_type not in _ADDED_EMBEDDINGS:
            yield f"UNet config: addition_embed_type is {unet.config.addition_embed_type!r}"
        if unet.conv_norm_out is None:
            yield "no conv_norm_out"
        yield from self._lists("", unet, ("down_blocks", "up_blocks"))
        sides = {"down_blocks": self._down, "up_blocks": self._up}
        named = [("mid_block", unet.mid_block, self._mid)]
        for side, kinds in sides.items():
            named += [(f"{side}.{i}", b, kinds) for i, b in enumerate(getattr(unet, side))]
        for name, block, kinds in named:
            yield from self._block(name, block, kinds)
        yield from _topology(unet)
        if not any(getattr(block, "has_cross_attention", False) for _, block, _ in named):
            yield "no cross-attention"

    def _code(self, name: str, module: Any, kinds: tuple[type, ...]) -> Iterator[str]:
        """A bypassed module must be of one of these very classes, with nothing hung on it."""
        if type(module) not in kinds:
            of = " or ".join(kind.__name__ for kind in kinds)
            yield f"{name} is a {type(module).__name__}, not a {of}"
            return
        place = name or "the UNet"
        changed = changed_code(module, self._functions)
        if "forward" in vars(module) and hasattr(module, "_hf_hook"):
            changed = None
        if changed is not None:
            yield f"{place}: {changed}"
        kind = hooks(module)
        if kind is not None:
            yield f"{place} has {kind} hooks"

    def _lists(self, name: str, module: Any, lists: tuple[str, ...]) -> Iterator[str]:
        for attribute in lists:
            found = getattr(module, attribute)
            if type(found) is not nn.ModuleList:
                yield f"{name}: {attribute} is a {type(found).__name__}"

    def _block(self, name: str, block: Any, kinds: tuple[type, ...]) -> Iterator[str]:
        objections = [*self._code(name, block, kinds)]
        yield from (f"mid block: {o}" if name == "mid_block" else o for o in objections)
        if objections:
            return
        if any(getattr(block, attribute, None) for attribute in FREEU):
            yield "FreeU is on"
        crossed = getattr(block, "has_cross_attention", False)
        yield from self._lists(name, block, ("resnets", "attentions") if crossed else ("resnets",))
        for i, resnet in enumerate(block.resnets):
            yield from self._resnet_block(f"{name}.resnets.{i}", resnet)
        if not crossed:
            return
        if len(block.attentions) + (kinds is self._mid) != len(block.resnets):
            yield f"{name}: {len(block.attentions)} transformers, {len(block.resnets)} resnets"
        for i, transformer in enumerate(block.attentions):
            yield from self._transformer_2d(f"{name}.attentions.{i}", transformer)

    def _resnet_block(self, name: str, resnet: Any) -> Iterator[str]:
        objections = [*self._code(name, resnet, self._resnet)]
        yield from objections
        if objections:
            return
        yield from _differences(name, resnet, _RESNET)
        if resnet.time_emb_proj is None:
            yield f"{name} has no time embedding"
        yield from self._skipped(f"{name}.dropout", resnet.dropout)

    def _transformer_2d(self, name: str, transformer: Any) -> Iterator[str]:
        objections = [*self._code(name, transformer, self._transformer)]
        yield from objections
        if objections:
            return
        yield from _differences(name, transformer, _TRANSFORMER)
        yield from self._lists(name, transformer, ("transformer_blocks",))
        for i, layer in enumerate(transformer.transformer_blocks):
            yield from self._transformer_block(f"{name}.transformer_blocks.{i}", layer)

    def _transformer_block(self, name: str, layer: Any) -> Iterator[str]:
        objections = [*self._code(name, layer, self._layer)]
        yield from objections
        if objections:
            return
        yield from _differences(name, layer, _LAYER)
        if layer.attn2 is None or not getattr(layer.attn2, "is_cross_attention", True):
            yield f"{name} has no cross-attention"
            return
        for part in ("attn1", "attn2"):
            yield from self._attention_layer(f"{name}.{part}", getattr(layer, part))
        yield from self._code(f"{name}.ff", layer.ff, self._feed_forward)
        if type(layer.ff) in self._feed_forward and len(layer.ff.net) != 3:
            yield f"{name}.ff has {len(layer.ff.net)} layers"

    def _attention_layer(self, name: str, attention: Any) -> Iterator[str]:
        objections = [*self._code(name, attention, self._attention)]
        yield from objections
        if objections:
            return
        yield from _differences(name, attention, _ATTENTION)
        processor = type(attention.processor)
        patched = self._functions[processor]
        if processor not in processors():
            yield f"{name} runs a {processor.__name__}"
        elif patched is not None:
            yield f"{name}: {patched} is patched"
        if attention.inner_dim != attention.inner_kv_dim:
            yield f"{name} has fewer heads for keys than for queries"
        # the processors on torch's kernel take 1 / sqrt(d), whatever the attribute says
        width = attention.inner_dim / attention.heads
        kernel = processor.__name__.endswith("2_0")
        if not kernel and not math.isclose(attention.scale, width**-0.5):
            yield f"{name}: scale is {attention.scale!r}"
        if processor.__name__.startswith("Fused"):
            yield from _fused(name, attention)
        yield from self._skipped(f"{name}.to_out.1", attention.to_out[1])

    def _skipped(self, name: str, dropout: Any) -> Iterator[str]:
        """A module that the program does not call must change nothing."""
        yield from self._code(name, dropout, (nn.Dropout, nn.Identity))
        if dropout.training and getattr(dropout, "p", 0) > 0:
            yield f"{name} drops out at random"


def _topology(unet: Any) -> Iterator[str]:
    """One skip connection for each resnet of the up path, made and joined in diffusers' order."""
    made = 1 + sum(len(block.resnets) for block in unet.down_blocks)
    for block in unet.down_blocks:
        downsamplers = block.downsamplers
        if downsamplers is not None and len(downsamplers) != 1:
            yield f"a block has {len(downsamplers)} downsamplers"
        made += downsamplers is not None
    joined = sum(len(block.resnets) for block in unet.up_blocks)
    if made != joined:
        yield f"{made} skip connections are made, {joined} are joined"
    last = len(unet.up_blocks) - 1
    for i, block in enumerate(unet.up_blocks):
        count = len(block.upsamplers or ())
        if count > (i != last):
            yield f"up_blocks.{i} has {count} upsamplers"


def _fused(name: str, attention: Any) -> Iterator[str]:
    """The program calls to_q, to_k and to_v, which the fused projection must have copied."""
    crossed = attention.is_cross_attention
    joined: Any = getattr(attention, "to_kv" if crossed else "to_qkv", None)
    parts = [attention.to_k, attention.to_v]
    parts = parts if crossed else [attention.to_q, *parts]
    # a cross-attention's own to_q is called
    if not all(is_plain(layer, nn.Linear) for layer in (joined, *parts)):
        yield f"{name}: its fused projections are not those of to_q, to_k and to_v"
        return
    weights = torch.cat([layer.weight for layer in parts])
    biases = [layer.bias for layer in parts if layer.bias is not None]
    same = torch.equal(weights, joined.weight)
    if biases:
        same = same and torch.equal(torch.cat(biases), joined.bias)
    if not same:
        yield f"{name}: its fused projections are not those of to_q, to_k and to_v"


def _differences(name: str, found: Any, wanted: dict[str, Any]) -> Iterator[str]:
    for key, value in wanted.items():
        has = getattr(found, key, value)
        if has != value:
            shown = type(has).__name__ if isinstance(has, nn.Module) else repr(has)
            yield f"{name}: {key} is {shown}"
