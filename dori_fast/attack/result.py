"""The results of attacks, with their cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dori_fast.errors import NonFiniteError, UsageError
from dori_fast.models import Denoiser, TextCondition
from dori_fast.models.prefixed import encode_ids
from dori_fast.ops import EmbeddingState


def require_success(failures: Mapping[int, str], dtype: torch.dtype, command: str) -> None:
    """Raise NonFiniteError if an attack failed on some of its problems."""
    if failures:
        which, reason = ", ".join(map(str, failures)), next(iter(failures.values()))
        name = str(dtype).removeprefix("torch.")
        wider = "load the model with dtype='float32', or " if dtype.itemsize < 4 else ""
        raise NonFiniteError(
            f"{command}: problems {which} failed in {name}, the first because {reason};"
            f" {wider}lower lr"
        )


@dataclass(frozen=True)
class AttackResult:
    """Embeddings of P problems.

    Attributes:
        embeddings: [P, T, D] on the model's device, float32 (float64 for a float64 model).
        pooled: [P, E], the pooled embeddings that belong to them (SDXL), else None.
        losses: [steps, P], each step's loss before its update; NaN once a problem has stopped.
        steps: int64 [P], updates of each problem.
        adam: the optimizer's moments, from which another attack can continue.
        evaluations: int64 [P], UNet samples of each problem, forward and backward.
        checkpoints: embeddings [P, T, D] by step; a problem that had stopped keeps its last ones.
        config: the attack's ``config()``.
        failures: reason why a problem's embedding means nothing, by problem: a loss that was NaN
            or infinite, or no update at all. Such an embedding proves nothing about the model.
    """

    embeddings: Tensor
    pooled: Tensor | None
    losses: Tensor
    steps: Tensor
    adam: EmbeddingState
    evaluations: Tensor
    checkpoints: dict[int, Tensor]
    config: dict[str, Any]
    failures: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.embeddings.shape[0]

    def condition(self, model: Denoiser, step: int | None = None) -> TextCondition:
        """The final embeddings, or those of a checkpoint, as conditions to generate from.

        Raises:
            UsageError: no such checkpoint.
            NonFiniteError: a problem failed; those that did not have no entry in ``failures``.
        """
        require_success(self.failures, model.dtype, "attack")
        return model.condition(_at(step, self.embeddings, self.checkpoints), self.pooled)


@dataclass(frozen=True)
class TokensResult:
    """Tokens of P problems.

    Attributes:
        tokens: int64 [P, K] on the CPU, the tokens before each prompt.
        ids: int64 [P, T] on the CPU, whole token rows: marks, tokens, prompt, padding.
        losses: [steps, P], each step's loss with the tokens drawn in that step; NaN once a
            problem has stopped.
        steps: int64 [P], updates of each problem.
        evaluations: int64 [P], UNet samples of each problem, forward and backward.
        checkpoints: token rows int64 [P, T] by step.
        config: the attack's ``config()``.
        failures: reason why a problem's tokens mean nothing, by problem, as for embeddings.
    """

    tokens: Tensor
    ids: Tensor
    losses: Tensor
    steps: Tensor
    evaluations: Tensor
    checkpoints: dict[int, Tensor]
    config: dict[str, Any]
    failures: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.ids.shape[0]

    def prompts(self, model: Denoiser) -> list[str]:
        """Tokens and prompt as text.

        Tokenizing this text may give other tokens, where two of them merge into one;
        :meth:`condition` uses the tokens themselves.
        """
        return [str(text) for text in model.tokenizer.batch_decode(self.ids, True)]

    def condition(self, model: Denoiser, step: int | None = None) -> TextCondition:
        """The final token rows, or those of a checkpoint, as conditions to generate from.

        Raises:
            UsageError: no such checkpoint.
            NonFiniteError: a problem failed; those that did not have no entry in ``failures``.
        """
        require_success(self.failures, model.dtype, "attack")
        return encode_ids(model, _at(step, self.ids, self.checkpoints))


def _at(step: int | None, final: Tensor, checkpoints: Mapping[int, Tensor]) -> Tensor:
    if step is None:
        return final
    if step not in checkpoints:
        kept = ", ".join(map(str, checkpoints)) or "none"
        raise UsageError(f"attack: no checkpoint at step {step}; kept are {kept}")
    return checkpoints[step]
