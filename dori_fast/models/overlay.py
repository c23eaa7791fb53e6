"""Files with some of a UNet's weights, from concept-erasure and pruning tools."""

from __future__ import annotations

import hashlib
import os

import torch
from torch import nn

from dori_fast.errors import IntegrityError
from dori_fast.models.files.hashes import first_nonfinite
from dori_fast.models.files.tensor_file import open_tensors

_FOREIGN = {
    "lora": "this is an adapter; fuse it into a pipeline (pipe.fuse_lora()) and load that",
    "model.diffusion_model.": "these are CompVis' names; convert them to diffusers' first",
    "unet.": "cut the prefix 'unet.' off every name",
}


@torch.no_grad()
def lay_over_(path: str | os.PathLike[str], unet: nn.Module) -> str:
    """Copy the weights of a file into a UNet, in its dtype; the others stay.

    The whole file is checked before anything is written.

    Args:
        path: safetensors file with diffusers' names; its header is ignored.
        unet: UNet to change in place.

    Returns:
        The file's sha256.

    Raises:
        UsageError: no such file.
        IntegrityError: a damaged or empty file, an unknown name, another shape, integers, or NaN
            or Inf in the UNet's dtype.
    """
    tensors, _ = open_tensors(path)
    own = unet.state_dict()
    unknown = sorted(tensors.keys() - own.keys())
    if unknown:
        lower = [name.lower() for name in unknown]
        advice = next((w for part, w in _FOREIGN.items() if any(part in n for n in lower)), None)
        raise IntegrityError(
            f"{path}: {len(unknown)} of its {len(tensors)} names are unknown to the UNet, such as"
            f" {unknown[0]!r}; {advice or 'is it of another architecture?'}"
        )
    if not tensors:
        raise IntegrityError(f"{path}: holds no weights")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise IntegrityError(
                f"{path}: {name} is {list(tensor.shape)}, the UNet's {list(own[name].shape)};"
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
