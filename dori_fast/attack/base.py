"""The base class of all attacks: budget, loss, random streams and input checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dori_fast._checks import finite_number
from dori_fast.attack.stopping import Stop
from dori_fast.errors import UsageError
from dori_fast.models import Denoiser
from dori_fast.models.text.prompts import refuse_other_iterables

OBJECTIVES = ("epsilon", "min-snr", "prediction")


class Attack:
    """An attack that minimizes the denoising loss of P images over P texts.

    Args:
        steps: optimizer steps per problem.
        lr: learning rate of Adam.
        draws: noise draws (noise, timestep) per optimization step and problem.
        objective: loss to minimize. ``"epsilon"`` is the usual loss; ``"prediction"`` is the
            squared error of the network's own output. For a network that predicts the sample, the
            epsilon loss weights its error by SNR(t) = a / (1 - a), a the cumulative alpha at t, so
            nearly clean timesteps dominate. ``"min-snr"`` caps this weight at ``snr_cap`` (Hang et
            al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", ICCV 2023, arXiv
            2303.09556).
        snr_cap: largest weight of a timestep under ``"min-snr"``; 5 by default, as in the paper,
            which calls it gamma.
        seed: seed of all random streams, combined with the problems' ids.
        checkpoints: steps after which the result so far is kept; 0 keeps the start.
        stop: rule that ends problems before their budget is used up, such as
            :class:`dori_fast.attack.LossBelow`. Each call waits for the device.
        check_every: steps between two calls of ``stop``.
        recompute: True to store only the activations between the network's layers and recompute
            the rest in the backward pass. This saves memory and takes about a third more time.

    Raises:
        UsageError: a number out of range or an unknown objective.
    """

    name: str

    def __init__(
        self,
        steps: int = 50,
        lr: float = 0.1,
        draws: int = 8,
        *,
        objective: str = "epsilon",
        snr_cap: float = 5.0,
        seed: int = 0,
        checkpoints: Sequence[int] = (),
        stop: Stop | None = None,
        check_every: int = 10,
        recompute: bool = False,
    ) -> None:
        if steps < 1 or draws < 1 or check_every < 1:
            raise UsageError("attack: steps, draws and check_every must be at least 1")
        if objective not in OBJECTIVES:
            raise UsageError(
                f"attack: objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}"
            )
        if not snr_cap > 0:
            raise UsageError(f"attack: snr_cap must be above 0, got {snr_cap}")
        if not all(0 <= step <= steps for step in checkpoints):
            raise UsageError(f"attack: checkpoints must be 0..{steps}, got {list(checkpoints)}")
        self.steps, self.draws = steps, draws
        self.lr = finite_number("attack", "lr", lr)
        self.objective, self.snr_cap, self.seed = objective, float(snr_cap), seed
        self.checkpoints = tuple(sorted(set(checkpoints)))
        self.stop, self.check_every, self.recompute = stop, check_every, recompute

    def config(self) -> dict[str, Any]:
        """Everything that the result depends on besides the model and the problems, as JSON."""
        return {
            "name": self.name,
            "steps": self.steps,
            "lr": self.lr,
            "batch": self.draws,
            "objective": self.objective,
            "snr_cap": self.snr_cap if self.objective == "min-snr" else None,
            "seed": self.seed,
            "stop": None if self.stop is None else repr(self.stop),
            "check_every": None if self.stop is None else self.check_every,
        }


def problems_of(
    model: Denoiser, images: NDArray[np.uint8] | Tensor, ids: Sequence[int | str] | None
) -> tuple[Tensor, list[int | str]]:
    """Clean latents [P, C, H, W] of images uint8 [P, H, W, 3], and the problems' ids.

    Raises:
        UsageError: no images, an image size other than the model's, or not one id per image.
    """
    if ids is not None:
        refuse_other_iterables("attack", ids, "ids")
    if len(images) == 0:
        raise UsageError("attack: no images")
    latents = model.latents(torch.as_tensor(images))
    if latents.shape[1:] != model.latent_shape:
        raise UsageError(
            f"attack: images of {list(images.shape[1:3])} have latents"
            f" {list(latents.shape[1:])}, this model draws {list(model.latent_shape)}; resize"
            " them"
        )
    names: list[int | str] = [*range(len(latents))] if ids is None else list(ids)
    if len(names) != len(latents):
        raise UsageError(f"attack: {len(latents)} images but {len(names)} ids")
    return latents, names
