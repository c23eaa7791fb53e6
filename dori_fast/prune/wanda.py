"""Wanda for memorization: prune the weights that matter most for memorized prompts.

Chavhan et al., "Memorized Images in Diffusion Models share a Subspace that can be Located and
Deleted" (2024), after Sun et al., "A Simple and Effective Pruning Approach for Large Language
Models" (ICLR 2024). Details that the paper leaves open follow the released code (concept-prune
at 72927d9). For each of the first denoising steps t and each second linear layer l of a
feed-forward, W [C, 4C] with inputs x (outputs of the GEGLU):

    a[j] = sqrt(sum over tokens of (x[j] / |x|)^2)      every token of unit length, all prompts
    mask(t, l) = |W| a is among the int(sparsity 4C) largest of its row, and above that of a_base

where a_base comes from runs of the empty prompt, one for each prompt, from the same noise. A weight
is pruned if more than a share ``select_ratio`` of the steps' masks contain it. Biases are kept.

Both halves of classifier-free guidance count, as in the released code, whose hooks see the whole
batch: the unconditional half of a prompt's run, and the empty prompt's run twice. Work that does
not depend on the prompt is done once. The empty prompt's run needs one evaluation per (seed, step),
since its two halves are equal, and serves all prompts; its first step is also every prompt's
unconditional first step. UNet evaluations for P prompts, S seeds and n steps: S n + P S (2 n - 1),
where the released code spends 4 P S N on all of its N = 51 steps. With B base prompts:
S + (B + P) S (2 n - 1).

Differences from the released code: timesteps are DDIM's (the PNDM sampler of its pipeline evaluates
the second timestep twice), sums are in float64 and scores in float32 or wider (float16 there), and
noise is drawn on the CPU from the seed alone. For SDXL, whose unconditional half is not the empty
prompt, the base is that half's condition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dori_fast._checks import require_finite, seed_tuple
from dori_fast.errors import UsageError
from dori_fast.models import Denoiser, TextCondition, WeightMask, stack
from dori_fast.models.backbones.unet.stock import not_its_weight
from dori_fast.models.probes import feed_forward_inputs
from dori_fast.models.schedules.vp import DDIM_STEPS
from dori_fast.models.text.prompts import list_of_str
from dori_fast.ops import activation_stats, wanda_mask

Energies = dict[str, Tensor]
"""Sums of squares over unit-length tokens, float64 [P, 4C] by layer."""


@dataclass(frozen=True)
class WandaResult:
    """Masks and their cost.

    Attributes:
        mask: M = 1, or M = P with one mask for each prompt; on the CPU.
        evaluations: UNet sample evaluations spent.
    """

    mask: WeightMask
    evaluations: int

    def density(self) -> dict[str, Tensor]:
        """Share of the weights that each mask prunes, float64 [M] by layer."""
        return {n: mask.flatten(1).double().mean(1) for n, mask in self.mask.pruned.items()}


class Wanda:
    """Localize memorization in the second linear layers of the feed-forwards.

    Args:
        sparsity: share of each row that one step may mark, in 0..1.
        steps: denoising steps whose masks are combined, from the noisiest.
        total_steps: steps of the whole DDIM run.
        seeds: number of seeds (0, 1, ...), or the seeds themselves; the released code has one.
        guidance: guidance scale of the runs; at 1 there is no unconditional half.
        select_ratio: share of the steps' masks above which a weight is pruned.
        base: prompts to compare with; None is the empty prompt. The mean of their runs replaces
            the released code's one base prompt per target prompt.
        both_halves: count the unconditional half of guidance too, as the released code does. The
            runs are guided in any case.
        joint: one mask for all prompts instead of one for each.
    """

    name = "wanda"

    def __init__(
        self,
        sparsity: float = 0.01,
        steps: int = 10,
        *,
        total_steps: int = DDIM_STEPS,
        seeds: int | Sequence[int] = 1,
        guidance: float = 7.5,
        select_ratio: float = 0.0,
        base: Sequence[str] | None = None,
        both_halves: bool = True,
        joint: bool = True,
    ) -> None:
        self.sparsity, self.steps, self.total_steps = sparsity, steps, total_steps
        self.seeds = seed_tuple(seeds)
        self.guidance, self.select_ratio, self.joint = guidance, select_ratio, joint
        self.base = None if base is None else tuple(list_of_str("wanda", base, "base prompts"))
        self.guided, self.both_halves = guidance != 1.0, both_halves and guidance != 1.0
        if not 0 <= sparsity <= 1 or not 0 <= select_ratio < 1:
            raise UsageError(
                "wanda: sparsity must be in 0..1 and select_ratio in 0..1 without 1,"
                f" got {sparsity} and {select_ratio}"
            )
        if not 1 <= steps <= total_steps:
            raise UsageError(f"wanda: steps must be 1..{total_steps} (total_steps), got {steps}")
        if self.base == ():
            raise UsageError("wanda: base must have prompts, or be None for the empty one")
        if not self.seeds:
            raise UsageError("wanda: at least one seed is needed")

    def config(self) -> dict[str, Any]:
        """Everything that the masks depend on besides the model, as plain JSON."""
        return {
            "name": self.name,
            "sparsity": self.sparsity,
            "steps": self.steps,
            "total_steps": self.total_steps,
            "seeds": list(self.seeds),
            "guidance": self.guidance,
            "select_ratio": self.select_ratio,
            "base": None if self.base is None else list(self.base),
            "both_halves": self.both_halves,
            "joint": self.joint,
        }

    def layers(self, model: Denoiser) -> list[str]:
        """The layers that are pruned, in the order in which the network runs them."""
        return list(self._weights(model))

    def localize(self, model: Denoiser, prompts: Sequence[str] | TextCondition) -> WeightMask:
        """The weights to prune; see :meth:`run`."""
        return self.run(model, prompts).mask

    @torch.no_grad()
    def run(self, model: Denoiser, prompts: Sequence[str] | TextCondition) -> WandaResult:
        """Find the weights to prune for P prompts, or P embeddings.

        Memory does not grow with P, except for the masks if each prompt has its own.

        Raises:
            UsageError: no prompts, a masked model, unknown layers, layers with adapters, or a
                sparsity too small to mark a weight of any layer.
            NonFiniteError: activations that are NaN or infinite.
        """
        if not isinstance(prompts, TextCondition):
            prompts = list_of_str("wanda", prompts)
        weights = self._weights(model)
        if not prompts:
            raise UsageError("wanda: no prompts")
        before = model.engine.evaluations
        base, start = self._base(model)
        targets = self._targets(model, prompts, start)
        if self.joint:
            mask = self._mask(weights, _summed(targets), base, len(prompts))
        else:
            mask = stack([self._mask(weights, target, base, 1) for target in targets])
        return WandaResult(mask, model.engine.evaluations - before)

    def _weights(self, model: Denoiser) -> dict[str, Tensor]:
        """The weights of the layers [C, 4C] by name, if they can be pruned."""
        if model.masks is not None:
            raise UsageError("wanda: the model is masked; localize on the original, then add masks")
        weights: dict[str, Tensor] = {}
        for name, layer in model.engine.second_linears.items():
            reason = not_its_weight(layer)
            if reason is not None:
                raise UsageError(f"wanda: {name} {reason}")
            weights[name] = layer.get_parameter("weight")
        widest = max(weight.shape[1] for weight in weights.values())
        if int(self.sparsity * widest) == 0:
            raise UsageError(
                f"wanda: sparsity {self.sparsity} marks no weight, as the widest layer has {widest}"
                f" inputs; it must be at least {1 / widest:.2g}"
            )
        return weights

    def _base(self, model: Denoiser) -> tuple[list[Energies], _Step | None]:
        """Mean sums of squares of the base prompts, [1, 4C] by layer for each step.

        If runs are guided, also the unconditional half of the first step, shared by all prompts.
        """
        unconditional = partial(_observe, model, model.unconditional)
        if self.base is None:
            empty = self._trajectory(model, unconditional)
            # the two halves of its runs are equal
            halves = 2 if self.both_halves else 1
            return [_times(halves, step.energies) for step in empty], empty[0]
        start = None
        if self.guided:
            start = unconditional(model.noise(self.seeds), model.timesteps(self.total_steps)[0])
        total = _summed(self._targets(model, self.base, start))
        return [_times(1 / len(self.base), energies) for energies in total], start

    def _targets(
        self, model: Denoiser, prompts: Sequence[str] | TextCondition, start: _Step | None
    ) -> Iterator[list[Energies]]:
        """Sums of squares of prompts, with as many prompts at a time as fill a batch."""
        at_once = max(1, model.batch_size // len(self.seeds))
        for i in range(0, len(prompts), at_once):
            part = prompts[i : i + at_once]
            condition = part if isinstance(part, TextCondition) else model.encode(part)
            yield self._target(model, condition, start)

    def _trajectory(self, model: Denoiser, observe: Callable[[Tensor, int], _Step]) -> list[_Step]:
        """The steps of a run from the noise of the seeds."""
        timesteps = [*model.timesteps(self.total_steps), -1][: self.steps + 1]
        latents, found = model.noise(self.seeds), []
        for t, t_prev in pairwise(timesteps):
            found.append(observe(latents, t))
            estimate = found[-1].estimate
            latents = model.schedule.step(estimate, latents, t, t_prev).to(model.dtype)
        return found

    def _target(
        self, model: Denoiser, condition: TextCondition, start: _Step | None
    ) -> list[Energies]:
        """Sums of squares at each step of P prompts' runs, over the halves that count."""
        empty = model.unconditional.repeat(len(condition))

        def observe(latents: Tensor, timestep: int) -> _Step:
            cond = _observe(model, condition, latents, timestep)
            if not self.guided:
                return cond
            first = latents.ndim == 4
            uncond = start if first and start else _observe(model, empty, latents, timestep)
            guided = uncond.estimate + self.guidance * (cond.estimate - uncond.estimate)
            both = self.both_halves
            return _Step(guided, _added(cond.energies, uncond.energies) if both else cond.energies)

        return [step.energies for step in self._trajectory(model, observe)]

    def _mask(
        self,
        weights: dict[str, Tensor],
        target: list[Energies],
        base: list[Energies],
        prompts: int,
    ) -> WeightMask:
        """A mask for each row of ``target``; a row is the sum over ``prompts`` prompts."""
        pruned = {}
        for name, weight in weights.items():
            for energies in (*target, *base):
                require_finite("wanda", f"activations of {name}", energies[name], weight.dtype)
            rows = len(target[0][name])
            votes = torch.zeros(rows, *weight.shape, dtype=torch.int32, device=weight.device)
            for step, base_step in zip(target, base, strict=True):
                base_norm = (prompts * base_step[name][0]).sqrt()
                for vote, energy in zip(votes, step[name], strict=True):
                    vote += wanda_mask(
                        weight, energy.sqrt(), self.sparsity, base_act_norm=base_norm
                    )
            pruned[name] = (votes > self.select_ratio * self.steps).cpu()
        return WeightMask(pruned)


