"""Files with some of a UNet's weights, as concept-erasure and pruning tools write them."""

from __future__ import annotations

import hashlib
import os

import torch
from safetensors.torch import save_file
from torch import nn

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.models.denoiser import Denoiser
from dori_fast.models.files.hashes import first_nonfinite
from dori_fast.models.files.tensor_file import open_tensors

_FOREIGN = {
    "lora": "this is an adapter; fuse it into a pipeline (pipe.fuse_lora()) and load that",
    "model.diffusion_model.": "these are CompVis' names; convert them to diffusers' first",
    "unet.": "cut the prefix 'unet.' off every name",
}


@torch.no_grad()
def lay_over_(path: str | os.PathLike[str], unet: nn.Module) -> str:
    """Put the weights that a file holds into a UNet, in its dtype; the others stay.

    Nothing is written before everything has been checked.

    Args:
        path: safetensors, under diffusers' names; its header does not matter.
        unet: changed in place.

    Returns:
        The file's sha256.

    Raises:
        UsageError: no such file.
        IntegrityError: a damaged or empty file, a name that the UNet does not have, another shape,
            no floating-point numbers, or NaN or Inf in the UNet's dtype.
    """
    tensors, _ = open_tensors(path)
    own = unet.state_dict()
    unknown = sorted(tensors.keys() - own.keys())
    if unknown:
        lower = [name.lower() for name in unknown]
        advice = next((w for part, w in _FOREIGN.items() if any(part in n for n in lower)), None)
        raise IntegrityError(
            f"{path}: {len(unknown)} of its {len(tensors)} names are unknown to the UNet, such as"
            f" {unknown[0]!r} — {advice or 'is it of another architecture?'}"
        )
    if not tensors:
        raise IntegrityError(f"{path}: holds no weights")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise IntegrityError(
                f"{path}: {name} is {list(tensor.shape)}, the UNet's {list(own[name].shape)} —"
                " is it of another architecture?"
            )
        if not tensor.is_floating_point():
            raise IntegrityError(
                f"{path}: {name} is {tensor.dtype}; quantized weights are not read"
            )
    cast = {name: tensor.to(own[name].dtype) for name, tensor in tensors.items()}
    bad = first_nonfinite(cast.items())
    if bad is not None:
        raise IntegrityError(
            f"{path}: NaN or Inf in {bad} as {own[bad].dtype}; get the file again, or load in"
            " float32"
        )
    for name, tensor in cast.items():
        own[name].copy_(tensor)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_difference(
    changed: Denoiser, original: Denoiser, path: str | os.PathLike[str], **provenance: str
) -> list[str]:
    """Write the UNet weights that differ from the original's, whole, and nothing else.

    ``df.load(source, unet_weights=path)`` is the changed model again;
    ``unet.load_state_dict(safetensors.torch.load_file(path), strict=False)`` does it elsewhere.

    Args:
        changed: such as a fine-tuned model; masks of a view are ``df.prune.save_pruned``'s.
        original: what it came from.
        path: of the safetensors file.
        provenance: what is to be recorded in its header.

    Returns:
        The names that were written, at least one.

    Raises:
        UsageError: a view under masks, two architectures, or no difference.
    """
    if changed.masks is not None or original.masks is not None:
        raise UsageError("save_difference: a view has masks; df.prune.save_pruned writes those")
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
