"""Forward derivatives of attention and norms, by one kernel each.

Torch's own rules write attention's matrices of Q x K numbers several times, split a norm into a
dozen passes, and have no rule for a group norm with the channels innermost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from dori_fast.models.engine.attention import forward_mode

_aten: Any = torch.ops.aten
_ONLY_INPUT = [True, False, False]


class FusedDerivatives(TorchFunctionMode):
    """A context in which attention, group and layer norms carry tangents in fused kernels.

    Calls without tangents are unchanged, and so is attention with a mask, dropout or causality.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        rule, given = _RULES.get(func), dict(kwargs or {})
        # torch handles a call that passes its inputs by name
        if rule is None or not args or forward_ad.unpack_dual(args[0]).tangent is None:
            return func(*args, **given)
        return rule(func, *args, **given)


def _attention(func: Callable[..., Tensor], *args: Tensor, **options: Any) -> Tensor:
    plain = len(args) == 3 and not any(isinstance(x, Tensor) or x for x in options.values())
    if not plain or any(x.dim() != 4 for x in args):
        return func(*args, **options)
    return forward_mode(*(x.transpose(1, 2) for x in args)).transpose(1, 2)


def _group_norm(
    func: Any,
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    if torch.is_autocast_enabled(x.device.type):
        # autocast runs torch's norms in float32 but does not recognize this one
        x = x.float()
        weight, bias = (part if part is None else part.float() for part in (weight, bias))
    x, along = (part.contiguous() for part in forward_ad.unpack_dual(x))
    samples, channels = x.shape[:2]
    sizes = (samples, channels, x[0, 0].numel(), groups)
    out, mean, rstd = torch.native_group_norm(x, weight, bias, *sizes, eps)
    # (I - 1 1^T / n - z z^T / n) / sigma is symmetric: forward and backward are the same product
    slope = _aten.native_group_norm_backward(along, x, mean, rstd, None, *sizes, _ONLY_INPUT)[0]
    if weight is not None:
        slope = slope * weight.view(-1, *[1] * (x.dim() - 2))
    return forward_ad.make_dual(out, slope)


def _layer_norm(
    func: Any,
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    x, along = forward_ad.unpack_dual(x)
    out, mean, rstd = torch.native_layer_norm(x, shape, weight, bias, eps)
    # symmetric as well
    slope = _aten.native_layer_norm_backward(along, x, shape, mean, rstd, None, None, _ONLY_INPUT)[
        0
    ]
    return forward_ad.make_dual(out, slope if weight is None else slope * weight)


_RULES: dict[Any, Callable[..., Tensor]] = {
    F.scaled_dot_product_attention: _attention,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
}
