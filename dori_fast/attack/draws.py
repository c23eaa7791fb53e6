"""The noise draws of an attack: each problem has random streams of its own.

A stream depends on (seed, the problem's id) alone, not on the other problems, the device or the
dtype, so a problem has the same draws in any call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from dori_fast.models import Denoiser


def stream(purpose: str, seed: int, problem: int | str) -> torch.Generator:
    """The generator, on the CPU, of one problem for one purpose."""
    digest = hashlib.sha256(f"{purpose}:{seed}:{problem}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class Draws:
    """Fresh (timestep, noise) pairs for P problems, B at a time.

    Each call takes from a problem's stream B timesteps, uniform over the schedule, and then B
    noises in float32. The first n steps of a long attack therefore see what a short one sees.
    """

    def __init__(
        self, model: Denoiser, problems: Sequence[int | str], seed: int, draws: int
    ) -> None:
        self._streams = [stream("noise", seed, problem) for problem in problems]
        self._count = len(model.alphas_cumprod)
        self._shape = (draws, *model.latent_shape)
        self._device, self._dtype = model.device, model.dtype

    def take(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The next draws of A problems: timesteps int64 [A, B] on the CPU, noise [A, B, C, H, W].

        The noise has the model's dtype and device; the copy to a GPU is asynchronous.
        """
        size, on_gpu = (len(rows), *self._shape), self._device.type == "cuda"
        timesteps = torch.empty(size[:2], dtype=torch.int64)
        noise = torch.empty(size, pin_memory=on_gpu)
        for i, row in enumerate(rows):
            torch.randint(
                self._count, self._shape[:1], generator=self._streams[row], out=timesteps[i]
            )
            torch.randn(self._shape, generator=self._streams[row], out=noise[i])
        return timesteps, noise.to(self._device, non_blocking=True).to(self._dtype)
