"""A seeded detector that drops a prompt once more seeds are unlikely to change the decision.

It is approximate and opt-in. The score of a dropped prompt is the mean over its evaluated seeds; a
prompt that reaches its last seed has the full test's score, on a CPU to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from dori_fast.detect.detector import PromptScores
from dori_fast.detect.wen import Wen
from dori_fast.errors import UsageError
from dori_fast.models import Denoiser


class Cascade:
    """Wen's detector, seed by seed; prompts whose running mean is below a bound are dropped.

    Args:
        detector: the full test, with two or more shared seeds.
        bound: smallest running mean to continue with; see
            :func:`dori_fast.evaluate.futility.futility_bound`.
    """

    def __init__(self, detector: Wen, bound: float) -> None:
        if not isinstance(detector, Wen) or detector.compat or len(detector.seeds) < 2:
            raise UsageError("cascade: needs the detector 'wen' with two or more shared seeds")
        if math.isnan(bound):
            raise UsageError("cascade: bound must be a number, got nan")
        self.name, self.full, self.bound = detector.name, detector, float(bound)

    def config(self) -> dict[str, Any]:
        """Everything that the scores depend on besides the model, as plain JSON."""
        return {**self.full.config(), "futility_bound": self.bound}

    @torch.no_grad()
    def scores(
        self, model: Denoiser, prompts: Sequence[str], positions: Sequence[int] | None = None
    ) -> PromptScores:
        """Score P >= 0 prompts; ``per_seed`` is NaN where a seed was not evaluated."""
        condition = model.encode(prompts)
        distinct = condition.distinct()
        seeds = self.full.seeds
        found = torch.full((len(distinct), len(seeds)), torch.nan)
        used = torch.zeros(len(distinct), dtype=torch.int64)
        left = torch.arange(len(distinct))
        for column, seed in enumerate(seeds):
            if column:
                left = left[found[left, :column].double().mean(dim=1) >= self.bound]
            if not len(left):
                break
            one_seed = self.full.with_seeds((seed,))
            found[left, column] = one_seed.per_seed(model, distinct[left]).cpu().float()[:, 0]
            used[left] += 1
        evaluated = torch.arange(len(seeds)) < used[:, None]
        score = found.double().where(evaluated, 0).sum(dim=1) / used
        score, per_seed, used = (part[condition.index] for part in (score.float(), found, used))
        return PromptScores(score, per_seed, condition.n_tokens, condition.truncated, used)
