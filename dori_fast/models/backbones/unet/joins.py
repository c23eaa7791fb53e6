"""Convolutions split into parts: the time bias that they add, and the skip that they join.

A resnet of the up path computes conv1(silu(norm1(cat[h, skip]))) and shortcut(cat[h, skip]). Both
convolutions are linear in the concatenation, and the group norm acts within groups, so when no
group holds channels of both, the skip's part can be computed apart from h: exact up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dori_fast.models.backbones.unet.stock import changed_code, hooks, is_plain

# activations that act on each number by itself, so that channels may be split
_ELEMENTWISE = (nn.SiLU, nn.Mish, nn.GELU, nn.ReLU)


def conv_with_bias(conv: Any, x: Tensor, extra: Tensor, plain: bool) -> Tensor:
    """``conv(x)`` plus ``extra`` [C] or [N, C] on each channel, in one pass where possible.

    ``plain`` is :func:`is_plain_conv` of it.
    """
    if extra.ndim == 1 and plain:
        return F.conv2d(x, conv.weight, conv.bias + extra, conv.stride, conv.padding)
    # each sample has its own bias, or a wrapped convolution (LoRA) has no single bias
    return conv(x) + extra[..., None, None]


def can_split(resnet: Any, skip_channels: int) -> bool:
    """Whether the part of a skip connection with so many channels can be computed apart."""
    norm = resnet.norm1
    own = norm.num_channels - skip_channels
    whole_groups = own % (norm.num_channels // norm.num_groups) == 0
    return (
        whole_groups
        and norm.weight is not None
        and is_plain(norm, nn.GroupNorm)
        and type(resnet.nonlinearity) in _ELEMENTWISE
        and not changed_code(resnet.nonlinearity)
        and not hooks(resnet.nonlinearity)
        and is_plain_conv(resnet.conv1)
        and is_plain_conv(resnet.conv_shortcut)
        and resnet.conv_shortcut.kernel_size == (1, 1)
        and resnet.conv_shortcut.stride == (1, 1)
        and resnet.conv_shortcut.padding == (0, 0)
    )


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


def is_plain_conv(conv: Any) -> bool:
    """Whether a convolution is ``F.conv2d`` of its own weight, bias, stride and padding."""
    # seamless tiling makes the padding circular
    return (
        is_plain(conv, nn.Conv2d)
        and conv.bias is not None
        and conv.padding_mode == "zeros"
        and conv.dilation == (1, 1)
        and conv.groups == 1
    )
