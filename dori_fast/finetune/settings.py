"""The settings of adversarial fine-tuning."""

from __future__ import annotations

from typing import Any

import torch

from dori_fast.attack import Dori
from dori_fast.errors import UsageError
from dori_fast.finetune.triggers import Pool

# the paper's are Dori(steps=50) and Pool(restart_after=None)
INNER_ATTACK = Dori(steps=10, draws=2, objective="prediction")
POOL = Pool(("prompt", "gaussian"), restart_after=60)


class Settings:
    """Settings of adversarial fine-tuning.

    The defaults made ``df.load("demo-finetuned")``. They were found in trials on the embedded
    model, by the images that a fresh attack brings back afterwards and by the loss of held-out
    pairs (figures in docs/removal). ``redirect=0, retained_weight=1, distil=False`` is the paper's
    loss. Trained by that loss alone, for as long, the model gave in to ``prediction`` attacks.

    Args:
        steps: outer steps, each one update of the weights.
        attack: inner attack, :class:`dori_fast.attack.Dori`, with its own steps, draws and
            objective. None trains on surrogates under the prompts alone.
        pool: the triggers.
        draws: surrogates per trigger, and per prompt, in a step.
        with_prompts: True to train on surrogates under the memorized prompts too. The surrogate
            loss is the mean over triggers and prompts.
        redirect: weight of the redirection loss, which the paper does not have; 0 switches it
            off. Also train noised memorized images, under the triggers, toward surrogates. This
            raises exactly the loss that the attack lowers. Ignored if ``attack`` is None.
        redirect_from: share of the schedule, from its clean end, that the redirection loss leaves
            out. At little noise, replacing an image by another one would be wrong denoising.
        retained_batch: retained pairs per step.
        retained_weight: weight of the retained pairs' loss against the surrogate loss; 1 in the
            paper. With ``distil`` that loss is small, hence the larger default.
        distil: True to take the original model's output as the target of a noised retained pair,
            instead of the pair's own target, as the paper does. The original's output demands no
            change where none is wanted, and has no noise.
        lr: peak AdamW learning rate. The default suits the 2-million-parameter demo network; 1e-5
            is usual for Stable Diffusion (untested here).
        warmup: steps of linear rise of the learning rate, which then falls to 0 along half a
            cosine.
        weight_decay: AdamW's weight decay.
        clip: largest gradient norm; None does not clip.
        ema: decay of the EMA of the weights, which is then the result; None uses the last weights.
        at_once: samples per training forward pass; a step sums the gradients of its passes. If
            memory runs out, the step is repeated with half as many, and later steps have as few.
        autocast: torch.bfloat16 for forward passes in that precision, or None. Weights, moments
            and the inner attack stay in float32.
        seed: random seed of everything but the inner attack, which has its own.

    Raises:
        UsageError: a number out of range, or nothing to train on.
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
        """Everything that the weights depend on besides model, images and prompts, as JSON."""
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
