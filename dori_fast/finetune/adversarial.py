"""Adversarial fine-tuning: make the triggers of memorized pictures lead to something else.

Kowalczuk, Hintersdorf, Struppek et al., "Finding DoRI: Discovery of Retained Images in Diffusion
Models" (ICML 2026, arXiv 2507.16880). Pruning hides memorized pictures from their prompts, and
attacks on the embedding find them again. Here each step looks for such triggers y_adv in the
current weights, and then takes a step on the full UNet along the gradient of

    E || eps - eps_theta(s_t, t, y_adv) ||^2 + E || eps - eps_theta(x_t, t, y) ||^2

where s are surrogates of the memorized pictures and (x, y) pairs whose quality is to be kept; for
networks that predict v or the sample the errors are those of v or the sample. The paper tells
neither learning rate, optimiser, batch sizes, retained pairs nor triggers per image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dori_fast.attack import AttackResult, Dori
from dori_fast.attack.draws import stream
from dori_fast.errors import UsageError
from dori_fast.finetune.batches import Group, backward
from dori_fast.finetune.checkpoint import Checkpoint
from dori_fast.finetune.progress import StepReport
from dori_fast.finetune.surrogates import Surrogates
from dori_fast.finetune.triggers import Pool, Triggers, embeddings_of
from dori_fast.finetune.weights import Weights
from dori_fast.models import Denoiser
from dori_fast.models.saving import own_copy
from dori_fast.models.weights import tensors_sha256

# of the trial on the embedded model; the paper's are Dori(steps=50) and Pool(restart_after=None)
INNER_ATTACK = Dori(steps=8, batch=2, objective="prediction")
POOL = Pool(("prompt", "gaussian"), restart_after=48)
Pairs = Sequence[tuple[str, NDArray[np.uint8]]]


class Adversarial:
    """The method.

    Defaults are those of the trial on the embedded model, where they take the pictures from their
    prompts and keep held-out loss, but do not stop a strong attack yet (README, "Removal").

    Args:
        steps: outer steps, updates of the weights.
        attack: the inner attack, :class:`dori_fast.attack.Dori`, with its own steps, draws and
            objective; None leaves the adversary out and trains on surrogates under the prompts
            alone.
        pool: the triggers.
        draws: surrogates that each trigger, and each prompt, is trained on per step.
        with_prompts: train on surrogates under the memorized prompts as well; the mean over both
            kinds is the surrogate loss.
        retained_batch: retained pairs per step.
        retained_weight: of their loss against the surrogate loss; the paper's is 1.
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
        steps: int = 110,
        attack: Dori | None = INNER_ATTACK,
        pool: Pool = POOL,
        *,
        draws: int = 2,
        with_prompts: bool = True,
        retained_batch: int = 16,
        retained_weight: float = 1.0,
        lr: float = 6e-4,
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
        if ema is not None and not 0 < ema < 1:
            raise UsageError(f"finetune: ema must be between 0 and 1, got {ema}")
        if autocast not in (None, torch.bfloat16):
            raise UsageError(f"finetune: autocast must be torch.bfloat16 or None, got {autocast}")
        self.steps, self.attack, self.pool = steps, attack, pool
        self.draws, self.with_prompts = draws, with_prompts
        self.retained_batch, self.retained_weight = retained_batch, float(retained_weight)
        self.lr, self.warmup, self.weight_decay = float(lr), warmup, float(weight_decay)
        self.clip, self.ema, self.at_once = clip, ema, at_once
        self.autocast, self.seed = autocast, seed

    def config(self) -> dict[str, Any]:
        """Everything that the weights depend on besides model, pictures and prompts, as JSON."""
        plain = (
            "name steps draws with_prompts retained_batch retained_weight lr warmup weight_decay"
            " clip ema at_once seed"
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
        images: Tensor | NDArray[np.uint8],
        prompts: Sequence[str],
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
            images: uint8 [P, H, W, 3], the memorized ones.
            prompts: their P prompts.
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
        _check(model, memorized, prompts, pictures, retained)
        run = _Run(self, model, memorized, prompts, pictures, retained)
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
    model: Denoiser, images: Tensor, prompts: Sequence[str], pictures: Tensor, retained: Pairs
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


class _Run:
    """The state of one call."""

    def __init__(
        self,
        method: Adversarial,
        model: Denoiser,
        images: Tensor,
        prompts: Sequence[str],
        surrogates: Tensor,
        retained: Pairs,
    ) -> None:
        self.method, self.original, self.images = method, model, images
        self.model = own_copy(model)
        self.step = self.evaluations = 0
        count = surrogates.shape[1]
        self.surrogates = model.latents(surrogates.flatten(0, 1)).unflatten(0, (-1, count))
        self.retained = model.latents(torch.from_numpy(np.stack([x for _, x in retained])))
        self.prompts = embeddings_of(model, prompts)
        self.captions = embeddings_of(model, [prompt for prompt, _ in retained])
        self.triggers = Triggers(method.pool, self.prompts, self.captions, method.seed)
        self.weights = Weights(self.model.unet, method.weight_decay, method.ema)

    def advance(self) -> StepReport:
        """One outer step."""
        method, model = self.method, self.model
        rows, found = self.triggers.chosen(self.step), None
        if method.attack is not None:
            found = self.triggers.sharpen(method.attack, model, self.images, rows, self.step)
            self.evaluations += int(found.evaluations.sum())
        generator = stream("batch", method.seed, self.step)
        groups = self._groups(rows, found, generator)
        lr = self._rate()
        self.step += 1
        with self.weights.trainable():
            losses = backward(
                model, groups, generator, at_once=method.at_once, autocast=method.autocast
            )
            norm = self.weights.update(lr, method.clip, self.step)
        model.engine.weights_changed()
        self.evaluations += sum(len(group.x_0) for group in groups.values())
        told = {name: float(loss) for name, loss in losses.items()}
        return StepReport(
            step=self.step,
            steps=method.steps,
            lr=lr,
            trigger_loss=told.get("triggers"),
            prompt_loss=told.get("prompts"),
            retained_loss=told.get("retained"),
            attack_first=None if found is None else float(found.losses[0].mean()),
            attack_last=None if found is None else float(_last(found.losses).mean()),
            gradient_norm=norm,
            evaluations=self.evaluations,
        )

    def _groups(
        self, rows: Tensor, found: AttackResult | None, generator: torch.Generator
    ) -> dict[str, Group]:
        """What this step trains on."""
        method, device = self.method, self.model.device
        images = self.triggers.images(rows).repeat_interleave(method.draws)
        texts = {}
        if found is not None:
            texts["triggers"] = found.embeddings.repeat_interleave(method.draws, 0)
        if method.with_prompts:
            texts["prompts"] = self.prompts[images.to(device)]
        groups = {}
        for name, text in texts.items():
            which = torch.randint(self.surrogates.shape[1], images.shape, generator=generator)
            x_0 = self.surrogates[images.to(device), which.to(device)]
            groups[name] = Group(x_0, text.to(x_0.dtype), 1 / len(texts))
        if method.retained_weight:
            size = (method.retained_batch,)
            which = torch.randint(len(self.retained), size, generator=generator).to(device)
            pairs = self.retained[which], self.captions[which]
            groups["retained"] = Group(*pairs, method.retained_weight)
        return groups

    def _rate(self) -> float:
        """Learning rate of the step to come."""
        method = self.method
        rise = min(1.0, (self.step + 1) / max(1, method.warmup))
        fall = (1 + math.cos(math.pi * self.step / method.steps)) / 2
        return method.lr * min(rise, fall)

    def checkpoint(self) -> Checkpoint:
        """Where the run stands."""
        triggers = {f"triggers.{n}": tensor for n, tensor in self.triggers.tensors().items()}
        tensors = self.weights.tensors() | triggers
        return Checkpoint(self.step, self.evaluations, tensors, self._facts)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up a checkpoint."""
        checkpoint.require(self._facts)
        self.step, self.evaluations = checkpoint.step, checkpoint.evaluations
        self.weights.restore(checkpoint.tensors)
        prefix = "triggers."
        own = {n: x for n, x in checkpoint.tensors.items() if n.startswith(prefix)}
        self.triggers.restore({n.removeprefix(prefix): x for n, x in own.items()})
        self.model.engine.weights_changed()

    @cached_property
    def _facts(self) -> dict[str, Any]:
        """What makes this run this one."""
        texts = [self.prompts, self.captions]
        pictures = [self.images, self.surrogates, self.retained]
        return {
            "settings": self.method.config(),
            "model": tensors_sha256(self.original.unet.state_dict()),
            "pictures": tensors_sha256({str(i): x for i, x in enumerate(pictures)}),
            "prompts": tensors_sha256({str(i): x for i, x in enumerate(texts)}),
        }

    def finished(self) -> Denoiser:
        """The trained model."""
        self.weights.finish()
        self.model.engine.weights_changed()
        return self.model


def _last(losses: Tensor) -> Tensor:
    """The last loss [P] of each problem, of losses [steps, P] that are NaN once it stopped."""
    count = losses.isfinite().sum(0).clamp(min=1)
    return losses[count - 1, torch.arange(losses.shape[1], device=losses.device)]
