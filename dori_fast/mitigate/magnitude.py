"""The magnitude of the text's effect on a batch of noises, and its gradient in the embedding.

For a prompt with embedding y on noises x_1..x_S at one timestep (Wen et al., ICLR 2024, openreview
84n3UwkH7b, equation 1; over a batch as in the released code,
YuxinWenRick/diffusion_memorization at c8fe471),

    F(y) = sqrt( sum_s || eps(x_s, t, y) - eps(x_s, t, empty) ||_2^2 ),

the norm of all differences as one vector: about sqrt(S) times the detection score of the same
seeds. The unconditional prediction does not depend on y, so it is an input here without a gradient;
the released code computes it in both passes of every iteration.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dori_fast.models import Denoiser, TextCondition
from dori_fast.models.engine.gradients import differentiating, fitted
from dori_fast.ops import noise_difference

Predict = Callable[[TextCondition, slice, slice], tuple[Tensor, Tensor]]
"""From (condition of A prompts, their slice of the rows, slice of the seeds) to conditional
predictions [A, s, C, H, W] and unconditional ones, [s, C, H, W] or [A, s, C, H, W]."""


def magnitude(
    model: Denoiser,
    embeddings: Tensor,
    pooled: Tensor | None,
    rows: Tensor,
    seeds: int,
    predict: Predict,
) -> tuple[Tensor, Tensor]:
    """Magnitudes of some prompts and their gradients.

    Args:
        model: the denoiser.
        embeddings: [P, T, D], float32 or float64.
        pooled: [P, E] (SDXL) or None.
        rows: int64 [A] on the CPU, the prompts to compute.
        seeds: number S of seeds.
        predict: function that returns the network's predictions.

    Returns:
        F [A] and dF/dy [A, T, D], float32 or float64 as ``embeddings``; the gradient is 0 where F
        is 0. Neither depends on the other prompts.
    """
    leaf = embeddings.detach().requires_grad_()
    on_device = rows.to(leaf.device)

    def squared() -> Tensor:
        leaf.grad, squares = None, leaf.new_zeros(len(rows))
        at_once, width = max(1, model.batch_size // seeds), min(seeds, model.batch_size)
        for first in range(0, len(rows), at_once):
            some = slice(first, min(first + at_once, len(rows)))
            for start in range(0, seeds, width):
                part = slice(start, min(start + width, seeds))
                condition = model.condition(leaf, pooled)[rows[some]]
                norms = noise_difference(*predict(condition, some, part))
                # sum the squares over the seeds, which may not fit into one evaluation
                square = norms.square().sum(1)
                square.sum().backward(inputs=[leaf])
                squares[some] += square.detach()
        return squares

    with differentiating(model.engine):
        norm = fitted(model.engine, squared).sqrt()
    grad = leaf.grad
    assert grad is not None  # noqa: S101
    rate = torch.where(norm == 0, 0.0, 0.5 / torch.where(norm == 0, 1.0, norm))
    return norm, rate[:, None, None] * grad[on_device]
