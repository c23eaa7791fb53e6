"""The attention kernel of the stage program: torch's own, or xformers' where it is asked for.

Both compute softmax(q k^T / sqrt(d)) v and differ by rounding alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from dori_fast.errors import UsageError
from dori_fast.ops import sdpa_jvp

KERNELS = ("auto", "sdpa", "xformers")
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A function of queries [N, Q, heads, d], keys and values [N, K, heads, d]: [N, Q, heads, d]."""


def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def forward_mode(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention that carries tangents, for forward-mode differentiation.

    Torch's only kernel that carries them is the unfused one, with matrices of Q x K numbers.
    `sdpa_jvp` gives output and tangent at once in linear memory, and in less time on a CPU too.
    """
    duals = [forward_ad.unpack_dual(x.transpose(1, 2)) for x in (query, key, value)]
    primals, tangents = ([dual[i] for dual in duals] for i in range(2))
    if all(tangent is None for tangent in tangents):
        return sdpa(query, key, value)
    out, tangent = sdpa_jvp(*primals, *tangents)
    return forward_ad.make_dual(out, tangent).transpose(1, 2)


def xformers(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """xformers.ops.memory_efficient_attention; CUDA only."""
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(query, key, value)


def why_not_xformers(
    device: torch.device, dtype: torch.dtype, head_sizes: Collection[int]
) -> str | None:
    """The reason why xformers cannot run on a device and dtype, or None if it can.

    It has an operator for some widths of heads only, and for fewer of them a backward pass, which
    attacks and mitigation need. Both are tried at every width.
    """
    if importlib.util.find_spec("xformers") is None:
        return "xformers is not installed (pip install 'dori-fast[xformers]')"
    if device.type != "cuda":
        return f"xformers has no attention for {device.type} tensors"
    for size in head_sizes:
        what = f"heads of {size} values in {str(dtype).removeprefix('torch.')}"
        try:
            _try_xformers(torch.zeros(1, 8, 1, size, dtype=dtype, device=device))
        except (NotImplementedError, ImportError, OSError, RuntimeError, ValueError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return f"xformers finds no operator for {what}: {lines[0]}"
    return None


@torch.enable_grad()
def _try_xformers(sample: Tensor) -> None:
    sample.requires_grad_()
    xformers(sample, sample, sample).sum().backward()


def choose(
    kernel: str, device: torch.device, dtype: torch.dtype, head_sizes: Collection[int]
) -> tuple[str, Attention]:
    """The kernel's name and function for heads of these widths.

    ``"auto"`` is torch's own, which has a kernel for every width. No row in benchmarks/results
    shows that xformers is faster, and the rounding of a score must not depend on what is installed.

    Raises:
        UsageError: an unknown kernel, or a named one that cannot run here.
    """
    if kernel not in KERNELS:
        raise UsageError(f"load: attention must be one of {', '.join(KERNELS)}, got {kernel!r}")
    if kernel != "xformers":
        return "sdpa", sdpa
    reason = why_not_xformers(device, dtype, head_sizes)
    if reason is not None:
        raise UsageError(
            f"load: attention 'xformers' is unavailable: {reason}; use attention='sdpa'"
        )
    return "xformers", xformers
