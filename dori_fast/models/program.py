"""A UNet as a flat sequence of stages, so that any part of it can be run once and shared.

Diffusers runs a UNet2DConditionModel block by block; here its own modules are called in the same
order, one stage after the other, on an explicit state. A state is nothing but tensors with the
samples in front, so what was computed for S latents is broadcast to P x S samples by indexing:
everything before the first cross-attention depends on (latent, timestep) alone.

Exact re-associations of what diffusers computes:
- the time embedding of a timestep is folded into the biases of the first convolutions;
- keys and values of all cross-attentions are projected once per prompt, not once per sample;
- a skip connection made before the text is looked at is convolved once per latent: the resnet that
  joins it to h works on cat[h, skip], and a convolution of a concatenation is a sum of two;
- divisions by output_scale_factor and rescale_output_factor, which are 1, are left out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dori_fast.models import joins
from dori_fast.models.attention import Attention, sdpa

_TIMESTEPS_KEPT = 64


@dataclass(frozen=True)
class State:
    """Activations between two stages.

    ``x`` [N, *] is the current one; ``kept`` are those that later stages come back to (skip
    connections, residuals), the next one needed last. All have the N samples in front.
    """

    x: Tensor
    kept: tuple[Tensor, ...] = ()

    def take(self, samples: Tensor) -> State:
        """The state of the given samples: int64 indices [M], repeats allowed."""
        return State(self.x[samples], tuple(kept[samples] for kept in self.kept))

    def push(self, x: Tensor) -> State:
        """Keep the current activation and go on with ``x``."""
        return State(x, (*self.kept, self.x))

    def with_kept(self, *tensors: Tensor) -> State:
        """Keep ``tensors`` and go on with the current activation."""
        return State(self.x, (*self.kept, *tensors))

    def pop(self) -> tuple[Tensor, State]:
        """The activation kept last, and the state without it."""
        return self.kept[-1], State(self.x, self.kept[:-1])

    @staticmethod
    def join(states: list[State]) -> State:
        """States of different samples as one."""
        kept = zip(*(state.kept for state in states), strict=True)
        return State(torch.cat([s.x for s in states]), tuple(torch.cat(k) for k in kept))


TimeBiases = dict[nn.Module, Tensor]
KeysValues = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Stage:
    """One step on a state, given the time biases or (``cross`` set) an attention's keys, values."""

    run: Callable[[State, Any], State]
    cross: int | None = None


