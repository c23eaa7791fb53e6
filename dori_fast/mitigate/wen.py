"""Wen et al.'s mitigation at inference, ICLR 2024 (openreview 84n3UwkH7b), section 5.

Before drawing, the prompt's embedding y is changed until the text's effect on the first step is no
longer unusually large. With F(y) as in :mod:`dori_fast.mitigate.magnitude`, at the noisiest
timestep and on the noise that the images are drawn from,

    repeat at most `iterations` times: stop if F(y) <= target; else y <- AdamW(y, dF/dy).

Released code (YuxinWenRick/diffusion_memorization at c8fe471): AdamW at rate 0.05 with its default
weight decay 0.01, 10 iterations, 4 images, and the first token's gradient set to zero (so the token
only decays). `target` is 3 in its README; peers took 1 to 5 on SD 1.4. F pools all S noises, so the
same target is stricter by sqrt(S / S') with S seeds than with S'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dori_fast._checks import accumulate_dtype, finite_number, require_finite, seed_tuple
from dori_fast.errors import UsageError
from dori_fast.mitigate.magnitude import magnitude
from dori_fast.models import Denoiser, TextCondition
from dori_fast.models.engine.gradients import differentiating
from dori_fast.models.probes import shared_prediction, uncond_prediction
from dori_fast.models.schedules.vp import DDIM_STEPS, require_units, units_config
from dori_fast.models.text.prompts import list_of_str
from dori_fast.ops import EmbeddingState, embedding_step

_WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class Mitigated:
    """Embeddings of P prompts after mitigation.

    Attributes:
        embeddings: [P, T, D] on the model's device, float32 (float64 for a float64 model).
        pooled: [P, E], the prompts' pooled embeddings (SDXL), unchanged; else None.
        losses: [iterations, P], F before each update; NaN once a prompt has stopped.
        steps: int64 [P], updates of each prompt.
        reached: bool [P], True if some evaluation of F was at or below the target. F is not
            evaluated after the last update, as in the released code.
        evaluations: int64 [P], UNet samples of each prompt, forward and backward, without the S
            unconditional ones that all prompts share.
        seeds: seeds of the noises; draw from these.
    """

    embeddings: Tensor
    pooled: Tensor | None
    losses: Tensor
    steps: Tensor
    reached: Tensor
    evaluations: Tensor
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return self.embeddings.shape[0]

    def condition(self, model: Denoiser) -> TextCondition:
        """The embeddings as conditions to generate from."""
        return model.condition(self.embeddings, self.pooled)


class Wen:
    """The mitigation, for any number of prompts at once.

    Args:
        target: value of F at or below which a prompt is not changed any further.
        lr: learning rate of AdamW.
        iterations: largest number of updates.
        seeds: number of seeds (0, 1, ...), or the seeds themselves; draw images from the same.
        total_steps: steps of the DDIM run, whose first timestep is used.
        units: predictions that F compares: ``"epsilon"``, ``"x0"`` or ``"prediction"``, the
            network's own output.

    Raises:
        UsageError: a number out of range.
    """

    name = "wen"

    def __init__(
        self,
        target: float = 3.0,
        lr: float = 0.05,
        iterations: int = 10,
        seeds: int | Sequence[int] = 4,
        *,
        total_steps: int = DDIM_STEPS,
        units: str = "epsilon",
    ) -> None:
        self.seeds = seed_tuple(seeds)
        if iterations < 1 or not self.seeds or not 1 <= total_steps <= 1000:
            raise UsageError(
                "mitigate: iterations and seeds must be at least 1, total_steps 1..1000"
            )
        if not target >= 0 or not lr > 0:
            raise UsageError("mitigate: target must be 0 or more and lr above 0")
        require_units("mitigate", units)
        self.target, self.iterations = float(target), iterations
        self.lr = finite_number("mitigate", "lr", lr)
        self.total_steps, self.units = total_steps, units

    def config(self) -> dict[str, Any]:
        """Everything that the result depends on besides the model and the prompts, as JSON."""
        return {
            "name": self.name,
            "target": self.target,
            "lr": self.lr,
            "iterations": self.iterations,
            "seeds": list(self.seeds),
            "total_steps": self.total_steps,
            **units_config(self.units),
        }

    def run(self, model: Denoiser, prompts: Sequence[str]) -> Mitigated:
        """Change the embeddings of P >= 1 prompts.

        Each result is that of the prompt alone: to the bit on a CPU, up to rounding on a GPU, where
        the backward pass of attention may add in any order.

        Raises:
            UsageError: no prompts, epsilon at zero terminal signal-to-noise ratio, or as in
                :meth:`Denoiser.encode`.
            NonFiniteError: F, its gradient or an embedding is NaN or infinite.
        """
        prompts = list_of_str("mitigate", prompts)
        if len(prompts) == 0:
            raise UsageError("mitigate: no prompts")
        condition = model.encode(prompts).one_row_each()
        pooled, count = condition.pooled, len(condition)
        wide = accumulate_dtype(model.dtype)
        params = condition.unique.detach().to(wide).clone()
        adam = EmbeddingState.zeros_like(params)
        shared = model.share_noise(self.seeds, model.timesteps(self.total_steps)[0])
        with torch.no_grad():
            uncond = uncond_prediction(model, condition, shared, self.units)
        losses = params.new_full((self.iterations, count), torch.nan)
        running, evaluated = torch.arange(count), torch.zeros(count, dtype=torch.int64)
        reached = torch.zeros(count, dtype=torch.bool)

        def predict(part: TextCondition, some: slice, seeds: slice) -> tuple[Tensor, Tensor]:
            which = torch.arange(len(shared))[seeds]
            noises = shared if len(which) == len(shared) else shared.take(which)
            own = uncond[seeds] if uncond.ndim == 4 else uncond[running[some]][:, seeds]
            return shared_prediction(model, part, noises, self.units), own

        # within one context, iterations after one that ran out of memory have smaller evaluations
        with differentiating(model.engine):
            for i in range(self.iterations):
                norm, gradient = magnitude(model, params, pooled, running, len(self.seeds), predict)
                # NaN never reaches the target, and its embedding, never updated, would look
                # mitigated
                require_finite("mitigate", "magnitudes F", norm, model.dtype)
                require_finite("mitigate", "values of dF/dy", gradient, model.dtype)
                losses[i, running] = norm
                evaluated[running] += 1
                done = (norm <= self.target).cpu()
                reached[running[done]] = True
                grad, active = torch.zeros_like(params), torch.zeros(count, dtype=torch.bool)
                grad[running], active[running[~done]] = gradient, True
                finite = grad.isfinite().flatten(1).all(1)
                grad[:, 0] = 0
                embedding_step(
                    params,
                    grad,
                    adam,
                    lr=self.lr,
                    active=active.to(params.device) & finite,
                    weight_decay=_WEIGHT_DECAY,
                )
                running = running[~done]
                if len(running) == 0:
                    break
        evaluations = evaluated * len(self.seeds)
        return Mitigated(params, pooled, losses, adam.step, reached, evaluations, self.seeds)
