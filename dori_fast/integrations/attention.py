"""Choice of the attention kernel of a stock UNet during a call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from dori_fast.errors import UsageError
from dori_fast.models.backbones.unet.parts import head_sizes
from dori_fast.models.backbones.unet.stock import foreign_processor
from dori_fast.models.engine.attention import why_not_xformers

CHOICES = ("keep", "sdpa", "xformers")


def check(choice: str, unet: Any) -> None:
    """Reject a kernel that cannot be used.

    Raises:
        UsageError: the kernel is unknown, xformers is unavailable, or the UNet has processors of
            the caller or fused projections, which another kernel would disable.
    """
    if choice not in CHOICES:
        raise UsageError(f"accelerate: attention must be one of {', '.join(CHOICES)}: {choice!r}")
    if choice == "keep":
        return
    reason = None
    if choice == "xformers":
        reason = why_not_xformers(unet.device, unet.dtype, head_sizes(unet))
    if reason is not None:
        raise UsageError(
            f"accelerate: attention 'xformers' is unavailable: {reason}; use attention='sdpa'"
        )
    foreign = foreign_processor(unet)
    if foreign is None and any(getattr(m, "fused_projections", False) for m in unet.modules()):
        foreign = "the fused projections (pipe.unet.unfuse_qkv_projections() undoes them)"
    if foreign is not None:
        raise UsageError(
            f"accelerate: attention={choice!r} would disable {foreign}; leave"
            " attention='keep', or pipe.unet.set_default_attn_processor() first"
        )


@contextmanager
def chosen(choice: str, unet: nn.Module) -> Iterator[None]:
    """Use the kernel in all attention layers of the UNet; restore the processors at exit."""
    if choice == "keep":
        yield
        return
    from diffusers.models.attention_processor import AttnProcessor2_0, XFormersAttnProcessor

    network: Any = unet
    check(choice, network)
    before = network.attn_processors
    kind = AttnProcessor2_0 if choice == "sdpa" else XFormersAttnProcessor
    network.set_attn_processor(kind())
    try:
        yield
    finally:
        network.set_attn_processor(before)
