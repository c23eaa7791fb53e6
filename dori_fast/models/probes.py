"""What a denoiser can be asked besides its predictions: attention, and derivatives."""

from __future__ import annotations

from torch import Tensor

from dori_fast.models.denoiser import Denoiser
from dori_fast.models.text import TextCondition


def token_attention(
    model: Denoiser, condition: TextCondition, latents: Tensor, timestep: int, layer: int
) -> Tensor:
    """The attention that each token receives in one cross-attention layer.

    Only the part of the network before that layer is run.

    Args:
        model: the denoiser.
        condition: P prompts.
        latents: [S, C, H, W], shared by all prompts, or [P, S, C, H, W].
        timestep: index into ``alphas_cumprod``.
        layer: number of the cross-attention, in the order of ``model.layers``.

    Returns:
        float32 [P, S, T], averaged over pixels and heads; sums to 1 over tokens.

    Raises:
        UsageError: no such layer, or an architecture whose layers are not known.
    """
    received = model.engine.token_attention(model.samples(condition, latents, timestep), layer)
    return received.reshape(len(condition), latents.shape[-4], -1)


def epsilon_jvp(
    model: Denoiser, condition: TextCondition, latents: Tensor, tangents: Tensor, timestep: int
) -> Tensor:
    """Directional derivatives of epsilon along the latents, by forward-mode differentiation.

    Args:
        model: the denoiser.
        condition: P prompts.
        latents: [S, C, H, W], shared by all prompts, or [P, S, C, H, W].
        tangents: the directions, [P, S, C, H, W].
        timestep: index into ``alphas_cumprod``.

    Returns:
        [P, S, C, H, W]; each sample counts as two evaluations.

    Raises:
        UsageError: an architecture whose layers are not known.
    """
    samples = model.samples(condition, latents, timestep)
    directions = tangents.flatten(0, 1).to(model.dtype)
    slope = model.engine.jvp(samples, directions)
    return model.schedule.epsilon(slope, directions, timestep).reshape(tangents.shape)
