"""A diffusers UNet2DConditionModel (SD 1.x, 2.x, XL) as a backbone of the engine."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from dori_fast._checks import to_device
from dori_fast.errors import UsageError
from dori_fast.models.backbones.unet.by_sample import require_by_sample
from dori_fast.models.backbones.unet.objections import refusal
from dori_fast.models.backbones.unet.parts import Parts, head_sizes
from dori_fast.models.backbones.unet.program import Program, added_conditions
from dori_fast.models.backbones.unet.require import KIND, require_text, require_unet, text_width
from dori_fast.models.backbones.unet.stock import foreign_module, hooked_module, unbound_method
from dori_fast.models.engine.attention import Attention
from dori_fast.models.engine.backbone import Observe
from dori_fast.models.engine.graphs import Graphs
from dori_fast.models.engine.snapshot import Snapshot
from dori_fast.models.engine.state import Timestep

# CLIP's context
_TOKENS = 77
# in a batch that tests foreign code
_SAMPLES = 2


class UNet:
    """A UNet as the engine sees it; see :class:`dori_fast.models.engine.backbone.Backbone`."""

    def __init__(self, network: Any, image_size: tuple[int, int], borrowed: bool = False) -> None:
        """Raises UsageError if the UNet is not a text-to-image denoiser of a supported kind."""
        require_unet(_kind(network), network.config)
        self.network, self.image_size, self.borrowed = network, image_size, borrowed
        # the network's state when its samples were last found to be independent
        self._tested: Snapshot | None = None

    @property
    def device(self) -> torch.device:
        device: torch.device = self.network.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.network.dtype
        return dtype

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.network.parameters())

    @property
    def channels_last(self) -> bool:
        # the first convolution, whatever wraps it
        weight = next(w for w in self.network.parameters() if w.ndim == 4)
        return bool(
            not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)
        )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.latent_shape_of(self.network)

    @staticmethod
    def latent_shape_of(network: Any) -> tuple[int, int, int]:
        """(C, H, W) of one latent of a UNet."""
        size = network.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return network.config.in_channels, height, width

    @property
    def text_width(self) -> int:
        return text_width(self.network.config)

    @property
    def head_sizes(self) -> list[int]:
        return head_sizes(self.network)

    @property
    def not_shared(self) -> str | None:
        return refusal(self.network)

    def require_text(self, width: int, pooled: bool) -> None:
        require_text(self.network.config, width, pooled)

    def program(
        self,
        attention: Attention,
        *,
        compiled: bool = False,
        graphs: Graphs | None = None,
        observe: Observe | None = None,
    ) -> Program:
        """The network's stages.

        Raises:
            UsageError: foreign code in the network lets samples depend on each other.
        """
        # the stages call foreign layers, such as quantized ones, as they are
        self._require_by_sample(*self.zeros(_SAMPLES), torch.tensor(0))
        parts = Parts(attention, compiled)
        return Program(self.network, parts, self.image_size, graphs, observe)

    def whole(
        self, latents: Tensor, timestep: Timestep, text: Tensor, pooled: Tensor | None
    ) -> Tensor:
        """The network's own forward; see :meth:`Backbone.whole`.

        Raises:
            UsageError: foreign code in the network lets samples depend on each other.
        """
        one = torch.as_tensor(timestep).flatten()[0]
        self._require_by_sample(latents.detach(), text.detach(), pooled, one)
        return self._call(latents, timestep, text, pooled)

    def _require_by_sample(
        self, latents: Tensor, text: Tensor, pooled: Tensor | None, timestep: Tensor
    ) -> None:
        """Test foreign code in the network, if it has changed since the last test."""
        if self._tested is not None and not self._tested.changed():
            return
        foreign, hooked = foreign_module(self.network), hooked_module(self.network)
        if hooked is not None:
            foreign = foreign or f"{hooked} (it has forward hooks)"
        if foreign is not None:
            require_by_sample(
                lambda *given: self._call(given[0], timestep, *given[1:]),
                (latents, text, pooled),
                foreign,
            )
        self._tested = Snapshot(self.network)

    def _call(
        self, latents: Tensor, timestep: Timestep, text: Tensor, pooled: Tensor | None
    ) -> Tensor:
        output: Tensor = self.network(
            latents,
            to_device(torch.as_tensor(timestep), latents.device),
            text,
            added_cond_kwargs=added_conditions(pooled, self.image_size),
            return_dict=False,
        )[0]
        return output

    def zeros(self, samples: int) -> tuple[Tensor, Tensor, Tensor | None]:
        config = self.network.config
        options: dict[str, Any] = {"dtype": self.dtype, "device": self.device}
        latents = torch.zeros(samples, *self.latent_shape, **options)
        text = torch.zeros(samples, _TOKENS, self.text_width, **options)
        if config.addition_embed_type != "text_time":
            return latents, text, None
        # the projection takes the pooled text and six embedded numbers
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        return latents, text, torch.zeros(samples, width, **options)

    def copy(self) -> UNet:
        """The same network with weights of its own.

        Raises:
            UsageError: a method that somebody replaced would run on the original's weights.
        """
        bound = unbound_method(self.network)
        if bound is not None:
            raise UsageError(
                f"copy: {bound} would run on the original's weights in a copy too; undo that first,"
                " and load the model again"
            )
        network = copy.deepcopy(self.network).eval().requires_grad_(False)
        return UNet(network, self.image_size)


def _kind(network: Any) -> str:
    """The class of a UNet; that of diffusers for a compiled or a derived one."""
    from diffusers import UNet2DConditionModel

    network = getattr(network, "_orig_mod", network)
    return KIND if isinstance(network, UNet2DConditionModel) else type(network).__name__
