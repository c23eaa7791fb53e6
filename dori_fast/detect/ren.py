"""The cross-attention entropy of Ren et al., ECCV 2024 (renjie3/MemAttn at c66efd2), "mode E".

In one cross-attention layer (the fourth) at the first denoising step, let a [T] be the attention
that each token receives, averaged over pixels and heads. The score of a seed is its entropy

    - sum_i a_i log a_i,

the score of a prompt the mean over seeds (the released code uses one image). A higher entropy is
more suspicious.

UNet evaluations per prompt: the part of S evaluations that lies before that layer, less than half
of one for SD 1.x; the released code runs all 50 steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dori_fast.detect.detector import PromptScores, SeededDetector, one_draw, seed_list
from dori_fast.errors import UsageError
from dori_fast.models import Denoiser, TextCondition
from dori_fast.models.probes import token_attention
from dori_fast.models.schedules.vp import DDIM_STEPS


class Ren(SeededDetector):
    """Ren et al.'s detector, mode E.

    Args:
        seeds: number of seeds (0, 1, ...), or the seeds themselves.
        layer: index of the cross-attention layer, in the order in which the UNet runs them.
        compat: ``"ren"`` reproduces the released code: one generator per prompt, seeded by the
            prompt's position plus ``gen_seed``, draws the noise of all its images at once.
            Default: None.
        gen_seed: offset of the per-prompt seeds; used with ``compat="ren"`` only.
    """

    name = "ren"

    def __init__(
        self,
        seeds: int | Sequence[int] = 1,
        *,
        layer: int = 3,
        compat: str | None = None,
        gen_seed: int = 0,
    ) -> None:
        self.seeds = seed_list(self.name, seeds)
        if compat not in (None, "ren"):
            raise UsageError(f"ren: compat must be None or 'ren', got {compat!r}")
        if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
            raise UsageError(f"ren: layer must be a number from 0, got {layer!r}")
        self.layer, self.compat, self.gen_seed = layer, compat, gen_seed

    def config(self) -> dict[str, Any]:
        """Everything that the scores depend on besides the model, as plain JSON."""
        seeds: dict[str, Any] = {"seeds": list(self.seeds)}
        if self.compat:
            seeds = {"images": len(self.seeds), "gen_seed": self.gen_seed}
        return {"name": self.name, "layer": self.layer, "compat": self.compat, **seeds}

    @torch.no_grad()
    def scores(
        self, model: Denoiser, prompts: Sequence[str], positions: Sequence[int] | None = None
    ) -> PromptScores:
        """Score P >= 0 prompts; see :class:`dori_fast.detect.detector.Detector`."""
        if self.compat is None:
            return super().scores(model, prompts)
        condition = model.encode(prompts)
        places = range(len(condition)) if positions is None else positions

        def entropies(part: TextCondition, start: int) -> Tensor:
            seeds = [place + self.gen_seed for place in places[start : start + len(part)]]
            noise = torch.stack([one_draw(model, seed, len(self.seeds)) for seed in seeds])
            return self._entropies(model, part, noise)

        return self.collect(self.in_chunks(model, condition, entropies), condition)

    def per_seed(self, model: Denoiser, condition: TextCondition) -> Tensor:
        """Entropies [P, S], in nats, on noise that all prompts share."""
        noise = model.noise(self.seeds)
        return self.in_chunks(model, condition, lambda part, _: self._entropies(model, part, noise))

    def _entropies(self, model: Denoiser, condition: TextCondition, noise: Tensor) -> Tensor:
        t = model.timesteps(DDIM_STEPS)[0]
        received = token_attention(model, condition, noise, t, self.layer)
        return torch.special.entr(received).sum(-1)
