"""Mitigations: functions of memorized pairs that return mitigated models.

    def mitigation(model, prompts, images):    # P prompts, uint8 [P, H, W, 3]
        ...
        return lambda n: a_denoiser            # for n prompts at a time

The returned function is called with numbers of prompts ``n``: for n = P the prompts are the
memorized ones, in order; for any other n they are controls or held-out ones. A mitigation with one
mask per memorized prompt assigns these masks to other prompts in turn (:func:`in_turn`); a
mitigation with one model returns it for every n. Packages register mitigations in the entry-point
group ``dori_fast.mitigations``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dori_fast.demo import pairs
from dori_fast.demo.story.settings import METHODS
from dori_fast.errors import UsageError
from dori_fast.mitigate import Wen
from dori_fast.models import Denoiser, NeuronMask, TextCondition, WeightMask
from dori_fast.prune import NeMo, Wanda

GROUP = "dori_fast.mitigations"
View = Callable[[int], Denoiser]
Mitigation = Callable[[Denoiser, Sequence[str], NDArray[np.uint8]], View]
# names are parts of file names and of tables
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,39}")


def in_turn(model: Denoiser, masks: NeuronMask | WeightMask) -> View:
    """Row i under mask i modulo the number of masks."""
    if len(masks) == 1:
        return lambda n: model.masked(masks)
    return lambda n: model.masked(masks.in_turn(n))


def fixed(load: Callable[[], Denoiser]) -> Mitigation:
    """The mitigation that loads a changed model, such as a fine-tuned one."""

    def mitigation(model: Denoiser, prompts: Sequence[str], images: NDArray[np.uint8]) -> View:
        changed = load()
        return lambda n: changed

    return mitigation


def _none(model: Denoiser, prompts: Sequence[str], images: NDArray[np.uint8]) -> View:
    return lambda n: model


def _pruned(method: NeMo | Wanda) -> Mitigation:
    def mitigation(model: Denoiser, prompts: Sequence[str], images: NDArray[np.uint8]) -> View:
        return in_turn(model, method.localize(model, prompts))

    return mitigation


class _Moved(Denoiser):
    """A model that moves the embedding of every prompt but keeps given embeddings."""

    def __init__(self, model: Denoiser, method: Wen) -> None:
        vars(self).update(vars(model))
        self._plain, self._method = model, method

    def encode(self, prompts: Sequence[str]) -> TextCondition:
        # the method differentiates even if the caller has gradients off
        with torch.enable_grad():
            return self._method.run(self._plain, prompts).condition(self._plain)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "mitigation": self._method.config()}


def _wen(model: Denoiser, prompts: Sequence[str], images: NDArray[np.uint8]) -> View:
    # the paper's target loss suits Stable Diffusion; this one leaves ordinary prompts alone
    ordinary = [prompt for prompt, _ in pairs("ordinary")]
    seen = Wen(0.0, iterations=1).run(model, ordinary).losses[0]
    # the released 10 updates at rate 0.05 seldom reach the target on the embedded model
    moved = _Moved(model, Wen(float(seen.max()), lr=0.1, iterations=20))
    return lambda n: moved


BUILT_IN: dict[str, Mitigation] = {
    "none": _none,
    "nemo": _pruned(METHODS["nemo"]),
    "wanda-1": _pruned(Wanda(0.01)),
    "wanda-10": _pruned(Wanda(0.1)),
    "wanda": _pruned(METHODS["wanda"]),
    "wen": _wen,
}


def names() -> list[str]:
    """Names that :func:`get` accepts, the built-in ones first."""
    installed = {entry.name for entry in entry_points(group=GROUP)}
    return [*BUILT_IN, *sorted(installed - set(BUILT_IN))]


def get(name: str) -> Mitigation:
    """A mitigation by name.

    Raises:
        UsageError: the name is unknown or invalid, or the entry point cannot be loaded or is no
            function.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    check_name(name)
    found = [entry for entry in entry_points(group=GROUP) if entry.name == name]
    if not found:
        raise UsageError(f"no mitigation {name!r}; choose one of {', '.join(names())}")
    try:
        mitigation = found[0].load()
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"mitigation {name}: {found[0].value} cannot be loaded ({error}); reinstall its package"
        ) from error
    if not callable(mitigation):
        raise UsageError(f"mitigation {name}: {found[0].value} is no function; point to one")
    return mitigation


def check_name(name: object) -> None:
    """Reject an invalid name of a mitigation.

    Raises:
        UsageError: the name breaks the rule that the error states.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(
            f"mitigation {name!r}: a name is 1 to 40 of a-z, 0-9, '_', '.' and '-', and begins"
            " with a letter or digit; rename it"
        )


def mitigated(
    name: str,
    mitigation: Mitigation,
    model: Denoiser,
    prompts: Sequence[str],
    images: NDArray[np.uint8],
) -> View:
    """Run a mitigation, and check that it returns models.

    Raises:
        UsageError: it returns something else, at once or for some number of prompts.
    """
    view = mitigation(model, prompts, images)
    if not callable(view):
        raise UsageError(f"mitigation {name}: returned {type(view).__name__}, not a function of n")

    def checked(n: int) -> Denoiser:
        found = view(n)
        if not isinstance(found, Denoiser):
            raise UsageError(
                f"mitigation {name}: returned {type(found).__name__} for {n} prompts, not a"
                " Denoiser"
            )
        return found

    return checked
