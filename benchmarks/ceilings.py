"""The machine's ceilings: a plain copy and a matrix product, timed in the same run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from benchmarks.harness import Timer, interleave

_ROUNDS = 15
# far larger than the GPU's cache, which the GPU timer flushes before each call
_LEAST_GPU_COPY = 2**30
_MATRIX_SIDE = {"cpu": 1024, "cuda": 8192}


class Ceilings:
    """Bandwidth and arithmetic rate of PyTorch on a device, by one timer, measured on first use.

    100 % of the roofline is the time of copying as many bytes, or of a matrix product with as many
    operations, whichever is longer. An op that mostly reads can exceed 100 %, since half of a
    copy's bytes are writes.
    """

    def __init__(self, device: str, timer: Timer) -> None:
        self.device, self.timer = device, timer
        # cached per instance: other thread counts and devices have other ceilings
        self._bandwidth = cache(self._measure_bandwidth)
        self._rate = cache(self._measure_rate)

    def bandwidth(self, moved: int) -> float:
        """Bytes per second of a copy that reads and writes `moved` bytes in total.

        On a CPU the copy is as large as the problem, so both stay in the same cache. Sizes are
        rounded up to a power of two.
        """
        size = 1 << max(moved - 1, 4095).bit_length()
        return self._bandwidth(max(size, _LEAST_GPU_COPY) if self.device == "cuda" else size)

    def rate(self, dtype: torch.dtype) -> float:
        """Floating-point operations per second of a matrix product; a multiply-add is two.

        A processor without half-precision arithmetic computes in float32, so the faster dtype
        counts.
        """
        half_on_cpu = self.device == "cpu" and dtype == torch.float16
        return max(self._rate(d) for d in {torch.float32, torch.float32 if half_on_cpu else dtype})

    def seconds(self, *, bytes: int, flops: int, dtype: torch.dtype) -> float:
        """The least time for this traffic and arithmetic: the longer of the two."""
        by_memory = bytes / self.bandwidth(bytes) if bytes else 0.0
        return max(by_memory, flops / self.rate(dtype) if flops else 0.0)

    def _best(self, call: Callable[[], object]) -> float:
        return min(interleave({"ceiling": call}, self.timer, _ROUNDS)["ceiling"])

    def _measure_bandwidth(self, moved: int) -> float:
        source = torch.ones(moved // 8, device=self.device)
        target = torch.empty_like(source)
        return moved / self._best(lambda: target.copy_(source))

    def _measure_rate(self, dtype: torch.dtype) -> float:
        side = _MATRIX_SIDE[self.device]
        a, b = (torch.randn(side, side, device=self.device).to(dtype) for _ in range(2))
        result = torch.empty_like(a)
        return 2 * side**3 / self._best(lambda: torch.mm(a, b, out=result))
