"""Masks of ``torch.nn.utils.prune``: handed over to it, and read back from it."""

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
    """Hand a mask over to ``torch.nn.utils.prune``.

    Each changed layer gets ``weight_orig`` and ``weight_mask`` (of the value projections, for a
    NeuronMask; ``bias`` likewise), as if pruned by ``prune.custom_from_mask``.
    ``prune.remove(layer, "weight")`` then makes it permanent.

    Args:
        mask: one mask, M = 1; neurons must be blocked (factor 0) or left alone.
        target: a UNet2DConditionModel, or a pipeline with one.

    Returns:
        The layers that were changed.

    Raises:
        UsageError: as ``apply_``, and for factors that are not 0 or 1.
    """
    if isinstance(mask, NeuronMask):
        for name, scale in mask.scales.items():
            if not ((scale == 0) | (scale == 1)).all():
                raise UsageError(
                    f"torch_prune_: {name} has factors other than 0 and 1, which torch's pruning"
                    " cannot say; use apply_"
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

    It makes no difference who pruned, or by which of torch's methods: what counts are the
    ``weight_mask`` buffers. Nothing is changed. To see the same network without the pruning, load
    it anew; ``prune.remove`` makes it permanent.

    Args:
        target: a UNet2DConditionModel, or a pipeline with one.

    Returns:
        A NeuronMask where all pruned layers are value projections of cross-attentions and whole
        neurons are pruned; otherwise a WeightMask of the layers, by name.

    Raises:
        UsageError: nothing is pruned, or something that a mask cannot say: a layer that is not
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
            f"from_torch_prune: {biased[0]} has a pruned bias, which a mask of weights cannot say"
        )
    return WeightMask({name: ~kept[None] for name, kept in pruned.items()})


def _neurons(name: str, layer: Any, kept: Tensor) -> bool:
    """Whether a mask of neurons says what is pruned: whole rows, with their biases."""
    gone = ~kept.any(1)
    whole = bool((kept == kept[:, :1]).all())
    no_bias = layer.bias is None or bool((layer.bias.detach().cpu()[gone] == 0).all())
    return name.endswith(_VALUES) and whole and no_bias


def _kept(name: str, module: nn.Module) -> Tensor | None:
    """bool [O, I], True where a layer's own weight is kept; None if none of its own is pruned."""
    buffers = dict(module.named_buffers(recurse=False))
    masks = {n.removesuffix("_mask"): m for n, m in buffers.items() if n.endswith("_mask")}
    if not masks:
        return None
    if not isinstance(module, nn.Linear) or not set(masks) <= {"weight", "bias"}:
        raise UsageError(
            f"from_torch_prune: {name} ({type(module).__name__}, {', '.join(masks)}) is pruned, and"
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
