"""Adversarial fine-tuning: make the triggers of memorized images lead to something else.

Kowalczuk, Hintersdorf, Struppek et al., "Finding DoRI: Discovery of Retained Images in Diffusion
Models" (ICML 2026, arXiv 2507.16880). Pruning hides memorized images from their prompts, but
attacks on the embedding find them again. Here each step finds such triggers y_adv in the current
weights, and then updates the full UNet along the gradient of

    E || eps - eps_theta(s_t, t, y_adv) ||^2 + E || eps - eps_theta(x_t, t, y) ||^2

where s are surrogates of the memorized images and (x, y) pairs whose quality is to be kept. For
networks that predict the velocity or the sample, the errors are those of the velocity or the
sample. The paper does not give the learning rate, optimizer, batch sizes, retained pairs or
triggers per image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dori_fast.errors import UsageError
from dori_fast.finetune.checkpoint import Checkpoint
from dori_fast.finetune.loop import Pairs, Run
from dori_fast.finetune.settings import Settings
from dori_fast.finetune.step_report import StepReport
from dori_fast.finetune.surrogates import Surrogates
from dori_fast.models import Denoiser
from dori_fast.models.engine.gradients import differentiating
from dori_fast.models.text.prompts import list_of_str


class Adversarial(Settings):
    """The method; its arguments are those of :class:`dori_fast.finetune.settings.Settings`."""

    def run(
        self,
        model: Denoiser,
        prompts: Sequence[str],
        images: Tensor | NDArray[np.uint8],
        *,
        surrogates: Surrogates | Tensor,
        retained: Pairs,
        on_step: Callable[[StepReport], None] | None = None,
        on_checkpoint: Callable[[Checkpoint], None] | None = None,
        checkpoint_every: int = 25,
        resume: Checkpoint | None = None,
    ) -> Denoiser:
        """Train a copy of the model.

        On a CPU the same number of threads gives the same result, to the bit, whether the run was
        interrupted and resumed or not.

        Args:
            model: the original model, in float32 or wider and without masks; not modified.
            prompts: P memorized prompts.
            images: uint8 [P, H, W, 3], their memorized images.
            surrogates: result of :func:`dori_fast.finetune.surrogates`, or uint8
                [P, K, H, W, 3].
            retained: pairs of prompt and uint8 [H, W, 3] whose quality is to be kept. More pairs
                are better, and so are pairs that resemble the model's use.
            on_step: function called with the report of every step; an exception from it ends the
                run.
            on_checkpoint: function called with the state after every ``checkpoint_every`` steps
                and after the last, such as ``lambda c: c.save("run.safetensors")``.
            checkpoint_every: steps between two checkpoints.
            resume: checkpoint of the same run to continue from.

        Returns:
            A new Denoiser, whose ``save_pretrained`` writes it.

        Raises:
            UsageError: numbers, sizes or dtypes do not fit, a view with masks, a checkpoint of
                another run, or gradients that are not finite.
        """
        prompts = list_of_str("finetune", prompts)
        replacements = surrogates.images if isinstance(surrogates, Surrogates) else surrogates
        memorized = torch.as_tensor(images)
        _check(model, prompts, memorized, replacements, retained)
        run = Run(self, model, prompts, memorized, replacements, retained)
        if resume is not None:
            run.restore(resume)
        # inner attacks after one that ran out of memory have smaller evaluations
        with differentiating(run.model.engine, self.attack is not None and self.attack.recompute):
            while run.step < self.steps:
                report = run.advance()
                if on_checkpoint and (run.step % checkpoint_every == 0 or run.step == self.steps):
                    on_checkpoint(run.checkpoint())
                if on_step is not None:
                    on_step(report)
        return run.finished()


def check_model(model: Denoiser) -> None:
    """Raise UsageError if the method cannot train such a model."""
    if model.masks is not None:
        raise UsageError("finetune: pass the model itself; its pruned view makes the surrogates")
    if model.dtype not in (torch.float32, torch.float64):
        raise UsageError(f"finetune: the model is {model.dtype}; load it with dtype='float32'")
    if model.unconditional.pooled is not None:
        raise UsageError("finetune: SDXL models are not supported yet")


def _check(
    model: Denoiser, prompts: Sequence[str], images: Tensor, surrogates: Tensor, retained: Pairs
) -> None:
    check_model(model)
    if not len(images) == len(prompts) == len(surrogates) or len(images) == 0:
        raise UsageError(
            f"finetune: {len(images)} images, {len(prompts)} prompts, surrogates of"
            f" {len(surrogates)}; needs as many of each"
        )
    sizes = {tuple(images.shape[1:]), tuple(surrogates.shape[2:]), *(x.shape for _, x in retained)}
    if len(sizes) > 1:
        raise UsageError(f"finetune: images of different sizes, {sorted(sizes)}; resize them")
    if not retained:
        raise UsageError("finetune: no retained pairs; without them the model forgets everything")
