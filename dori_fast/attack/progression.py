"""P problems descending together: who goes on, their losses and slopes, and what they cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dori_fast.attack.base import Settings
from dori_fast.attack.draws import Draws
from dori_fast.attack.stopping import Progress
from dori_fast.models import Denoiser, TextCondition
from dori_fast.models.probes import prediction
from dori_fast.ops import add_noise, diffusion_loss


class Progression(ABC):
    """The state of one call of an attack.

    A subclass says what one step does to what is sought (:meth:`update`), what of it is kept at a
    checkpoint (:meth:`current`) and which embeddings it stands for (:meth:`embeddings`).

    Attributes:
        going: int64 [A] on the CPU, the problems that still go on.
        active: bool [P] on the model's device, the same.
        losses: [steps, P], each step's loss before its update; NaN once a problem has stopped.
        kept: what was kept after so many steps.
    """

    def __init__(
        self,
        attack: Settings,
        model: Denoiser,
        latents: Tensor,
        ids: Sequence[int | str],
    ) -> None:
        self.attack, self.model, self.latents = attack, model, latents
        count, wide = len(latents), wide_dtype(model)
        self.going = torch.arange(count)
        self.active = torch.ones(count, dtype=torch.bool, device=model.device)
        self.losses = torch.full((attack.steps, count), torch.nan, dtype=wide, device=model.device)
        self.kept: dict[int, Tensor] = {}
        self._attempts = torch.zeros(count, dtype=torch.int64)
        self._draws = Draws(model, ids, attack.seed, attack.batch)
        # a mean over so many numbers has slopes that float16 cannot hold; a power of two, taken
        # out again in float32, leaves the step as it is
        half = model.dtype == torch.float16
        scale = 2.0 ** (attack.batch * latents[:1].numel()).bit_length() if half else 1.0
        self._scale = self.losses.new_full((count,), scale)

    @abstractmethod
    def update(self, step: int) -> None:
        """One update of every problem that still goes on."""

    @abstractmethod
    def current(self) -> Tensor:
        """What has been found by now, of all problems; a copy."""

    @abstractmethod
    def embeddings(self) -> Tensor:
        """Embeddings [A, T, D] of what has been found for the problems that still go on."""

    @property
    def evaluations(self) -> Tensor:
        """int64 [P], UNet samples that each problem evaluated, forward and backward."""
        return self._attempts * self.attack.batch

    def run(self) -> None:
        """Take all steps; nothing waits for the device but the question who may stop."""
        attack = self.attack
        with self.model.engine.recomputing(attack.recompute):
            for step in range(attack.steps):
                if step in attack.checkpoints:
                    self.kept[step] = self.current()
                if len(self.going):
                    self.update(step)
                    self._attempts[self.going] += 1
                    self._ask_who_stops(step + 1)
        if attack.steps in attack.checkpoints:
            self.kept[attack.steps] = self.current()

    def descend(self, step: int, embeddings: Tensor, pooled: Tensor | None) -> Tensor:
        """Put the step's losses into ``losses`` and their slopes into ``embeddings.grad``.

        Args:
            step: number of the step.
            embeddings: a leaf [P, T, D]; its gradient is anew that of this step.
            pooled: [P, E] (SDXL), whose gradient is written too if it requires one; or None.

        Returns:
            bool [P], whose slopes are finite; the rest must not be stepped with.
        """
        leaves = [leaf for leaf in (embeddings, pooled) if leaf is not None and leaf.requires_grad]
        for leaf in leaves:
            leaf.grad = None
        timesteps, noise = self._draws.take(self.going.tolist())
        for rows, draws, share in self._chunks():
            problems = self.going[rows]
            on_device = problems.to(self.model.device)
            loss = share * self._loss(
                self.model.condition(embeddings, pooled)[problems],
                self.latents[on_device],
                noise[rows, draws],
                timesteps[rows, draws],
            )
            (loss * self._scale[on_device]).sum().backward(inputs=leaves)
            seen = self.losses[step, on_device]
            self.losses[step, on_device] = loss.detach() + seen.nan_to_num()
        finite = torch.ones_like(self.active)
        for leaf in leaves:
            assert leaf.grad is not None  # noqa: S101
            leaf.grad /= self._scale.reshape(-1, *(1,) * (leaf.ndim - 1))
            finite &= leaf.grad.isfinite().flatten(1).all(1)
        self._scale = torch.where(finite, self._scale, self._scale / 2)
        return finite

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
            progress = Progress(step, self.going, self.embeddings(), self.losses[:step, rows])
            done = stop(progress).cpu()
        self.going = self.going[~done]
        self.active[rows[done.to(rows.device)]] = False


def wide_dtype(model: Denoiser) -> torch.dtype:
    """What is optimized is float32, or float64 for a float64 model, however narrow the model."""
    return torch.float64 if model.dtype == torch.float64 else torch.float32
