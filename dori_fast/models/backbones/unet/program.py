"""A UNet as a flat sequence of stages, so that any part of it can be run once and shared.

Diffusers runs a UNet2DConditionModel block by block. Here its own modules are called in the same
order, one stage after the other, on an explicit state. All work before the text comes in depends
on (latent, timestep) alone, so it is done for S latents and broadcast to P x S samples by indexing.
That is everything before the first cross-attention, or, in SDXL, whose time embedding takes in the
text, the first convolution.

Exact re-associations of what diffusers computes:
- the time embedding of a timestep that all samples share is folded into the biases of the first
  convolutions;
- keys and values of all cross-attentions are projected once per prompt, not once per sample;
- a skip connection made before the text comes in is convolved once per latent: the resnet that
  joins it to h works on cat[h, skip], and a convolution of a concatenation is a sum of two;
- divisions by output_scale_factor and rescale_output_factor, which are 1, are left out.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dori_fast._checks import to_device
from dori_fast.errors import UsageError
from dori_fast.models.backbones.unet import joins, stages
from dori_fast.models.backbones.unet.masking import check_mask, masked
from dori_fast.models.backbones.unet.parts import Parts
from dori_fast.models.backbones.unet.stages import Run, TimeBiases
from dori_fast.models.engine.attention import sdpa
from dori_fast.models.engine.backbone import Observe
from dori_fast.models.engine.graphs import Graphs
from dori_fast.models.engine.state import State, TextPart, Timestep
from dori_fast.models.masks import Masks, NeuronMask, WeightMask

_TIMESTEPS_KEPT = 64


@dataclass(frozen=True)
class Stage:
    """One step on a state, with one more input.

    The input is the keys and values of an attention if ``cross`` is the number of a transformer
    layer, the pruned weights of a feed-forward if ``forward`` is, and otherwise the time biases.
    """

    run: Run
    cross: int | None = None
    forward: int | None = None

    def takes(self, text: TextPart | None, biases: TimeBiases | None) -> Any:
        """The input besides the state."""
        if text is not None and self.cross is not None:
            return text.keys_values[self.cross]
        if text is not None and self.forward is not None:
            return text.pruned.get(self.forward)
        return biases


class Program:
    """The stages of one UNet of a kind that :mod:`.objections` accepts.

    Attributes:
        cross: stage number of each cross-attention, in order.
        names: names of the cross-attentions in the UNet, in the same order.
        second_linears: second linear layer of each feed-forward by name, in the same order.
        recompute: whether to keep, for the backward pass, only the states between stages.
    """

    recompute = False

    def __init__(
        self,
        unet: Any,
        parts: Parts | None = None,
        image_size: tuple[int, int] = (0, 0),
        graphs: Graphs | None = None,
        observe: Observe | None = None,
    ) -> None:
        self._unet = unet
        self._parts = parts or Parts(sdpa)
        self._graphs, self._observe = graphs, observe
        self._image_size = image_size
        self._text_in_time = unet.config.addition_embed_type == "text_time"
        self._attentions: list[Any] = []
        self._forwards: list[Any] = []
        self._resnets: list[Any] = []
        self._stages: list[Stage] = []
        self.cross: list[int] = []
        self._first = 0
        # skip connections are joined in the reverse of the order in which they are made
        self._joins = [resnet for block in unet.up_blocks for resnet in block.resnets]
        self._split: set[nn.Module] = set()
        self._build(unet)
        names = {module: name for name, module in unet.named_modules()}
        self.names = [names[attention] for attention in self._attentions]
        self.second_linears = {f"{names[ff]}.net.2": ff.net[2] for ff in self._forwards}
        self._kept_biases: OrderedDict[int, TimeBiases] = OrderedDict()

    def prefix(self, latents: Tensor, timestep: Timestep) -> State:
        """All work before the text comes in, on latents [N, C, H, W]."""
        return self._run(State(latents), None, timestep, 0, self._first)

    def between(
        self, state: State, text: TextPart, timestep: Timestep, start: int, stop: int
    ) -> State:
        """The stages from place ``start`` up to cross-attention ``stop``.

        Place 0 is where the text comes in, place n is before cross-attention n.
        """
        return self._run(state, text, timestep, self._place(start), self.cross[stop])

    def suffix(self, state: State, text: TextPart, timestep: Timestep, start: int = 0) -> Tensor:
        """The network's output [N, C, H, W] from place ``start`` on; see :meth:`between`."""
        return self.finish(state, text, timestep, start).x

    def finish(self, state: State, text: TextPart, timestep: Timestep, start: int = 0) -> State:
        """The output, and the observed values of each feed-forward, the last one first."""
        return self._run(state, text, timestep, self._place(start), len(self._stages))

    def weights_changed(self) -> None:
        """Discard the time biases, which were computed with the old weights."""
        self._kept_biases.clear()

    def _place(self, start: int) -> int:
        return self.cross[start] if start else self._first

    def token_attention(
        self, state: State, text: TextPart, timestep: Timestep, layer: int
    ) -> Tensor:
        """Attention [N, T] that each token receives in cross-attention ``layer``, float32.

        It is the mean over pixels and heads of softmax(q k^T / sqrt(d)), from the prefix's state.
        """
        queries = self.between(state, text, timestep, 0, layer).x
        heads = self._attentions[layer].heads
        query, key = (
            x.float().unflatten(-1, (heads, -1)).transpose(1, 2)
            for x in (queries, text.keys_values[layer][0])
        )
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        return weights.mean((1, 2))

    def _run(
        self, state: State, text: TextPart | None, timestep: Timestep, start: int, stop: int
    ) -> State:
        """Stages ``start`` to ``stop - 1``."""

        def run(state: State, text: TextPart | None, biases: TimeBiases | None) -> State:
            for stage in self._stages[start:stop]:
                given = stage.takes(text, biases)
                if self.recompute and torch.is_grad_enabled():
                    state = checkpoint(
                        stage.run, state, given, use_reentrant=False, preserve_rng_state=False
                    )
                else:
                    state = stage.run(state, given)
            return state

        biases = self._biases(text, timestep)
        with self._parts.running():
            if self._graphs is None or text is None or stop < len(self._stages):
                return run(state, text, biases)
            return self._graphs.run((start, stop), run, state, text, biases)

    def text_part(self, text: Tensor, pooled: Tensor | None) -> TextPart:
        """The contribution of texts [P, T, D] (and, in SDXL, of pooled embeddings [P, E])."""
        keys_values = [(a.to_k(text), a.to_v(text)) for a in self._attentions]
        if not self._text_in_time:
            return TextPart(keys_values)
        added = added_conditions(pooled, self._image_size)
        time = self._unet.get_aug_embed(
            emb=text, encoder_hidden_states=text, added_cond_kwargs=added
        )
        return TextPart(keys_values, time)

    @property
    def value_widths(self) -> dict[str, int]:
        """Number of value neurons of each cross-attention, by name."""
        return {name: _width(name, a) for name, a in zip(self.names, self._attentions, strict=True)}

    def masked(self, part: TextPart, masks: Masks, text: Tensor) -> TextPart:
        """The text part of N samples under masks; see :func:`.masking.masked`."""
        return masked(part, masks, text, self.names, self.second_linears)

    def check_mask(self, mask: NeuronMask | WeightMask) -> None:
        """Raise UsageError if the mask's layers or shapes are not the UNet's."""
        check_mask(mask, self.value_widths, self.second_linears)

    def _biases(self, text: TextPart | None, timestep: Timestep) -> TimeBiases | None:
        """The addition to each resnet's first convolution; None before SDXL's text comes in."""
        if not self._text_in_time:
            return self._time_biases(timestep)
        if text is None or text.time is None:
            return None
        return self._resnet_biases(self._time_embedding(timestep) + text.time)

    def _time_biases(self, timestep: Timestep) -> TimeBiases:
        """The timesteps' additions: [C] for one timestep, computed once, or [N, C]."""
        if isinstance(timestep, Tensor):
            return self._resnet_biases(self._time_embedding(timestep))
        if timestep not in self._kept_biases:
            with torch.no_grad():
                biases = self._resnet_biases(self._time_embedding(timestep))
            self._kept_biases[timestep] = {resnet: bias[0] for resnet, bias in biases.items()}
            if len(self._kept_biases) > _TIMESTEPS_KEPT:
                self._kept_biases.popitem(last=False)
        return self._kept_biases[timestep]

    def _time_embedding(self, timestep: Timestep) -> Tensor:
        time = to_device(torch.as_tensor(timestep), self._unet.device).reshape(-1)
        embedding: Tensor = self._unet.time_embedding(
            self._unet.time_proj(time).to(self._unet.dtype)
        )
        return embedding

    def _resnet_biases(self, embedding: Tensor) -> TimeBiases:
        return {r: r.time_emb_proj(r.nonlinearity(embedding)) for r in self._resnets}

    # -- from modules to stages, in the order of UNet2DConditionModel.forward -----------------

    def _build(self, unet: Any) -> None:
        self._module(unet.conv_in)
        self._skip(unet.config.block_out_channels[0])
        for block in unet.down_blocks:
            for i, resnet in enumerate(block.resnets):
                self._resnet(resnet)
                self._transformer(block, i)
                self._skip(resnet.out_channels)
            for downsampler in block.downsamplers or ():
                self._module(downsampler)
                self._skip(block.resnets[-1].out_channels)
        self._resnet(unet.mid_block.resnets[0])
        for i, resnet in enumerate(unet.mid_block.resnets[1:]):
            self._transformer(unet.mid_block, i)
            self._resnet(resnet)
        for block in unet.up_blocks:
            for i, resnet in enumerate(block.resnets):
                self._join(resnet)
                self._transformer(block, i)
            for upsampler in block.upsamplers or ():
                self._add(stages.upsample(upsampler))
        for module in (unet.conv_norm_out, unet.conv_act, unet.conv_out):
            self._module(module)

    def _add(self, run: Run, cross: int | None = None, forward: int | None = None) -> None:
        self._stages.append(Stage(run, cross, forward))

    def _module(self, module: Any) -> None:
        self._add(lambda state, _: State(module(state.x), state.kept))

    def _skip(self, channels: int) -> None:
        """Keep the current activation, with so many channels, for the resnet that will join it."""
        join = self._joins.pop()
        if not self._first and joins.can_split(join, channels):
            self._split.add(join)
            self._add(lambda state, _: state.with_kept(*joins.skip_part(join, state.x)))
        else:
            self._add(lambda state, _: state.with_kept(state.x))

    def _join(self, resnet: Any) -> None:
        if resnet not in self._split:
            self._add(stages.concatenate_skip)
            self._resnet(resnet)
            return
        self._resnets.append(resnet)
        self._add(stages.join_parts(resnet, self._parts))

    def _resnet(self, resnet: Any) -> None:
        if self._text_in_time:
            self._text_comes_in()
        self._resnets.append(resnet)
        self._add(stages.resnet(resnet, self._parts))

    def _text_comes_in(self) -> None:
        self._first = self._first or len(self._stages)

    def _transformer(self, block: Any, index: int) -> None:
        if not getattr(block, "has_cross_attention", False):
            return
        transformer = block.attentions[index]
        self._add(stages.enter(transformer, self._parts))
        for layer in transformer.transformer_blocks:
            self._add(stages.self_attention(layer, self._parts))
            self._add(stages.query(layer, self._parts))
            self._text_comes_in()
            self.cross.append(len(self._stages))
            cross = stages.cross_attention(layer.attn2, self._parts)
            number = len(self._attentions)
            self._add(cross, cross=number)
            self._add(stages.feed_forward(layer, self._parts, self._observe), forward=number)
            self._attentions.append(layer.attn2)
            self._forwards.append(layer.ff)
        self._add(stages.leave(transformer, self._parts))


def _width(name: str, attention: Any) -> int:
    width = getattr(attention.to_v, "out_features", None)
    if width is None:
        kind = type(attention.to_v).__name__
        raise UsageError(f"{name}: to_v is a {kind} of unknown width; put a linear layer there")
    return int(width)


def added_conditions(
    pooled: Tensor | None, image_size: tuple[int, int]
) -> dict[str, Tensor] | None:
    """SDXL's added conditions for pooled embeddings [P, E]: an uncropped image of this size."""
    if pooled is None:
        return None
    height, width = image_size
    ids = to_device(torch.tensor([height, width, 0, 0, height, width]), pooled.device)
    return {"text_embeds": pooled, "time_ids": ids.to(pooled.dtype).expand(len(pooled), -1)}
