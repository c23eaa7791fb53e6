"""Reads the noise schedule that a scheduler's class and config describe, or refuses it.

A schedule is never guessed. The class must be one of diffusers' own that is listed in ``families``,
every option of its config must be known, and a missing option has the default of that class. A
reading that is not literal becomes a note.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dori_fast.errors import UsageError
from dori_fast.models.schedules import families, options


@dataclass(frozen=True)
class KnownSchedule:
    """The facts of a variance-preserving schedule.

    Attributes:
        scheduler: class name of the scheduler that was read.
        prediction_type: the network's output: epsilon, v_prediction or sample.
        ddim: arguments of diffusers' DDIMScheduler with the same cumulative alphas.
        notes: sentences about readings that are not literal.
    """

    scheduler: str
    prediction_type: str
    ddim: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def known_schedule(
    class_name: object, config: Mapping[str, Any], *, pipeline: str = "", who: str = "load"
) -> KnownSchedule:
    """The schedule that a scheduler's class and its config describe.

    Args:
        class_name: name of the class, ``_class_name`` in ``scheduler_config.json``.
        config: content of that file, or the config of a scheduler in memory.
        pipeline: class name of the pipeline; the constructors of some set ``steps_offset`` to 1.
        who: first word of error messages.

    Raises:
        UsageError: noise that is not DDPM's, a class or option that is not known, or a value that
            diffusers does not accept.
    """
    return _NamedConfig(_supported(class_name, who), config, who).facts(pipeline)


def schedule_of(scheduler: Any, *, pipeline: str = "", who: str = "load") -> KnownSchedule:
    """The schedule of a scheduler in memory; arguments as in :func:`known_schedule`.

    Raises:
        UsageError: as in :func:`known_schedule`; also a class that is not diffusers' own, a
            replaced method, or cumulative alphas that are not those of the config.
    """
    import diffusers

    kind = type(scheduler)
    if kind is not getattr(diffusers, kind.__name__, None):
        raise UsageError(
            f"{who}: the scheduler is a {kind.__module__}.{kind.__qualname__}, which is not a class"
            " of diffusers, so its noise schedule is not known; use a scheduler of diffusers, such"
            " as DDIMScheduler"
        )
    named = _NamedConfig(_supported(kind.__name__, who), scheduler.config, who)
    named.require_unchanged(scheduler)
    return named.facts(pipeline)


def schedule_in_files(
    config: Mapping[str, Any], listed: str, *, pipeline: str = "", who: str = "load"
) -> KnownSchedule:
    """The schedule of a ``scheduler_config.json``.

    Args:
        config: content of the file.
        listed: class that ``model_index.json`` lists, which is the one that diffusers opens.
        pipeline: class name of the pipeline.
        who: first word of error messages.

    Raises:
        UsageError: as in :func:`known_schedule`; also if the file names another class than the one
            listed, under which it describes another schedule.
    """
    known = known_schedule(listed, config, pipeline=pipeline, who=who)
    own = config.get("_class_name")
    if own in (None, listed):
        return known
    if known_schedule(own, config, pipeline=pipeline, who=who).ddim != known.ddim:
        raise UsageError(
            f"{who}: model_index.json names the scheduler {listed}, scheduler_config.json {own},"
            " and the two have different defaults for options that the config lacks; write the same"
            " class into both"
        )
    return known


def _supported(name: object, who: str) -> str:
    """The name, if it is that of a supported scheduler."""
    if not isinstance(name, str) or not name:
        raise UsageError(
            f"{who}: the scheduler's config names no class (_class_name is {name!r}), so its noise"
            " schedule is not known; add the _class_name that diffusers wrote"
        )
    if name in families.DISTILLED:
        raise UsageError(
            f"{who}: {name} is {families.REFUSED[name]}; if these weights are not distilled, put"
            " DDIMScheduler.from_config(pipe.scheduler.config) in its place"
        )
    if name in families.REFUSED:
        raise UsageError(
            f"{who}: {name} is for {families.REFUSED[name]}, while scores need a schedule with"
            f" DDPM's betas; {options.REMEDY}"
        )
    if name not in families.SUPPORTED:
        raise UsageError(
            f"{who}: the noise schedule of the scheduler {name} is not known; use a scheduler of"
            " diffusers that has DDPM's betas, such as DDIMScheduler"
        )
    return name


class _NamedConfig:
    """One config, read by the class that it names."""

    def __init__(self, name: str, config: Mapping[str, Any], who: str) -> None:
        import diffusers

        self._name, self._who = name, who
        kind = getattr(diffusers, families.STANDS_IN.get(name, name))
        defaults = _defaults(kind)
        self._own = set(defaults)
        # keys with an underscore are notes of diffusers, such as _use_default_values
        given = {key: value for key, value in config.items() if not key.startswith("_")}
        self._given = set(given)
        self._values = {key: _plain(value) for key, value in (defaults | given).items()}
        if (wrong := options.problem(self._values, self._given, self._own)) is not None:
            raise self._refusal(*wrong)
        self._built = self._build(kind)
        self._require_falling_alphas()

    def _refusal(self, what: str, remedy: str) -> UsageError:
        return UsageError(f"{self._who}: {self._name}: {what}; {remedy}")

    def _build(self, kind: Any) -> Any:
        """The scheduler, with the options that its cumulative alphas depend on."""
        keys = {*options.BETAS, "rescale_betas_zero_snr", "set_alpha_to_one"} & self._own
        try:
            built = kind(**{key: self._values[key] for key in keys})
        except (NotImplementedError, ValueError, TypeError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise self._refusal(
                f"diffusers does not make it from this config ({reason})", "correct its config"
            ) from error
        return built

    def _require_falling_alphas(self) -> None:
        alphas = self._built.alphas_cumprod.clone()
        if self._ends_at_zero:
            # the number in place of the 0 may be above the one before it
            alphas[-1] = 0.0
        falling = bool((alphas.diff() <= 0).all() and alphas.isfinite().all())
        if not (falling and 0 < alphas[0] < 1 and alphas[-1] >= 0):
            raise self._refusal(
                "its cumulative alphas do not fall from below 1 to 0 or more",
                "correct the betas of its config",
            )

    def require_unchanged(self, scheduler: Any) -> None:
        """Refuse a scheduler in memory that is not what its config says."""
        remedy = f"make it anew with {self._name}.from_config(pipe.scheduler.config)"
        for method in ("scale_model_input", "set_timesteps"):
            if method in vars(scheduler):
                raise self._refusal(f"its {method} was replaced", remedy)
        for key in ("alphas_cumprod", "final_alpha_cumprod"):
            expected = getattr(self._built, key, None)
            if expected is not None and not _equal(getattr(scheduler, key, None), expected):
                raise self._refusal(
                    f"its {key} is not that of its config; one of the two was changed in memory",
                    remedy,
                )

    def facts(self, pipeline: str) -> KnownSchedule:
        """The facts; UsageError if they contradict one another."""
        if self._values["prediction_type"] == "epsilon" and self._ends_at_zero:
            raise self._refusal(
                "the last cumulative alpha is 0 (rescale_betas_zero_snr), where a prediction of"
                " epsilon says nothing about the image",
                "set prediction_type to what the network was trained with, or"
                " rescale_betas_zero_snr to false",
            )
        ddim, notes = self._ddim(), self._notes()
        if pipeline in families.SETS_OFFSET_TO_ONE and self._values.get("steps_offset", 1) != 1:
            ddim["steps_offset"] = 1
            notes.append(f"steps_offset is 1, which {pipeline} sets")
        return KnownSchedule(self._name, self._values["prediction_type"], ddim, tuple(notes))

    @property
    def _ends_at_zero(self) -> bool:
        """Whether the last cumulative alpha is 0, also where the sampler replaces this 0."""
        rescaled = "rescale_betas_zero_snr" in self._own and self._values["rescale_betas_zero_snr"]
        last = float(self._built.alphas_cumprod[-1])
        return last == 0.0 or bool(rescaled and last == families.NUDGED)

    def _ddim(self) -> dict[str, Any]:
        """Arguments of a DDIMScheduler with the class's cumulative alphas.

        The last one is exactly 0 where a sampler puts 2**-24 to keep its sigmas finite.
        """
        ddim = {key: self._values[key] for key in options.DDIM if key in self._values}
        if "rescale_betas_zero_snr" not in self._own:
            ddim["rescale_betas_zero_snr"] = False
        known = ddim["beta_schedule"] in ("linear", "scaled_linear", "squaredcos_cap_v2")
        if not known and ddim["trained_betas"] is None:
            # these betas are rescaled already
            ddim["trained_betas"] = self._built.betas.tolist()
            ddim["rescale_betas_zero_snr"] = False
        return ddim | {"beta_schedule": ddim["beta_schedule"] if known else "linear"}

    def _notes(self) -> list[str]:
        values, notes = self._values, []
        if "timestep_spacing" not in values:
            notes.append(f"{self._name} has no timestep_spacing; DDIM's default, leading, is used")
        if sigmas := [key for key in families.SAMPLER_SIGMAS if values.get(key)]:
            notes.append(f"{sigmas[0]} is not used")
        if clips := [key for key in families.CLIPPING if key in self._own and values[key]]:
            notes.append(f"{clips[0]} is not used")
        if values.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in self._own:
            notes.append(f"rescale_betas_zero_snr is not used, since {self._name} ignores it")
        if self._ends_at_zero:
            notes.append("the last cumulative alpha is 0 (zero terminal signal-to-noise ratio)")
        elif values.get("timestep_spacing") == "trailing":
            notes.append(
                "timestep_spacing is trailing, as in distilled checkpoints (Turbo, Lightning); no"
                " config says whether weights are distilled, and the unconditional prediction of"
                " distilled weights means nothing"
            )
        if self._given & set(families.FROM_DISTILLED):
            notes.append(
                "the config was made from that of a sampler of distilled weights (LCM, TCD), whose"
                " unconditional prediction means nothing"
            )
        return notes


def _defaults(kind: Any) -> dict[str, Any]:
    """The options of a scheduler's class with their defaults."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _plain(value: Any) -> Any:
    """Python's numbers and lists in place of those of numpy and torch."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return value


def _equal(found: Any, expected: Tensor) -> bool:
    return isinstance(found, Tensor) and torch.equal(found.detach().cpu(), expected)
