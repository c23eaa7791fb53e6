"""Prompts prefixed with K tokens of an adversary's choice, with gradients to those tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dori_fast._checks import to_device
from dori_fast.errors import UsageError
from dori_fast.models.backbones.unet.stock import is_plain
from dori_fast.models.denoiser import Denoiser
from dori_fast.models.text.conditions import TextCondition, pad_rows
from dori_fast.models.text.encoders import TextSide
from dori_fast.models.text.placeholders import vectors_by_placeholder
from dori_fast.models.text.prompts import list_of_str
from dori_fast.models.text.tokens import PromptTokens, TokenRows


class PrefixedPrompts:
    """P prompts, each after K tokens: begin mark, K tokens, the prompt, end mark, padding.

    A prompt that no longer fits loses its last tokens. SD 1.x and 2.x only.

    Attributes:
        allowed: bool [V] on the model's device, the tokens that may be chosen: the vocabulary
            without special marks, so that the result is a text.
        table: [V, D], the text encoder's token embeddings.

    Raises:
        UsageError: an SDXL model, or more tokens than the context holds.
    """

    def __init__(self, model: Denoiser, prompts: Sequence[str], tokens: int) -> None:
        if model.unconditional.pooled is not None:
            raise UsageError("prefix: tokens of SDXL's two text encoders are not supported")
        self._model, self._encoder = model, model.text_encoder
        tokens_of = PromptTokens(model.tokenizer, model.text_encoder)
        rows = tokens_of.rows(list_of_str("prefix", prompts))
        if not 1 <= tokens <= rows.context - 2:
            raise UsageError(f"prefix: tokens must be 1..{rows.context - 2}, got {tokens}")
        embeddings = self._encoder.get_input_embeddings()
        if not is_plain(embeddings, nn.Embedding):
            raise UsageError(
                "prefix: the text encoder's token embeddings are no plain table (an adapter, a"
                f" hook, or the class {type(embeddings).__name__}); undo that first"
            )
        self._slots, self._rows = slice(1, 1 + tokens), _make_room(rows, tokens)
        self.table: Tensor = self._encoder.get_input_embeddings().weight.detach()
        known = torch.zeros(len(self.table), dtype=torch.bool)
        # an added word may have any number, so that numbers below it may have no word
        known[torch.tensor([*model.tokenizer.get_vocab().values()])] = True
        known[torch.tensor(model.tokenizer.all_special_ids)] = False
        # typing such a word gives all vectors of its textual inversion, never the first alone
        for word in vectors_by_placeholder(model.tokenizer):
            known[model.tokenizer.convert_tokens_to_ids(word)] = False
        self.allowed = known.to(model.device)

    def ids(self, tokens: Tensor) -> Tensor:
        """Whole token rows int64 [P, T] on the CPU, with tokens int64 [P, K]."""
        ids = self._rows.clone()
        ids[:, self._slots] = tokens.cpu()
        return ids

    def encode(self, rows: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Encode some of the prompts, differentiably.

        Args:
            rows: numbers of the prompts, int64 [A] on the CPU.
            tokens: prefix tokens of each, int64 [A, K].

        Returns:
            Embeddings [A, T, D] in model dtype, and the leaf [A, K, D] of the tokens' own
            embeddings, to which they carry gradients. Neither depends on the other prompts.
        """
        leaf = self.table[to_device(tokens, self.table.device)].detach().requires_grad_()
        ids, batch, chunks = self._rows[rows], self._model.batch_size, []
        ids[:, self._slots] = tokens.cpu()
        for some, slots in zip(ids.split(batch), leaf.split(batch), strict=True):
            padded = to_device(pad_rows(some, batch), self._encoder.device)
            with _embedded(self._encoder, self._slots, pad_rows(slots, batch)):
                chunks.append(TextSide.hidden(self._encoder, padded, self._model.tokenizer))
        return torch.cat(chunks)[: len(rows)], leaf


@torch.no_grad()
def encode_ids(model: Denoiser, ids: Tensor) -> TextCondition:
    """Token rows int64 [P, T], with marks and padding, as a condition; SD 1.x and 2.x only."""
    encoder, batch = model.text_encoder, model.batch_size
    chunks = [
        TextSide.hidden(encoder, to_device(pad_rows(some, batch), encoder.device), model.tokenizer)
        for some in ids.split(batch)
    ]
    return model.condition(torch.cat(chunks)[: len(ids)])


def _make_room(rows: TokenRows, tokens: int) -> Tensor:
    """Token rows int64 [P, T] with room for so many tokens after the begin mark."""
    ids = torch.full((len(rows.index), rows.context), rows.pad_id)
    for i, (row, length) in enumerate(zip(rows.ids[rows.index], rows.n_tokens, strict=True)):
        end = min(int(length), rows.context) - 1
        words = row[1:end][: rows.context - 2 - tokens]
        begun = torch.cat(
            [row[:1], row.new_full((tokens,), rows.pad_id), words, row[end : end + 1]]
        )
        ids[i, : len(begun)] = begun
    return ids


@contextmanager
def _embedded(encoder: Any, slots: slice, embeddings: Tensor) -> Iterator[None]:
    """A context in which the tokens in ``slots`` have these embeddings [B, K, D].

    The text models of transformers take ids only. The module that looks embeddings up is public,
    and a torch hook can replace its output.
    """

    def replace(module: Any, arguments: Any, looked_up: Tensor) -> Tensor:
        before, after = looked_up[:, : slots.start], looked_up[:, slots.stop :]
        return torch.cat([before, embeddings, after], dim=1)

    hook = encoder.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()
