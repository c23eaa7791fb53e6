"""The weights that a changed model does not share with its original, as a file."""

from __future__ import annotations

import os

import torch
from safetensors.torch import save_file

from dori_fast.errors import UsageError
from dori_fast.models.backbones.unet.hung import why_not_files
from dori_fast.models.denoiser import Denoiser


def save_difference(
    changed: Denoiser, original: Denoiser, path: str | os.PathLike[str], **provenance: str
) -> list[str]:
    """Write only the UNet weights that differ from the original's, each of them whole.

    ``df.load(source, unet_weights=path)`` loads the changed model again; elsewhere, use
    ``unet.load_state_dict(safetensors.torch.load_file(path), strict=False)``.

    Args:
        changed: a changed model, such as a fine-tuned one; for masks use
            ``df.prune.save_pruned``.
        original: the model before the change.
        path: path of the safetensors file.
        provenance: further entries of its header.

    Returns:
        The names of the written weights, at least one.

    Raises:
        UsageError: a view with masks, two architectures, or no difference.
    """
    if changed.masks is not None or original.masks is not None:
        raise UsageError("save_difference: a view has masks; df.prune.save_pruned writes those")
    for model in (changed, original):
        if (reason := why_not_files(model.unet)) is not None:
            raise UsageError(f"save_difference: {reason}")
    old, new = original.unet.state_dict(), changed.unet.state_dict()
    if {n: t.shape for n, t in old.items()} != {n: t.shape for n, t in new.items()}:
        raise UsageError("save_difference: the two UNets are not of one architecture")
    tensors = {
        name: tensor.contiguous().cpu()
        for name, tensor in new.items()
        if not torch.equal(tensor, old[name].to(tensor))
    }
    if not tensors:
        raise UsageError("save_difference: the two UNets have the same weights")
    save_file(tensors, path, {**provenance, "format": "pt"})
    return list(tensors)
