"""Adversarial fine-tuning: make the triggers of memorized pictures lead to something else.

Kowalczuk, Hintersdorf, Struppek et al., "Finding DoRI: Discovery of Retained Images in Diffusion
Models" (ICML 2026, arXiv 2507.16880). Pruning hides memorized pictures from their prompts, and
attacks on the embedding find them again. Here each step looks for such triggers y_adv in the
current weights, and then takes a step on the full UNet along the gradient of

    E || eps - eps_theta(s_t, t, y_adv) ||^2 + E || eps - eps_theta(x_t, t, y) ||^2

where s are surrogates of the memorized pictures and (x, y) pairs whose quality is to be kept; for
networks that predict v or the sample the errors are those of v or the sample. The paper tells
neither learning rate, optimizer, batch sizes, retained pairs nor triggers per image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dori_fast.attack import Dori
from dori_fast.errors import UsageError
from dori_fast.finetune.checkpoint import Checkpoint
from dori_fast.finetune.loop import Pairs, Run
from dori_fast.finetune.step_report import StepReport
from dori_fast.finetune.surrogates import Surrogates
from dori_fast.finetune.triggers import Pool
from dori_fast.models import Denoiser

# the paper's are Dori(steps=50) and Pool(restart_after=None)
INNER_ATTACK = Dori(steps=10, draws=2, objective="prediction")
POOL = Pool(("prompt", "gaussian"), restart_after=60)


class Adversarial:
    """The method.

    Defaults are those that made ``df.load("demo-finetuned")``: found in trials on the embedded
    model, by what a fresh attack then brings back and by the loss of held-out pairs (docs/removal
    has the figures). ``redirect=0, retained_weight=1, distil=False`` is the paper's loss; trained
    by it alone, for as long, that model gave in to ``prediction`` attacks.

    Args:
        steps: outer steps, updates of the weights.
        attack: the inner attack, :class:`dori_fast.attack.Dori`, with its own steps, draws and
            objective; None leaves the adversary out and trains on surrogates under the prompts
            alone.
        pool: the triggers.
        draws: surrogates that each trigger, and each prompt, is trained on per step.
        with_prompts: train on surrogates under the memorized prompts as well; the mean over both
            kinds is the surrogate loss.
        redirect: weight of a loss that the paper does not have, or 0: under the triggers, noised
            memorized pictures themselves shall lead to surrogates as well. What the attack lowers
            is then raised where it looks, instead of only what the trigger draws. Nothing without
            an attack.
        redirect_from: of the schedule, the share of least noise that this loss leaves out, where
            taking a picture for another one would be wrong denoising.
        retained_batch: retained pairs per step.
        retained_weight: of their loss against the surrogate loss; the paper's is 1. Answers of the
            original leave little loss to weigh, hence more.
        distil: the target of a noised retained pair is the original model's answer instead of the
            pair's own. That is not the paper's, but it asks for no change where none is wanted and
            is free of the targets' noise.
        lr: peak learning rate of AdamW. Of a network with 2 million parameters; Stable Diffusion
            is usually tuned at 1e-5, which was not tried here.
        warmup: steps of linear rise of the learning rate; then it falls along a half cosine to 0.
        weight_decay: of AdamW.
        clip: largest norm of the gradients, or None.
        ema: decay of a running average of the weights, which is then the result; or None.
        at_once: samples per training forward pass; gradients add up over the passes of a step.
        autocast: torch.bfloat16 for forward passes of that precision, or None. Weights, moments
            and the inner attack stay in float32.
        seed: of all random draws but the inner attack's, which has its own.
    """

    name = "adversarial"

    def __init__(
        self,
        steps: int = 250,
        attack: Dori | None = INNER_ATTACK,
        pool: Pool = POOL,
        *,
        draws: int = 2,
        with_prompts: bool = True,
        redirect: float = 1.0,
        redirect_from: float = 0.4,
        retained_batch: int = 32,
        retained_weight: float = 4.0,
        distil: bool = True,
        lr: float = 1.5e-3,
        warmup: int = 10,
        weight_decay: float = 0.01,
        clip: float | None = 1.0,
        ema: float | None = None,
        at_once: int = 32,
        autocast: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        if min(steps, draws, retained_batch, at_once) < 1:
            raise UsageError("finetune: steps, draws, retained_batch, at_once must be at least 1")
        if attack is None and not with_prompts:
            raise UsageError("finetune: without attack and prompts there is nothing to remove")
        if redirect < 0 or not 0 <= redirect_from < 1:
            raise UsageError("finetune: redirect must be 0 or more, redirect_from in [0, 1)")
        if ema is not None and not 0 < ema < 1:
            raise UsageError(f"finetune: ema must be between 0 and 1, got {ema}")
        if autocast not in (None, torch.bfloat16):
            raise UsageError(f"finetune: autocast must be torch.bfloat16 or None, got {autocast}")
        self.steps, self.attack, self.pool = steps, attack, pool
        self.draws, self.with_prompts = draws, with_prompts
        self.redirect, self.redirect_from = float(redirect), float(redirect_from)
        self.retained_batch, self.retained_weight = retained_batch, float(retained_weight)
        self.distil = distil
        self.lr, self.warmup, self.weight_decay = float(lr), warmup, float(weight_decay)
        self.clip, self.ema, self.at_once = clip, ema, at_once
        self.autocast, self.seed = autocast, seed

    def config(self) -> dict[str, Any]:
        """Everything that the weights depend on besides model, pictures and prompts, as JSON."""
        plain = (
            "name steps draws with_prompts redirect redirect_from retained_batch retained_weight"
            " distil lr warmup weight_decay clip ema at_once seed"
        )
        return {
            **{name: getattr(self, name) for name in plain.split()},
            "attack": self.attack and self.attack.config(),
            "pool": {
                "starts": list(self.pool.starts),
                "per_step": self.pool.per_step,
                "restart_after": self.pool.restart_after,
            },
            "autocast": self.autocast and str(self.autocast).removeprefix("torch."),
        }

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

        On a CPU the result is the same, to the bit, whenever it is run with the same number of
        threads, interrupted and resumed or not.

        Args:
            model: the original one, in float32 or wider and without masks; it stays as it is.
            prompts: P memorized prompts.
            images: uint8 [P, H, W, 3], their memorized images.
            surrogates: from :func:`dori_fast.finetune.surrogates`, or uint8 [P, K, H, W, 3].
            retained: pairs of prompt and uint8 [H, W, 3] whose quality is to be kept; the more
                of them, and the more like what the model is used for, the better.
            on_step: is told about every step; an exception that it raises ends the run.
            on_checkpoint: is given the state after every ``checkpoint_every`` steps and after the
                last, such as ``lambda c: c.save("run.safetensors")``.
            checkpoint_every: steps between two checkpoints.
            resume: go on from there; of the same run, or it is refused.

        Returns:
            A new Denoiser, whose ``save_pretrained`` writes it.

        Raises:
            UsageError: numbers, sizes or dtypes do not fit, a view with masks, a checkpoint of
                another run, or gradients that are not finite.
        """
        pictures = surrogates.pictures if isinstance(surrogates, Surrogates) else surrogates
        memorized = torch.as_tensor(images)
        _check(model, prompts, memorized, pictures, retained)
        run = Run(self, model, prompts, memorized, pictures, retained)
        if resume is not None:
            run.restore(resume)
        while run.step < self.steps:
            report = run.advance()
            if on_checkpoint and (run.step % checkpoint_every == 0 or run.step == self.steps):
                on_checkpoint(run.checkpoint())
            if on_step is not None:
                on_step(report)
        return run.finished()


def check_model(model: Denoiser) -> None:
    """Raises UsageError if the method cannot train such a model."""
    if model.masks is not None:
        raise UsageError("finetune: pass the model itself; its pruned view makes the surrogates")
    if model.dtype not in (torch.float32, torch.float64):
        raise UsageError(f"finetune: the model is {model.dtype}; load it with dtype='float32'")
    if model.unconditional.pooled is not None:
        raise UsageError("finetune: SDXL models are not supported yet")


def _check(
    model: Denoiser, prompts: Sequence[str], images: Tensor, pictures: Tensor, retained: Pairs
) -> None:
    check_model(model)
    if not len(images) == len(prompts) == len(pictures) or len(images) == 0:
        raise UsageError(
            f"finetune: {len(images)} images, {len(prompts)} prompts, surrogates of"
            f" {len(pictures)}; needs as many of each"
        )
    sizes = {tuple(images.shape[1:]), tuple(pictures.shape[2:]), *(x.shape for _, x in retained)}
    if len(sizes) > 1:
        raise UsageError(f"finetune: pictures of different sizes, {sorted(sizes)}; resize them")
    if not retained:
        raise UsageError("finetune: no retained pairs; without them the model forgets everything")
