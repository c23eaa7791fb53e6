"""The weights under training: AdamW, clipping, their EMA, and their state as tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dori_fast.errors import NonFiniteError
from dori_fast.models.files.hashes import first_nonfinite

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class Weights:
    """All parameters of a network, trained by AdamW.

    Args:
        network: frozen network; its parameters require gradients within :meth:`trainable` alone.
        weight_decay: decoupled weight decay.
        ema: decay of the EMA of the weights; None keeps none. It is warmed up as in diffusers:
            min(ema, (1 + step) / (10 + step)).
    """

    def __init__(self, network: nn.Module, weight_decay: float, ema: float | None) -> None:
        self._parameters = dict(network.named_parameters())
        self._adam = torch.optim.AdamW(
            list(self._parameters.values()), lr=0.0, weight_decay=weight_decay
        )
        self._decay = ema
        self._average = (
            {} if ema is None else {n: p.detach().clone() for n, p in self._parameters.items()}
        )

    @contextmanager
    def trainable(self) -> Iterator[None]:
        """Let the parameters require gradients, and drop the gradients at the end."""
        try:
            for parameter in self._parameters.values():
                parameter.requires_grad_(True)
            yield
        finally:
            for parameter in self._parameters.values():
                parameter.requires_grad_(False)
            self.drop_gradients()

    def drop_gradients(self) -> None:
        """Free the parameters' gradients."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def update(self, lr: float, clip: float | None, step: int) -> float:
        """One step along the gradients; returns their norm before clipping.

        Raises:
            NonFiniteError: the gradients are not finite.
        """
        limit = float("inf") if clip is None else clip
        norm = float(nn.utils.clip_grad_norm_(self._parameters.values(), limit))
        if not norm < float("inf"):
            raise NonFiniteError(
                f"finetune: gradients of step {step} are not finite; lower lr, or leave autocast"
            )
        for group in self._adam.param_groups:
            group["lr"] = lr
        self._adam.step()
        if self._decay is not None:
            kept = min(self._decay, (1 + step) / (10 + step))
            for name, parameter in self._parameters.items():
                self._average[name].lerp_(parameter.detach(), 1 - kept)
        return norm

    @torch.no_grad()
    def finish(self) -> None:
        """Copy the EMA, if there is one, into the network.

        Raises:
            NonFiniteError: a weight is NaN or infinite.
        """
        for name, average in self._average.items():
            self._parameters[name].copy_(average)
        bad = first_nonfinite(self._parameters.items())
        if bad is not None:
            raise NonFiniteError(f"finetune: the last step left NaN or Inf in {bad}; lower lr")

    def tensors(self) -> dict[str, Tensor]:
        """Weights, moments and EMA."""
        found = {f"weights.{n}": p.detach() for n, p in self._parameters.items()}
        for name, parameter in self._parameters.items():
            for moment in _MOMENTS:
                found[f"{moment}.{name}"] = self._adam.state[parameter][moment]
        return found | {f"average.{name}": value for name, value in self._average.items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors of :meth:`tensors` back."""
        for name, parameter in self._parameters.items():
            parameter.copy_(tensors[f"weights.{name}"])
            state: dict[str, Any] = {}
            for moment in _MOMENTS:
                value = tensors[f"{moment}.{name}"].clone()
                state[moment] = value if moment == "step" else value.to(parameter.device)
            self._adam.state[parameter] = state
        for name in self._average:
            self._average[name].copy_(tensors[f"average.{name}"])
