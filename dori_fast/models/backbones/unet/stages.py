"""The steps of a UNet, each a function from a state to the next, on diffusers' own modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dori_fast.models.backbones.unet import joins
from dori_fast.models.backbones.unet.parts import Parts
from dori_fast.models.engine.backbone import Observe
from dori_fast.models.engine.state import Pruned, State

TimeBiases = dict[nn.Module, Tensor]
"""By resnet, the time embedding's addition to its first convolution: [C], or [N, C] by sample."""

Run = Callable[[State, Any], State]
"""A step: a function of the state and of the input that its ``program.Stage`` selects."""


def resnet(module: Any, parts: Parts) -> Run:
    """A residual block on a feature map [N, C, H, W]."""
    plain = joins.is_plain_conv(module.conv1)

    def run(state: State, biases: TimeBiases) -> State:
        return State(parts.residual(module, state.x, biases[module], plain), state.kept)

    return run


def concatenate_skip(state: State, _: Any) -> State:
    """Join the skip connection kept last to the current activation."""
    skip, state = state.pop()
    return State(torch.cat([state.x, skip], dim=1), state.kept)


def join_parts(module: Any, parts: Parts) -> Run:
    """A residual block whose skip connection was convolved apart."""

    def run(state: State, biases: TimeBiases) -> State:
        shortcut_part, state = state.pop()
        conv_part, state = state.pop()
        h = parts.join(module, state.x, conv_part, shortcut_part, biases[module])
        return State(h, state.kept)

    return run


def upsample(upsampler: Any) -> Run:
    """Upsampling to twice the height and width, or to those of the next skip connection."""

    def run(state: State, _: Any) -> State:
        size = state.kept[-1].shape[2:]
        doubled = tuple(2 * side for side in state.x.shape[2:])
        # an odd side was rounded down on the way in, so its double is not the skip connection's
        return State(upsampler(state.x, None if size == doubled else size), state.kept)

    return run


def enter(transformer: Any, parts: Parts) -> Run:
    """From a feature map [N, C, H, W] to tokens [N, HW, C]; the map is kept as the residual."""
    return lambda state, _: state.push(parts.enter(transformer, state.x))


def leave(transformer: Any, parts: Parts) -> Run:
    """From tokens [N, HW, C] back to a feature map, plus the residual."""

    def run(state: State, _: Any) -> State:
        residual, rest = state.pop()
        return State(parts.leave(transformer, state.x, residual), rest.kept)

    return run


def self_attention(layer: Any, parts: Parts) -> Run:
    """Self-attention on tokens [N, HW, C], with its norm and residual."""
    return lambda state, _: State(parts.self_attention(layer, parts.attention, state.x), state.kept)


def query(layer: Any, parts: Parts) -> Run:
    """Queries of the cross-attention, which do not depend on the text."""
    return lambda state, _: state.push(parts.query(layer, state.x))


def cross_attention(module: Any, parts: Parts) -> Run:
    """Cross-attention from queries [N, HW, C], with the tokens kept below them, to tokens."""

    def run(state: State, keys_values: tuple[Tensor, Tensor]) -> State:
        tokens, rest = state.pop()
        attended = parts.attend(module, parts.attention, state.x, *keys_values)
        return State(attended + tokens, rest.kept)

    return run


def feed_forward(layer: Any, parts: Parts, observe: Observe | None = None) -> Run:
    """The feed-forward part of a transformer layer, with its norm and residual.

    The values of ``observe`` for the inputs [N, HW, 4C] of the second linear layer are put aside.
    """

    def run(state: State, pruned: Pruned | None) -> State:
        if pruned is None and observe is None:
            return State(parts.feed_forward(layer, state.x), state.kept)
        first, dropout, second = layer.ff.net
        h = dropout(first(layer.norm3(state.x)))
        if observe is not None:
            state = state.with_aside(observe(h))
        h = second(h) if pruned is None else _pruned_linear(second, h, pruned)
        return State(h + state.x, state.kept)

    return run


def _pruned_linear(second: Any, h: Tensor, pruned: Pruned) -> Tensor:
    """A linear layer with pruned weights on [N, HW, I]."""
    if pruned.same:
        return F.linear(h, pruned.weight(second.weight, 0), second.bias)
    # one by one, so that no sample's rounding depends on its neighbors
    weights = {row: pruned.weight(second.weight, row) for row in set(pruned.rows)}
    outputs = [
        F.linear(h[n : n + 1], weights[row], second.bias) for n, row in enumerate(pruned.rows)
    ]
    return torch.cat(outputs)
