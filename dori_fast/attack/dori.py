"""Adversarial embeddings that retrieve memorized images: Finding DoRI.

Kowalczuk, Hintersdorf, Struppek et al., "Finding DoRI: Discovery of Retained Images in Diffusion
Models" (ICML 2026, arXiv 2507.16880). For an image with clean latents x_0, minimise over the
text embedding y

    E_{eps, t} || eps - eps_theta(x_t, t, y) ||^2

(x_t and the loss as in :mod:`dori_fast.ops.diffusion_loss`) with Adam at learning rate 0.1, 50
steps, 8 draws of (eps, t), fresh ones in every step, weights frozen and all tokens free. Enough
steps inject any image into any model, so the budget is part of the attack, and a retrieval means
something only beside the same attack on images that the model never saw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dori_fast.attack.draws import Draws, starting_points
from dori_fast.attack.result import AttackResult
from dori_fast.attack.stopping import Progress, Stop
from dori_fast.errors import UsageError
from dori_fast.models import Denoiser, TextCondition
from dori_fast.models.probes import prediction
from dori_fast.ops import EmbeddingState, add_noise, diffusion_loss, embedding_step

OBJECTIVES = ("epsilon", "min-snr", "prediction")


class Dori:
    """The attack, on any number of images at once.

    Args:
        steps: optimiser steps per problem.
        lr: learning rate of Adam.
        batch: draws of (noise, timestep) per step and problem.
        objective: ``"epsilon"``, the paper's; ``"prediction"``, the squared error of what the
            network itself answers; or ``"min-snr"``, between them. In the error of epsilon that of
            the sample counts SNR(t) = a / (1 - a) times, a the cumulative alpha at t, so that a
            network which answers the sample is asked about little noise almost alone; with
            ``"min-snr"`` it counts min(SNR(t), snr_cap) times (Hang et al., "Efficient Diffusion
            Training via Min-SNR Weighting Strategy", ICCV 2023, arXiv 2303.09556).
        snr_cap: their gamma, 5 by default as theirs is; for ``"min-snr"`` alone.
        seed: of all random streams, together with the problems' ids.
        checkpoints: keep the embeddings after so many steps too; 0 keeps the start.
        stop: asked every ``check_every`` steps which problems may stop before their budget is used
            up, such as :class:`dori_fast.attack.LossBelow`; the only time that the host waits.
        check_every: steps between two such questions.
        recompute: keep only what lies between the network's layers, and compute the rest anew in
            the backward pass: less memory for about a third more time.
    """

    name = "dori"

    def __init__(
        self,
        steps: int = 50,
        lr: float = 0.1,
        batch: int = 8,
        *,
        objective: str = "epsilon",
        snr_cap: float = 5.0,
        seed: int = 0,
        checkpoints: Sequence[int] = (),
        stop: Stop | None = None,
        check_every: int = 10,
        recompute: bool = False,
    ) -> None:
        if steps < 1 or batch < 1 or check_every < 1:
            raise UsageError("attack: steps, batch and check_every must be at least 1")
        if objective not in OBJECTIVES:
            raise UsageError(
                f"attack: objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}"
            )
        if not snr_cap > 0:
            raise UsageError(f"attack: snr_cap must be above 0, got {snr_cap}")
        if not all(0 <= step <= steps for step in checkpoints):
            raise UsageError(f"attack: checkpoints must be 0..{steps}, got {list(checkpoints)}")
        self.steps, self.lr, self.batch = steps, float(lr), batch
        self.objective, self.snr_cap, self.seed = objective, float(snr_cap), seed
        self.checkpoints = tuple(sorted(set(checkpoints)))
        self.stop, self.check_every, self.recompute = stop, check_every, recompute

    def config(self) -> dict[str, Any]:
        """Everything that the answers depend on besides the model and the problems, as JSON."""
        return {
            "name": self.name,
            "steps": self.steps,
            "lr": self.lr,
            "batch": self.batch,
            "objective": self.objective,
            "snr_cap": self.snr_cap if self.objective == "min-snr" else None,
            "seed": self.seed,
            "stop": None if self.stop is None else repr(self.stop),
            "check_every": None if self.stop is None else self.check_every,
        }

    def run(
        self,
        model: Denoiser,
        images: Tensor | NDArray[np.uint8],
        prompts: Sequence[str] | Tensor | None = None,
        *,
        start: str = "prompt",
        ids: Sequence[int | str] | None = None,
        adam: EmbeddingState | None = None,
    ) -> AttackResult:
        """Optimise an embedding for each of P images.

        A problem's answer depends on (model, image, start, seed, id) and on the evaluation's
        batch shape (``model.batch_size``) alone: not on the other problems, nor on P.

        Args:
            model: the denoiser, plain or a masked view with one mask for all problems or one each.
            images: uint8 [P, H, W, 3], of the model's own size.
            prompts: P prompts to start from, the images' own or any others; or P starts, a float
                tensor [P, T, D]. May be None with ``start="gaussian"``.
            start: ``"prompt"``, the prompts' embeddings; or ``"gaussian"``, N(0, I).
            ids: the problems' names in the random streams; 0..P-1 if not given.
            adam: moments to begin with, such as those of the result whose embeddings are the
                starts; left as they are. None begins without.

        Returns:
            An :class:`AttackResult`.

        Raises:
            UsageError: numbers or sizes do not fit, an unknown start, or prompts are lacking.
        """
        if len(images) == 0:
            raise UsageError("attack: no images")
        latents = model.latents(torch.as_tensor(images))
        if latents.shape[1:] != model.latent_shape:
            raise UsageError(
                f"attack: images of {list(images.shape[1:3])} have latents"
                f" {list(latents.shape[1:])}, this model draws {list(model.latent_shape)}; resize"
                " them"
            )
        names = list(range(len(latents))) if ids is None else list(ids)
        if len(names) != len(latents):
            raise UsageError(f"attack: {len(latents)} images but {len(names)} ids")
        params, pooled = starting_points(model, start, prompts, names, self.seed)
        with model.engine.recomputing(self.recompute):
            return _Run(self, model, latents, params, pooled, names, adam).result()


class _Run:
    """The state of one call."""

    def __init__(
        self,
        attack: Dori,
        model: Denoiser,
        latents: Tensor,
        params: Tensor,
        pooled: Tensor | None,
        ids: Sequence[int | str],
        adam: EmbeddingState | None,
    ) -> None:
        self.attack, self.model, self.latents, self.pooled = attack, model, latents, pooled
        self.params = params.requires_grad_()
        fresh = EmbeddingState.zeros_like(params)
        self.adam = fresh if adam is None else adam.take(torch.arange(len(adam.step)))
        self.begun = self.adam.step.clone()
        self.draws = Draws(model, ids, attack.seed, attack.batch)
        count = len(latents)
        self.going = torch.arange(count)
        self.active = torch.ones(count, dtype=torch.bool, device=model.device)
        self.attempts = torch.zeros(count, dtype=torch.int64)
        self.losses = torch.full(
            (attack.steps, count), torch.nan, dtype=self.adam.exp_avg.dtype, device=model.device
        )
        # a mean over so many numbers has slopes that float16 cannot hold; a power of two, taken
        # out again in float32, leaves the step as it is
        half = model.dtype == torch.float16
        scale = 2.0 ** (attack.batch * latents[:1].numel()).bit_length() if half else 1.0
        self.scale = self.losses.new_full((count,), scale)

    def result(self) -> AttackResult:
        kept: dict[int, Tensor] = {}
        for step in range(self.attack.steps):
            if step in self.attack.checkpoints:
                kept[step] = self.params.detach().clone()
            if len(self.going):
                self._step(step)
                self._ask_who_stops(step + 1)
        found = self.params.detach()
        if self.attack.steps in self.attack.checkpoints:
            kept[self.attack.steps] = found.clone()
        return AttackResult(
            embeddings=found,
            pooled=self.pooled,
            losses=self.losses,
            steps=self.adam.step - self.begun,
            adam=self.adam,
            evaluations=self.attempts * self.attack.batch,
            checkpoints=kept,
            config=self.attack.config(),
        )

    def _step(self, step: int) -> None:
        """One update of every problem that still goes on; nothing waits for the device."""
        self.params.grad = None
        timesteps, noise = self.draws.take(self.going.tolist())
        for rows, draws, share in self._chunks():
            problems = self.going[rows]
            on_device = problems.to(self.model.device)
            loss = share * self._loss(
                self.model.condition(self.params, self.pooled)[problems],
                self.latents[on_device],
                noise[rows, draws],
                timesteps[rows, draws],
            )
            (loss * self.scale[on_device]).sum().backward(inputs=[self.params])
            seen = self.losses[step, on_device]
            self.losses[step, on_device] = loss.detach() + seen.nan_to_num()
        grad = self.params.grad
        assert grad is not None  # noqa: S101
        grad /= self.scale[:, None, None]
        finite = grad.isfinite().flatten(1).all(1)
        embedding_step(self.params, grad, self.adam, lr=self.attack.lr, active=self.active & finite)
        self.scale = torch.where(finite, self.scale, self.scale / 2)
        self.attempts[self.going] += 1

    def _chunks(self) -> Iterator[tuple[slice, slice, float]]:
        """Problems and draws that fill one evaluation each, and their share of a problem's draws.

        Whole problems where they fit, so that the order of sums within a problem is always the
        same.
        """
        size, batch = self.model.batch_size, self.attack.batch
        at_once, draws = max(1, size // batch), min(size, batch)
        for first in range(0, len(self.going), at_once):
            for start in range(0, batch, draws):
                stop = min(start + draws, batch)
                yield slice(first, first + at_once), slice(start, stop), (stop - start) / batch

    def _loss(
        self, condition: TextCondition, x_0: Tensor, noise: Tensor, timesteps: Tensor
    ) -> Tensor:
        """Losses [A] of A problems on draws of noise [A, B, *] and timesteps [A, B]."""
        model = self.model
        alpha_bar = model.alphas_cumprod[timesteps].to(model.device)
        x_t = add_noise(x_0, noise, alpha_bar)
        if self.attack.objective == "prediction":
            answer = prediction(model, condition, x_t, timesteps)
            target = model.schedule.target(x_0, noise, timesteps)
        else:
            answer, target = model.epsilon(condition, x_t, timesteps), noise
        target = target.to(answer.dtype)
        if self.attack.objective == "min-snr":
            # the error of epsilon has SNR times that of the sample already
            weight = (self.attack.snr_cap * (1 - alpha_bar) / alpha_bar).clamp(max=1)
            root = weight.sqrt().to(answer.dtype)[..., None, None, None]
            answer, target = root * answer, root * target
        return diffusion_loss(answer, target)

    def _ask_who_stops(self, step: int) -> None:
        stop, every = self.attack.stop, self.attack.check_every
        if stop is None or step % every or step == self.attack.steps:
            return
        rows = self.going.to(self.model.device)
        with torch.no_grad():
            progress = Progress(step, self.going, self.params[rows], self.losses[:step, rows])
            done = stop(progress).cpu()
        self.going = self.going[~done]
        self.active[rows[done.to(rows.device)]] = False
