"""The interface of detectors, their scores, and the base class of detectors with seeds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dori_fast._checks import seed_tuple
from dori_fast.errors import UsageError
from dori_fast.models import Denoiser, TextCondition
from dori_fast.models.schedules.vp import require_units


@dataclass(frozen=True)
class PromptScores:
    """Scores of P prompts on the CPU; a higher score is more suspicious.

    Attributes:
        score: float32 [P].
        per_seed: float32 [P, S], the scores per seed that ``score`` is computed from.
        n_tokens: int64 [P], tokens before truncation, with begin and end marks.
        truncated: bool [P], True for prompts that were cut.
        used: int64 [P], number of seeds evaluated if the detector may drop a prompt early
            (``per_seed`` is NaN after them); None if every prompt got all seeds.
    """

    score: Tensor
    per_seed: Tensor
    n_tokens: Tensor
    truncated: Tensor
    used: Tensor | None = None


class Detector(Protocol):
    """A memorization detector."""

    name: str

    def config(self) -> dict[str, Any]:
        """Everything that the scores depend on besides the model, as plain JSON."""
        ...

    def scores(
        self, model: Denoiser, prompts: Sequence[str], positions: Sequence[int] | None = None
    ) -> PromptScores:
        """Score P >= 0 prompts.

        ``positions`` [P] are the prompts' indices in the whole input, default 0..P-1. Only modes
        that reproduce a peer's position-dependent seeding use them. In all other modes a score
        depends on (model, prompt, seeds, dtype) alone.
        """
        ...


class SeededDetector(ABC):
    """A detector that scores each prompt on S noises, shared by all prompts.

    A subclass defines ``name``, :meth:`config` and :meth:`per_seed`, and :meth:`reduce` if a
    prompt's score is not the mean over its seeds.
    """

    name: str
    seeds: tuple[int, ...]

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Everything that the scores depend on besides the model, as plain JSON."""

    @abstractmethod
    def per_seed(self, model: Denoiser, condition: TextCondition) -> Tensor:
        """Scores per prompt and seed, [P, S]."""

    def reduce(self, per_seed: Tensor) -> Tensor:
        """Scores [P] from float64 [P, S]."""
        return per_seed.mean(dim=1)

    def score(self, model: Denoiser, prompts: Sequence[str]) -> Tensor:
        """Scores of P prompts, float32 [P]; a higher score is more suspicious."""
        return self.scores(model, prompts).score

    @torch.no_grad()
    def scores(
        self, model: Denoiser, prompts: Sequence[str], positions: Sequence[int] | None = None
    ) -> PromptScores:
        """Score P >= 0 prompts; see :class:`Detector`."""
        condition = model.encode(prompts)
        # prompts with equal token ids share noise and condition, so compute their scores once
        per_seed = self.per_seed(model, condition.distinct())[condition.index]
        return self.collect(per_seed, condition)

    def collect(self, per_seed: Tensor, condition: TextCondition) -> PromptScores:
        """Scores of the condition's prompts from [P, S]."""
        per_seed = per_seed.detach().to("cpu", torch.float32)
        score = self.reduce(per_seed.double()).float()
        return PromptScores(score, per_seed, condition.n_tokens, condition.truncated)

    def in_chunks(
        self,
        model: Denoiser,
        condition: TextCondition,
        compute: Callable[[TextCondition, int], Tensor],
    ) -> Tensor:
        """[P, S] from ``compute(part, first)`` on as many prompts as fill one evaluation.

        No predictions are kept, so memory does not grow with the number of prompts.
        """
        step = max(1, model.batch_size // len(self.seeds))
        chunks = [
            compute(condition[start : start + step], start)
            for start in range(0, len(condition), step)
        ]
        return torch.cat(chunks) if chunks else torch.zeros(0, len(self.seeds))


def seed_list(name: str, seeds: int | Sequence[int]) -> tuple[int, ...]:
    """The seeds 0..n-1 for a number n, or the given seeds.

    Raises:
        UsageError: no seeds, or a seed outside 0..2^63-1.
    """
    found = seed_tuple(seeds)
    if not found or not all(0 <= seed < 2**63 for seed in found):
        raise UsageError(f"{name}: seeds must be 1 or more numbers in 0..2^63-1, got {seeds!r}")
    return found


def checked_units(name: str, units: str, compat: str | None) -> str:
    """The units of a detector's predictions.

    Raises:
        UsageError: unknown units, or units other than epsilon with ``compat``, which reproduces
            released code.
    """
    require_units(name, units)
    if compat and units != "epsilon":
        raise UsageError(f"{name}: compat={compat!r} has units 'epsilon'; leave one of the two out")
    return units


def one_draw(model: Denoiser, seed: int, images: int) -> Tensor:
    """Noise [S, C, H, W] drawn as the peers do: at once, on the model's device in its dtype."""
    generator = torch.Generator(model.device).manual_seed(seed)
    shape = (images, *model.latent_shape)
    return torch.randn(shape, generator=generator, device=model.device, dtype=model.dtype)
