"""Wen's swaps that differentiate: half of a guided batch is constant, and evaluated as such."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from dori_fast.integrations.peers import wen
from dori_fast.integrations.peers.swap import Patch

IMAGES, UPDATES = 3, 4


@pytest.fixture
def unet(tiny_directory: Any) -> Any:
    found = UNet2DConditionModel.from_pretrained(tiny_directory, subfolder="unet").double()
    next(found.parameters()).requires_grad_(False)
    return found


def swapped(name: str, loop: Callable[..., Any]) -> Callable[..., Any]:
    """What `df.patch("wen")` would put in the place of a released method with this loop."""
    (swap,) = [swap for swap in wen.PEER.swaps if swap.target.endswith(name)]
    return swap.make(loop, Patch("wen", wen.PEER.repository), {})


def batches(unet: Any) -> list[int]:
    """Sizes of the batches that will run, with the gradient's first in negative numbers."""
    found: list[int] = []

    def hook(module: Any, args: Any) -> None:
        found.append(-len(args[0]) if torch.is_grad_enabled() else len(args[0]))

    unet.conv_in.register_forward_pre_hook(hook)
    return found


def guided(self: Any, latents: Tensor, t: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The released norm of a guided batch's difference, but telling one half from the other."""
    text = torch.cat([first.repeat(IMAGES, 1, 1), second.repeat(IMAGES, 1, 1)])
    predicted = self.unet(
        latents, t, encoder_hidden_states=text, cross_attention_kwargs=None, return_dict=False
    )[0]
    one, two = predicted.chunk(2)
    return torch.norm(two - 0.5 * one, p=2).mean()


def mitigated(self: Any, latents: Tensor, t: Tensor, empty: Tensor, text: Tensor) -> Tensor:
    """The released mitigation's loop."""
    moved = text.clone().requires_grad_()
    optimizer = torch.optim.AdamW([moved], lr=0.05)
    for _ in range(UPDATES):
        loss = guided(self, latents, t, empty, moved)
        (moved.grad,) = torch.autograd.grad(loss, [moved])
        optimizer.step()
    return moved.detach()


def slope(self: Any, latents: Tensor, t: Tensor, empty: Tensor, text: Tensor) -> Tensor:
    """The released slope: the text comes first, and the empty one wants a gradient in vain."""
    text = text.clone().requires_grad_()
    loss = guided(self, latents, t, text * 1, empty.clone().requires_grad_())
    return torch.autograd.grad(loss, [text])[0]


@pytest.mark.parametrize(
    ("name", "loop", "expected"),
    [
        ("aug_prompt", mitigated, [-IMAGES, IMAGES] + [-IMAGES] * (UPDATES - 1)),
        ("get_text_cond_grad", slope, [-IMAGES, IMAGES]),
    ],
)
def test_half_of_the_rows_is_constant(
    unet: Any, name: str, loop: Callable[..., Tensor], expected: list[int]
) -> None:
    latents = torch.randn(IMAGES, 4, 8, 8, dtype=torch.float64).repeat(2, 1, 1, 1)
    inputs = (latents, torch.tensor(981), *torch.randn(2, 77, 32, dtype=torch.float64).split(1))
    pipe, wanting = SimpleNamespace(unet=unet), [p.requires_grad for p in unet.parameters()]
    released = loop(pipe, *inputs)
    ran = batches(unet)
    ours = swapped(name, loop)(pipe, *inputs)
    assert ran == expected
    torch.testing.assert_close(ours, released, rtol=1e-9, atol=1e-12)
    assert [p.requires_grad for p in unet.parameters()] == wanting
    assert "forward" not in vars(unet)


def test_whatever_the_fixed_half_follows_from_is_noticed(unet: Any) -> None:
    latents = torch.randn(2 * IMAGES, 4, 8, 8, dtype=torch.float64)
    t, later = torch.tensor(981), torch.tensor(961)
    empty, text = torch.randn(2, 77, 32, dtype=torch.float64).split(1)

    def loop(self: Any) -> list[Tensor]:
        moving = text.clone().requires_grad_()
        found = [guided(self, latents, t, empty, moving)]
        found += [guided(self, latents, later, empty, moving)]
        found += [guided(self, latents, later, empty + 1, moving)]
        latents.mul_(0.5)
        found += [guided(self, latents, later, empty + 1, moving)]
        latents.mul_(2)
        with torch.no_grad():
            found += [guided(self, latents, later, empty, moving)]
        return found

    pipe = SimpleNamespace(unet=unet)
    released = loop(pipe)
    ran = batches(unet)
    ours = swapped("aug_prompt", loop)(pipe)
    assert ran == [-IMAGES, IMAGES] * 4 + [2 * IMAGES]
    torch.testing.assert_close(ours, released)


def test_weights_want_their_gradients_again_after_an_error(unet: Any) -> None:
    def loop(self: Any) -> None:
        assert not any(p.requires_grad for p in self.unet.parameters())
        raise KeyboardInterrupt

    wanting = [p.requires_grad for p in unet.parameters()]
    with pytest.raises(KeyboardInterrupt):
        swapped("aug_prompt", loop)(SimpleNamespace(unet=unet))
    assert [p.requires_grad for p in unet.parameters()] == wanting
