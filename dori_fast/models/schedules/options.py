"""Checks of a scheduler's options, each of which must be known and have a value of its kind."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Collection, Mapping
from typing import Any

from dori_fast.models.schedules import families

BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
"""Options that betas are computed from."""

DDIM = (
    *BETAS,
    "prediction_type",
    "timestep_spacing",
    "steps_offset",
    "rescale_betas_zero_snr",
    "set_alpha_to_one",
)
"""Options of DDIM that a schedule and its timesteps depend on."""

REMEDY = (
    "use a model whose noise schedule is DDPM's; if the network was trained with DDPM's betas,"
    " name them in the config of a DDIMScheduler"
)
_CORRECT = "correct its scheduler_config.json, or make the scheduler anew"
_LONGEST = 100_000
_FLOW_FLAGS = ("use_flow_sigmas", "use_dynamic_shifting")
_ELSEWHERE = ("predict_epsilon", "timestep_type", "variance_type")


def problem(
    values: Mapping[str, Any], given: Collection[str], own: Collection[str]
) -> tuple[str, str] | None:
    """The first problem of a scheduler's options and its remedy; None if all are in order.

    Args:
        values: options, with the class's defaults for those that are missing.
        given: names of the options that the config has.
        own: names of the options that the class has.
    """
    return _unknown(values, given, own) or _bad_value(values) or _other_noise(values)


def _unknown(
    values: Mapping[str, Any], given: Collection[str], own: Collection[str]
) -> tuple[str, str] | None:
    for key, meaning in families.FOREIGN.items():
        if key in given and values[key] is not None:
            return f"its config has {key}, an option of {meaning}", REMEDY
    known = {*own, *DDIM, *_FLOW_FLAGS, *_ELSEWHERE, *families.NEUTRAL}
    if unknown := sorted(set(given) - known):
        return (
            f"its config has {unknown[0]!r}, which is not an option of a supported scheduler",
            "remove it if it changes neither the noise nor the network's output",
        )
    return None


def _bad_value(values: Mapping[str, Any]) -> tuple[str, str] | None:
    for key, (expected, good) in _VALUES.items():
        if key in values and not good(values[key]):
            return f"{key} must be {expected}, got {values[key]!r}", _CORRECT
    betas, count = values["trained_betas"], values["num_train_timesteps"]
    if betas is not None and len(betas) != count:
        return (
            f"it has {len(betas)} trained_betas, but num_train_timesteps is {count}",
            _CORRECT,
        )
    return None


def _other_noise(values: Mapping[str, Any]) -> tuple[str, str] | None:
    for key in _FLOW_FLAGS:
        if values.get(key):
            return f"its config sets {key}, an option of flow matching", REMEDY
    if values.get("timestep_type", "discrete") != "discrete":
        return (
            f"timestep_type is {values['timestep_type']!r}, where the network takes"
            " logarithms of EDM's sigma, not timesteps",
            REMEDY,
        )
    if values.get("variance_type") in ("learned", "learned_range"):
        return (
            f"variance_type is {values['variance_type']!r}, where the network predicts a variance"
            " beside the noise",
            "use a network that predicts the noise alone",
        )
    if values["prediction_type"] not in families.PREDICTIONS:
        known = ", ".join(families.PREDICTIONS)
        return f"prediction_type {values['prediction_type']!r} is not one of {known}", REMEDY
    if values.get("predict_epsilon", True) is not True:
        return (
            "its config has predict_epsilon, which current diffusers ignores",
            f"write prediction_type, one of {', '.join(families.PREDICTIONS)}",
        )
    return None


def is_whole(value: object) -> bool:
    """Whether a value is an integer of Python or numpy, and not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_real(value: object) -> bool:
    """Whether a value is a number of Python or numpy, and not a bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _are_betas(value: Any) -> bool:
    return value is None or (
        isinstance(value, (list, tuple)) and all(is_real(beta) and 0 <= beta <= 1 for beta in value)
    )


_FLAG = ("true or false", lambda v: v is None or isinstance(v, bool))
_BETA = ("a number above 0 and below 1", lambda v: is_real(v) and 0 < v < 1)
_VALUES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "num_train_timesteps": (
        f"a whole number in 1..{_LONGEST}",
        lambda v: is_whole(v) and 1 <= v <= _LONGEST,
    ),
    "steps_offset": ("a whole number, 0 or more", lambda v: is_whole(v) and v >= 0),
    "beta_start": _BETA,
    "beta_end": _BETA,
    "beta_schedule": ("a name", lambda v: isinstance(v, str)),
    "trained_betas": ("null or numbers in 0..1", _are_betas),
    "timestep_spacing": (
        f"one of {', '.join(families.SPACINGS)}",
        lambda v: v in families.SPACINGS,
    ),
    "timestep_type": ("a name", lambda v: isinstance(v, str)),
    "variance_type": ("null or a name", lambda v: v is None or isinstance(v, str)),
    **dict.fromkeys(
        (
            "rescale_betas_zero_snr",
            "set_alpha_to_one",
            *_FLOW_FLAGS,
            *families.SAMPLER_SIGMAS,
            *families.CLIPPING,
        ),
        _FLAG,
    ),
}
"""Accepted values of the options that a reading depends on: in words, and as a test."""
