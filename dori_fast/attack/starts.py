"""Where the problems of an attack on embeddings start."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dori_fast._checks import accumulate_dtype
from dori_fast.attack.draws import stream
from dori_fast.errors import UsageError
from dori_fast.models import Denoiser
from dori_fast.models.text.prompts import list_of_str

STARTS = ("prompt", "gaussian")


def starting_points(
    model: Denoiser,
    start: str,
    prompts: Sequence[str] | Tensor | None,
    problems: Sequence[int | str],
    seed: int,
) -> tuple[Tensor, Tensor | None]:
    """Embeddings [P, T, D] to start from, and pooled embeddings [P, E] where the model has them.

    Both are float32, or float64 for a float64 model, even if the model's dtype is narrower.

    Raises:
        UsageError: an unknown start, missing prompts, or not one prompt per problem.
    """
    if start not in STARTS:
        raise UsageError(f"attack: start must be one of {', '.join(STARTS)}, got {start!r}")
    if prompts is not None and not isinstance(prompts, Tensor):
        prompts = list_of_str("attack", prompts)
    if prompts is not None and len(prompts) != len(problems):
        raise UsageError(f"attack: {len(problems)} images but {len(prompts)} prompts or starts")
    wide = accumulate_dtype(model.dtype)
    like = model.unconditional
    if isinstance(prompts, Tensor):
        if like.pooled is not None:
            raise UsageError("attack: an SDXL model needs prompts, for their pooled embeddings")
        return prompts.detach().to(model.device, wide).clone(), None
    if prompts is None and (start == "prompt" or like.pooled is not None):
        raise UsageError("attack: give a prompt for each image, or start='gaussian'")
    condition = None if prompts is None else model.encode(prompts).one_row_each()
    pooled = None if condition is None else condition.pooled
    if start == "prompt" and condition is not None:
        return condition.unique.detach().to(wide).clone(), pooled
    shape = like.unique.shape[1:]
    drawn = [torch.randn(shape, generator=stream("start", seed, p)) for p in problems]
    return torch.stack(drawn).to(model.device, wide), pooled
