"""One run of adversarial fine-tuning: its state, steps and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dori_fast._checks import to_device
from dori_fast.attack import AttackResult
from dori_fast.attack.draws import stream
from dori_fast.finetune.batches import Group, backward
from dori_fast.finetune.checkpoint import Checkpoint
from dori_fast.finetune.optimizer import Weights
from dori_fast.finetune.settings import Settings
from dori_fast.finetune.step_report import StepReport
from dori_fast.finetune.triggers import Triggers, embeddings_of
from dori_fast.models import Denoiser
from dori_fast.models.engine.gradients import fitted
from dori_fast.models.engine.memory import Shrinking
from dori_fast.models.files.hashes import tensors_sha256

Pairs = Sequence[tuple[str, NDArray[np.uint8]]]


class Run:
    """The state of one call."""

    def __init__(
        self,
        method: Settings,
        model: Denoiser,
        prompts: Sequence[str],
        images: Tensor,
        surrogates: Tensor,
        retained: Pairs,
    ) -> None:
        self.method, self.original, self.images = method, model, images
        self.model = model.copy()
        self.step = self.evaluations = 0
        count = surrogates.shape[1]
        self.surrogates = model.latents(surrogates.flatten(0, 1)).unflatten(0, (-1, count))
        self.memorized = model.latents(images)
        self.retained = model.latents(torch.from_numpy(np.stack([x for _, x in retained])))
        self.prompts = embeddings_of(model, prompts)
        self.captions = embeddings_of(model, [prompt for prompt, _ in retained])
        self.triggers = Triggers(method.pool, self.prompts, self.captions, method.seed)
        self.weights = Weights(self.model.unet, method.weight_decay, method.ema)
        self._passes = Shrinking(method.at_once, "training passes")

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
        with model.engine.precision(), self.weights.trainable():
            losses = self._backward(groups, generator)
            norm = self.weights.update(lr, method.clip, self.step)
        model.engine.weights_changed()
        self.evaluations += sum(len(group.x_0) for group in groups.values())
        values = {name: float(loss) for name, loss in losses.items()}
        return StepReport(
            step=self.step,
            steps=method.steps,
            lr=lr,
            trigger_loss=values.get("triggers"),
            prompt_loss=values.get("prompts"),
            redirected_loss=values.get("redirected"),
            retained_loss=values.get("retained"),
            attack_first=None if found is None else float(found.losses[0].mean()),
            attack_last=None if found is None else float(_last(found.losses).mean()),
            gradient_norm=norm,
            evaluations=self.evaluations,
        )

    def _groups(
        self, rows: Tensor, found: AttackResult | None, generator: torch.Generator
    ) -> dict[str, Group]:
        """The training groups of this step."""
        method, model, device = self.method, self.model, self.model.device
        images = self.triggers.images(rows).repeat_interleave(method.draws)
        shown = to_device(images, device)
        texts = {}
        if found is not None:
            texts["triggers"] = found.embeddings.repeat_interleave(method.draws, 0)
        if method.with_prompts:
            texts["prompts"] = self.prompts[shown]
        groups = {}
        for name, text in texts.items():
            which = torch.randint(self.surrogates.shape[1], images.shape, generator=generator)
            x_0 = self.surrogates[shown, to_device(which, device)]
            groups[name] = Group(x_0, text.to(x_0.dtype), 1 / len(texts))
        if method.redirect and found is not None:
            which = torch.randint(self.surrogates.shape[1], images.shape, generator=generator)
            groups["redirected"] = Group(
                self.surrogates[shown, to_device(which, device)],
                texts["triggers"].to(self.memorized.dtype),
                method.redirect,
                seen=self.memorized[shown],
                first=int(method.redirect_from * len(model.alphas_cumprod)),
            )
        if method.retained_weight:
            size = (method.retained_batch,)
            which = to_device(torch.randint(len(self.retained), size, generator=generator), device)
            pairs = self.retained[which], self.captions[which]
            teacher = self.original if method.distil else None
            groups["retained"] = Group(*pairs, method.retained_weight, teacher=teacher)
        return groups

    def _backward(self, groups: dict[str, Group], generator: torch.Generator) -> dict[str, Tensor]:
        """Losses and gradients of one step, in smaller passes once memory ran out."""
        drawn, teacher = generator.get_state(), self.original.engine
        evaluations = teacher.evaluations

        def passes() -> dict[str, Tensor]:
            # a repeat has the same draws, and nothing of what ran out of memory
            generator.set_state(drawn)
            teacher.evaluations = evaluations
            self.weights.drop_gradients()
            return backward(
                self.model,
                groups,
                generator,
                at_once=self._passes.size,
                autocast=self.method.autocast,
            )

        return fitted(self.model.engine, passes, self._passes)

    def _rate(self) -> float:
        """Learning rate of the next step."""
        method = self.method
        rise = min(1.0, (self.step + 1) / max(1, method.warmup))
        fall = (1 + math.cos(math.pi * self.step / method.steps)) / 2
        return method.lr * min(rise, fall)

    def checkpoint(self) -> Checkpoint:
        """The current state of the run."""
        triggers = {f"triggers.{n}": tensor for n, tensor in self.triggers.tensors().items()}
        tensors = self.weights.tensors() | triggers
        return Checkpoint(self.step, self.evaluations, tensors, self._facts)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint."""
        checkpoint.require(self._facts)
        self.step, self.evaluations = checkpoint.step, checkpoint.evaluations
        self.weights.restore(checkpoint.tensors)
        prefix = "triggers."
        own = {n: x for n, x in checkpoint.tensors.items() if n.startswith(prefix)}
        self.triggers.restore({n.removeprefix(prefix): x for n, x in own.items()})
        self.model.engine.weights_changed()

    @cached_property
    def _facts(self) -> dict[str, Any]:
        """Settings and hashes that identify the run."""
        texts = [self.prompts, self.captions]
        images = [self.images, self.surrogates, self.retained]
        return {
            "settings": self.method.config(),
            "model": tensors_sha256(self.original.unet.state_dict()),
            "pictures": tensors_sha256({str(i): x for i, x in enumerate(images)}),
            "prompts": tensors_sha256({str(i): x for i, x in enumerate(texts)}),
        }

    def finished(self) -> Denoiser:
        """The trained model."""
        self.weights.finish()
        self.model.engine.weights_changed()
        return self.model


def _last(losses: Tensor) -> Tensor:
    """The last loss [P] of each problem; ``losses`` [steps, P] are NaN once it has stopped."""
    count = losses.isfinite().sum(0).clamp(min=1)
    return losses[count - 1, torch.arange(losses.shape[1], device=losses.device)]
