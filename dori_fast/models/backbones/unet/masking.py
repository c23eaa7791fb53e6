"""Masks of an evaluation: values scaled, feed-forward weights set to zero."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from dori_fast._checks import to_device
from dori_fast.errors import UsageError
from dori_fast.models.backbones.unet.stock import not_its_weight
from dori_fast.models.engine.state import Pruned, TextPart
from dori_fast.models.masks import Masks, NeuronMask, WeightMask
from dori_fast.ops import neuron_mask


def masked(
    part: TextPart, masks: Masks, text: Tensor, names: Iterable[str], second_linears: Iterable[str]
) -> TextPart:
    """The contribution of texts under masks.

    Args:
        part: text part of N samples.
        masks: M = 1 mask for all samples, or one for each row of text embeddings.
        text: int64 [N] on the CPU, each sample's row of text embeddings.
        names: names of the cross-attentions, in order.
        second_linears: names of the second feed-forward linears, in order.
    """
    keys_values = part.keys_values
    if masks.neurons is not None:
        # once for all layers
        own = to_device(text, keys_values[0][1].device)
        keys_values = [
            (key, _scaled(value, masks.neurons, name, own))
            for name, (key, value) in zip(names, keys_values, strict=True)
        ]
    weights = {} if masks.weights is None else masks.weights.pruned
    rows = tuple(text.tolist())
    pruned = {
        number: Pruned(weights[name], rows)
        for number, name in enumerate(second_linears)
        if name in weights
    }
    return dataclasses.replace(part, keys_values=keys_values, pruned=pruned)


def _scaled(value: Tensor, mask: NeuronMask, name: str, rows: Tensor) -> Tensor:
    scale = mask.scales.get(name)
    if scale is None:
        return value
    # a view's masks are on its device, so that this waits for nothing
    rows = torch.zeros_like(rows) if len(scale) == 1 else rows
    return neuron_mask(value, scale.to(value)[rows])


def check_mask(
    mask: NeuronMask | WeightMask, widths: Mapping[str, int], layers: Mapping[str, nn.Module]
) -> None:
    """Check that a mask's layers and shapes are the network's.

    Args:
        mask: the mask.
        widths: number of value neurons of each cross-attention, by name.
        layers: second linear layer of each feed-forward, by name.

    Raises:
        UsageError: a layer or shape is not; the message names it.
    """
    if isinstance(mask, NeuronMask):
        for name, scale in mask.scales.items():
            if name not in widths:
                raise UsageError(f"masked: no cross-attention {name!r}; see model.layers")
            if scale.shape[1] != widths[name]:
                raise UsageError(
                    f"masked: {name} needs factors [M, {widths[name]}], got {list(scale.shape)}"
                )
        return
    for name, pruned in mask.pruned.items():
        layer = layers.get(name)
        if layer is None:
            raise UsageError(
                f"masked: {name!r} is not the second linear layer of a feed-forward; those are"
                f" {', '.join(layers)}"
            )
        reason = not_its_weight(layer)
        if reason is not None:
            raise UsageError(f"masked: {name} {reason}")
        weight = layer.get_parameter("weight")
        if pruned.shape[1:] != weight.shape:
            needs = ", ".join(map(str, weight.shape))
            raise UsageError(f"masked: {name} needs masks [M, {needs}], got {list(pruned.shape)}")
