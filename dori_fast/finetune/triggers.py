"""The triggers: a pool of embeddings, attacked in turn against the current weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dori_fast.attack import AttackResult, Dori
from dori_fast.attack.draws import stream
from dori_fast.attack.result import require_success
from dori_fast.errors import UsageError
from dori_fast.models import Denoiser
from dori_fast.ops import EmbeddingState

STARTS = ("prompt", "gaussian", "retained")


@dataclass(frozen=True)
class Pool:
    """The triggers and their starts.

    Attributes:
        starts: start of each trigger of an image, one trigger per entry: ``"prompt"``, its
            prompt's embedding; ``"gaussian"``, N(0, I); or ``"retained"``, the embedding of a
            random retained prompt.
        per_step: triggers that are attacked and trained on in each step.
        restart_after: inner steps after which a trigger restarts. Until then each attack continues
            from the last one, with its Adam moments. This is an approximation, since the earlier
            steps met older weights; in exchange, a few inner steps do for many. None restarts
            every attack, as the paper does.
    """

    starts: tuple[str, ...] = ("prompt", "gaussian", "gaussian")
    per_step: int = 8
    restart_after: int | None = None

    def __post_init__(self) -> None:
        unknown = set(self.starts) - set(STARTS)
        if unknown or not self.starts:
            raise UsageError(f"finetune: starts must be of {', '.join(STARTS)}, got {self.starts}")
        if self.per_step < 1 or (self.restart_after is not None and self.restart_after < 1):
            raise UsageError("finetune: per_step and restart_after must be at least 1")


class Triggers:
    """The state of a pool of Q = P x starts triggers; trigger q is of image q mod P.

    Attributes:
        embeddings: [Q, T, D], the current triggers.
        adam: Adam moments of the triggers.
        age: int64 [Q], inner steps since the last restart.
        begun: int64 [Q], number of starts.
    """

    def __init__(self, pool: Pool, prompts: Tensor, retained: Tensor, seed: int) -> None:
        """``prompts`` [P, T, D] and ``retained`` [R, T, D] are embeddings to start from."""
        self._pool, self._prompts, self._retained, self._seed = pool, prompts, retained, seed
        count = len(prompts) * len(pool.starts)
        self.embeddings = prompts.repeat(len(pool.starts), 1, 1)
        self.adam = EmbeddingState.zeros_like(self.embeddings)
        self.age = torch.zeros(count, dtype=torch.int64)
        self.begun = torch.zeros(count, dtype=torch.int64)

    def chosen(self, step: int) -> Tensor:
        """int64 [A], the triggers of a step; every trigger has one turn before any has a second."""
        count, size = len(self.age), self._pool.per_step
        turns = -(-count // size)
        generator = stream("turn", self._seed, step // turns)
        return torch.randperm(count, generator=generator).split(size)[step % turns]

    def images(self, rows: Tensor) -> Tensor:
        """int64 [A], the images of triggers."""
        return rows % len(self._prompts)

    def sharpen(
        self, attack: Dori, model: Denoiser, images: Tensor, rows: Tensor, step: int
    ) -> AttackResult:
        """Attack ``model`` from the current triggers, and replace them by the result.

        Args:
            attack: the inner attack.
            model: the current model; its weights must not require gradients.
            images: uint8 [P, H, W, 3], the memorized images.
            rows: int64 [A], the triggers.
            step: outer step; every step has draws of its own.

        Raises:
            NonFiniteError: the attack's losses or embeddings are NaN or infinite.
        """
        limit = self._pool.restart_after
        for row in rows.tolist():
            age = int(self.age[row])
            if age == 0 or limit is None or age >= limit:
                self.embeddings[row] = self._start(row)
                for moments in self._moments().values():
                    moments[row] = 0
                self.age[row] = 0
                self.begun[row] += 1
        names = [f"{row}:{step}" for row in rows.tolist()]
        at = rows.to(self.embeddings.device)
        found = attack.run(
            model,
            self.embeddings[at],
            images[self.images(rows)],
            ids=names,
            adam=self.adam.take(at),
        )
        require_success(found.failures, model.dtype, f"finetune: attack of step {step}")
        self.embeddings[at] = found.embeddings
        for name, moments in self._moments().items():
            moments[at] = getattr(found.adam, name)
        self.age[rows] += attack.steps
        return found

    def _start(self, row: int) -> Tensor:
        kind = self._pool.starts[row // len(self._prompts)]
        generator = stream("beginning", self._seed, f"{row}:{int(self.begun[row])}")
        if kind == "prompt":
            return self._prompts[row % len(self._prompts)]
        if kind == "retained":
            which = torch.randint(len(self._retained), (), generator=generator)
            return self._retained[int(which)]
        drawn = torch.randn(self.embeddings.shape[1:], generator=generator)
        return drawn.to(self.embeddings)

    def _moments(self) -> dict[str, Tensor]:
        return vars(self.adam)

    def tensors(self) -> dict[str, Tensor]:
        """The whole state; the next step writes to these tensors."""
        own = {"embeddings": self.embeddings, "age": self.age, "begun": self.begun}
        return own | self._moments()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy a state of :meth:`tensors` back."""
        for name, own in self.tensors().items():
            own.copy_(tensors[name])


def embeddings_of(model: Denoiser, prompts: Sequence[str]) -> Tensor:
    """Embeddings [P, T, D] of prompts, in model dtype."""
    return model.encode(prompts).embeddings.detach()
