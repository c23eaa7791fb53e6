"""Prompts to text conditions: tokenised in bulk, deduplicated by token ids, encoded in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dori_fast.errors import UsageError


@dataclass(frozen=True)
class TextCondition:
    """The text side of P prompts, each distinct token sequence held once.

    Attributes:
        unique: [U, T, D] embeddings of the U <= P distinct token sequences, in model dtype.
        index: int64 [P] on the CPU, the row of ``unique`` that each prompt uses.
        n_tokens: int64 [P] on the CPU, tokens with begin and end marks, before truncation.
        truncated: bool [P] on the CPU, whether the prompt exceeded the text encoder's context.
    """

    unique: Tensor
    index: Tensor
    n_tokens: Tensor
    truncated: Tensor

    def __len__(self) -> int:
        return self.index.shape[0]

    def __getitem__(self, rows: slice) -> TextCondition:
        return TextCondition(
            self.unique, self.index[rows], self.n_tokens[rows], self.truncated[rows]
        )

    @property
    def embeddings(self) -> Tensor:
        """[P, T, D], one embedding per prompt; carries gradients to ``unique``."""
        return self.unique[self.index.to(self.unique.device)]

    def one_row_each(self) -> TextCondition:
        """The same prompts with a row of ``unique`` for each, equal or not."""
        return TextCondition(
            self.embeddings, torch.arange(len(self)), self.n_tokens, self.truncated
        )

    def repeat(self, n: int) -> TextCondition:
        """The first prompt n times, with one row of ``unique``."""
        first = self[:1]
        return TextCondition(
            self.unique, first.index.expand(n), first.n_tokens.expand(n), first.truncated.expand(n)
        )

    def distinct(self) -> TextCondition:
        """The same condition with every distinct prompt once, in order of ``unique``: [U, T, D]."""
        n = self.unique.shape[0]
        first = first_positions(self.index, n)
        return TextCondition(
            self.unique, torch.arange(n), self.n_tokens[first], self.truncated[first]
        )


class TextSide:
    """A tokenizer and a frozen text encoder."""

    def __init__(self, tokenizer: Any, text_encoder: Any) -> None:
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], batch: int) -> TextCondition:
        """Encode prompts in batches of a fixed size; equal token sequences are encoded once.

        Raises:
            UsageError: a prompt is not a ``str``.
        """
        for position, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise UsageError(
                    f"encode: prompt {position} must be a str, got {type(prompt).__name__}"
                )
        tokens = tokenize(self.tokenizer, prompts)
        return TextCondition(
            unique=encode_rows(self.text_encoder, tokens, self.tokenizer.pad_token_id, batch),
            index=tokens.index,
            n_tokens=tokens.n_tokens,
            truncated=tokens.n_tokens > tokens.context,
        )


def first_positions(index: Tensor, n: int) -> Tensor:
    """int64 [n]: the first position at which each of 0..n-1 stands in ``index`` [P]."""
    positions = torch.arange(index.shape[0])
    first = torch.full((n,), index.shape[0])
    return first.scatter_reduce(0, index, positions, reduce="amin")


@dataclass(frozen=True)
class TokenRows:
    """Fixed-length token ids of distinct prompts, and how the prompts map to them."""

    ids: Tensor  # int64 [U, T]
    index: Tensor  # int64 [P]
    n_tokens: Tensor  # int64 [P]
    context: int  # T


def tokenize(tokenizer: Any, prompts: Sequence[str]) -> TokenRows:
    """Token ids as a Stable Diffusion pipeline makes them: truncated and padded to the context.

    Two prompts with the same ids after truncation share one row, which is exact: the denoiser
    sees nothing of a prompt but these ids.
    """
    context = int(tokenizer.model_max_length)
    lists = (
        tokenizer(list(prompts), truncation=False, padding=False, verbose=False)["input_ids"]
        if prompts
        else []
    )
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
    )


def encode_rows(text_encoder: Any, tokens: TokenRows, pad_id: int, batch: int) -> Tensor:
    """Hidden states [U, T, D] of distinct token rows.

    Every call of the encoder has the same shape [batch, T], the last one padded with its own last
    row, so that an embedding does not depend on which prompts happen to be encoded beside it.
    """
    device = text_encoder.device
    use_mask = getattr(text_encoder.config, "use_attention_mask", False)
    chunks = []
    for start in range(0, tokens.ids.shape[0], batch):
        ids = pad_rows(tokens.ids[start : start + batch], batch).to(device)
        # SD 1.x and 2.x attend to the padding; only models that say so mask it
        mask = (ids != pad_id).long() if use_mask else None
        chunks.append(text_encoder(ids, attention_mask=mask)[0])
    n = tokens.ids.shape[0]
    if not chunks:
        width = text_encoder.config.hidden_size
        return torch.zeros(0, tokens.context, width, dtype=text_encoder.dtype, device=device)
    return torch.cat(chunks)[:n]


def pad_rows(rows: Tensor, n: int) -> Tensor:
    """``rows`` [k, *] brought to [n, *] by repeating its last row; k must be 1..n."""
    missing = n - rows.shape[0]
    return rows if missing == 0 else torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])
