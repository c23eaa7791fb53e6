"""What an attack found and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dori_fast.errors import UsageError
from dori_fast.models import Denoiser, TextCondition
from dori_fast.models.prefixed import encode_ids
from dori_fast.ops import EmbeddingState


@dataclass(frozen=True)
class AttackResult:
    """Embeddings of P problems.

    Attributes:
        embeddings: [P, T, D] on the model's device, float32 (float64 for a float64 model).
        pooled: [P, E], the pooled embeddings that went with them (SDXL), else None.
        losses: [steps, P], each step's loss before its update; NaN once a problem has stopped.
        steps: int64 [P], updates that each problem got.
        adam: the optimizer's moments, to go on with.
        evaluations: int64 [P], UNet samples that each problem evaluated, forward and backward.
        checkpoints: embeddings [P, T, D] after so many steps, as asked for; those of a problem
            that had stopped are its last.
        config: the attack's settings.
    """

    embeddings: Tensor
    pooled: Tensor | None
    losses: Tensor
    steps: Tensor
    adam: EmbeddingState
    evaluations: Tensor
    checkpoints: dict[int, Tensor]
    config: dict[str, Any]

    def __len__(self) -> int:
        return self.embeddings.shape[0]

    def condition(self, model: Denoiser, step: int | None = None) -> TextCondition:
        """The embeddings found, or those of a checkpoint, as conditions to generate from.

        Raises:
            UsageError: no such checkpoint.
        """
        if step is not None and step not in self.checkpoints:
            kept = ", ".join(map(str, self.checkpoints)) or "none"
            raise UsageError(f"attack: no checkpoint at step {step}; kept are {kept}")
        found = self.embeddings if step is None else self.checkpoints[step]
        return model.condition(found, self.pooled)


@dataclass(frozen=True)
class TokensResult:
    """Tokens found for P problems.

    Attributes:
        tokens: int64 [P, K] on the CPU, the tokens before each prompt.
        ids: int64 [P, T] on the CPU, whole token rows: marks, tokens, prompt, padding.
        losses: [steps, P], each step's loss with the tokens then drawn; NaN once a problem has
            stopped.
        steps: int64 [P], updates that each problem got.
        evaluations: int64 [P], UNet samples that each problem evaluated, forward and backward.
        checkpoints: token rows int64 [P, T] after so many steps, as asked for.
        config: the attack's settings.
    """

    tokens: Tensor
    ids: Tensor
    losses: Tensor
    steps: Tensor
    evaluations: Tensor
    checkpoints: dict[int, Tensor]
    config: dict[str, Any]

    def __len__(self) -> int:
        return self.ids.shape[0]

    def prompts(self, model: Denoiser) -> list[str]:
        """What was found as text, tokens and prompt.

        Typed in again it may become other tokens, where two of them join to one; conditions are
        made of the tokens themselves.
        """
        return [str(text) for text in model.tokenizer.batch_decode(self.ids, True)]

    def condition(self, model: Denoiser, step: int | None = None) -> TextCondition:
        """The token rows found, or those of a checkpoint, as conditions to generate from.

        Raises:
            UsageError: no such checkpoint.
        """
        if step is not None and step not in self.checkpoints:
            kept = ", ".join(map(str, self.checkpoints)) or "none"
            raise UsageError(f"attack: no checkpoint at step {step}; kept are {kept}")
        return encode_ids(model, self.ids if step is None else self.checkpoints[step])
