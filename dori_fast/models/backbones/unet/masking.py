"""Masks brought into an evaluation: values scaled, feed-forward weights left out."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from dori_fast.errors import UsageError
from dori_fast.models.backbones.unet.program import Program
from dori_fast.models.engine.state import Pruned, TextPart
from dori_fast.models.masks import Masks, NeuronMask, WeightMask
from dori_fast.ops import neuron_mask


def masked(program: Program, part: TextPart, masks: Masks, text: Tensor) -> TextPart:
    """What texts contribute under masks.

    Args:
        program: of the UNet.
        part: of N samples.
        masks: M = 1 for all samples, or one for each row of text embeddings.
        text: int64 [N] on the CPU, each sample's row.
    """
    keys_values = [
        (key, _scaled(value, masks.neurons, name, text))
        for name, (key, value) in zip(program.names, part.keys_values, strict=True)
    ]
    weights = {} if masks.weights is None else masks.weights.pruned
    rows = tuple(text.tolist())
    pruned = {
        number: Pruned(weights[name], rows)
        for number, name in enumerate(program.second_linears)
        if name in weights
    }
    return dataclasses.replace(part, keys_values=keys_values, pruned=pruned)


def _scaled(value: Tensor, mask: NeuronMask | None, name: str, text: Tensor) -> Tensor:
    scale = None if mask is None else mask.scales.get(name)
    if scale is None:
        return value
    rows = torch.zeros_like(text) if len(scale) == 1 else text
    return neuron_mask(value, scale.to(value)[rows.to(value.device)])


def check_mask(program: Program, mask: NeuronMask | WeightMask) -> None:
    """Refuse a mask whose layers or widths are not this UNet's.

    Raises:
        UsageError: says which.
    """
    if isinstance(mask, NeuronMask):
        widths = program.value_widths
        for name, scale in mask.scales.items():
            if name not in widths:
                raise UsageError(f"masked: no cross-attention {name!r}; see model.layers")
            if scale.shape[1] != widths[name]:
                raise UsageError(
                    f"masked: {name} needs factors [M, {widths[name]}], got {list(scale.shape)}"
                )
        return
    layers = program.second_linears
    for name, pruned in mask.pruned.items():
        if name not in layers:
            raise UsageError(
                f"masked: {name!r} is not the second linear layer of a feed-forward; those are"
                f" {', '.join(layers)}"
            )
        if not isinstance(layers[name], nn.Linear):
            raise UsageError(f"masked: {name} has an adapter; fuse it (pipe.fuse_lora()) first")
        if pruned.shape[1:] != layers[name].weight.shape:
            needs = ", ".join(map(str, layers[name].weight.shape))
            raise UsageError(f"masked: {name} needs masks [M, {needs}], got {list(pruned.shape)}")
