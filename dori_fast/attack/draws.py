"""Where problems start and what noise they see: each has random streams of its own.

A stream depends on (seed, the problem's id) alone, not on the problems around it, on the device
or on the dtype, so that a problem has one answer wherever and with whomever it is run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from dori_fast.errors import UsageError
from dori_fast.models import Denoiser

STARTS = ("prompt", "gaussian")


def stream(purpose: str, seed: int, problem: int | str) -> torch.Generator:
    """The generator, on the CPU, of one problem for one purpose."""
    digest = hashlib.sha256(f"{purpose}:{seed}:{problem}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class Draws:
    """Fresh (timestep, noise) pairs for P problems, B at a time.

    Each draw of a problem takes B timesteps, uniform over the schedule, and then B noises in
    float32 from its stream: the first n steps of a long attack see what a short one sees.
    """

    def __init__(
        self, model: Denoiser, problems: Sequence[int | str], seed: int, batch: int
    ) -> None:
        self._streams = [stream("noise", seed, problem) for problem in problems]
        self._count = len(model.alphas_cumprod)
        self._shape = (batch, *model.latent_shape)
        self._device, self._dtype = model.device, model.dtype

    def take(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The next draws of A problems: timesteps int64 [A, B] on the CPU, noise [A, B, C, H, W].

        The noise is in model dtype on its device, copied there without waiting.
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


def starting_points(
    model: Denoiser,
    start: str,
    prompts: Sequence[str] | Tensor | None,
    problems: Sequence[int | str],
    seed: int,
) -> tuple[Tensor, Tensor | None]:
    """Embeddings [P, T, D] to start from, and pooled embeddings [P, E] where the model has them.

    In float32, or float64 for a float64 model, whatever narrower dtype the model has.

    Raises:
        UsageError: an unknown start, prompts that it lacks, or not one for each problem.
    """
    if start not in STARTS:
        raise UsageError(f"attack: start must be one of {', '.join(STARTS)}, got {start!r}")
    if prompts is not None and len(prompts) != len(problems):
        raise UsageError(f"attack: {len(problems)} images but {len(prompts)} prompts or starts")
    wide = torch.float64 if model.dtype == torch.float64 else torch.float32
    like = model.unconditional
    if isinstance(prompts, Tensor):
        if like.pooled is not None:
            raise UsageError("attack: an SDXL model needs prompts, for their pooled embeddings")
        return prompts.detach().to(model.device, wide).clone(), None
    if prompts is None and (start == "prompt" or like.pooled is not None):
        raise UsageError("attack: give a prompt for each image, or start='gaussian'")
    condition = None if prompts is None else model.encode(prompts).one_row_each()
    pooled = None if condition is None else condition.pooled
    if start == "prompt" and condition is not None:
        return condition.unique.detach().to(wide).clone(), pooled
    shape = like.unique.shape[1:]
    drawn = [torch.randn(shape, generator=stream("start", seed, p)) for p in problems]
    return torch.stack(drawn).to(model.device, wide), pooled
