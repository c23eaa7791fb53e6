"""``df.accelerate`` and ``df.restore`` for stock diffusers pipelines."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

from torch import Tensor, nn

from dori_fast.errors import UsageError
from dori_fast.integrations import attention as kernels
from dori_fast.integrations import supported
from dori_fast.integrations.keys_values import compiled_module
from dori_fast.integrations.session import Report, Session, Settings
from dori_fast.models.backbones.unet.parts import compile_options
from dori_fast.models.components import Components
from dori_fast.models.engine.execution import Switch, why_not_compile

_Pipe = TypeVar("_Pipe")
_SESSION = "_dori_fast"


def accelerate(
    pipe: _Pipe,
    *,
    scan_steps: int | None = None,
    kv_cache: Switch = "auto",
    share: Switch = "auto",
    attention: str = "keep",
    compile: bool = False,
    allow_tf32: bool = False,
) -> _Pipe:
    """Remove repeated work from a Stable Diffusion pipeline of diffusers, in place.

    The pipeline keeps the name of its type, its signature and its results, and gets two attributes.
    ``pipe.noise_norms`` is float32 (float64 for float64 pipelines) [steps, images] on the host:
    after a call with guidance, the norm ||eps_text - eps_uncond|| of every image, in the order of
    the result, at every step (Wen et al., ICLR 2024, section 3.2). ``pipe.report`` is a
    :class:`Report` of the last call. A ``with`` block restores the pipeline at its end:

    >>> with df.accelerate(pipe, scan_steps=1) as pipe:
    ...     pipe(prompts)
    ...     scores = pipe.noise_norms.mean(0)

    Modules are changed only during calls, so adapters, processors, offloading and dtypes may change
    between calls (except with ``compile``).

    Args:
        pipe: A StableDiffusionPipeline or StableDiffusionXLPipeline.
        scan_steps: Number of UNet runs after which every call ends and returns the latents reached,
            undecoded; a call with fewer steps runs all of them. Default: None, the whole call.
        kv_cache: Projection of the text's keys and values once per call, bitwise equal on a CPU.
            "auto" turns it off if code of the caller runs between the steps (a callback, a torch
            hook in the UNet), if the UNet is compiled, and in inference mode;
            ``pipe.report.not_cached`` has the reason.
        share: Evaluation of bitwise equal rows of a UNet batch only once: the unconditional halves
            of prompts drawn from the same latents, in the first step. Smaller batches round
            differently. "auto" turns it on with ``scan_steps``, unless processors or hooks of the
            caller may read across rows.
        attention: Attention kernel: "keep" the current processors, or diffusers' processor for
            "sdpa" or "xformers" during each call. Equal up to rounding.
        compile: Compilation of the UNet's repeated blocks with torch.compile, when they first run,
            until the pipeline is restored. Equal up to rounding; turns the cache off.
        allow_tf32: True to let a GPU compute float32 products in TF32 during calls, as torch does
            in convolutions if nobody sets its switches. Default: False, IEEE float32; see
            :mod:`dori_fast.models.precision`.

    True is refused, here or by the call, if the switch cannot be on.

    Returns:
        The same object.

    Raises:
        UsageError: the pipeline cannot be accelerated or already is, or an option cannot be used.
    """
    target: Any = pipe
    if hasattr(target, _SESSION):
        raise UsageError("accelerate: the pipeline is accelerated already; df.restore(pipe) first")
    supported.check(target)
    settings = Settings(scan_steps, kv_cache, share, attention, compile, allow_tf32)
    _check(settings, target)
    compiled = _compile(target.unet) if compile else []
    stock: Any = type(target)
    setattr(target, _SESSION, Session(stock, settings, compiled))
    target.__class__ = _accelerated(stock)
    return pipe


def restore(pipe: _Pipe) -> _Pipe:
    """Undo :func:`accelerate`, and return the same object.

    A pipeline that is not accelerated is returned unchanged.

    Raises:
        UsageError: a call of the pipeline is running, for example from its callback.
    """
    target: Any = pipe
    session: Session | None = getattr(target, _SESSION, None)
    if session is None:
        return pipe
    if session.running:
        raise UsageError("restore: the pipeline is within a call; restore it when that has ended")
    for module in session.compiled:
        module.__dict__.pop("_compiled_call_impl", None)
    target.__class__ = session.stock
    delattr(target, _SESSION)
    return pipe


@functools.cache
def _accelerated(stock: type) -> type:
    """The class of an accelerated pipeline; Python looks ``__call__`` up in the class only."""

    @functools.wraps(stock.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, _SESSION).call(self, args, kwargs)

    def report(self: Any) -> Report | None:
        found: Report | None = getattr(self, _SESSION).report
        return found

    def noise_norms(self: Any) -> Tensor:
        norms: Tensor = getattr(self, _SESSION).norms()
        return norms

    namespace = {
        "__call__": call,
        "__enter__": lambda self: self,
        "__exit__": lambda self, *error: restore(self) and None,
        "__module__": stock.__module__,
        "__qualname__": stock.__qualname__,
        "__doc__": stock.__doc__,
        "report": property(report),
        "noise_norms": property(noise_norms),
    }
    # the stock name, because save_pretrained writes the class name
    return type(stock.__name__, (stock,), namespace)


def _check(settings: Settings, pipe: Any) -> None:
    steps = settings.scan_steps
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise UsageError(f"accelerate: scan_steps must be 1 or more, or None, got {steps!r}")
    if steps is not None:
        who = "accelerate: leave scan_steps out, since this model has no scores"
        supported.require_scored(Components.of_pipeline(pipe), who)
    for name in ("kv_cache", "share"):
        if getattr(settings, name) not in ("auto", True, False):
            value = getattr(settings, name)
            raise UsageError(f"accelerate: {name} must be 'auto', True or False, got {value!r}")
    if not isinstance(settings.allow_tf32, bool):
        value = settings.allow_tf32
        raise UsageError(f"accelerate: allow_tf32 must be True or False, got {value!r}")
    kernels.check(settings.attention, pipe.unet)
    if settings.compile:
        _check_compile(settings, pipe.unet)


def _check_compile(settings: Settings, unet: nn.Module) -> None:
    reason = why_not_compile(getattr(unet, "device"))  # noqa: B009
    compiled = compiled_module(unet)
    if compiled is not None:
        reason = f"{compiled} is compiled already"
    elif settings.kv_cache is True:
        reason = "compiled code does not keep keys and values; leave kv_cache out"
    elif any(hasattr(block, "_hf_hook") for block in _inside(unet)):
        reason = "weights are moved within the blocks (sequential CPU offload)"
    if reason is not None:
        raise UsageError(f"accelerate: compile=True is impossible here: {reason}")


def _inside(unet: nn.Module) -> list[nn.Module]:
    return [module for module in unet.modules() if module is not unet]


def _compile(unet: Any) -> list[nn.Module]:
    """Mark the blocks that diffusers lists as repeated for compilation at their first run."""
    blocks = [m for m in unet.modules() if type(m).__name__ in unet._repeated_blocks]
    for block in blocks:
        block.compile(options=compile_options())
    return blocks
