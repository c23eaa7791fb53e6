"""The noise-similarity score of NeMo (Hintersdorf, Struppek et al., NeurIPS 2024).

A memorized prompt pulls every initial noise toward one image, so that its noise differences

    delta_s = eps(x_T, t, c) - x_T

are similar over seeds s. The score of a seed is the largest MS-SSIM of its delta with another
seed's, each stretched to 0..1 per channel; the score of a prompt is the largest over its seeds.
NeMo calls a prompt memorized above ``THRESHOLD`` of :mod:`dori_fast.prune.nemo.search`.
``ms_ssim_settings`` gives the MS-SSIM for small latents.

UNet evaluations per prompt: S, and no unconditional ones. (The released code spends 2 S: it runs
two passes on the same noise and discards the first.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dori_fast.detect.detector import SeededDetector, checked_units, seed_list
from dori_fast.errors import UsageError
from dori_fast.models import Denoiser, TextCondition
from dori_fast.models.probes import change_of_noise
from dori_fast.models.schedules.vp import DDIM_STEPS, units_config
from dori_fast.ops import largest_per_map, ms_ssim


class NeMo(SeededDetector):
    """NeMo's detector.

    Args:
        seeds: number of seeds (0, 1, ...), or the seeds themselves; at least 2.
        compat: ``None``, the paper: the noisiest timestep, 981; or ``"nemo"``, the released code
            (localizing_memorization_in_diffusion_models at f952ede): timestep 961, and the noise
            of all images drawn at once on the CPU in float32 from seed 1.
        units: ``"epsilon"``, or predictions that take delta's place: ``"x0"`` or ``"prediction"``,
            the network's own output (an epsilon-prediction minus x_T). At zero terminal
            signal-to-noise ratio delta is 0 and is refused.
    """

    name = "nemo"

    def __init__(
        self,
        seeds: int | Sequence[int] = 10,
        *,
        compat: str | None = None,
        units: str = "epsilon",
    ) -> None:
        self.seeds = seed_list(self.name, seeds)
        if len(self.seeds) < 2:
            raise UsageError("nemo: seeds must be at least 2, the score compares pairs")
        if compat not in (None, "nemo"):
            raise UsageError(f"nemo: compat must be None or 'nemo', got {compat!r}")
        self.compat, self.units = compat, checked_units(self.name, units, compat)

    def config(self) -> dict[str, Any]:
        """Everything that the scores depend on besides the model, as plain JSON."""
        seeds: dict[str, Any] = {"seeds": list(self.seeds)}
        if self.compat:
            seeds = {"images": len(self.seeds)}
        return {"name": self.name, "compat": self.compat, **seeds, **units_config(self.units)}

    def reduce(self, per_seed: Tensor) -> Tensor:
        """The largest similarity of all pairs, [P]."""
        return per_seed.amax(dim=1)

    def per_seed(self, model: Denoiser, condition: TextCondition) -> Tensor:
        """The largest similarity of each seed's noise difference to another seed's, [P, S]."""
        timesteps, n = model.timesteps(DDIM_STEPS), len(self.seeds)
        if self.compat:
            generator = torch.Generator().manual_seed(1)
            noise = torch.randn(n, *model.latent_shape, generator=generator)
            shared = model.share(noise.to(model.device, model.dtype), timesteps[1])
        else:
            shared = model.share_noise(self.seeds, timesteps[0])

        def largest(part: TextCondition, _: int) -> Tensor:
            return largest_per_map(ms_ssim(change_of_noise(model, part, shared, self.units)))

        return self.in_chunks(model, condition, largest)
