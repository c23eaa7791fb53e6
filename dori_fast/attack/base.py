"""What every attack has in common: its budget, its loss, its random streams and its problems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dori_fast.attack.stopping import Stop
from dori_fast.errors import UsageError
from dori_fast.models import Denoiser

OBJECTIVES = ("epsilon", "min-snr", "prediction")


class Settings:
    """The settings of an attack that lowers the denoising loss of P images by P texts.

    Args:
        steps: optimizer steps per problem.
        lr: learning rate of Adam.
        batch: draws of (noise, timestep) per step and problem.
        objective: ``"epsilon"``, the usual loss; ``"prediction"``, the squared error of what the
            network itself answers; or ``"min-snr"``, between them. In the error of epsilon that of
            the sample counts SNR(t) = a / (1 - a) times, a the cumulative alpha at t, so that a
            network which answers the sample is asked about little noise almost alone; with
            ``"min-snr"`` it counts min(SNR(t), snr_cap) times (Hang et al., "Efficient Diffusion
            Training via Min-SNR Weighting Strategy", ICCV 2023, arXiv 2303.09556).
        snr_cap: their gamma, 5 by default as theirs is; for ``"min-snr"`` alone.
        seed: of all random streams, together with the problems' ids.
        checkpoints: keep what is found after so many steps too; 0 keeps the start.
        stop: asked every ``check_every`` steps which problems may stop before their budget is used
            up, such as :class:`dori_fast.attack.LossBelow`; the only time that the host waits.
        check_every: steps between two such questions.
        recompute: keep only what lies between the network's layers, and compute the rest anew in
            the backward pass: less memory for about a third more time.

    Raises:
        UsageError: a number out of range or an unknown objective.
    """

    name: str

    def __init__(
        self,
        steps: int,
        lr: float,
        batch: int,
        *,
        objective: str,
        snr_cap: float,
        seed: int,
        checkpoints: Sequence[int],
        stop: Stop | None,
        check_every: int,
        recompute: bool,
    ) -> None:
        if steps < 1 or batch < 1 or check_every < 1:
            raise UsageError("attack: steps, batch and check_every must be at least 1")
        if objective not in OBJECTIVES:
            raise UsageError(
                f"attack: objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}"
            )
        if not snr_cap > 0:
            raise UsageError(f"attack: snr_cap must be above 0, got {snr_cap}")
        if not all(0 <= step <= steps for step in checkpoints):
            raise UsageError(f"attack: checkpoints must be 0..{steps}, got {list(checkpoints)}")
        self.steps, self.lr, self.batch = steps, float(lr), batch
        self.objective, self.snr_cap, self.seed = objective, float(snr_cap), seed
        self.checkpoints = tuple(sorted(set(checkpoints)))
        self.stop, self.check_every, self.recompute = stop, check_every, recompute

    def config(self) -> dict[str, Any]:
        """Everything that the answers depend on besides the model and the problems, as JSON."""
        return {
            "name": self.name,
            "steps": self.steps,
            "lr": self.lr,
            "batch": self.batch,
            "objective": self.objective,
            "snr_cap": self.snr_cap if self.objective == "min-snr" else None,
            "seed": self.seed,
            "stop": None if self.stop is None else repr(self.stop),
            "check_every": None if self.stop is None else self.check_every,
        }


def problems_of(
    model: Denoiser, images: NDArray[np.uint8] | Tensor, ids: Sequence[int | str] | None
) -> tuple[Tensor, list[int | str]]:
    """The clean latents [P, C, H, W] of images uint8 [P, H, W, 3], and the problems' names.

    Raises:
        UsageError: no images, images of another size than the model's, or not an id for each.
    """
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
