"""The steps of a UNet, each a function from a state to the next, on diffusers' own modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dori_fast.models import joins
from dori_fast.models.attention import Attention
from dori_fast.models.state import Pruned, State, TimeBiases

Run = Callable[[State, Any], State]
"""A step: on the state, and on what its :class:`~dori_fast.models.program.Stage` takes besides."""

Observe = Callable[[Tensor], Tensor]
"""What is wanted of activations [N, *]: a tensor with the same samples in front."""


def resnet(module: Any) -> Run:
    """A residual block on a picture [N, C, H, W]."""

    def run(state: State, biases: TimeBiases) -> State:
        x = state.x
        h = joins.conv_with_bias(module.conv1, module.nonlinearity(module.norm1(x)), biases[module])
        h = module.conv2(module.nonlinearity(module.norm2(h)))
        shortcut = x if module.conv_shortcut is None else module.conv_shortcut(x)
        return State(h + shortcut, state.kept)

    return run


def concatenate_skip(state: State, _: Any) -> State:
    """Join the skip connection kept last to the current activation."""
    skip, state = state.pop()
    return State(torch.cat([state.x, skip], dim=1), state.kept)


def join_parts(module: Any) -> Run:
    """A residual block whose skip connection was convolved apart."""

    def run(state: State, biases: TimeBiases) -> State:
        shortcut_part, state = state.pop()
        conv_part, state = state.pop()
        h = joins.join(module, state.x, conv_part, shortcut_part, biases[module])
        return State(h, state.kept)

    return run


def upsample(upsampler: Any) -> Run:
    """Twice the height and width, or those of the skip connection that comes next."""

    def run(state: State, _: Any) -> State:
        size = state.kept[-1].shape[2:]
        doubled = tuple(2 * side for side in state.x.shape[2:])
        # odd sizes are not doubled but brought to the size of the skip connection
        return State(upsampler(state.x, None if size == doubled else size), state.kept)

    return run


def enter(transformer: Any) -> Run:
    """From a picture [N, C, H, W] to tokens [N, HW, C], the picture kept as the residual."""

    def run(state: State, _: Any) -> State:
        h = transformer.norm(state.x)
        if transformer.use_linear_projection:
            return state.push(transformer.proj_in(h.flatten(2).transpose(1, 2)))
        return state.push(transformer.proj_in(h).flatten(2).transpose(1, 2))

    return run


def leave(transformer: Any) -> Run:
    """From tokens [N, HW, C] back to a picture, the residual added."""

    def run(state: State, _: Any) -> State:
        residual, state = state.pop()
        n, channels = residual.shape[0], state.x.shape[-1]
        # contiguous, as diffusers has it: the forward derivative of a group norm needs it
        if transformer.use_linear_projection:
            h = transformer.proj_out(state.x).transpose(1, 2).reshape(residual.shape).contiguous()
        else:
            h = state.x.transpose(1, 2).reshape(n, channels, *residual.shape[2:]).contiguous()
            h = transformer.proj_out(h)
        return State(h + residual, state.kept)

    return run


def self_attention(layer: Any, attention: Attention) -> Run:
    """Self-attention on tokens [N, HW, C], with its norm and residual."""
    module = layer.attn1

    def run(state: State, _: Any) -> State:
        h = layer.norm1(state.x)
        h = _attend(module, attention, module.to_q(h), module.to_k(h), module.to_v(h))
        return State(h + state.x, state.kept)

    return run


def query(layer: Any) -> Run:
    """Queries of the cross-attention; the text is not looked at yet."""
    return lambda state, _: state.push(layer.attn2.to_q(layer.norm2(state.x)))


def cross_attention(module: Any, attention: Attention) -> Run:
    """From queries [N, HW, C] with the tokens kept below them, to tokens."""

    def run(state: State, keys_values: tuple[Tensor, Tensor]) -> State:
        tokens, rest = state.pop()
        return State(_attend(module, attention, state.x, *keys_values) + tokens, rest.kept)

    return run


def feed_forward(layer: Any, observe: Observe | None = None) -> Run:
    """The feed-forward part of a transformer layer, with its norm and residual.

    What ``observe`` makes of the inputs [N, HW, 4C] of the second linear layer is put aside.
    """

    def run(state: State, pruned: Pruned | None) -> State:
        h = layer.norm3(state.x)
        if pruned is None and observe is None:
            return State(layer.ff(h) + state.x, state.kept)
        first, dropout, second = layer.ff.net
        h = dropout(first(h))
        if observe is not None:
            state = state.with_aside(observe(h))
        h = second(h) if pruned is None else _pruned_linear(second, h, pruned)
        return State(h + state.x, state.kept)

    return run


def _pruned_linear(second: Any, h: Tensor, pruned: Pruned) -> Tensor:
    """A linear layer on [N, HW, I] that lacks weights."""
    if pruned.same:
        return F.linear(h, pruned.weight(second.weight, 0), second.bias)
    # one by one, so that no sample's rounding depends on its neighbours
    weights = {row: pruned.weight(second.weight, row) for row in set(pruned.rows)}
    outputs = [
        F.linear(h[n : n + 1], weights[row], second.bias) for n, row in enumerate(pruned.rows)
    ]
    return torch.cat(outputs)


def _attend(module: Any, attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Multi-head attention of queries [N, Q, C] to keys and values [N, K, C], projected out."""
    query, key, value = (x.unflatten(-1, (module.heads, -1)) for x in (query, key, value))
    return module.to_out[0](attention(query, key, value).flatten(2))
