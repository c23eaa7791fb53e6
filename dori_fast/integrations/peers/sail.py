"""SAIL: Jeon et al., "Understanding and Mitigating Memorization ... via Sharpness", ICML 2025.

The released function stays in charge; what changes is how its UNet and its ``jvp`` answer while it
detects. Within a step the value of the network is computed once, and its derivative takes from it
what it needs; the run after the last step, whose answer is thrown away, does not take place.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from dori_fast.integrations.peers.replay import Replay
from dori_fast.integrations.peers.swap import Patch, Peer, Swap

_REPOSITORY = "https://github.com/Dongjae0324/sharpness_memorization_diffusion at f4ee4b8"
_CALL = (
    "self, prompt=None, height=None, width=None, num_inference_steps=50, timesteps=None,"
    " guidance_scale=7.5, negative_prompt=None, num_images_per_prompt=1, eta=0.0, generator=None,"
    " latents=None, prompt_embeds=None, negative_prompt_embeds=None, ip_adapter_image=None,"
    " output_type='pil', return_dict=True, cross_attention_kwargs=None, guidance_rescale=0.0,"
    " clip_skip=None, callback_on_step_end=None,"
    " callback_on_step_end_tensor_inputs=['latents'], save_prefix='heatmap/test', args=None,"
    " **kwargs"
)
_JVP = "func, primals, tangents, *, strict=False, has_aux=False"


class _Step:
    """The detection that is going on, if any: what its step has computed."""

    def __init__(self) -> None:
        self.replay: Replay | None = None


_now = _Step()


def _make_call(released: Callable[..., Any], record: Patch, _: Any) -> Callable[..., Any]:
    @functools.wraps(released)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        # the released call has it last, after 22 others
        what = kwargs.get("args")
        if getattr(what, "exp_type", None) != "det":
            return released(self, *args, **kwargs)
        with _detecting(self.unet, what.hvp_sampling_num):
            return released(self, *args, **kwargs)

    return call


@contextmanager
def _detecting(unet: Any, steps: int) -> Iterator[None]:
    had, network = "forward" in unet.__dict__, unet.forward
    begun = 0

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal begun
        if forward_ad._current_level >= 0:
            return network(*args, **kwargs)
        begun += 1
        if begun > steps:
            # the released loop returns before it looks at this
            return (args[0],)
        _now.replay = Replay()
        with _now.replay, sdpa_kernel(SDPBackend.MATH):
            return network(*args, **kwargs)

    unet.forward = forward
    try:
        yield
    finally:
        _now.replay = None
        if had:
            unet.forward = network
        else:
            del unet.__dict__["forward"]


def _make_jvp(released: Callable[..., Any], record: Patch, _: Any) -> Callable[..., Any]:
    @functools.wraps(released)
    def jvp(func: Any, primals: Any, tangents: Any, **options: Any) -> Any:
        if _now.replay is None:
            return released(func, primals, tangents, **options)
        with (
            forward_ad.dual_level(),
            _now.replay,
            sdpa_kernel(SDPBackend.MATH),
            torch.no_grad(),
        ):
            duals = [forward_ad.make_dual(*pair) for pair in zip(primals, tangents, strict=True)]
            value, derivative = forward_ad.unpack_dual(func(*duals))
        return value, torch.zeros_like(value) if derivative is None else derivative

    return jvp


PEER = Peer(
    _REPOSITORY,
    (
        Swap(
            "local_model.pipe",
            "LocalStableDiffusionPipeline.__call__",
            _CALL,
            _make_call,
            "ran the UNet once more after the last step",
        ),
        Swap(
            "local_model.pipe",
            "jvp",
            _JVP,
            _make_jvp,
            "computed the network's value again beside its derivative",
        ),
    ),
)
