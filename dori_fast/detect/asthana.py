"""The anisotropy score of Asthana & Belagiannis, ICLR 2026 (memorization-anisotropy at 97e991b).

On initial noise x_T of seed s,

    norm_s   = || eps(x_T, t_0, c) - eps(x_T, t_0, empty) ||_2
    cosine_s = mean over positions of cos(u, eps(x_T, t', c) - u),      u = eps(x_T, t', empty)
    score_s  = norm_weight * norm_s + cosine_weight * cosine_s

with the cosine taken over channels, t_0 the noisiest of 50 DDIM timesteps and t' the third from the
end (41): a low-noise timestep on pure noise. The released weights are 1 and 2 for SD 1.x, 1 and 0.1
for SD 2.x, 2 and 1 for Realistic Vision.

UNet evaluations per prompt: 2 S; both unconditional predictions are shared by all prompts. (The
released code spends 8 for one seed.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dori_fast.detect.detector import (
    SeededDetector,
    checked_units,
    one_draw,
    seed_list,
)
from dori_fast.errors import UsageError
from dori_fast.models import Denoiser, TextCondition
from dori_fast.models.probes import shared_prediction, uncond_prediction
from dori_fast.models.schedules.vp import DDIM_STEPS, units_config
from dori_fast.ops import noise_cosine, noise_difference


class Asthana(SeededDetector):
    """Asthana & Belagiannis' detector.

    Args:
        seeds: number of seeds (0, 1, ...), or the seeds themselves.
        norm_weight: weight of the noise-difference norm at the noisiest timestep.
        cosine_weight: weight of the mean cosine at the low-noise timestep.
        compat: ``"asthana"`` reproduces the released code: the noise of all images of a prompt is
            drawn at once from seed 51 on the model's device in its dtype, and both terms are
            rounded to that dtype. Default: None.
        units: predictions in place of eps: ``"epsilon"``, ``"x0"`` or ``"prediction"``, the
            network's own output. At zero terminal signal-to-noise ratio epsilon does not depend
            on the prompt and is refused.
    """

    name = "asthana"

    def __init__(
        self,
        seeds: int | Sequence[int] = 4,
        *,
        norm_weight: float = 1.0,
        cosine_weight: float = 2.0,
        compat: str | None = None,
        units: str = "epsilon",
    ) -> None:
        self.seeds = seed_list(self.name, seeds)
        if compat not in (None, "asthana"):
            raise UsageError(f"asthana: compat must be None or 'asthana', got {compat!r}")
        self.norm_weight, self.cosine_weight = float(norm_weight), float(cosine_weight)
        self.compat, self.units = compat, checked_units(self.name, units, compat)

    def config(self) -> dict[str, Any]:
        """Everything that the scores depend on besides the model, as plain JSON."""
        seeds: dict[str, Any] = {"seeds": list(self.seeds)}
        if self.compat:
            seeds = {"images": len(self.seeds)}
        units = units_config(self.units)
        weights = {"norm_weight": self.norm_weight, "cosine_weight": self.cosine_weight}
        return {"name": self.name, "compat": self.compat, **weights, **seeds, **units}

    def per_seed(self, model: Denoiser, condition: TextCondition) -> Tensor:
        """Weighted norm plus cosine, [P, S]."""
        timesteps = model.timesteps(DDIM_STEPS)
        if self.compat:
            noise = one_draw(model, 51, len(self.seeds))
            high, low = (model.share(noise, timesteps[i]) for i in (0, -3))
        else:
            high, low = (model.share_noise(self.seeds, timesteps[i]) for i in (0, -3))

        def combined(part: TextCondition, _: int) -> Tensor:
            norm, cosine = (
                measure(
                    shared_prediction(model, part, shared, self.units),
                    uncond_prediction(model, part, shared, self.units),
                )
                for measure, shared in ((noise_difference, high), (noise_cosine, low))
            )
            if self.compat:
                norm, cosine = (term.to(model.dtype).float() for term in (norm, cosine))
            return self.norm_weight * norm + self.cosine_weight * cosine

        return self.in_chunks(model, condition, combined)
