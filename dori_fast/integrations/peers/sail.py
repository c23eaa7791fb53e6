"""SAIL: Jeon et al., "Understanding and Mitigating Memorization ... via Sharpness", ICML 2025.

The released function still runs the loop. During detection, the UNet run after the last step is
skipped, since its prediction is discarded, and the derivative uses fused kernels for attention and
norms that torch lacks. The derivative still computes the network's value again, because storing the
values of a whole run costs more on a CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch.autograd import forward_ad

from dori_fast.integrations.peers.swap import Patch, Peer, Swap, replaced_forward
from dori_fast.integrations.supported import require_scored
from dori_fast.models.components import Components
from dori_fast.models.engine.forward_mode import FusedDerivatives

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


def _make_call(released: Callable[..., Any], record: Patch, _: Any) -> Callable[..., Any]:
    @functools.wraps(released)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        # args is the last parameter, after 22 others, so it is passed by keyword
        what: Any = kwargs.get("args")
        if getattr(what, "exp_type", None) != "det":
            return released(self, *args, **kwargs)
        require_scored(Components.of_pipeline(self), "patch: sail")
        with replaced_forward(self.unet, _detecting(self.unet.forward, what.hvp_sampling_num)):
            return released(self, *args, **kwargs)

    return call


def _detecting(network: Callable[..., Any], steps: int) -> Callable[..., Any]:
    begun = 0

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal begun
        if forward_ad._current_level >= 0:
            with FusedDerivatives():
                return network(*args, **kwargs)
        begun += 1
        if begun > steps:
            # the released loop returns before it reads this
            return (args[0],)
        return network(*args, **kwargs)

    return forward


PEER = Peer(
    _REPOSITORY,
    (
        Swap(
            "local_model.pipe",
            "LocalStableDiffusionPipeline.__call__",
            _CALL,
            _make_call,
            "ran the UNet once more after the last step; differentiated attention unfused",
        ),
    ),
)
