"""One network as the engine sees it: facts, its whole forward, and its stages if they are known."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dori_fast.models.engine.attention import Attention
from dori_fast.models.engine.graphs import Graphs
from dori_fast.models.engine.state import State, TextPart, Timestep
from dori_fast.models.masks import Masks, NeuronMask, WeightMask

Observe = Callable[[Tensor], Tensor]
"""A function of activations [N, *] that returns a tensor with the same samples in front."""


class Backbone(Protocol):
    """A frozen network of a known kind."""

    @property
    def network(self) -> Any:
        """The module itself."""

    @property
    def device(self) -> torch.device:
        """The device of the weights."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""

    @property
    def parameters(self) -> int:
        """The number of parameters."""

    @property
    def channels_last(self) -> bool:
        """Whether convolution weights have their channels innermost."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images, in pixels."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one latent."""

    @property
    def text_width(self) -> int:
        """D, the width of the text embeddings."""

    @property
    def head_sizes(self) -> Collection[int]:
        """Widths of the attention heads; empty if the network can only run whole."""

    @property
    def borrowed(self) -> bool:
        """Whether the network is the caller's, who may train it between evaluations."""

    @property
    def not_shared(self) -> str | None:
        """The reason why the network can only run whole, or None if it has a program."""

    def require_text(self, width: int, pooled: bool) -> None:
        """Check that text embeddings fit the network.

        Args:
            width: width of the embeddings.
            pooled: whether a pooled embedding comes with them.

        Raises:
            UsageError: they do not fit.
        """

    def program(
        self,
        attention: Attention,
        *,
        compiled: bool = False,
        graphs: Graphs | None = None,
        observe: Observe | None = None,
    ) -> Program:
        """The network as a sequence of stages, if ``not_shared`` is None.

        Args:
            attention: attention kernel.
            compiled: True to compile the repeated parts.
            graphs: recorded CUDA graphs to replay; default: launch every kernel.
            observe: function of the inputs [N, *, I] of each second feed-forward linear, whose
                values :meth:`Program.finish` keeps.
        """

    def whole(
        self, latents: Tensor, timestep: Timestep, text: Tensor, pooled: Tensor | None
    ) -> Tensor:
        """The network's own forward: [N, C, H, W] of N latents with texts [N, T, D].

        ``pooled`` [N, E] are pooled text embeddings, where the network takes them.
        """

    def zeros(self, samples: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Latents, text and pooled text of so many samples, all zeros."""

    def copy(self) -> Backbone:
        """The same network with weights of its own."""


class Program(Protocol):
    """A network as a sequence of stages, any part of which can run once and be shared.

    Place 0 of the sequence is where the text comes in, place n is before cross-attention n.

    Attributes:
        names: names of the cross-attentions, in order.
        second_linears: second linear layer of each feed-forward by name, in order.
        recompute: whether to keep, for the backward pass, only the states between stages.
    """

    names: list[str]
    second_linears: dict[str, nn.Module]
    recompute: bool

    @property
    def value_widths(self) -> Mapping[str, int]:
        """Number of value neurons of each cross-attention, by name."""

    def prefix(self, latents: Tensor, timestep: Timestep) -> State:
        """All work before the text comes in, on latents [N, C, H, W]."""

    def between(
        self, state: State, text: TextPart, timestep: Timestep, start: int, stop: int
    ) -> State:
        """The stages from place ``start`` up to cross-attention ``stop``."""

    def suffix(self, state: State, text: TextPart, timestep: Timestep, start: int = 0) -> Tensor:
        """The network's output [N, C, H, W] from place ``start`` on."""

    def finish(self, state: State, text: TextPart, timestep: Timestep, start: int = 0) -> State:
        """The output, and the observed values of each feed-forward, the last one first."""

    def token_attention(
        self, state: State, text: TextPart, timestep: Timestep, layer: int
    ) -> Tensor:
        """Attention [N, T] that each token receives in cross-attention ``layer``, float32.

        ``state`` is the prefix's.
        """

    def text_part(self, text: Tensor, pooled: Tensor | None) -> TextPart:
        """The contribution of texts [P, T, D] and pooled embeddings [P, E]."""

    def masked(self, part: TextPart, masks: Masks, text: Tensor) -> TextPart:
        """The text part of N samples under masks.

        Args:
            part: text part of N samples.
            masks: M = 1 mask for all samples, or one for each row of text embeddings.
            text: int64 [N] on the CPU, each sample's row of text embeddings.
        """

    def check_mask(self, mask: NeuronMask | WeightMask) -> None:
        """Raise UsageError if the mask's layers or widths are not the network's."""

    def weights_changed(self) -> None:
        """Forget results that were computed with the old weights."""
