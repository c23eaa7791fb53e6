"""Adversarial embeddings that retrieve memorized images: Finding DoRI.

Kowalczuk, Hintersdorf, Struppek et al., "Finding DoRI: Discovery of Retained Images in Diffusion
Models" (ICML 2026, arXiv 2507.16880). For an image with clean latents x_0, minimize over the
text embedding y

    E_{eps, t} || eps - eps_theta(x_t, t, y) ||^2

(x_t and the loss as in :mod:`dori_fast.ops.diffusion_loss`) with Adam at learning rate 0.1, 50
steps, 8 draws of (eps, t), fresh ones in every step, weights frozen and all tokens free. Enough
steps inject any image into any model, so the budget is part of the attack, and a retrieval means
something only beside the same attack on images that the model never saw.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dori_fast.attack.base import Settings, problems_of
from dori_fast.attack.draws import starting_points
from dori_fast.attack.progression import Progression
from dori_fast.attack.result import AttackResult
from dori_fast.attack.stopping import Stop
from dori_fast.models import Denoiser
from dori_fast.ops import EmbeddingState, embedding_step


class Dori(Settings):
    """The attack, on any number of images at once.

    The arguments are those of :class:`dori_fast.attack.base.Settings`; the paper's objective
    is ``"epsilon"``. Checkpoints are embeddings.
    """

    name = "dori"

    def __init__(
        self,
        steps: int = 50,
        lr: float = 0.1,
        batch: int = 8,
        *,
        objective: str = "epsilon",
        snr_cap: float = 5.0,
        seed: int = 0,
        checkpoints: Sequence[int] = (),
        stop: Stop | None = None,
        check_every: int = 10,
        recompute: bool = False,
    ) -> None:
        super().__init__(
            steps,
            lr,
            batch,
            objective=objective,
            snr_cap=snr_cap,
            seed=seed,
            checkpoints=checkpoints,
            stop=stop,
            check_every=check_every,
            recompute=recompute,
        )

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

        A problem's answer depends on (model, image, start, seed, id) and on the evaluation's
        batch shape (``model.batch_size``) alone: not on the other problems, nor on P.

        Args:
            model: the denoiser, plain or a masked view with one mask for all problems or one each.
            prompts: P prompts to start from, the images' own or any others; or P starts, a float
                tensor [P, T, D]. May be None with ``start="gaussian"``.
            images: uint8 [P, H, W, 3], of the model's own size.
            start: ``"prompt"``, the prompts' embeddings; or ``"gaussian"``, N(0, I).
            ids: the problems' names in the random streams; 0..P-1 if not given.
            adam: moments to begin with, such as those of the result whose embeddings are the
                starts; left as they are. None begins without.

        Returns:
            An :class:`AttackResult`.

        Raises:
            UsageError: numbers or sizes do not fit, an unknown start, or prompts are lacking.
        """
        latents, names = problems_of(model, images, ids)
        params, pooled = starting_points(model, start, prompts, names, self.seed)
        found = _Embeddings(self, model, latents, params, pooled, names, adam)
        found.run()
        return AttackResult(
            embeddings=found.current(),
            pooled=pooled,
            losses=found.losses,
            steps=found.adam.step - found.begun,
            adam=found.adam,
            evaluations=found.evaluations,
            checkpoints=found.kept,
            config=self.config(),
        )


class _Embeddings(Progression):
    """Embeddings [P, T, D] on their way."""

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
        self.begun = self.adam.step.clone()

    def update(self, step: int) -> None:
        finite = self.descend(step, self.params, self.pooled)
        grad = self.params.grad
        assert grad is not None  # noqa: S101
        embedding_step(self.params, grad, self.adam, lr=self.attack.lr, active=self.active & finite)

    def current(self) -> Tensor:
        return self.params.detach().clone()

    def embeddings(self) -> Tensor:
        return self.params[self.going.to(self.model.device)]
