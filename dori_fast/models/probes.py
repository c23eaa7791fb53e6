"""Quantities of a Denoiser besides epsilon: outputs, attention, activations, derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dori_fast.errors import UsageError
from dori_fast.models.denoiser import Denoiser
from dori_fast.models.engine.state import Timestep
from dori_fast.models.text.conditions import TextCondition
from dori_fast.models.text.prompts import list_of_str


def token_attention(
    model: Denoiser, condition: TextCondition, latents: Tensor, timestep: int, layer: int
) -> Tensor:
    """The attention that each token receives in one cross-attention layer.

    Only the part of the network before that layer runs.

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


def feed_forward_inputs(
    model: Denoiser,
    condition: TextCondition,
    latents: Tensor,
    timestep: int,
    observe: Callable[[Tensor], Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Noise predictions, and values of the inputs to each feed-forward's second linear layer.

    Args:
        model: the denoiser.
        condition: P prompts.
        latents: [S, C, H, W], shared by all prompts, or [P, S, C, H, W].
        timestep: index into ``alphas_cumprod``.
        observe: function from inputs [N, HW, 4C] to the values to keep, [N, *], which treats each
            sample by itself.

    Returns:
        [P, S, C, H, W] as from ``model.epsilon``, and [P, S, *] by name of the linear layer.

    Raises:
        UsageError: an architecture whose layers are not known.
    """
    samples = model.samples(condition, latents, timestep)
    output, seen = model.engine.observe(samples, observe)
    pairs = (len(condition), latents.shape[-4])
    x_t = samples.shared.latents[samples.which.to(model.device)]
    eps = model.schedule.epsilon(output, x_t, timestep).unflatten(0, pairs)
    return eps, {name: value.unflatten(0, pairs) for name, value in seen.items()}


def prediction(
    model: Denoiser, condition: TextCondition, latents: Tensor, timestep: Timestep
) -> Tensor:
    """The network's outputs [P, S, C, H, W] without conversion to epsilon, in model dtype.

    Arguments and gradients are those of :meth:`Denoiser.epsilon`.
    """
    outputs = model.engine.outputs(model.samples(condition, latents, timestep))
    return outputs.reshape(len(condition), latents.shape[-4], *model.latent_shape)


def epsilon_jvp(
    model: Denoiser, condition: TextCondition, latents: Tensor, tangents: Tensor, timestep: int
) -> Tensor:
    """Directional derivatives of epsilon along the latents, by forward-mode differentiation.

    Args:
        model: the denoiser.
        condition: P prompts.
        latents: [S, C, H, W], shared by all prompts, or [P, S, C, H, W].
        tangents: directions, [P, S, C, H, W].
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


@torch.no_grad()
def value_magnitudes(
    model: Denoiser, condition: TextCondition, layers: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Mean magnitude over all tokens of the value neurons of cross-attentions.

    Values depend on the text alone, so the network does not run. Each distinct prompt is projected
    by itself, so its magnitudes do not depend on the others.

    Args:
        model: the denoiser.
        condition: P prompts.
        layers: names of cross-attentions; default: all of ``model.layers``.

    Returns:
        [P, C] in model dtype, by name.

    Raises:
        UsageError: no such layer, or an architecture whose layers are not known.
    """
    known = model.layers
    chosen = known if layers is None else list_of_str("value_magnitudes", layers, "layers")
    for name in chosen:
        if name not in known:
            raise UsageError(f"no cross-attention {name!r}; there are {', '.join(known)}")
    found = {}
    for name in chosen:
        project = model.unet.get_submodule(name).to_v
        rows = [project(text).abs().mean(0) for text in condition.unique]
        width = model.engine.value_widths[name]
        each = torch.stack(rows) if rows else condition.unique.new_zeros(0, width)
        found[name] = each[condition.index.to(each.device)]
    return found