class Program:
    """The stages of one UNet; :mod:`dori_fast.models.architecture` says which it may be made of.

    Attributes:
        cross: for each cross-attention, in order, the number of its stage.
    """

    def __init__(self, unet: Any, attention: Attention = sdpa) -> None:
        self._unet = unet
        self._attention = attention
        self._attentions: list[Any] = []
        self._resnets: list[Any] = []
        self._stages: list[Stage] = []
        self.cross: list[int] = []
        # skip connections are joined in the reverse of the order in which they are made
        self._joins = [resnet for block in unet.up_blocks for resnet in block.resnets]
        self._split: set[nn.Module] = set()
        self._build(unet)
        self._time_biases: OrderedDict[int, TimeBiases] = OrderedDict()

    def prefix(self, latents: Tensor, timestep: int) -> State:
        """Everything before the first cross-attention, on latents [N, C, H, W]."""
        return self.run(State(latents), timestep, [], 0, self.cross[0])

    def suffix(self, state: State, keys_values: KeysValues, timestep: int) -> Tensor:
        """The network's output [N, C, H, W] from the prefix's state and the text of each sample."""
        return self.run(state, timestep, keys_values, self.cross[0], len(self._stages)).x

    def token_attention(
        self, state: State, timestep: int, keys_values: KeysValues, layer: int
    ) -> Tensor:
        """Attention [N, T] that each token receives in cross-attention ``layer``, from the prefix.

        The mean over pixels and heads of softmax(q k^T / sqrt(d)), float32.
        """
        queries = self.run(state, timestep, keys_values, self.cross[0], self.cross[layer]).x
        heads = self._attentions[layer].heads
        query, key = (
            x.float().unflatten(-1, (heads, -1)).transpose(1, 2)
            for x in (queries, keys_values[layer][0])
        )
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        return weights.mean((1, 2))

    def run(
        self, state: State, timestep: int, keys_values: KeysValues, start: int, stop: int
    ) -> State:
        """Stages ``start`` to ``stop - 1``, the cross-attentions among them on ``keys_values``."""
        biases = self.time_biases(timestep)
        for stage in self._stages[start:stop]:
            state = stage.run(state, biases if stage.cross is None else keys_values[stage.cross])
        return state

    def keys_values(self, text: Tensor) -> KeysValues:
        """Keys and values [P, T, C] of every cross-attention, for text [P, T, D]."""
        return [(attention.to_k(text), attention.to_v(text)) for attention in self._attentions]

    def time_biases(self, timestep: int) -> TimeBiases:
        """What a timestep adds to each resnet's first convolution: [C] each, computed once."""
        if timestep not in self._time_biases:
            device = self._unet.device
            with torch.no_grad():
                time = torch.tensor([timestep], device=device)
                embedding = self._unet.time_proj(time).to(self._unet.dtype)
                embedding = self._unet.time_embedding(embedding)
                self._time_biases[timestep] = {
                    resnet: resnet.time_emb_proj(resnet.nonlinearity(embedding))[0]
                    for resnet in self._resnets
                }
            if len(self._time_biases) > _TIMESTEPS_KEPT:
                self._time_biases.popitem(last=False)
        return self._time_biases[timestep]

    # -- from modules to stages, in the order of UNet2DConditionModel.forward -----------------

    def _build(self, unet: Any) -> None:
        self._module(unet.conv_in)
        self._skip(unet.conv_in.out_channels)
        for block in unet.down_blocks:
            for i, resnet in enumerate(block.resnets):
                self._resnet(resnet)
                self._transformer(block, i)
                self._skip(resnet.out_channels)
            for downsampler in block.downsamplers or ():
                self._module(downsampler)
                self._skip(downsampler.out_channels)
        self._resnet(unet.mid_block.resnets[0])
        for i, resnet in enumerate(unet.mid_block.resnets[1:]):
            self._transformer(unet.mid_block, i)
            self._resnet(resnet)
        for block in unet.up_blocks:
            for i, resnet in enumerate(block.resnets):
                self._join(resnet)
                self._transformer(block, i)
            for upsampler in block.upsamplers or ():
                self._add(_upsample(upsampler))
        for module in (unet.conv_norm_out, unet.conv_act, unet.conv_out):
            self._module(module)

    def _add(self, run: Callable[[State, Any], State], cross: int | None = None) -> None:
        self._stages.append(Stage(run, cross))

    def _module(self, module: Any) -> None:
        self._add(lambda state, _: State(module(state.x), state.kept))

    def _skip(self, channels: int) -> None:
        """Keep the current activation, of so many channels, for the resnet that will join it."""
        join = self._joins.pop()
        if not self.cross and joins.can_split(join, channels):
            self._split.add(join)
            self._add(lambda state, _: state.with_kept(*joins.skip_part(join, state.x)))
        else:
            self._add(lambda state, _: state.with_kept(state.x))

    def _join(self, resnet: Any) -> None:
        if resnet not in self._split:
            self._add(_concatenate_skip)
            self._resnet(resnet)
            return
        self._resnets.append(resnet)
        self._add(lambda state, biases: _join_parts(resnet, state, biases))

    def _resnet(self, resnet: Any) -> None:
        self._resnets.append(resnet)
        self._add(lambda state, biases: State(_resnet(resnet, state.x, biases), state.kept))

    def _transformer(self, block: Any, index: int) -> None:
        if not getattr(block, "has_cross_attention", False):
            return
        transformer = block.attentions[index]
        self._add(_enter(transformer))
        for layer in transformer.transformer_blocks:
            self._add(_self_attention(layer, self._attention))
            self._add(_query(layer))
            self.cross.append(len(self._stages))
            cross = _cross_attention(layer.attn2, self._attention)
            self._add(cross, cross=len(self._attentions))
            self._attentions.append(layer.attn2)
            self._add(_feed_forward(layer))
        self._add(_leave(transformer))


