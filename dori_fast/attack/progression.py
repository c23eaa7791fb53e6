"""The optimization loop of an attack: P problems with their losses, gradients and cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dori_fast._checks import accumulate_dtype, to_device
from dori_fast.attack.base import Attack
from dori_fast.attack.draws import Draws
from dori_fast.attack.stopping import Progress
from dori_fast.models import Denoiser, TextCondition
from dori_fast.models.engine.gradients import differentiating, fitted
from dori_fast.models.probes import prediction
from dori_fast.ops import add_noise, diffusion_loss


class Progression(ABC):
    """The state of one call of an attack.

    A subclass defines the update of one step (:meth:`update`), the value that a checkpoint keeps
    (:meth:`current`) and the embeddings of the problems that still run (:meth:`embeddings`).

    Attributes:
        running: int64 [A] on the CPU, the problems that still run.
        rows: the same on the model's device.
        active: bool [P] on the model's device, True for the same problems.
        losses: [steps, P], each step's loss before its update; NaN once a problem has stopped.
        nonfinite: int64 [P] on the model's device, steps whose loss was NaN or infinite.
        kept: the checkpoints by step.
    """

    def __init__(
        self,
        attack: Attack,
        model: Denoiser,
        latents: Tensor,
        ids: Sequence[int | str],
    ) -> None:
        self.attack, self.model, self.latents = attack, model, latents
        count, wide = len(latents), accumulate_dtype(model.dtype)
        self.running = torch.arange(count)
        self.rows = to_device(self.running, model.device)
        self.active = torch.ones(count, dtype=torch.bool, device=model.device)
        self.losses = torch.full((attack.steps, count), torch.nan, dtype=wide, device=model.device)
        self.nonfinite = torch.zeros(count, dtype=torch.int64, device=model.device)
        self.kept: dict[int, Tensor] = {}
        self._attempts = torch.zeros(count, dtype=torch.int64)
        self._draws = Draws(model, ids, attack.seed, attack.draws)
        # Gradients of a mean over this many values underflow in float16. Scale the loss by a
        # power of two and undo it in float32 (exact).
        half = model.dtype == torch.float16
        scale = 2.0 ** (attack.draws * latents[:1].numel()).bit_length() if half else 1.0
        self._scale = self.losses.new_full((count,), scale)

    @abstractmethod
    def update(self, step: int) -> None:
        """Update every problem that still runs."""

    @abstractmethod
    def current(self) -> Tensor:
        """A copy of the current result of all problems."""

    @abstractmethod
    def embeddings(self) -> Tensor:
        """Current embeddings [A, T, D] of the problems that still run."""

    @property
    def evaluations(self) -> Tensor:
        """int64 [P], UNet samples of each problem, forward and backward."""
        return self._attempts * self.attack.draws

    def failures(self, updates: Tensor, result: Tensor) -> dict[int, str]:
        """Reason why a problem's result means nothing, by problem.

        Args:
            updates: int64 [P], updates that were made.
            result: float [P, *], the optimized values.
        """
        bad, made = self.nonfinite.cpu(), updates.cpu()
        whole = result.isfinite().flatten(1).all(1).cpu()
        found = {}
        for i, steps in enumerate(self._attempts.tolist()):
            if bad[i]:
                found[i] = f"the loss was NaN or Inf in {int(bad[i])} of {steps} steps"
            elif not whole[i]:
                found[i] = "the result holds NaN or Inf"
            elif not made[i]:
                found[i] = f"the gradients were NaN or Inf in all {steps} steps"
        return found

    def run(self) -> None:
        """Take all steps; besides :meth:`update`, only the stop rule waits for the device.

        If memory runs out, the rest of the run has smaller evaluations.
        """
        attack = self.attack
        with differentiating(self.model.engine, attack.recompute):
            for step in range(attack.steps):
                if step in attack.checkpoints:
                    self.kept[step] = self.current()
                if len(self.running):
                    self.update(step)
                    self._attempts[self.running] += 1
                    self._apply_stop(step + 1)
        if attack.steps in attack.checkpoints:
            self.kept[attack.steps] = self.current()

    def backward(self, step: int, embeddings: Tensor, pooled: Tensor | None) -> Tensor:
        """Write the step's losses into ``losses`` and their gradients into ``embeddings.grad``.

        Args:
            step: index of the step.
            embeddings: leaf [P, T, D]; its gradient is replaced.
            pooled: [P, E] (SDXL) or None; its gradient is replaced too if it requires one.

        Returns:
            bool [P], True where the gradients are finite. The other problems must not be updated.
        """
        leaves = [leaf for leaf in (embeddings, pooled) if leaf is not None and leaf.requires_grad]
        timesteps, noise = self._draws.take(self.running.tolist())

        def add_up() -> None:
            for leaf in leaves:
                leaf.grad = None
            self.losses[step, self.rows] = 0
            for rows, draws, share in self._chunks():
                problems, on_device = self.running[rows], self.rows[rows]
                loss = share * self._loss(
                    self.model.condition(embeddings, pooled)[problems],
                    self.latents[on_device],
                    noise[rows, draws],
                    timesteps[rows, draws],
                )
                (loss * self._scale[on_device]).sum().backward(inputs=leaves)
                self.losses[step, on_device] += loss.detach()

        fitted(self.model.engine, add_up)
        self.nonfinite += self.active & ~self.losses[step].isfinite()
        finite = torch.ones_like(self.active)
        for leaf in leaves:
            assert leaf.grad is not None  # noqa: S101
            leaf.grad /= self._scale.reshape(-1, *(1,) * (leaf.ndim - 1))
            finite &= leaf.grad.isfinite().flatten(1).all(1)
        self._scale = torch.where(finite, self._scale, self._scale / 2)
        return finite

    def _chunks(self) -> Iterator[tuple[slice, slice, float]]:
        """Problems and draws that fill one evaluation each, and their share of a problem's draws.

        Problems are kept whole where they fit, so that sums over a problem's draws have the same
        order in any call.
        """
        size, draws = self.model.batch_size, self.attack.draws
        at_once, width = max(1, size // draws), min(size, draws)
        for first in range(0, len(self.running), at_once):
            for start in range(0, draws, width):
                stop = min(start + width, draws)
                yield slice(first, first + at_once), slice(start, stop), (stop - start) / draws

    def _loss(
        self, condition: TextCondition, x_0: Tensor, noise: Tensor, timesteps: Tensor
    ) -> Tensor:
        """Losses [A] of A problems on noise [A, B, *] and timesteps [A, B]."""
        model = self.model
        alpha_bar = to_device(model.alphas_cumprod[timesteps], model.device)
        x_t = add_noise(x_0, noise, alpha_bar)
        if self.attack.objective == "prediction":
            output = prediction(model, condition, x_t, timesteps)
            target = model.schedule.target(x_0, noise, timesteps)
        else:
            output, target = model.epsilon(condition, x_t, timesteps), noise
        target = target.to(output.dtype)
        if self.attack.objective == "min-snr":
            # the epsilon loss weights the sample's error by SNR already; reduce that to the cap
            weight = (self.attack.snr_cap * (1 - alpha_bar) / alpha_bar).clamp(max=1)
            root = weight.sqrt().to(output.dtype)[..., None, None, None]
            output, target = root * output, root * target
        return diffusion_loss(output, target)

    def _apply_stop(self, step: int) -> None:
        stop, every = self.attack.stop, self.attack.check_every
        if stop is None or step % every or step == self.attack.steps:
            return
        rows = self.rows
        with torch.no_grad():
            progress = Progress(step, self.running, self.embeddings(), self.losses[:step, rows])
            done = stop(progress).cpu()
        self.active[to_device(self.running[done], rows.device)] = False
        self.running = self.running[~done]
        self.rows = to_device(self.running, rows.device)
