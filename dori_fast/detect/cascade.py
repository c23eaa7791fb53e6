"""A seeded detector that drops a prompt once more seeds are unlikely to change the decision.

It is approximate and opt-in. The score of a dropped prompt is the mean over its evaluated seeds; a
prompt that reaches its last seed has the full test's score, to the bit on a CPU.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from dori_fast.detect.detector import PromptScores
from dori_fast.detect.wen import Wen
from dori_fast.errors import UsageError
from dori_fast.models import Denoiser, SharedLatents, TextCondition


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

    def scores(
        self, model: Denoiser, prompts: Sequence[str], positions: Sequence[int] | None = None
    ) -> PromptScores:
        """Score P >= 0 prompts; ``per_seed`` is NaN where a seed was not evaluated."""
        return next(self.stream(model, [prompts]))

    def stream(self, model: Denoiser, blocks: Iterable[Sequence[str]]) -> Iterator[PromptScores]:
        """Scores of each block of prompts in order, as :meth:`scores` gives them.

        Few prompts come to their second seed. Those of all blocks fill batches together with first
        seeds, so only the last batches are padded, and a block's scores may come after later
        blocks were read.
        """
        shared, source = self.full.noise(model), iter(blocks)
        open_: deque[_Block] = deque()
        # prompts at their first seed, and at a later one
        fresh: deque[_Prompt] = deque()
        further: deque[_Prompt] = deque()
        read = number = 0
        while not read or open_:
            while not read and len(fresh) + len(further) < model.batch_size:
                prompts = next(source, None)
                if prompts is None:
                    read = 1
                    continue
                block = _Block(number, model.encode(prompts), len(self.full.seeds))
                open_.append(block)
                fresh.extend((block, row) for row in range(block.left))
                number += 1
            # later seeds first, so that blocks end in order
            batch = _take(further, model.batch_size)
            batch += _take(fresh, model.batch_size - len(batch))
            if batch:
                batch.sort(key=lambda prompt: prompt[0].number)
                self._score(model, shared, batch)
                further.extend(self._further(batch))
            while open_ and not open_[0].left:
                yield open_.popleft().scores()

    @torch.no_grad()
    def _score(self, model: Denoiser, shared: SharedLatents, batch: Sequence[_Prompt]) -> None:
        """Evaluate the next seed of each prompt of a batch, which is in the order of blocks."""
        seeds = [int(block.used[row]) for block, row in batch]
        norms = self.full.paired(model, _joined(batch), shared, torch.tensor(seeds)).cpu().float()
        for (block, row), seed, norm in zip(batch, seeds, norms, strict=True):
            block.found[row, seed] = norm
            block.used[row] += 1

    def _further(self, batch: Sequence[_Prompt]) -> list[_Prompt]:
        """The prompts that have seeds left and are worth them; the others are done."""
        by_used: dict[int, list[_Prompt]] = {}
        for block, row in batch:
            by_used.setdefault(int(block.used[row]), []).append((block, row))
        going_on = []
        for used, prompts in by_used.items():
            found = torch.stack([block.found[row, :used] for block, row in prompts])
            worth = found.double().mean(dim=1) >= self.bound
            for (block, row), on in zip(prompts, worth.tolist(), strict=True):
                if on and used < len(self.full.seeds):
                    going_on.append((block, row))
                else:
                    block.left -= 1
        return going_on


class _Block:
    """A block of prompts while they are scored.

    Attributes:
        number: place among the blocks.
        distinct: the distinct prompts.
        found: scores per seed float32 [D, S]; NaN if not evaluated.
        used: evaluated seeds int64 [D].
        left: number of distinct prompts that are not done.
    """

    def __init__(self, number: int, condition: TextCondition, seeds: int) -> None:
        self.number = number
        self._condition, self.distinct = condition, condition.distinct()
        self.left = len(self.distinct)
        self.found = torch.full((self.left, seeds), torch.nan)
        self.used = torch.zeros(self.left, dtype=torch.int64)

    def scores(self) -> PromptScores:
        """Scores of all prompts, once they are done."""
        condition, used = self._condition, self.used
        evaluated = torch.arange(self.found.shape[1]) < used[:, None]
        score = self.found.double().where(evaluated, 0).sum(dim=1) / used
        index = condition.index
        score, per_seed, used = (part[index] for part in (score.float(), self.found, used))
        return PromptScores(score, per_seed, condition.n_tokens, condition.truncated, used)


_Prompt = tuple[_Block, int]


def _take(queue: deque[_Prompt], most: int) -> list[_Prompt]:
    return [queue.popleft() for _ in range(min(most, len(queue)))]


def _joined(batch: Sequence[_Prompt]) -> TextCondition:
    """The condition of prompts of one or several blocks, which are in the order of blocks."""
    rows: dict[_Block, list[int]] = {}
    for block, row in batch:
        rows.setdefault(block, []).append(row)
    parts = [block.distinct[torch.tensor(some)] for block, some in rows.items()]
    if len(parts) == 1:
        # rows of the block's own embeddings keep the masks that go with them
        return parts[0]
    each = [part.one_row_each() for part in parts]
    pooled = [part.pooled for part in each if part.pooled is not None]
    return TextCondition.of(
        torch.cat([part.unique for part in each]), torch.cat(pooled) if pooled else None
    )
