"""Prompts as the token ids that a diffusers pipeline gives to its text encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dori_fast.models.text.placeholders import with_all_vectors


@dataclass(frozen=True)
class TokenRows:
    """Fixed-length token ids of distinct prompts, and each prompt's row of them."""

    ids: Tensor  # int64 [U, T]
    mask: Tensor  # int64 [U, T], 0 at the padding
    index: Tensor  # int64 [P]
    n_tokens: Tensor  # int64 [P]
    pad_id: int

    @property
    def context(self) -> int:
        """T."""
        return self.ids.shape[1]

    @property
    def truncated(self) -> Tensor:
        """bool [P], whether a prompt exceeds the context."""
        return self.n_tokens > self.context


def context_of(tokenizer: Any, encoder: Any) -> int:
    """T, the number of token ids that a pipeline pads and truncates to.

    A tokenizer without a number, or with more than the encoder has positions, gets the encoder's.
    """
    own = tokenizer.model_max_length
    positions = int(encoder.config.max_position_embeddings)
    return positions if own is None or math.isnan(own) else int(min(own, positions))


@dataclass(frozen=True)
class PromptTokens:
    """A tokenizer as the pipelines use it for one text encoder."""

    tokenizer: Any
    encoder: Any

    def lists(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt, with begin and end marks, neither truncated nor padded."""
        return self._lists(with_all_vectors(self.tokenizer, prompts))

    def rows(self, prompts: Sequence[str]) -> TokenRows:
        """Token ids as in a pipeline: truncated and padded to the context.

        Prompts with the same ids after truncation share one row. This is exact, since nothing else
        of a prompt reaches the denoiser.
        """
        context = context_of(self.tokenizer, self.encoder)
        converted = with_all_vectors(self.tokenizer, prompts)
        rows: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
        index = [rows.setdefault(row, len(rows)) for row in self._padded(converted, context)]
        return TokenRows(
            ids=_matrix([ids for ids, _ in rows], context),
            mask=_matrix([mask for _, mask in rows], context),
            index=torch.tensor(index, dtype=torch.int64),
            n_tokens=torch.tensor([len(ids) for ids in self._lists(converted)], dtype=torch.int64),
            pad_id=int(self.tokenizer.pad_token_id),
        )

    def _lists(self, converted: list[str]) -> list[list[int]]:
        if not converted:
            return []
        found = self.tokenizer(converted, truncation=False, padding=False, verbose=False)
        return [list(ids) for ids in found["input_ids"]]

    def _padded(
        self, converted: list[str], context: int
    ) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Ids and mask of each prompt, by the very call of the pipelines."""
        if not converted:
            return []
        found = self.tokenizer(
            converted, padding="max_length", max_length=context, truncation=True, verbose=False
        )
        each = zip(found["input_ids"], found["attention_mask"], strict=True)
        return [(tuple(ids), tuple(mask)) for ids, mask in each]


def _matrix(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), width)
