"""Adversarial embeddings that retrieve memorized images: Finding DoRI.

Kowalczuk, Hintersdorf, Struppek et al., "Finding DoRI: Discovery of Retained Images in Diffusion
Models" (ICML 2026, arXiv 2507.16880). For an image with clean latents x_0, minimize over the
text embedding y

    E_{eps, t} || eps - eps_theta(x_t, t, y) ||^2

(x_t and the loss as in :mod:`dori_fast.ops.diffusion_loss`) with Adam at learning rate 0.1, 50
steps, 8 fresh draws of (eps, t) in every step, frozen weights and all tokens free. Enough steps
inject any image into any model. So the budget is part of the attack, and a retrieval means
something only beside the same attack on images that the model never saw.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dori_fast.attack.base import Attack, problems_of
from dori_fast.attack.progression import Progression
from dori_fast.attack.result import AttackResult
from dori_fast.attack.starts import starting_points
from dori_fast.models import Denoiser
from dori_fast.ops import EmbeddingState, embedding_step


class Dori(Attack):
    """The attack, on any number of images at once.

    Its arguments are those of :class:`dori_fast.attack.Attack`; the paper's objective is
    ``"epsilon"``. Checkpoints are embeddings.
    """

    name = "dori"

    def run(
        self,
        model: Denoiser,
        prompts: Sequence[str] | Tensor | None,
        images: Tensor | NDArray[np.uint8],
        *,
        start: str = "prompt",
        ids: Sequence[int | str] | None = None,
        adam: EmbeddingState | None = None,
    ) -> AttackResult:
        """Optimize an embedding for each of P images.

        The result of a problem depends on (model, image, start, seed, id) and on the batch shape
        of an evaluation (``model.batch_size``) alone: not on the other problems, nor on P. That is
        to the bit on a CPU. On a GPU the backward pass of attention may add in any order, so even
        two runs of one attack may differ by rounding, which many steps can magnify.

        Args:
            model: the denoiser, plain or a masked view with one mask for all problems or one each.
            prompts: P prompts to start from, the images' own or any others; or P starts, a float
                tensor [P, T, D]. May be None with ``start="gaussian"``.
            images: uint8 [P, H, W, 3], of the model's own size.
            start: ``"prompt"``, the prompts' embeddings; or ``"gaussian"``, N(0, I).
            ids: the problems' names in the random streams; default 0..P-1.
            adam: initial moments, such as those of the result whose embeddings are the starts.
                They are not modified. Default: none.

        Returns:
            An :class:`AttackResult`.

        Raises:
            UsageError: numbers or sizes do not fit, an unknown start, or missing prompts.
        """
        latents, names = problems_of(model, images, ids)
        params, pooled = starting_points(model, start, prompts, names, self.seed)
        state = _Embeddings(self, model, latents, params, pooled, names, adam)
        state.run()
        embeddings, updates = state.current(), state.adam.step - state.first_step
        return AttackResult(
            embeddings=embeddings,
            pooled=pooled,
            losses=state.losses,
            steps=updates,
            adam=state.adam,
            evaluations=state.evaluations,
            checkpoints=state.kept,
            config=self.config(),
            failures=state.failures(updates, embeddings),
        )


class _Embeddings(Progression):
    """The embeddings [P, T, D] being optimized."""

    def __init__(
        self,
        attack: Dori,
        model: Denoiser,
        latents: Tensor,
        params: Tensor,
        pooled: Tensor | None,
        ids: Sequence[int | str],
        adam: EmbeddingState | None,
    ) -> None:
        super().__init__(attack, model, latents, ids)
        self.params, self.pooled = params.requires_grad_(), pooled
        fresh = EmbeddingState.zeros_like(params)
        self.adam = fresh if adam is None else adam.take(torch.arange(len(adam.step)))
        self.first_step = self.adam.step.clone()

    def update(self, step: int) -> None:
        finite = self.backward(step, self.params, self.pooled)
        grad = self.params.grad
        assert grad is not None  # noqa: S101
        embedding_step(self.params, grad, self.adam, lr=self.attack.lr, active=self.active & finite)

    def current(self) -> Tensor:
        return self.params.detach().clone()

    def embeddings(self) -> Tensor:
        return self.params[self.rows]
