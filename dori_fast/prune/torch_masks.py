"""Masks as pruning of ``torch.nn.utils.prune``, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from dori_fast.errors import UsageError
from dori_fast.models.in_place import masked_layers, unet_of
from dori_fast.models.masks import NeuronMask, WeightMask

_VALUES = ".attn2.to_v"


def torch_prune_(mask: NeuronMask | WeightMask, target: Any) -> list[nn.Linear]:
    """Prune a network by a mask, through ``torch.nn.utils.prune``.

    Each changed layer gets ``weight_orig`` and ``weight_mask``, as by ``prune.custom_from_mask``. A
    NeuronMask changes the value projections, their biases likewise.
    ``prune.remove(layer, "weight")`` then makes it permanent.

    Args:
        mask: one mask, M = 1; the factor of each neuron must be 0 (blocked) or 1.
        target: a UNet2DConditionModel, or a pipeline with one.

    Returns:
        The layers that were changed.

    Raises:
        UsageError: the cases of ``apply_``, and factors other than 0 and 1.
    """
    if isinstance(mask, NeuronMask):
        for name, scale in mask.scales.items():
            if not ((scale == 0) | (scale == 1)).all():
                raise UsageError(
                    f"torch_prune_: {name} has factors other than 0 and 1, which torch's pruning"
                    " cannot express; use apply_"
                )
    layers = masked_layers(mask, unet_of(target))
    for name, layer in layers.items():
        if isinstance(mask, WeightMask):
            _keep_only(layer, "weight", ~mask.pruned[name][0])
            continue
        kept = mask.scales[name][0] != 0
        _keep_only(layer, "weight", kept[:, None].expand_as(layer.weight))
        if layer.bias is not None:
            _keep_only(layer, "bias", kept)
    return list(layers.values())


def _keep_only(layer: nn.Linear, parameter: str, kept: torch.Tensor) -> None:
    torch_prune.custom_from_mask(layer, parameter, kept.to(layer.weight.device))


def from_torch_prune(target: Any) -> NeuronMask | WeightMask:
    """The mask, M = 1, by which ``torch.nn.utils.prune`` has pruned a network.

    Only the ``weight_mask`` buffers matter, not who pruned or by which of torch's methods. The
    network is not modified. Load it anew for a network without the pruning; ``prune.remove`` makes
    the pruning permanent.

    Args:
        target: a UNet2DConditionModel, or a pipeline with one.

    Returns:
        A NeuronMask if all pruned layers are value projections of cross-attentions and whole
        neurons are pruned; otherwise a WeightMask of the layers, by name.

    Raises:
        UsageError: nothing is pruned, or a mask cannot express the pruning: a layer that is not
            linear, a pruned bias whose neuron keeps weights, or a mask of factors.
    """
    unet, pruned = unet_of(target), {}
    for name, module in unet.named_modules():
        if torch_prune.is_pruned(module) and hasattr(module, "_parameters"):
            found = _kept(name, module)
            if found is not None:
                pruned[name] = found
    if not pruned:
        raise UsageError("from_torch_prune: no layer is pruned by torch.nn.utils.prune")
    if all(_neurons(name, unet.get_submodule(name), kept) for name, kept in pruned.items()):
        return NeuronMask(
            {n.removesuffix(".to_v"): kept[:, 0].float()[None] for n, kept in pruned.items()}
        )
    biased = [name for name in pruned if hasattr(unet.get_submodule(name), "bias_mask")]
    if biased:
        raise UsageError(
            f"from_torch_prune: {biased[0]} has a pruned bias, which a mask of weights cannot"
            " express"
        )
    return WeightMask({name: ~kept[None] for name, kept in pruned.items()})


def _neurons(name: str, layer: Any, kept: Tensor) -> bool:
    """Whether a NeuronMask can express the pruning: whole rows, with their biases."""
    gone = ~kept.any(1)
    whole = bool((kept == kept[:, :1]).all())
    no_bias = layer.bias is None or bool((layer.bias.detach().cpu()[gone] == 0).all())
    return name.endswith(_VALUES) and whole and no_bias


def _kept(name: str, module: nn.Module) -> Tensor | None:
    """bool [O, I], True where the layer's own weight is kept; None if the layer is not pruned."""
    buffers = dict(module.named_buffers(recurse=False))
    masks = {n.removesuffix("_mask"): m for n, m in buffers.items() if n.endswith("_mask")}
    if not masks:
        return None
    if not isinstance(module, nn.Linear) or not set(masks) <= {"weight", "bias"}:
        raise UsageError(
            f"from_torch_prune: {name} ({type(module).__name__}, {', '.join(masks)}) is pruned, but"
            " masks are for linear layers; torch.nn.utils.prune.remove it first"
        )
    for mask in masks.values():
        if not ((mask == 0) | (mask == 1)).all():
            raise UsageError(f"from_torch_prune: {name} is scaled by its mask, not pruned")
    kept = masks.get("weight", torch.ones_like(module.weight)).bool()
    bias = masks.get("bias")
    if bias is not None and (kept.any(1) & (bias == 0)).any():
        raise UsageError(f"from_torch_prune: {name} has a pruned bias whose neuron keeps weights")
    return kept.cpu()
