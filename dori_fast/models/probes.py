"""Quantities of a Denoiser besides epsilon: other units, attention, activations, derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dori_fast.errors import UsageError
from dori_fast.models.denoiser import Denoiser
from dori_fast.models.engine.batch import Samples, SharedLatents
from dori_fast.models.engine.state import Timestep
from dori_fast.models.text.conditions import TextCondition, pad_rows
from dori_fast.models.text.prompts import list_of_str

# 77 tokens each: enough rows to fill a GPU, and a few MiB of values
_PROMPTS_AT_ONCE = 64


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
    """Estimates for a DDIM step, and values of the inputs to each feed-forward's second linear.

    Args:
        model: the denoiser.
        condition: P prompts.
        latents: [S, C, H, W], shared by all prompts, or [P, S, C, H, W].
        timestep: index into ``alphas_cumprod``.
        observe: function from inputs [N, HW, 4C] to the values to keep, [N, *], which treats each
            sample by itself.

    Returns:
        ``schedule.estimate`` [P, S, C, H, W], and [P, S, *] by name of the linear layer.

    Raises:
        UsageError: an architecture whose layers are not known.
    """
    samples = model.samples(condition, latents, timestep)
    output, seen = model.engine.observe(samples, observe)
    pairs = (len(condition), latents.shape[-4])
    x_t = samples.shared.latents[samples.which.to(model.device)]
    estimate = model.schedule.estimate(output, x_t, timestep).unflatten(0, pairs)
    return estimate, {name: value.unflatten(0, pairs) for name, value in seen.items()}


def prediction(
    model: Denoiser, condition: TextCondition, latents: Tensor, timestep: Timestep
) -> Tensor:
    """The network's outputs [P, S, C, H, W] without conversion to epsilon, in model dtype.

    Arguments and gradients are those of :meth:`Denoiser.epsilon`.
    """
    return model.output(condition, latents, timestep)


def shared_prediction(
    model: Denoiser, condition: TextCondition, shared: SharedLatents, units: str
) -> Tensor:
    """Predictions [P, S, C, H, W] of P prompts on S shared latents at one timestep.

    Args:
        model: the denoiser.
        condition: P prompts.
        shared: S latents at one timestep.
        units: ``"epsilon"``, ``"x0"`` or ``"prediction"``, the network's own output.

    Raises:
        UsageError: epsilon at a timestep of ``schedule.require_epsilon``.
    """
    output = model.output_shared(condition, shared)
    return model.schedule.in_units(output, shared.latents, int(shared.timestep), units)


def uncond_prediction(
    model: Denoiser, condition: TextCondition, shared: SharedLatents, units: str
) -> Tensor:
    """Predictions without the prompt, for comparison with :func:`shared_prediction`.

    [S, C, H, W], or [P, S, C, H, W] if each prompt has its own mask.
    """
    output = model.output_uncond(condition, shared)
    return model.schedule.in_units(output, shared.latents, int(shared.timestep), units)


def paired_outputs(
    model: Denoiser, condition: TextCondition, shared: SharedLatents, which: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs with and without the prompt, of P prompts on one latent each.

    Args:
        model: the denoiser.
        condition: P prompts.
        shared: S latents.
        which: int64 [P] on the CPU, each prompt's latent.

    Returns:
        Two [P, 1, C, H, W] in model dtype.
    """

    def outputs(condition: TextCondition) -> Tensor:
        unique, pooled = condition.unique, condition.pooled
        samples = Samples(unique, pooled, condition.index, shared, which, model.masks)
        return model.engine.outputs(samples)[:, None]

    if model.masks is not None and len(model.masks) > 1:
        return outputs(condition), outputs(model.unconditional_for(condition))
    without = model.output_uncond(condition, shared)
    return outputs(condition), without[which.to(without.device)][:, None]


def change_of_noise(
    model: Denoiser, condition: TextCondition, shared: SharedLatents, units: str
) -> Tensor:
    """Difference of the predicted from the initial noise: epsilon - x_T, [P, S, C, H, W].

    Arguments and errors are those of :func:`shared_prediction`; see :func:`noise_change`.
    """
    output = model.output_shared(condition, shared)
    return noise_change(model, output, shared.latents, int(shared.timestep), units)


def noise_change(
    model: Denoiser, output: Tensor, latents: Tensor, timestep: int, units: str
) -> Tensor:
    """Difference epsilon - x_T of network outputs [*, C, H, W] at latents that broadcast to them.

    A prediction that is not of noise is returned as it is. Where alpha_bar goes to 0,
    epsilon - x_T becomes proportional to the velocity, which is -x_0 there.

    Raises:
        UsageError: epsilon at a timestep of ``schedule.require_epsilon``.
    """
    predicted = model.schedule.in_units(output, latents, timestep, units)
    noise = units == "epsilon" or (
        units == "prediction" and model.schedule.prediction_type == "epsilon"
    )
    return predicted - latents if noise else predicted


def prediction_jvp(
    model: Denoiser,
    condition: TextCondition,
    latents: Tensor,
    tangents: Tensor,
    timestep: int,
    units: str = "epsilon",
) -> Tensor:
    """Directional derivatives of predictions along the latents, by forward-mode differentiation.

    Args:
        model: the denoiser.
        condition: P prompts.
        latents: [S, C, H, W], shared by all prompts, or [P, S, C, H, W].
        tangents: directions, [P, S, C, H, W].
        timestep: index into ``alphas_cumprod``.
        units: units of the predictions, as in :func:`shared_prediction`.

    Returns:
        [P, S, C, H, W]; each sample counts as two evaluations.

    Raises:
        UsageError: an architecture whose layers are not known, or epsilon at a timestep of
            ``schedule.require_epsilon``.
    """
    samples = model.samples(condition, latents, timestep)
    directions = tangents.flatten(0, 1).to(model.dtype)
    slope = model.engine.jvp(samples, directions)
    # a conversion is linear in output and latents, so it converts their derivatives too
    return model.schedule.in_units(slope, directions, timestep, units).reshape(tangents.shape)


@torch.no_grad()
def value_magnitudes(
    model: Denoiser, condition: TextCondition, layers: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Mean magnitude over all tokens of the value neurons of cross-attentions.

    Values depend on the text alone, so the network does not run. Distinct prompts are projected one
    by one on a CPU, and elsewhere in batches of one size, so that a prompt's magnitudes do not
    depend on the others; to the bit, this is proven on a CPU.

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
    size = 1 if model.device.type == "cpu" else _PROMPTS_AT_ONCE
    return {name: _magnitudes(model, name, condition, size) for name in chosen}


def _magnitudes(model: Denoiser, name: str, condition: TextCondition, size: int) -> Tensor:
    """Magnitudes [P, C] of one cross-attention, projected ``size`` prompts at a time."""
    project, unique = model.unet.get_submodule(name).to_v, condition.unique
    if not len(unique):
        return unique.new_zeros(len(condition), model.engine.value_widths[name])
    # every projection has the same shape, so that its rows do not depend on their neighbors
    with model.engine.precision():
        parts = [
            project(pad_rows(part, size)).abs().mean(1)[: len(part)] for part in unique.split(size)
        ]
    return torch.cat(parts)[condition.index.to(unique.device)]
