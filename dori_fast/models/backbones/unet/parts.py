"""The repeated parts of a UNet as functions of tensors, run as they are or compiled.

Parts are compiled rather than the network: blocks of one shape share their code, which takes
seconds to compile, and sharing and masking between the parts stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dori_fast.models.backbones.unet import joins
from dori_fast.models.engine.attention import Attention

# a network has a few dozen kinds of block, each compiled again for another batch size or dtype;
# beyond this limit dynamo would silently run uncompiled code
_MOST_KINDS = 1024


class Parts:
    """The parts, functions of a module and of feature maps [N, C, H, W] or tokens [N, HW, C].

    Args:
        attention: attention kernel.
        compiled: True to compile each part, once for every kind and shape of block.
    """

    def __init__(self, attention: Attention, compiled: bool = False) -> None:
        self._compiled = compiled
        self.attention = attention
        self.residual = self._maybe_compiled(residual)
        self.join = self._maybe_compiled(joins.join)
        self.enter = self._maybe_compiled(enter)
        self.leave = self._maybe_compiled(leave)
        self.self_attention = self._maybe_compiled(self_attention)
        self.query = self._maybe_compiled(query)
        self.attend = self._maybe_compiled(attend)
        self.feed_forward = self._maybe_compiled(feed_forward)

    def _maybe_compiled(self, part: Callable[..., Tensor]) -> Callable[..., Tensor]:
        if not self._compiled:
            return part
        return torch.compile(part, dynamic=False, fullgraph=True, options=compile_options())

    def running(self) -> AbstractContextManager[Any]:
        """The context in which to call the parts: compiled ones never fall back to plain ones."""
        return never_falling_back() if self._compiled else nullcontext()


def compile_options() -> dict[str, Any]:
    """Options of torch.compile with which every process compiles the same kernels.

    Otherwise inductor times kernels on a GPU and takes the fastest, so that the rounding of a score
    depends on a measurement. As options they also hold for the backward pass, which is compiled
    when it first runs.
    """
    import torch._inductor.config as inductor

    return {"deterministic": True} if hasattr(inductor, "deterministic") else {}


def never_falling_back() -> AbstractContextManager[Any]:
    """A context in which dynamo recompiles for every kind of block, or fails."""
    return torch._dynamo.config.patch(
        recompile_limit=_MOST_KINDS,
        accumulated_recompile_limit=_MOST_KINDS,
        fail_on_recompile_limit_hit=True,
    )


def head_sizes(network: nn.Module) -> list[int]:
    """Widths of the attention heads of a UNet."""
    modules: list[Any] = list(network.modules())
    found = [m for m in modules if hasattr(m, "inner_dim") and hasattr(m, "heads")]
    return sorted({attention.inner_dim // attention.heads for attention in found})


def residual(module: Any, x: Tensor, bias: Tensor, plain: bool) -> Tensor:
    """A residual block; ``bias`` [C] or [N, C] comes from the timestep.

    ``plain`` is whether its first convolution is.
    """
    h = joins.conv_with_bias(module.conv1, module.nonlinearity(module.norm1(x)), bias, plain)
    h = module.conv2(module.nonlinearity(module.norm2(h)))
    return h + (x if module.conv_shortcut is None else module.conv_shortcut(x))


def enter(transformer: Any, x: Tensor) -> Tensor:
    """From a feature map to tokens."""
    h = transformer.norm(x)
    if transformer.use_linear_projection:
        tokens: Tensor = transformer.proj_in(h.flatten(2).transpose(1, 2))
        return tokens
    return transformer.proj_in(h).flatten(2).transpose(1, 2)


def leave(transformer: Any, tokens: Tensor, residual: Tensor) -> Tensor:
    """From tokens back to a feature map, plus the map that they were made from."""
    # diffusers' own memory layout, which the forward derivative of a group norm needs
    plain = residual.is_contiguous()
    layout = torch.contiguous_format if plain else torch.channels_last
    if transformer.use_linear_projection:
        h = transformer.proj_out(tokens).transpose(1, 2).reshape(residual.shape)
        return h.contiguous(memory_format=layout) + residual
    h = tokens.transpose(1, 2).reshape(len(residual), -1, *residual.shape[2:])
    return transformer.proj_out(h.contiguous(memory_format=layout)) + residual


def self_attention(layer: Any, attention: Attention, x: Tensor) -> Tensor:
    """Self-attention of tokens, with its norm and residual."""
    module, h = layer.attn1, layer.norm1(x)
    return x + attend(module, attention, module.to_q(h), module.to_k(h), module.to_v(h))


def query(layer: Any, x: Tensor) -> Tensor:
    """Queries of the cross-attention."""
    queries: Tensor = layer.attn2.to_q(layer.norm2(x))
    return queries


def attend(module: Any, attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Multi-head attention of queries [N, Q, C] to keys and values [N, K, C], projected out."""
    query, key, value = (x.unflatten(-1, (module.heads, -1)) for x in (query, key, value))
    projected: Tensor = module.to_out[0](attention(query, key, value).flatten(2))
    return projected


def feed_forward(layer: Any, x: Tensor) -> Tensor:
    """The feed-forward part of a transformer layer, with its norm and residual."""
    return x + layer.ff(layer.norm3(x))
