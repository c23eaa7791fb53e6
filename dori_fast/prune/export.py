"""Masks in the forms that others use: torch's pruning, and checkpoints of what was changed."""

from __future__ import annotations

import os
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune as torch_prune

from dori_fast.errors import UsageError
from dori_fast.models.applied import Applied, masked_layers, masked_parameters, unet_of
from dori_fast.models.masks import NeuronMask, WeightMask
from dori_fast.models.tensor_file import read_tensors

_FORMAT = "dori_fast.pruned/1"


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


def save_pruned(
    mask: NeuronMask | WeightMask,
    target: Any,
    path: str | os.PathLike[str],
    **provenance: str,
) -> None:
    """Write the parameters that a mask changes, as they are under it, and nothing else.

    The file is an ordinary partial state dict of the UNet:
    ``unet.load_state_dict(safetensors.torch.load_file(path), strict=False)``.

    Args:
        mask: one mask, M = 1.
        target: the original UNet, or a pipeline with it; unchanged.
        path: of the safetensors file.
        provenance: what else is to be recorded in its header.

    Raises:
        UsageError: as ``apply_``, and for a mask that changes nothing.
    """
    tensors = masked_parameters(mask, unet_of(target))
    if not tensors:
        raise UsageError("save_pruned: the mask changes nothing")
    metadata = {**provenance, "format": _FORMAT, "mask_sha256": mask.sha256()}
    save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, path, metadata)


def load_pruned_(path: str | os.PathLike[str], target: Any) -> Applied:
    """Put what :func:`save_pruned` wrote into a UNet in place; returns what undoes it.

    Raises:
        UsageError: no such file, a Denoiser, or a UNet without such parameters.
        IntegrityError: another kind of file.
    """
    unet = unet_of(target)
    tensors, _ = read_tensors(path, _FORMAT, "a pruned checkpoint")
    parameters = dict(unet.named_parameters())
    for name, tensor in tensors.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise UsageError(f"{path}: this UNet has no parameter {name} {list(tensor.shape)}")
    return Applied(unet, tensors)
