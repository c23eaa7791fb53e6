"""Frozen text encoders: Stable Diffusion's one, and SDXL's two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dori_fast.errors import UsageError
from dori_fast.models.text.conditions import (
    TextCondition,
    TokenRows,
    first_positions,
    pad_rows,
    token_lists,
    tokenize,
)


class TextSide:
    """SD 1.x and 2.x: a tokenizer and a text encoder, its last hidden states."""

    has_pooled = False

    def __init__(self, tokenizer: Any, text_encoder: Any) -> None:
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder

    @property
    def width(self) -> int:
        """D, the width of the embeddings."""
        return int(self.text_encoder.config.hidden_size)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], batch: int) -> TextCondition:
        """Encode prompts in batches of a fixed size; equal token sequences are encoded once.

        Raises:
            UsageError: a prompt is not a ``str``.
        """
        _require_text(prompts)
        tokens = tokenize(self.tokenizer, prompts)
        (unique,) = _in_batches(self.text_encoder, tokens, batch, lambda out: (out[0],))
        return _condition(tokens, unique, tokens.index, None)

    def token_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """All token ids of each prompt, before truncation."""
        _require_text(prompts)
        return token_lists(self.tokenizer, prompts)

    @staticmethod
    def hidden(encoder: Any, ids: Tensor, tokenizer: Any) -> Tensor:
        """The last hidden states [B, T, D] of token ids [B, T], differentiable."""
        states: Tensor = _call(encoder, ids, int(tokenizer.pad_token_id))[0]
        return states

    def empty(self, batch: int) -> TextCondition:
        """The condition of the empty prompt."""
        return self.encode([""], batch)

    def pipeline(self, **parts: Any) -> Any:
        """A stock diffusers pipeline of this text encoder and a model's other parts."""
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline(
            tokenizer=self.tokenizer,
            text_encoder=self.text_encoder,
            **parts,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


class TextSideXL:
    """SDXL: two tokenizers and text encoders.

    Embeddings are their penultimate hidden states side by side, and the second one's pooled
    embedding.
    """

    has_pooled = True

    def __init__(
        self, tokenizers: tuple[Any, Any], encoders: tuple[Any, Any], zero_for_empty: bool
    ) -> None:
        self.tokenizer, self.tokenizer_2 = tokenizers
        self.text_encoder, self.text_encoder_2 = encoders
        self.zero_for_empty = zero_for_empty

    @property
    def width(self) -> int:
        """D, the width of the embeddings."""
        return int(self.text_encoder.config.hidden_size + self.text_encoder_2.config.hidden_size)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], batch: int) -> TextCondition:
        """Encode prompts in batches of a fixed size; equal token sequences are encoded once.

        Raises:
            UsageError: a prompt is not a ``str``.
        """
        _require_text(prompts)
        first, second = (tokenize(t, prompts) for t in (self.tokenizer, self.tokenizer_2))
        # a prompt's row is its pair of token sequences
        pairs, index = torch.unique(
            torch.stack([first.index, second.index]), dim=1, return_inverse=True
        )
        order = first_positions(index, pairs.shape[1])
        (hidden,) = _in_batches(
            self.text_encoder, first, batch, lambda out: (out.hidden_states[-2],)
        )
        hidden_2, pooled = _in_batches(
            self.text_encoder_2, second, batch, lambda out: (out.hidden_states[-2], out[0])
        )
        rows, rows_2 = (tokens.index[order].to(hidden.device) for tokens in (first, second))
        unique = torch.cat([hidden[rows], hidden_2[rows_2]], dim=-1)
        return _condition(first, unique, index, pooled[rows_2])

    def token_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Both tokenizers' ids of each prompt with -1 between them, before truncation."""
        _require_text(prompts)
        both = (token_lists(t, prompts) for t in (self.tokenizer, self.tokenizer_2))
        return [[*first, -1, *second] for first, second in zip(*both, strict=True)]

    def empty(self, batch: int) -> TextCondition:
        """The condition of the empty prompt, which is all zeros in SDXL's base model."""
        empty = self.encode([""], batch)
        if self.zero_for_empty:
            empty.unique.zero_()
            if empty.pooled is not None:
                empty.pooled.zero_()
        return empty

    def pipeline(self, **parts: Any) -> Any:
        """A stock diffusers pipeline of these text encoders and a model's other parts."""
        from diffusers import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline(
            tokenizer=self.tokenizer,
            tokenizer_2=self.tokenizer_2,
            text_encoder=self.text_encoder,
            text_encoder_2=self.text_encoder_2,
            force_zeros_for_empty_prompt=self.zero_for_empty,
            **parts,
            add_watermarker=False,
        )


def _require_text(prompts: Sequence[str]) -> None:
    for position, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise UsageError(
                f"encode: prompt {position} must be a str, got {type(prompt).__name__}"
            )


def _condition(
    tokens: TokenRows, unique: Tensor, index: Tensor, pooled: Tensor | None
) -> TextCondition:
    truncated = tokens.n_tokens > tokens.context
    return TextCondition(unique, index, tokens.n_tokens, truncated, pooled)


def _in_batches(
    encoder: Any, tokens: TokenRows, batch: int, pick: Callable[[Any], tuple[Tensor, ...]]
) -> list[Tensor]:
    """The tensors that ``pick`` selects from the encoder's output, [U, *] each, by token row.

    Every call of the encoder has the same shape [batch, T], the last one padded with its own last
    row, so that an embedding does not depend on the prompts beside it.
    """
    # without prompts, one row of padding gives empty tensors of the right width
    ids = tokens.ids if len(tokens.ids) else torch.full((1, tokens.context), tokens.pad_id)
    chunks = []
    for chunk in ids.split(batch):
        padded = pad_rows(chunk, batch).to(encoder.device)
        chunks.append(pick(_call(encoder, padded, tokens.pad_id)))
    return [torch.cat(pieces)[: len(tokens.ids)] for pieces in zip(*chunks, strict=True)]


def _call(encoder: Any, ids: Tensor, pad_id: int) -> Any:
    """The encoder on token ids [B, T]."""
    # SD 1.x and 2.x attend to the padding; only models whose config says so mask it
    use_mask = getattr(encoder.config, "use_attention_mask", False)
    mask = (ids != pad_id).long() if use_mask else None
    return encoder(ids, attention_mask=mask, output_hidden_states=True)
