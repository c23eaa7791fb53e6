"""Convolutions split into parts: the time bias that they add, and the skip that they join.

A resnet of the up path computes conv1(silu(norm1(cat[h, skip]))) and shortcut(cat[h, skip]). Both
convolutions are linear in the concatenation, and the group norm acts within groups, so when no
group holds channels of both, the skip's part can be computed apart from h: exact up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def conv_with_bias(conv: Any, x: Tensor, extra: Tensor) -> Tensor:
    """``conv(x)`` plus ``extra`` [C] or [N, C] on each channel, in one pass where possible."""
    if extra.ndim == 1 and _is_plain(conv):
        return F.conv2d(x, conv.weight, conv.bias + extra, conv.stride, conv.padding)
    # each sample has its own bias, or a wrapped convolution (LoRA) has no single bias
    return conv(x) + extra[..., None, None]


def can_split(resnet: Any, skip_channels: int) -> bool:
    """Whether the part of a skip connection with so many channels can be computed apart."""
    norm = resnet.norm1
    own = norm.num_channels - skip_channels
    whole_groups = own % (norm.num_channels // norm.num_groups) == 0
    return whole_groups and _is_plain(resnet.conv1) and _is_plain(resnet.conv_shortcut)


def skip_part(resnet: Any, skip: Tensor) -> tuple[Tensor, Tensor]:
    """A skip connection's additions to the resnet's first convolution and to its shortcut."""
    own = resnet.norm1.num_channels - skip.shape[1]
    h = resnet.nonlinearity(_group_norm(resnet.norm1, skip, own))
    conv, shortcut = resnet.conv1, resnet.conv_shortcut
    return (
        F.conv2d(h, conv.weight[:, own:], None, conv.stride, conv.padding),
        F.conv2d(skip, shortcut.weight[:, own:]),
    )


def join(
    resnet: Any, x: Tensor, conv_part: Tensor, shortcut_part: Tensor, time_bias: Tensor
) -> Tensor:
    """The resnet's output from ``x``, the parts of its skip connection and the time bias.

    The bias is [C], or [N, C] if each sample has its own.
    """
    own = x.shape[1]
    conv, shortcut = resnet.conv1, resnet.conv_shortcut
    h = resnet.nonlinearity(_group_norm(resnet.norm1, x, 0))
    bias = conv.bias + time_bias if time_bias.ndim == 1 else conv.bias
    h = F.conv2d(h, conv.weight[:, :own], bias, conv.stride, conv.padding) + conv_part
    if time_bias.ndim > 1:
        h = h + time_bias[..., None, None]
    h = resnet.conv2(resnet.nonlinearity(resnet.norm2(h)))
    return h + F.conv2d(x, shortcut.weight[:, :own], shortcut.bias) + shortcut_part


def _group_norm(norm: nn.GroupNorm, x: Tensor, first_channel: int) -> Tensor:
    """The norm restricted to the channels of ``x``, which start at ``first_channel``."""
    channels = slice(first_channel, first_channel + x.shape[1])
    groups = x.shape[1] * norm.num_groups // norm.num_channels
    return F.group_norm(x, groups, norm.weight[channels], norm.bias[channels], norm.eps)


def _is_plain(conv: Any) -> bool:
    return type(conv) is nn.Conv2d and conv.bias is not None and not conv._forward_hooks
