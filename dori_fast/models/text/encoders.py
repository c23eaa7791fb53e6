"""Frozen text encoders: Stable Diffusion's one, and SDXL's two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dori_fast._checks import to_device
from dori_fast.models.frozen import frozen
from dori_fast.models.precision import fixed_precision
from dori_fast.models.text.conditions import TextCondition, first_positions, pad_rows
from dori_fast.models.text.prompts import list_of_str
from dori_fast.models.text.tokens import PromptTokens, TokenRows

PARTS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
"""Names of the tokenizers and their text encoders in a pipeline; SDXL has both pairs."""


class TextSide:
    """SD 1.x and 2.x: a tokenizer and a text encoder, its last hidden states."""

    has_pooled = False

    def __init__(self, tokenizer: Any, text_encoder: Any) -> None:
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self.each = (PromptTokens(tokenizer, text_encoder),)

    @property
    def width(self) -> int:
        """D, the width of the embeddings."""
        return int(self.text_encoder.config.hidden_size)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], batch: int) -> TextCondition:
        """Encode prompts in batches of a fixed size; equal token sequences are encoded once.

        Raises:
            UsageError: not a list of ``str``, or overlapping placeholders.
        """
        tokens = self.each[0].rows(list_of_str("encode", prompts))
        masked = _masks_padding(self.text_encoder)
        (unique,) = _in_batches(self.text_encoder, tokens, batch, masked, lambda out: (out[0],))
        return TextCondition(unique, tokens.index, tokens.n_tokens, tokens.truncated)

    def token_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """All token ids of each prompt, before truncation."""
        return self.each[0].lists(list_of_str("token_ids", prompts))

    @staticmethod
    def hidden(encoder: Any, ids: Tensor, tokenizer: Any) -> Tensor:
        """The last hidden states [B, T, D] of token ids [B, T], differentiable."""
        mask = None
        if _masks_padding(encoder):
            mask = _mask_of(ids, int(tokenizer.pad_token_id), int(tokenizer.eos_token_id))
        states: Tensor = _call(encoder, ids, mask)[0]
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
        self.each = tuple(map(PromptTokens, tokenizers, encoders))
        self.zero_for_empty = zero_for_empty

    @property
    def width(self) -> int:
        """D, the width of the embeddings."""
        return int(self.text_encoder.config.hidden_size + self.text_encoder_2.config.hidden_size)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], batch: int) -> TextCondition:
        """Encode prompts in batches of a fixed size; equal token sequences are encoded once.

        ``n_tokens`` is the larger number of both tokenizers, which differ if only one of them
        has a textual inversion.

        Raises:
            UsageError: not a list of ``str``, or overlapping placeholders.
        """
        prompts = list_of_str("encode", prompts)
        first, second = (tokens.rows(prompts) for tokens in self.each)
        # a prompt's row is its pair of token sequences
        pairs, index = torch.unique(
            torch.stack([first.index, second.index]), dim=1, return_inverse=True
        )
        order = first_positions(index, pairs.shape[1])
        # SDXL's pipelines attend to the padding, whatever the encoders' configs say
        (hidden,) = _in_batches(
            self.text_encoder, first, batch, False, lambda out: (out.hidden_states[-2],)
        )
        hidden_2, pooled = _in_batches(
            self.text_encoder_2, second, batch, False, lambda out: (out.hidden_states[-2], out[0])
        )
        rows, rows_2 = (to_device(t.index[order], hidden.device) for t in (first, second))
        # with encoders of two dtypes, the pipelines use that of the second
        unique = torch.cat([hidden[rows], hidden_2[rows_2]], dim=-1).to(hidden_2.dtype)
        return TextCondition(
            unique,
            index,
            n_tokens=torch.maximum(first.n_tokens, second.n_tokens),
            truncated=first.truncated | second.truncated,
            pooled=pooled[rows_2],
        )

    def token_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Both tokenizers' ids of each prompt with -1 between them, before truncation."""
        prompts = list_of_str("token_ids", prompts)
        both = (tokens.lists(prompts) for tokens in self.each)
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


def _in_batches(
    encoder: Any,
    tokens: TokenRows,
    batch: int,
    masked: bool,
    pick: Callable[[Any], tuple[Tensor, ...]],
) -> list[Tensor]:
    """The tensors that ``pick`` selects from the encoder's output, [U, *] each, by token row.

    Every call of the encoder has the same shape [batch, T], the last one padded with its own last
    row, so that on a CPU an embedding does not depend, to the bit, on the prompts beside it.
    """
    # without prompts, one row of padding gives empty tensors of the right width
    ids = tokens.ids if len(tokens.ids) else torch.full((1, tokens.context), tokens.pad_id)
    mask = tokens.mask if len(tokens.mask) else torch.ones_like(ids)
    chunks = []
    for some, shown in zip(ids.split(batch), mask.split(batch), strict=True):
        padded, seen = (to_device(pad_rows(rows, batch), encoder.device) for rows in (some, shown))
        chunks.append(pick(_call(encoder, padded, seen if masked else None)))
    return [torch.cat(pieces)[: len(tokens.ids)] for pieces in zip(*chunks, strict=True)]


def _call(encoder: Any, ids: Tensor, mask: Tensor | None) -> Any:
    """The encoder on token ids [B, T], without dropout whatever its caller does with it."""
    with fixed_precision(), frozen(encoder):
        return encoder(ids, attention_mask=mask, output_hidden_states=True)


def _masks_padding(encoder: Any) -> bool:
    """Whether SD's pipelines hide the padding; only models whose config says so do."""
    return bool(getattr(encoder.config, "use_attention_mask", False))


def _mask_of(ids: Tensor, pad_id: int, eos_id: int) -> Tensor:
    """int64 [B, T]: 1 up to the end mark of each row [B, T], 0 at the padding after it."""
    after = (ids.flip(1) == pad_id).long().cumprod(1).sum(1)
    # where the padding repeats the end mark, the first one of the run is the mark itself
    length = ids.shape[1] - after + (after > 0) * int(pad_id == eos_id)
    return (torch.arange(ids.shape[1], device=ids.device) < length[:, None]).long()
