"""TF32 on a CPU: a network whose products have the inputs that a GPU would round.

A GPU that computes a float32 product in TF32 rounds both factors to 10 bits of mantissa, multiplies
them exactly and adds up in float32. Rounding the factors first and computing in float32 differs
from that by the order of the sums alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_aten: Any = torch.ops.aten
# positions of the factors among the arguments
_FACTORS = {
    _aten.convolution.default: (0, 1),
    _aten.mm.default: (0, 1),
    _aten.addmm.default: (1, 2),
    _aten.bmm.default: (0, 1),
    _aten.baddbmm.default: (1, 2),
}
_DROPPED = 13
"""Bits of float32's mantissa that TF32 does not have."""


def rounded(x: Tensor) -> Tensor:
    """float32 [*], rounded to TF32, to the nearest and to even."""
    bits = x.contiguous().view(torch.int32)
    half = (1 << (_DROPPED - 1)) - 1
    bits = bits + half + ((bits >> _DROPPED) & 1)
    return (bits & -(1 << _DROPPED)).view(torch.float32)


class Tf32(TorchDispatchMode):
    """A context in which convolutions and matrix products with a network's weights are in TF32.

    Below automatic differentiation, so that tangents are rounded as well. Attention is not changed.

    Attributes:
        products: number of products so far.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.products = 0
        self._weights = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given, places = list(args), _FACTORS.get(func, ())
        factors = [given[i] for i in places]
        if any(x.untyped_storage().data_ptr() in self._weights for x in factors):
            self.products += 1
            for i, x in zip(places, factors, strict=True):
                given[i] = rounded(x)
        return func(*given, **(kwargs or {}))