def _resnet(resnet: Any, x: Tensor, biases: TimeBiases) -> Tensor:
    h = resnet.nonlinearity(resnet.norm1(x))
    h = joins.conv_with_bias(resnet.conv1, h, biases[resnet])
    h = resnet.conv2(resnet.nonlinearity(resnet.norm2(h)))
    return h + (x if resnet.conv_shortcut is None else resnet.conv_shortcut(x))


def _concatenate_skip(state: State, _: Any) -> State:
    skip, state = state.pop()
    return State(torch.cat([state.x, skip], dim=1), state.kept)


def _join_parts(resnet: Any, state: State, biases: TimeBiases) -> State:
    shortcut_part, state = state.pop()
    conv_part, state = state.pop()
    h = joins.join(resnet, state.x, conv_part, shortcut_part, biases[resnet])
    return State(h, state.kept)


def _upsample(upsampler: Any) -> Callable[[State, Any], State]:
    def run(state: State, _: Any) -> State:
        size = state.kept[-1].shape[2:]
        doubled = tuple(2 * side for side in state.x.shape[2:])
        # odd sizes are not doubled but brought to the size of the skip connection
        return State(upsampler(state.x, None if size == doubled else size), state.kept)

    return run


def _enter(transformer: Any) -> Callable[[State, Any], State]:
    """From a picture [N, C, H, W] to tokens [N, HW, C], the picture kept as the residual."""

    def run(state: State, _: Any) -> State:
        h = transformer.norm(state.x)
        if transformer.use_linear_projection:
            return state.push(transformer.proj_in(h.flatten(2).transpose(1, 2)))
        return state.push(transformer.proj_in(h).flatten(2).transpose(1, 2))

    return run


def _leave(transformer: Any) -> Callable[[State, Any], State]:
    def run(state: State, _: Any) -> State:
        residual, state = state.pop()
        n, channels = residual.shape[0], state.x.shape[-1]
        if transformer.use_linear_projection:
            h = transformer.proj_out(state.x).transpose(1, 2).reshape(residual.shape)
        else:
            h = state.x.transpose(1, 2).reshape(n, channels, *residual.shape[2:])
            h = transformer.proj_out(h)
        return State(h + residual, state.kept)

    return run


def _self_attention(layer: Any, attention: Attention) -> Callable[[State, Any], State]:
    module = layer.attn1

    def run(state: State, _: Any) -> State:
        h = layer.norm1(state.x)
        h = _attend(module, attention, module.to_q(h), module.to_k(h), module.to_v(h))
        return State(h + state.x, state.kept)

    return run


def _query(layer: Any) -> Callable[[State, Any], State]:
    """Queries of the cross-attention; the text is not looked at yet."""
    return lambda state, _: state.push(layer.attn2.to_q(layer.norm2(state.x)))


def _cross_attention(module: Any, attention: Attention) -> Callable[[State, Any], State]:
    """From queries [N, HW, C] with the tokens kept below them, to tokens."""

    def run(state: State, keys_values: tuple[Tensor, Tensor]) -> State:
        tokens, rest = state.pop()
        return State(_attend(module, attention, state.x, *keys_values) + tokens, rest.kept)

    return run


def _feed_forward(layer: Any) -> Callable[[State, Any], State]:
    return lambda state, _: State(layer.ff(layer.norm3(state.x)) + state.x, state.kept)


def _attend(module: Any, attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Multi-head attention of queries [N, Q, C] to keys and values [N, K, C], projected out."""
    query, key, value = (x.unflatten(-1, (module.heads, -1)) for x in (query, key, value))
    return module.to_out[0](attention(query, key, value).flatten(2))
