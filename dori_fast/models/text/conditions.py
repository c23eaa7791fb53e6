"""Prompts as token ids and text conditions, each distinct token sequence held once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


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
        return self.unique[self.index.to(self.unique.device)]

    def one_row_each(self) -> TextCondition:
        """The same prompts with a row of ``unique`` for each, even for equal prompts."""
        pooled = None if self.pooled is None else self.pooled[self.index.to(self.pooled.device)]
        index = torch.arange(len(self))
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


@dataclass(frozen=True)
class TokenRows:
    """Fixed-length token ids of distinct prompts, and each prompt's row of them."""

    ids: Tensor  # int64 [U, T]
    index: Tensor  # int64 [P]
    n_tokens: Tensor  # int64 [P]
    context: int  # T
    pad_id: int


def token_lists(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """The token ids of each prompt, with begin and end marks, neither truncated nor padded."""
    if not prompts:
        return []
    ids = tokenizer(list(prompts), truncation=False, padding=False, verbose=False)["input_ids"]
    return [list(one) for one in ids]


def tokenize(tokenizer: Any, prompts: Sequence[str]) -> TokenRows:
    """Token ids as in a Stable Diffusion pipeline: truncated and padded to the context.

    Prompts with the same ids after truncation share one row. This is exact, since nothing else of
    a prompt reaches the denoiser.
    """
    context = int(tokenizer.model_max_length)
    lists = token_lists(tokenizer, prompts)
    rows: dict[tuple[int, ...], int] = {}
    index = []
    for ids in lists:
        if len(ids) > context:
            ids = [*ids[: context - 1], tokenizer.eos_token_id]
        index.append(rows.setdefault(tuple(ids), len(rows)))
    pad = int(tokenizer.pad_token_id)
    padded = [[*ids, *[pad] * (context - len(ids))] for ids in rows]
    return TokenRows(
        ids=torch.tensor(padded, dtype=torch.int64).reshape(len(rows), context),
        index=torch.tensor(index, dtype=torch.int64),
        n_tokens=torch.tensor([len(ids) for ids in lists], dtype=torch.int64),
        context=context,
        pad_id=pad,
    )


def pad_rows(rows: Tensor, n: int) -> Tensor:
    """``rows`` [k, *] padded to [n, *] by repeating the last row; k must be 1..n."""
    missing = n - rows.shape[0]
    return rows if missing == 0 else torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])
