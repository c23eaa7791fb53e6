"""Calls of an accelerated pipeline: hooks are added before a call and removed after it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from dori_fast.errors import UsageError
from dori_fast.integrations import attention, keys_values, rows, supported
from dori_fast.integrations.norms import NoiseNorms
from dori_fast.models.backbones.unet.parts import never_falling_back
from dori_fast.models.components import Components
from dori_fast.models.engine.execution import Switch
from dori_fast.models.precision import fixed_precision


@dataclass(frozen=True)
class Settings:
    """The arguments of :func:`dori_fast.accelerate`."""

    scan_steps: int | None
    kv_cache: Switch
    share: Switch
    attention: str
    compile: bool
    allow_tf32: bool


@dataclass
class Report:
    """Work of the last call of an accelerated pipeline.

    Attributes:
        steps: Number of UNet runs.
        evaluations: Number of evaluated samples (rows of batches); shared ones count once.
        asked: Number of samples that the pipeline requested.
        projections: Number of computed key and value projections.
        reused: Number of reused key and value projections.
        not_cached: Reason why keys and values were not kept, or None if they were.
        not_shared: Reason why equal rows were not shared, or None if they could be.
        noise_norms: [steps, images], see :func:`dori_fast.accelerate`; None without guidance.
        timesteps: float [steps], timesteps of the norms.
    """

    steps: int = 0
    evaluations: int = 0
    asked: int = 0
    projections: int = 0
    reused: int = 0
    not_cached: str | None = None
    not_shared: str | None = None
    noise_norms: Tensor | None = None
    timesteps: Tensor | None = None


@dataclass
class Session:
    """State of an accelerated pipeline.

    Attributes:
        stock: Original class of the pipeline.
        settings: Arguments of the acceleration.
        compiled: Modules compiled for it.
        report: Report of the last call.
        norms_error: Reason why the last call has no norms, for a later request.
        running: True during a call.
    """

    stock: type
    settings: Settings
    compiled: list[nn.Module]
    report: Report | None = None
    norms_error: str | None = None
    running: bool = False
    _norms: NoiseNorms = field(default_factory=NoiseNorms)

    def call(self, pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the stock pipeline under the settings."""
        if self.running:
            raise UsageError("accelerate: the pipeline is called from within its own call")
        supported.check(pipe, self.stock)
        bound = self._bind(pipe, args, kwargs)
        self.report, self.norms_error, self._norms = Report(), None, NoiseNorms()
        self.running = True
        precision = fixed_precision(self.settings.allow_tf32)
        try:
            with precision, self._instrumented(pipe, self.report, bound.arguments):
                result = self.stock.__call__(*bound.args, **bound.kwargs)
            self._finish_norms(pipe, self.report)
            return result
        finally:
            self.running = False

    def _bind(
        self, pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> inspect.BoundArguments:
        bound = inspect.signature(self.stock.__call__).bind(pipe, *args, **kwargs)
        if self.settings.scan_steps is None:
            return bound
        wanted = bound.arguments.setdefault("output_type", "latent")
        if wanted != "latent":
            raise UsageError(
                f"accelerate: with scan_steps the call ends early and returns latents; output_type="
                f"{wanted!r} is impossible: leave it out, or df.restore(pipe) for images"
            )
        guidance = bound.signature.parameters["guidance_scale"].default
        guidance = bound.arguments.get("guidance_scale", guidance)
        if not guidance > 1:
            raise UsageError(
                f"accelerate: guidance_scale={guidance} has no unconditional pass, which the scores"
                " of scan_steps compare with; pass guidance_scale > 1 (its value does not change"
                " the first step's scores)"
            )
        return bound

    @contextmanager
    def _instrumented(self, pipe: Any, report: Report, given: dict[str, Any]) -> Iterator[None]:
        settings, unet = self.settings, pipe.unet
        callback = given.get("callback_on_step_end") or given.get("kwargs", {}).get("callback")
        reasons = self._reasons(unet, callback is not None)
        report.not_cached, report.not_shared = reasons["kv_cache"], reasons["share"]
        same_text = report.not_cached is None
        distinct = rows.Distinct(same_text) if report.not_shared is None else None
        layers: list[keys_values.Kept] = []

        def before(module: Any, args: Any, kwargs: Any) -> Any:
            report.asked += len(args[0])
            cut = None if distinct is None else distinct.cut(args, kwargs)
            args, kwargs = (args, kwargs) if cut is None else cut
            report.evaluations += len(args[0])
            return args, kwargs

        def after(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
            answer = output[0] if distinct is None else distinct.expand(output[0])
            report.steps += 1
            if pipe.do_classifier_free_guidance:
                self._norms.add(answer, args[1])
            if report.steps == settings.scan_steps:
                pipe._interrupt = True
            return (answer, *output[1:])

        with ExitStack() as stack:
            stack.enter_context(never_falling_back() if settings.compile else nullcontext())
            stack.enter_context(attention.chosen(settings.attention, unet))
            if report.not_cached is None:
                layers = stack.enter_context(keys_values.kept(unet))
            for handle in (
                unet.register_forward_pre_hook(before, with_kwargs=True),
                unet.register_forward_hook(after, with_kwargs=True),
            ):
                stack.callback(handle.remove)
            try:
                yield
            finally:
                report.projections = sum(layer.computed for layer in layers)
                report.reused = sum(layer.reused for layer in layers)
                if settings.scan_steps is not None:
                    pipe._interrupt = False

    def _reasons(self, unet: Any, callback: bool) -> dict[str, str | None]:
        """Reasons why this call does not keep keys and values, and does not share rows."""
        settings = self.settings
        switches: dict[str, tuple[Switch, Callable[[], str | None]]] = {
            "kv_cache": (settings.kv_cache, lambda: keys_values.why_not(unet, callback)),
            "share": (
                settings.scan_steps is not None if settings.share == "auto" else settings.share,
                lambda: rows.why_not(unet),
            ),
        }
        reasons: dict[str, str | None] = {}
        for name, (wanted, why_not) in switches.items():
            reasons[name] = why_not() if wanted else "switched off"
            if getattr(settings, name) is True and reasons[name] is not None:
                raise UsageError(f"accelerate: {name}=True is impossible here: {reasons[name]}")
        return reasons

    def _finish_norms(self, pipe: Any, report: Report) -> None:
        try:
            # with scan_steps, accelerate has looked at the tokenizers
            whole = self.settings.scan_steps is None
            components = Components.of_pipeline(pipe)
            supported.require_scored(components, "noise_norms", tokenizers=whole)
            norms, timesteps = self._norms.finish(pipe.scheduler)
        except UsageError as error:
            if self.settings.scan_steps is not None:
                raise
            self.norms_error = str(error)
            return
        if len(norms) == 0:
            self.norms_error = (
                "noise_norms: the last call had no unconditional pass; pass guidance_scale > 1"
            )
            return
        report.noise_norms, report.timesteps = norms, timesteps

    def norms(self) -> Tensor:
        """The last call's norms.

        Raises:
            UsageError: there was no call, or it has no norms.
        """
        if self.report is None:
            raise UsageError("noise_norms: the pipeline has not been called yet")
        if self.report.noise_norms is None:
            raise UsageError(self.norms_error or "noise_norms: the last call did not end")
        return self.report.noise_norms
