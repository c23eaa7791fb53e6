"""Keys and values of a text, projected in the first step of a call and kept for the others.

In a UNet's cross-attentions they depend on the text and the weights alone, and both stay the same
from step to step. What is handed out again is the very tensor that the layer gave, so results are
bitwise equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_PROJECTIONS = ("to_k", "to_v", "to_kv")


class Kept:
    """A layer's forward that remembers what it gave for the tensor that it saw last.

    It goes by identity and by torch's count of in-place changes, of both the input and the output:
    whoever writes to one of them gets a fresh projection.
    """

    def __init__(self, forward: Callable[..., Tensor]) -> None:
        self._forward = forward
        self._last: tuple[Tensor, int, Tensor, int] | None = None
        self.computed, self.reused = 0, 0

    def __call__(self, text: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output for ``text`` [B, T, D]: [B, T, C]."""
        if self._last is not None and not args and not kwargs:
            seen, version, output, given = self._last
            if seen is text and text._version == version and output._version == given:
                self.reused += 1
                return output
        output = self._forward(text, *args, **kwargs)
        self.computed += 1
        keeps = not (args or kwargs or output.requires_grad)
        self._last = (text, text._version, output, output._version) if keeps else None
        return output


def cross_attentions(unet: nn.Module) -> dict[str, nn.Module]:
    """The attention layers from picture to text, by name."""
    return {
        name: module
        for name, module in unet.named_modules()
        if getattr(module, "is_cross_attention", False) and hasattr(module, "to_k")
    }


def why_not(unet: nn.Module, callback: bool) -> str | None:
    """Why nothing can be kept from one step to the next, or None if it can.

    Whatever of the caller's runs between the steps may change weights, adapters or their scales
    in ways that no layer can notice.
    """
    if callback:
        return "a callback runs between the steps and may change weights or adapters"
    if torch.is_inference_mode_enabled():
        return "in inference mode torch does not count in-place changes; use torch.no_grad()"
    hooked = hooked_module(unet)
    if hooked is not None:
        return f"{hooked} has a forward hook, which may change weights, adapters or outputs"
    compiled = compiled_module(unet)
    if compiled is not None:
        return f"{compiled} is compiled, and compiled code would compute keys and values anyway"
    return random_module(unet)


def hooked_module(unet: nn.Module) -> str | None:
    """The name of the first module with a torch hook on its forward, or None."""
    for name, module in unet.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"unet.{name}" if name else "the UNet"
    return None


def random_module(unet: nn.Module) -> str | None:
    """That a module draws anew whenever it runs, or None."""
    for name, module in unet.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            return f"unet.{name} drops out at random; unet.eval() ends that"
    return None


def compiled_module(unet: nn.Module) -> str | None:
    """The name of the first module that torch.compile has a hand in, or None."""
    for name, module in unet.named_modules():
        if module._compiled_call_impl is not None or hasattr(module, "_orig_mod"):
            return f"unet.{name}" if name else "the UNet"
    return None


@contextmanager
def kept(unet: nn.Module) -> Iterator[list[Kept]]:
    """Within it, the projections of every cross-attention remember what they gave last.

    The instances' ``forward`` is replaced, as accelerate does for offloading, so that whatever
    stands there (an adapter, quantized weights, weights that are fetched when needed) is called on
    a miss, and attention processors are none the wiser.
    """
    with ExitStack() as stack:
        layers = []
        for attention in cross_attentions(unet).values():
            for name in _PROJECTIONS:
                projection = getattr(attention, name, None)
                if isinstance(projection, nn.Module):
                    layers.append(stack.enter_context(_replaced(projection)))
        yield layers


@contextmanager
def _replaced(module: nn.Module) -> Iterator[Kept]:
    had = "forward" in module.__dict__
    before = module.forward
    ours = Kept(before)
    module.forward = ours
    try:
        yield ours
    finally:
        if module.__dict__.get("forward") is ours:
            if had:
                module.forward = before
            else:
                del module.__dict__["forward"]
