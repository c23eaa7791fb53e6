"""Prompts as text conditions, each distinct token sequence held once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dori_fast._checks import to_device


@dataclass(frozen=True)
class TextCondition:
    """The text side of P prompts, each distinct token sequence held once.

    Attributes:
        unique: [U, T, D] embeddings of the U <= P distinct token sequences, in model dtype.
        index: int64 [P] on the CPU, the row of ``unique`` that each prompt uses.
        n_tokens: int64 [P] on the CPU, tokens with begin and end marks, before truncation.
        truncated: bool [P] on the CPU, whether the prompt exceeded the text encoder's context.
        pooled: [U, E] pooled embeddings if the network takes them (SDXL), else None.
    """

    unique: Tensor
    index: Tensor
    n_tokens: Tensor
    truncated: Tensor
    pooled: Tensor | None = None

    @staticmethod
    def of(embeddings: Tensor, pooled: Tensor | None = None) -> TextCondition:
        """The condition of P embeddings [P, T, D] that need not belong to any prompt."""
        prompts, tokens = embeddings.shape[:2]
        return TextCondition(
            unique=embeddings,
            index=torch.arange(prompts),
            n_tokens=torch.full((prompts,), tokens),
            truncated=torch.zeros(prompts, dtype=torch.bool),
            pooled=pooled,
        )

    def __len__(self) -> int:
        return self.index.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> TextCondition:
        return replace(
            self,
            index=self.index[rows],
            n_tokens=self.n_tokens[rows],
            truncated=self.truncated[rows],
        )

    @property
    def embeddings(self) -> Tensor:
        """[P, T, D], one embedding per prompt; carries gradients to ``unique``."""
        return self.unique[to_device(self.index, self.unique.device)]

    def one_row_each(self) -> TextCondition:
        """The same prompts with a row of ``unique`` for each, even for equal prompts."""
        rows, index = to_device(self.index, self.unique.device), torch.arange(len(self))
        pooled = None if self.pooled is None else self.pooled[rows]
        return replace(self, unique=self.embeddings, pooled=pooled, index=index)

    def repeat(self, n: int) -> TextCondition:
        """The first prompt n times, with one row of ``unique``."""
        return self[torch.zeros(n, dtype=torch.int64)]

    def distinct(self) -> TextCondition:
        """The same condition with every distinct prompt once, in order of ``unique``: [U, T, D]."""
        return self[first_positions(self.index, self.unique.shape[0])]


def first_positions(index: Tensor, n: int) -> Tensor:
    """The first position of each of 0..n-1 in ``index`` [P], int64 [n]."""
    positions = torch.arange(index.shape[0])
    first = torch.full((n,), index.shape[0])
    return first.scatter_reduce(0, index, positions, reduce="amin")


def pad_rows(rows: Tensor, n: int) -> Tensor:
    """``rows`` [k, *] padded to [n, *] by repeating the last row; k must be 1..n."""
    missing = n - rows.shape[0]
    return rows if missing == 0 else torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])
