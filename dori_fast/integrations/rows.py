"""Bitwise equal rows of a UNet batch, evaluated once.

The prediction of a row depends only on its latent, its text and its added conditions. At the first
step, the unconditional rows of prompts drawn from the same latents are equal. After it the guided
latents differ from prompt to prompt, and so do the unconditional predictions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dori_fast.models.backbones.unet.stock import foreign_module, hooked_module, random_module

# inputs of the UNet that may differ from row to row and are not compared
_OTHERS = (
    "class_labels",
    "timestep_cond",
    "attention_mask",
    "encoder_attention_mask",
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Distinct:
    """The distinct rows of the UNet's inputs, during one call of a pipeline.

    Args:
        same_text: True if nothing writes to the text between the steps. Its selected rows are then
            reused as one tensor object, which cached keys and values need.
    """

    def __init__(self, same_text: bool) -> None:
        self._same_text = same_text
        # a step can have equal rows only if the previous one had
        self.any_left = True
        self._cut: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self._back: Tensor | None = None

    def cut(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None | tuple[Any, Any]:
        """The arguments with distinct rows only, or None if all rows are distinct."""
        self._back = None
        if not self.any_left or any(kwargs.get(name) is not None for name in _OTHERS):
            return None
        sample, text = args[0], kwargs["encoder_hidden_states"]
        added: Mapping[str, Tensor] = kwargs.get("added_cond_kwargs") or {}
        if not all(isinstance(x, Tensor) for x in added.values()):
            # image prompts, which a UNet without an adapter ignores
            return None
        inputs = {"sample": sample, "text": text, **added}
        labels = torch.stack([_labels(x) for x in inputs.values()], 1)
        groups, back = torch.unique(labels, dim=0, return_inverse=True)
        self.any_left = len(groups) < len(sample)
        if not self.any_left:
            return None
        rows = torch.arange(len(sample), device=sample.device)
        # the first row of each group
        first = torch.full((len(groups),), len(sample), device=sample.device)
        first = first.scatter_reduce(0, back, rows, "amin")
        # in the order of first rows, so that a batch keeps its layout
        order = first.argsort()
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        self._back, first = place[back], first[order]
        kwargs = {**kwargs, "encoder_hidden_states": self._taken("text", text, first)}
        if added:
            kwargs["added_cond_kwargs"] = {n: self._taken(n, x, first) for n, x in added.items()}
        return (sample[first], *args[1:]), kwargs

    def expand(self, output: Tensor) -> Tensor:
        """Predictions of all rows [B, *] from those of the distinct rows."""
        return output if self._back is None else output[self._back]

    def _taken(self, name: str, tensor: Tensor, rows: Tensor) -> Tensor:
        """Rows of a tensor; the same object while neither tensor nor rows change."""
        if name in self._cut and self._same_text:
            seen, chosen, taken = self._cut[name]
            if seen is tensor and torch.equal(chosen, rows):
                return taken
        taken = tensor[rows]
        self._cut[name] = (tensor, rows, taken)
        return taken


def _labels(x: Tensor) -> Tensor:
    """int64 [B]: equal numbers for bitwise equal rows of x [B, *]."""
    bits = x.contiguous().view(_BITS[x.element_size()]).flatten(1)
    return torch.unique(bits, dim=0, return_inverse=True)[1]


def why_not(unet: nn.Module) -> str | None:
    """Reason why rows may depend on each other, or None if they are independent.

    Every module must run code of torch, diffusers, accelerate or peft's LoRA.
    """
    foreign = foreign_module(unet)
    if foreign is not None:
        return f"{foreign} may look at other rows of the batch"
    hooked = hooked_module(unet)
    if hooked is not None:
        return f"{hooked} has a forward hook, which may look at other rows of the batch"
    return random_module(unet)
