"""Wen et al., "Detecting, Explaining, and Mitigating Memorization in Diffusion Models", ICLR 2024.

The pipeline's own code still handles prompts, latents and steps. Norms are computed from its UNet's
predictions, so on a CPU they equal the released ones bitwise, in the pipeline's dtype.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from dori_fast.errors import UsageError
from dori_fast.integrations import keys_values
from dori_fast.integrations.peers.swap import Patch, Peer, Shim, Swap
from dori_fast.integrations.peers.wen_gradients import make_differentiated
from dori_fast.integrations.supported import require_scored
from dori_fast.models.components import Components
from dori_fast.models.precision import fixed_precision

_REPOSITORY = "https://github.com/YuxinWenRick/diffusion_memorization at c8fe471"
_CALL = (
    "self, prompt=None, height=None, width=None, num_inference_steps=50, guidance_scale=7.5,"
    " negative_prompt=None, num_images_per_prompt=1, eta=0.0, generator=None, latents=None,"
    " prompt_embeds=None, negative_prompt_embeds=None, output_type='pil', return_dict=True,"
    " callback=None, callback_steps=1, cross_attention_kwargs=None, track_noise_norm=False, lp=2"
)
_INIT = (
    "self, vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor,"
    " requires_safety_checker=True"
)
_BY_TEXT = (
    "self, prompt=None, height=None, width=None, num_inference_steps=50, guidance_scale=7.5,"
    " negative_prompt=None, num_images_per_prompt=1, eta=0.0, generator=None, latents=None,"
    " prompt_embeds=None, negative_prompt_embeds=None, target_steps=[0]"
)
_KINDS = ("uncond_noise_norm", "text_noise_norm")


class _Enough(Exception):  # noqa: N818
    """Ends a call from within its UNet."""


class ScoredImages:
    """Images of a scored call, decoded at first access.

    Attributes:
        nsfw_content_detected: Result of the safety checker; access decodes the images.
    """

    def __init__(self, decode: Callable[[], tuple[Any, Any]]) -> None:
        self._decode = decode

    @functools.cached_property
    def _decoded(self) -> tuple[Any, Any]:
        return self._decode()

    @property
    def images(self) -> Any:
        """The images, in the output type of the call.

        Raises:
            UsageError: the call ended early and has no images.
        """
        return self._decoded[0]

    @property
    def nsfw_content_detected(self) -> Any:
        return self._decoded[1]

    def __getitem__(self, key: int | str) -> Any:
        return getattr(self, key) if isinstance(key, str) else self._decoded[key]


class _Norms:
    """Norms of a call, kept on their device until the call ends."""

    def __init__(self, order: float, steps: int | None) -> None:
        self._order, self._steps = order, steps
        self._rows: list[Tensor] = []

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """A forward hook of the UNet."""
        uncond, text = output[0].chunk(2)
        # one norm per image, as released: a norm over rows may round differently
        self._rows.append(
            torch.stack([x.norm(p=self._order) for half in (uncond, text - uncond) for x in half])
        )
        if len(self._rows) == self._steps:
            raise _Enough

    def finish(self) -> dict[str, list[list[float]]]:
        """{kind: [images][steps]}, in one copy from the device."""
        table = torch.stack(self._rows, 1).tolist()
        images = len(table) // 2
        return dict(zip(_KINDS, (table[:images], table[images:]), strict=True))


def _make_call(
    released: Callable[..., Any], record: Patch, options: Mapping[str, Any]
) -> Callable[..., Any]:
    steps: int | None = options["scan_steps"]

    @functools.wraps(released)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = _bind(released, self, args, kwargs)
        given = bound.arguments
        if given["track_noise_norm"] is not True:
            return released(self, *args, **kwargs)
        if not given["return_dict"] or not given["guidance_scale"] > 1:
            # the released function then has no norms, and fails where it needs them
            return released(self, *args, **kwargs)
        require_scored(Components.of_pipeline(self), "patch: wen")
        wanted = given["output_type"]
        given |= {"output_type": "latent", "track_noise_norm": False}
        norms, latents = _Norms(given["lp"], steps), None
        watched = _instrumented(self.unet, norms, steps, given["callback"], record)
        with suppress(_Enough), watched:
            latents = released(*bound.args, **bound.kwargs).images
        return ScoredImages(lambda: _decode(self, latents, wanted, steps)), norms.finish()

    return call


def _make_init(
    released: Callable[..., Any], record: Patch, options: Mapping[str, Any]
) -> Callable[..., Any]:
    """Current diffusers requires ``__init__`` to name every component, also ``image_encoder``."""

    @functools.wraps(released)
    def init(self: Any, *args: Any, image_encoder: None = None, **kwargs: Any) -> None:
        released(self, *args, **kwargs)

    signature = inspect.signature(released)
    component = inspect.Parameter(
        "image_encoder", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None
    )
    parameters = [*signature.parameters.values(), component]
    init.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return init


def _bind(released: Callable[..., Any], pipe: Any, args: Any, kwargs: Any) -> Any:
    bound = inspect.signature(released).bind(pipe, *args, **kwargs)
    bound.apply_defaults()
    return bound


@contextmanager
def _instrumented(
    unet: nn.Module, norms: _Norms, steps: int | None, callback: Any, record: Patch
) -> Iterator[None]:
    reason = keys_values.why_not(unet, callback is not None)
    if reason is not None:
        record.note(f"keys and values are projected in every step: {reason}")
    with ExitStack() as stack:
        if reason is None and steps != 1:
            stack.enter_context(keys_values.kept(unet))
        stack.callback(unet.register_forward_hook(norms).remove)
        yield


@torch.no_grad()
@fixed_precision()
def _decode(pipe: Any, latents: Any, wanted: str, steps: int | None) -> tuple[Any, Any]:
    if latents is None:
        raise UsageError(
            f"patch: wen: the call ended after scan_steps={steps}, so there are no images;"
            " df.unpatch('wen') and df.patch('wen') to run all steps"
        )
    if wanted == "latent":
        return latents, None
    images = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
    images, unsafe = pipe.run_safety_checker(images, latents.device, latents.dtype)
    normal = [True] * len(images) if unsafe is None else [not found for found in unsafe]
    done = pipe.image_processor.postprocess(images, output_type=wanted, do_denormalize=normal)
    return done, unsafe


def _check(options: Mapping[str, Any]) -> None:
    steps = options["scan_steps"]
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise UsageError(f"patch: wen: scan_steps must be 1 or more, or None, got {steps!r}")


def _randn_tensor() -> Any:
    from diffusers.utils.torch_utils import randn_tensor

    return randn_tensor


PEER = Peer(
    _REPOSITORY,
    (
        Swap(
            "local_sd_pipeline",
            "LocalStableDiffusionPipeline.__call__",
            _CALL,
            _make_call,
            "decoded unused images; waited for the device twice per image and step",
        ),
        Swap(
            "local_sd_pipeline",
            "LocalStableDiffusionPipeline.aug_prompt",
            f"{_BY_TEXT}, lr=0.1, optim_iters=10, target_loss=None, print_optim=False,"
            " optim_epsilon=None, alpha=0.5",
            # its batches are [empty, text]
            make_differentiated(fixed=0),
            "ran the empty text forward and backward in every iteration",
        ),
        Swap(
            "local_sd_pipeline",
            "LocalStableDiffusionPipeline.get_text_cond_grad",
            _BY_TEXT,
            # its batches are [text, empty]
            make_differentiated(fixed=1),
            "ran the empty text backward",
        ),
        Swap(
            "local_sd_pipeline",
            "LocalStableDiffusionPipeline.__init__",
            _INIT,
            _make_init,
            "none; current diffusers requires a parameter image_encoder",
        ),
    ),
    {"scan_steps": None},
    _check,
    # its import since diffusers 0.21
    (Shim("diffusers.utils", "randn_tensor", _randn_tensor),),
)
