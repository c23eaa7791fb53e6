"""The engine on NeMo's modules, with work that calls of one prompt's search share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dori_fast.errors import UsageError
from dori_fast.integrations import keys_values
from dori_fast.integrations.peers.nemo_inputs import layers
from dori_fast.integrations.peers.swap import Patch
from dori_fast.models import Denoiser, NeuronMask, SharedLatents
from dori_fast.models.backbones.registry import backbone_of
from dori_fast.models.backbones.unet.objections import refusal
from dori_fast.models.schedules.known import schedule_of
from dori_fast.models.schedules.vp import Schedule
from dori_fast.models.text.encoders import TextSide


class Network:
    """The peer's UNet on one draw of latents, kept between calls until something changes.

    Layers before the first cross-attention run once per draw. Predictions without blocked neurons
    are computed once per text.

    Args:
        parts: Tokenizer, text encoder, UNet and scheduler of the peer.

    Attributes:
        model: The engine on these parts.

    Raises:
        UsageError: the engine cannot run this UNet.
    """

    def __init__(self, *parts: Any) -> None:
        tokenizer, text_encoder, unet, scheduler = parts
        self._parts, self._weights = parts, _weights(unet)
        self.model = Denoiser(
            backbone=backbone_of(unet, (512, 512)),
            text=TextSide(tokenizer, text_encoder),
            # the released code treats any prediction as epsilon
            schedule=Schedule(replace(schedule_of(scheduler), prediction_type="epsilon")),
            vae=lambda: None,
            device=unet.device,
            dtype=unet.dtype,
            batch_size=1,
            origin={},
            hashes=dict,
        )
        if self.model.latent_shape[1:] != (64, 64):
            raise UsageError(
                f"latents of the UNet are {self.model.latent_shape}, the released code draws 64x64"
            )
        self._drawn: Tensor | None = None
        self._shared: SharedLatents | None = None
        self._text: Tensor | None = None
        self._unblocked: dict[int, Tensor] = {}

    def serves(self, *parts: Any) -> bool:
        """True if the network has these parts, and their weights are unchanged."""
        same = all(one is other for one, other in zip(parts, self._parts, strict=True))
        return same and _weights(self.model.unet) == self._weights

    def latents(self, drawn: Tensor, timestep: int, rows: Sequence[int]) -> SharedLatents:
        """Rows of a draw [N, C, H, W], with their shared layers computed."""
        kept = self._shared
        if (
            kept is None
            or kept.timestep != timestep
            or self._drawn is None
            or not torch.equal(self._drawn, drawn)
        ):
            self.model.batch_size = len(drawn)
            kept = self.model.share(drawn.to(self.model.device), timestep)
            self._drawn, self._shared, self._text = drawn, kept, None
        return kept.take(torch.tensor(rows))

    def unblocked(self, text: Tensor, drawn: Tensor, timestep: int, rows: Sequence[int]) -> Tensor:
        """Noise differences [R, C, H, W] of a text [1, T, D] with nothing blocked."""
        self.latents(drawn, timestep, rows)
        if self._text is None or not torch.equal(self._text, text):
            self._text, self._unblocked = text, {}
        if missing := [row for row in rows if row not in self._unblocked]:
            found = self._differences(self.model, text, self.latents(drawn, timestep, missing))
            self._unblocked |= dict(zip(missing, found, strict=True))
        return torch.stack([self._unblocked[row] for row in rows])

    def differences(
        self,
        text: Tensor,
        drawn: Tensor,
        timestep: int,
        rows: Sequence[int],
        blocked: Sequence[Sequence[int]] | None,
    ) -> Tensor:
        """Noise differences [R, C, H, W] of a text with neurons blocked, listed by layer."""
        if not any(blocked or []):
            return self.unblocked(text, drawn, timestep, rows)
        widths = self.model.engine.value_widths
        listed = dict(zip(layers(self.model.unet), blocked or [], strict=True))
        mask = NeuronMask.blocking([listed], {name: widths[name] for name in listed})
        shared = self.latents(drawn, timestep, rows)
        return self._differences(self.model.masked(mask), text, shared)

    def _differences(self, view: Denoiser, text: Tensor, shared: SharedLatents) -> Tensor:
        view.batch_size = len(shared)
        return view.epsilon_shared(view.condition(text), shared)[0] - shared.latents


def network(record: Patch, *parts: Any) -> tuple[Network | None, str | None]:
    """The last call's network if still valid, or a new one; else None with the reason."""
    unet, scheduler = parts[2:]
    if hasattr(scheduler, "sigmas"):
        return None, type(scheduler).__name__
    reason = keys_values.why_not(unet, callback=False) or refusal(unet)
    if reason is not None:
        return None, reason
    if any(hasattr(module, "_hf_hook") for module in unet.modules()):
        return None, "accelerate fetches its weights when it is called"
    if any(weight.is_inference() for weight in unet.parameters()):
        return None, "torch does not count changes of weights that inference mode made"
    kept: Network | None = record.shared.get("network")
    # the scale of an adapter is no weight, so its changes go unnoticed
    adapted = any(hasattr(module, "get_base_layer") for module in unet.modules())
    if kept is None or adapted or not kept.serves(*parts):
        try:
            kept = record.shared["network"] = Network(*parts)
        except UsageError as error:
            return None, str(error)
    return kept, None


def _weights(unet: Any) -> tuple[Any, ...]:
    """A value that changes when a weight is replaced, moved or written to.

    It includes sums, because torch does not count writes through ``.data``. They cost little next
    to a run of the UNet.
    """
    weights = [*unet.parameters(), *unet.buffers()]
    known = tuple((id(weight), weight.data_ptr(), weight._version) for weight in weights)
    sums = torch.stack([weight.detach().sum(dtype=torch.float64) for weight in weights])
    return (unet.device, unet.dtype, known, tuple(sums.tolist()))
