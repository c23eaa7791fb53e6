"""Torch's attention kernels at the networks' head widths, forward and with the backward pass.

`flash_padded` widens the heads with zeros to the next multiple of 64. The error is the largest
difference of the output from attention in float64.

    python -m benchmarks.speed.gpu.sdpa
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import harness
from benchmarks.speed.gpu.common import parsed, parser_of, seconds, synchronize

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
    "flash_padded": SDPBackend.FLASH_ATTENTION,
}
# heads, queries, keys, width of SD 1.4's three levels and SDXL's largest, self and cross
_SHAPES = (
    (8, 4096, 4096, 40),
    (8, 1024, 1024, 80),
    (8, 256, 256, 160),
    (10, 4096, 4096, 64),
    (8, 4096, 77, 40),
    (10, 4096, 77, 64),
)
_CALLS = 10


def attention(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention of queries, keys and values [N, heads, T, d] by one kernel, never another."""

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        width = query.shape[-1]
        padding = -width % 64 if name == "flash_padded" else 0
        q, k, v = (F.pad(x, (0, padding)) if padding else x for x in (query, key, value))
        try:
            with sdpa_kernel(_BACKENDS[name]):
                return F.scaled_dot_product_attention(q, k, v, scale=width**-0.5)[..., :width]
        except RuntimeError as error:
            # torch's words on a CPU and on a GPU
            if "No viable backend" in str(error) or "No available kernel" in str(error):
                raise harness.NotHere(f"{name} does not take this shape and dtype here") from error
            raise

    return run


def main(arguments: list[str] | None = None) -> int:
    """Time all kernels at all widths."""
    parser = parser_of("sdpa", __doc__, rounds=7)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--shrink", type=int, default=1, help="divide all lengths by this")
    parser.add_argument("--shapes", type=int, help="shapes to time; default: all")
    options = parsed(parser, arguments)
    recorder = harness.Recorder.of(options, "python -m benchmarks.speed.gpu.sdpa")
    dtype = getattr(torch, options.dtype)
    for heads, queries, keys, width in _SHAPES[: options.shapes]:
        sizes = (queries // options.shrink, keys if keys == 77 else keys // options.shrink)
        torch.manual_seed(0)
        q, k, v = (
            # laid out [N, T, heads, d], as in the networks
            torch.randn(options.samples, length, heads, width, device=options.device)
            .to(dtype)
            .transpose(1, 2)
            .requires_grad_()
            for length in (sizes[0], sizes[1], sizes[1])
        )
        exact = F.scaled_dot_product_attention(*(x[:1].detach().double() for x in (q, k, v)))
        shape = f"{options.samples}x{heads}x{sizes[0]}x{sizes[1]}x{width}"
        for name in _BACKENDS:
            run = attention(name)
            facts = {"op": "sdpa", "provider": name, "shape": shape, "dtype": options.dtype}
            with recorder.case(**facts, mode="forward") as case, torch.no_grad():
                error = (run(q, k, v)[:1].double() - exact).abs().max()
                case.write([float(error)], metric="max_error", unit="")
                case.write(_times(partial(run, q, k, v), options), metric="time", unit="us")
            with recorder.case(**facts, mode="forward_backward") as case:
                both = partial(_gradients, run, (q, k, v))
                case.write(_times(both, options), metric="time", unit="us")
        synchronize(options.device)
    return recorder.finish()


def _gradients(run: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> object:
    return torch.autograd.grad(run(*inputs).sum(), inputs)


def _times(call: Callable[[], object], options: argparse.Namespace) -> list[float]:
    """Microseconds per call; many calls, so that launching them overlaps with computing."""
    many = _CALLS if options.device == "cuda" else 1
    found = seconds(lambda: [call() for _ in range(many)][-1], options.device, options.rounds)
    return [1e6 * s / many for s in found]


if __name__ == "__main__":
    sys.exit(main())
