"""Checkpoints of the parameters that a mask changes, as ordinary partial state dicts."""

from __future__ import annotations

import os
from typing import Any

from safetensors.torch import save_file

from dori_fast.errors import UsageError
from dori_fast.models.files.tensor_file import read_tensors
from dori_fast.models.in_place import Applied, masked_parameters, plain_linear, unet_of
from dori_fast.models.masks import NeuronMask, WeightMask

_FORMAT = "dori_fast.pruned/1"


def save_pruned(
    mask: NeuronMask | WeightMask,
    target: Any,
    path: str | os.PathLike[str],
    **provenance: str,
) -> None:
    """Write the parameters that a mask changes, with their masked values.

    The file is an ordinary partial state dict of the UNet:
    ``unet.load_state_dict(safetensors.torch.load_file(path), strict=False)``.

    Args:
        mask: one mask, M = 1.
        target: the original UNet, or a pipeline with it; not modified.
        path: path of the safetensors file.
        provenance: further entries of the file's header.

    Raises:
        UsageError: the cases of ``apply_``, and a mask that changes nothing.
    """
    tensors = masked_parameters(mask, unet_of(target))
    if not tensors:
        raise UsageError("save_pruned: the mask changes nothing")
    metadata = {**provenance, "format": _FORMAT, "mask_sha256": mask.sha256()}
    save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, path, metadata)


def load_pruned_(path: str | os.PathLike[str], target: Any) -> Applied:
    """Load a file of :func:`save_pruned` into a UNet in place; the result can undo it.

    Raises:
        UsageError: no such file, a Denoiser, or a UNet without such parameters.
        IntegrityError: a file of another kind.
    """
    unet = unet_of(target)
    tensors, _ = read_tensors(path, _FORMAT, "a pruned checkpoint")
    parameters = dict(unet.named_parameters())
    for name, tensor in tensors.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise UsageError(f"{path}: this UNet has no parameter {name} {list(tensor.shape)}")
        plain_linear(unet, name.rpartition(".")[0])
    return Applied(unet, tensors)
