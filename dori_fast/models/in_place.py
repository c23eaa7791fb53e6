"""Masks written into the weights of a network in place, and undone again."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor, nn

from dori_fast.errors import UsageError
from dori_fast.models.backbones.unet.stock import not_its_weight
from dori_fast.models.denoiser import Denoiser
from dori_fast.models.masks import NeuronMask, WeightMask


class Applied:
    """Overwritten parameters of a network, with their old values.

    As a context manager it restores them at the end. Restore several in the reverse order.
    """

    def __init__(self, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite the named parameters in place."""
        parameters = {name: network.get_parameter(name) for name in tensors}
        self._saved = {name: p.detach().clone() for name, p in parameters.items()}
        self._network = network
        self._write(tensors)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the changed parameters."""
        return tuple(self._saved)

    def restore(self) -> None:
        """Put the old values back, bit for bit; a second call does nothing."""
        self._write(self._saved)
        self._saved = {}

    @torch.no_grad()
    def _write(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self._network.get_parameter(name).copy_(tensor)

    def __enter__(self) -> Applied:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.restore()


def apply_(mask: NeuronMask | WeightMask, target: Any) -> Applied:
    """Write a mask into the weights of a UNet, or of a pipeline's UNet, in place.

    Pruned weights become 0. For scaled neurons, rows (and biases) of the value projection are
    scaled, which equals scaling its output. There are no hooks, so the network can be saved or
    compiled. To keep the change, ignore the returned object.

    >>> with apply_(mask, pipe):
    ...     pruned = pipe(prompt).images

    Args:
        mask: one mask, M = 1.
        target: a UNet2DConditionModel, or a pipeline with one.

    Raises:
        UsageError: M > 1, a missing mask, a Denoiser, a layer that is missing or does not fit, or a
            layer with an adapter or pruned by torch.
    """
    unet = unet_of(target)
    return Applied(unet, masked_parameters(mask, unet))


def unet_of(target: Any) -> nn.Module:
    """The UNet of a pipeline, or the network itself."""
    if isinstance(target, Denoiser):
        raise UsageError(
            "a Denoiser takes masks as a view: model.masked(mask); to change weights, pass the"
            " pipeline, or model.unet before the model is used"
        )
    unet = getattr(target, "unet", target)
    if not isinstance(unet, nn.Module):
        raise UsageError(f"pass a UNet or a pipeline with one, got {type(target).__name__}")
    return unet


def masked_layers(mask: NeuronMask | WeightMask, unet: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers that one mask (M = 1) changes, by the mask's own names.

    Raises:
        UsageError: as from :func:`apply_`.
    """
    if len(mask) != 1:
        raise UsageError(f"{len(mask)} masks for one network; pick one, mask[i], or mask.any()")
    mask.require_present()
    neurons = isinstance(mask, NeuronMask)
    tensors = mask.scales if isinstance(mask, NeuronMask) else mask.pruned
    layers = {}
    for name, changed in mask.counts().items():
        layer = plain_linear(unet, f"{name}.to_v" if neurons else name)
        shape = tensors[name].shape[1:]
        # one factor per row, or one bit per weight
        if shape != layer.weight.shape[: len(shape)]:
            raise UsageError(
                f"{name}: the mask is for {list(shape)}, weights are {list(layer.weight.shape)}"
            )
        if changed.item():
            layers[name] = layer
    return layers


def masked_parameters(mask: NeuronMask | WeightMask, unet: nn.Module) -> dict[str, Tensor]:
    """The parameters that one mask (M = 1) changes, by name, with their masked values."""
    found = {}
    for name, layer in masked_layers(mask, unet).items():
        weight = layer.weight.detach()
        if isinstance(mask, WeightMask):
            pruned = mask.pruned[name][0].to(weight.device)
            found[f"{name}.weight"] = weight.masked_fill(pruned, 0)
            continue
        scale = mask.scales[name][0].to(weight)
        found[f"{name}.to_v.weight"] = scale[:, None] * weight
        if layer.bias is not None:
            found[f"{name}.to_v.bias"] = scale * layer.bias.detach()
    return found


def plain_linear(unet: nn.Module, name: str) -> nn.Linear:
    """The linear layer of this name, if its weights alone determine its output.

    Raises:
        UsageError: as from :func:`apply_`.
    """
    try:
        layer = unet.get_submodule(name)
    except AttributeError:
        raise UsageError(f"{type(unet).__name__} has no layer {name!r}") from None
    reason = not_its_weight(layer)
    if reason is not None:
        raise UsageError(f"{name} {reason}")
    attention = unet.get_submodule(name.rpartition(".")[0])
    if getattr(attention, "fused_projections", False):
        raise UsageError(
            f"{name} is not called, since the projections are fused; undo that first:"
            " pipe.unfuse_qkv_projections()"
        )
    return cast(nn.Linear, layer)