@dataclass(frozen=True)
class _Step:
    """One step of P prompts: estimates for DDIM [P, S, C, H, W] and sums of squares."""

    estimate: Tensor
    energies: Energies


def _observe(model: Denoiser, condition: TextCondition, latents: Tensor, timestep: int) -> _Step:
    estimate, energies = feed_forward_inputs(model, condition, latents, timestep, token_energies)
    return _Step(estimate, {name: energy.sum(1) for name, energy in energies.items()})


def token_energies(activations: Tensor) -> Tensor:
    """Sums of squares over unit-length tokens: float64 [N, I] from activations [N, T, I]."""
    wide = torch.promote_types(activations.dtype, torch.float32)
    tokens = F.normalize(activations.to(wide), dim=-1)
    # treat each sample's columns as neurons of their own
    columns = tokens.transpose(0, 1).flatten(1)
    return activation_stats(columns).sum_sq.unflatten(0, (len(activations), -1))


def _added(one: Energies, two: Energies) -> Energies:
    return {name: energy + two[name] for name, energy in one.items()}


def _times(factor: float, energies: Energies) -> Energies:
    return {name: factor * energy for name, energy in energies.items()}


def _summed(targets: Iterable[list[Energies]]) -> list[Energies]:
    """The sums over all prompts, [1, 4C] by layer for each step."""
    total: list[Energies] = []
    for target in targets:
        part = [{name: e.sum(0, keepdim=True) for name, e in step.items()} for step in target]
        total = [_added(a, b) for a, b in zip(total, part, strict=True)] if total else part
    return total
