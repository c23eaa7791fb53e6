"""UnlearnDiffAtk: Zhang et al., "To Generate or Not? Safety-Driven Unlearned ...", ECCV 2024.

One sort replaces a bisection per token. Images take one UNet run per step instead of one per text.
The attack's loss has no useless work and stays as released.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from dori_fast.integrations import keys_values
from dori_fast.integrations.peers.swap import Patch, Peer, Swap, replaced_forward
from dori_fast.models.backbones.unet.stock import foreign_module
from dori_fast.ops.simplex import capped_simplex_project

_REPOSITORY = "https://github.com/OPTML-Group/Diffusion-MU-Attack at 5a3e5d3"


class Together:
    """A UNet's forward that evaluates all texts of a step in one batch.

    The first step runs text by text, and so shows the texts of later steps.

    Args:
        forward: Forward of the UNet, which treats every sample by itself.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward
        self._first: tuple[Tensor, int] | None = None
        self._step: tuple[Tensor, int] | None = None
        self._texts: list[Tensor] = []
        self._joined: Tensor | None = None
        self._answers: dict[int, Any] = {}

    def __call__(self, sample: Tensor, timestep: Any, **others: Any) -> Any:
        """The prediction for ``sample`` [B, C, H, W] and ``encoder_hidden_states``."""
        text = others.get("encoder_hidden_states")
        step = (sample, sample._version)
        if len(others) != 1 or not isinstance(text, Tensor) or torch.is_grad_enabled():
            return self._forward(sample, timestep, **others)
        if self._first is None:
            self._first = step
        learning = _same(step, self._first)
        at = next((i for i, known in enumerate(self._texts) if known is text), None)
        if learning and at is None:
            self._texts.append(text)
        if learning or at is None:
            return self._forward(sample, timestep, **others)
        if not _same(step, self._step):
            if self._joined is None:
                # one tensor object for all steps, so that its keys and values can be kept
                self._joined = torch.cat(self._texts)
            count = len(self._texts)
            answer = self._forward(
                torch.cat([sample] * count), timestep, encoder_hidden_states=self._joined
            )
            parts = answer.sample.chunk(count)
            self._answers = {i: type(answer)(sample=part) for i, part in enumerate(parts)}
            self._step = step
        return self._answers[at]


def _same(one: tuple[Tensor, int], other: tuple[Tensor, int] | None) -> bool:
    return other is not None and one[0] is other[0] and one[1] == other[1]


def _make_projection(released: Callable[..., Any], record: Patch, _: Any) -> Callable[..., Any]:
    @functools.wraps(released)
    def projection(self: Any, curr_var: Tensor, xi: float = 1e-5) -> Tensor:
        return capped_simplex_project(curr_var.detach())

    return projection


def _make_sampling(released: Callable[..., Any], record: Patch, _: Any) -> Callable[..., Any]:
    @functools.wraps(released)
    def sampling(self: Any, *args: Any, **kwargs: Any) -> Any:
        unet = self.target_unet_sd
        foreign = foreign_module(unet, any_root=True)
        if foreign is not None:
            record.note(f"one UNet run for each text: {foreign} may look across a batch")
            return released(self, *args, **kwargs)
        reason = keys_values.why_not(unet, callback=False)
        with ExitStack() as stack:
            if reason is None:
                stack.enter_context(keys_values.kept(unet))
            else:
                record.note(f"keys and values are projected in every step: {reason}")
            stack.enter_context(replaced_forward(unet, Together(unet.forward)))
            return released(self, *args, **kwargs)

    return sampling


PEER = Peer(
    _REPOSITORY,
    (
        Swap(
            "attackers.text_grad_",
            "TextGrad.projection",
            "self, curr_var, xi=1e-05",
            _make_projection,
            "bisected token by token, with four numbers copied from the device per halving",
        ),
        Swap(
            "tasks.classifier_",
            "ClassifierTask.sampling",
            "self, input_ids, text_embeddings, batch_size=1, seed=0, height=512, width=512,"
            " num_inference_steps=50, guidance_scale=7.5",
            _make_sampling,
            "ran the UNet once for each text; projected the texts in every step",
        ),
    ),
)
