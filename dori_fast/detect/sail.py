"""The sharpness score of Jeon et al. ("SAIL"), ICML 2025 (arXiv 2412.04140).

With the score s(x, c) = - eps(x, t, c) / sqrt(1 - a) and d = s(x, c) - s(x, empty) at the noisiest
timestep, the score of a seed is the norm of the difference of two Hessian-vector products,

    || J_c d - J_empty d ||_2,      J = derivative of s with respect to x,

each one forward-mode derivative; the score of a prompt is the mean over seeds. With other ``units``
than epsilon, s is the prediction in these units, without the factor.

UNet evaluations per prompt: 5 S: the prediction, and a value and a derivative for the prompt and
for the empty one. (The released code spends 8 for one seed.)
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
from dori_fast.models.probes import prediction_jvp, shared_prediction, uncond_prediction
from dori_fast.models.schedules.vp import DDIM_STEPS, units_config


class Sail(SeededDetector):
    """Jeon et al.'s detector.

    Args:
        seeds: number of seeds (0, 1, ...), or the seeds themselves.
        compat: ``"sail"`` reproduces the released code (sharpness_memorization_diffusion at
            f4ee4b8): the noise of all images of a prompt is drawn at once from seed 42 on the
            model's device in its dtype. (The term that it drops for v-prediction cancels in the
            difference.) Default: None.
        units: ``"epsilon"``, ``"x0"`` or ``"prediction"``, the network's own output. At zero
            terminal signal-to-noise ratio epsilon does not depend on the prompt and is refused.
    """

    name = "sail"

    def __init__(
        self,
        seeds: int | Sequence[int] = 1,
        *,
        compat: str | None = None,
        units: str = "epsilon",
    ) -> None:
        self.seeds = seed_list(self.name, seeds)
        if compat not in (None, "sail"):
            raise UsageError(f"sail: compat must be None or 'sail', got {compat!r}")
        self.compat, self.units = compat, checked_units(self.name, units, compat)

    def config(self) -> dict[str, Any]:
        """Everything that the scores depend on besides the model, as plain JSON."""
        seeds: dict[str, Any] = {"seeds": list(self.seeds)}
        if self.compat:
            seeds = {"images": len(self.seeds)}
        return {"name": self.name, "compat": self.compat, **seeds, **units_config(self.units)}

    def per_seed(self, model: Denoiser, condition: TextCondition) -> Tensor:
        """Norms of the difference of the Hessian-vector products, [P, S]."""
        t = model.timesteps(DDIM_STEPS)[0]
        if self.compat:
            shared = model.share(one_draw(model, 42, len(self.seeds)), t)
        else:
            shared = model.share_noise(self.seeds, t)
        units = self.units
        # one factor 1 / sqrt(1 - a) for the derivative, one for the direction
        variance = 1 - model.schedule.alpha_bar(t) if units == "epsilon" else 1.0

        def norms(part: TextCondition, _: int) -> Tensor:
            with_text = shared_prediction(model, part, shared, units)
            difference = with_text - uncond_prediction(model, part, shared, units)
            cond, uncond = (
                prediction_jvp(model, text, shared.latents, difference, t, units).float()
                for text in (part, model.unconditional_for(part))
            )
            return (cond - uncond).flatten(2).norm(dim=2) / variance

        return self.in_chunks(model, condition, norms)
