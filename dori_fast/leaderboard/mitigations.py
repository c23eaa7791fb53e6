"""What is compared: functions that are told what is memorized and give the mitigated model.

    def mitigation(model, prompts, images):    # P prompts, uint8 [P, H, W, 3]
        ...
        return lambda n: a_denoiser            # for n prompts at a time

What is given back is asked for models of ``n`` prompts: for n = P they are the memorized ones, in
order; for other n others, controls or held-out ones. A mask for each memorized prompt is then given
to other prompts in turn (:func:`in_turn`); one model for all prompts is the same for every n.
Packages register theirs in the entry-point group ``dori_fast.mitigations``.
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
    """Row i under mask i, and so on in turn; one mask alone is everybody's."""
    if len(masks) == 1:
        return lambda n: model.masked(masks)
    return lambda n: model.masked(masks.in_turn(n))


def fixed(load: Callable[[], Denoiser]) -> Mitigation:
    """A changed model that is loaded, such as a fine-tuned one."""

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
    """A model that moves the embedding of every prompt; embeddings handed over stay as they are."""

    def __init__(self, model: Denoiser, method: Wen) -> None:
        vars(self).update(vars(model))
        self._plain, self._method = model, method

    def encode(self, prompts: Sequence[str]) -> TextCondition:
        # needed also where whoever asks needs no gradient
        with torch.enable_grad():
            return self._method.run(self._plain, prompts).condition(self._plain)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "mitigation": self._method.config()}


def _wen(model: Denoiser, prompts: Sequence[str], images: NDArray[np.uint8]) -> View:
    # papers' targets are Stable Diffusion's; here ordinary prompts of the training set stay alone
    ordinary = [prompt for prompt, _ in pairs("ordinary")]
    seen = Wen(0.0, iterations=1).run(model, ordinary).losses[0]
    # the released 10 updates at rate 0.05 seldom reach it on the embedded model
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
    """The mitigations that :func:`get` knows, the built-in ones first."""
    installed = {entry.name for entry in entry_points(group=GROUP)}
    return [*BUILT_IN, *sorted(installed - set(BUILT_IN))]


def get(name: str) -> Mitigation:
    """A mitigation by name.

    Raises:
        UsageError: no such one, a name that cannot be one, or an entry point that cannot be loaded
            or is no function.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    check_name(name)
    found = [entry for entry in entry_points(group=GROUP) if entry.name == name]
    if not found:
        raise UsageError(f"no mitigation {name!r}; known are {', '.join(names())}")
    try:
        mitigation = found[0].load()
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"mitigation {name}: {found[0].value} cannot be loaded ({error}) — reinstall the"
            " package that it comes from"
        ) from error
    if not callable(mitigation):
        raise UsageError(f"mitigation {name}: {found[0].value} is no function")
    return mitigation


def check_name(name: object) -> None:
    """Refuse what cannot be a mitigation's name.

    Raises:
        UsageError: with the rule.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(
            f"mitigation {name!r}: a name is 1 to 40 of a-z, 0-9, '_', '.' and '-', and begins"
            " with a letter or digit"
        )


def mitigated(
    name: str,
    mitigation: Mitigation,
    model: Denoiser,
    prompts: Sequence[str],
    images: NDArray[np.uint8],
) -> View:
    """Run a mitigation, and see to it that models come out.

    Raises:
        UsageError: something else came out, here or when a model is asked for.
    """
    view = mitigation(model, prompts, images)
    if not callable(view):
        raise UsageError(f"mitigation {name}: gave {type(view).__name__}, not a function of n")

    def checked(n: int) -> Denoiser:
        found = view(n)
        if not isinstance(found, Denoiser):
            raise UsageError(
                f"mitigation {name}: gave {type(found).__name__} for {n} prompts, not a Denoiser"
            )
        return found

    return checked
