"""What a detector gives, and what the scan asks of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dori_fast.models import Denoiser


@dataclass(frozen=True)
class PromptScores:
    """Scores of P prompts on the CPU; a higher score is more suspicious.

    Attributes:
        score: float32 [P].
        per_seed: float32 [P, S], what ``score`` is the mean of.
        n_tokens: int64 [P], tokens before truncation, begin and end marks included.
        truncated: bool [P].
    """

    score: Tensor
    per_seed: Tensor
    n_tokens: Tensor
    truncated: Tensor

    @classmethod
    def from_per_seed(cls, per_seed: Tensor, n_tokens: Tensor, truncated: Tensor) -> PromptScores:
        """Scores as the mean over seeds [P, S], taken in float64 and rounded once to float32."""
        per_seed = per_seed.detach().to("cpu", torch.float32)
        score = per_seed.double().mean(dim=1).float()
        return cls(score, per_seed, n_tokens.cpu(), truncated.cpu())


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

        ``positions`` [P] are the prompts' places in the whole input (0..P-1 if not given); only
        modes that reproduce a peer's position-dependent seeding look at them. Without such a mode
        a score depends on (model, prompt, seeds, dtype) alone.
        """
        ...
