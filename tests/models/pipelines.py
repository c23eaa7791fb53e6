"""Every text pipeline that diffusers exports, made of tiny parts."""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any

import diffusers
from diffusers import DiffusionPipeline

_STEMS = ("prompt", "text", "token")


def text_pipelines() -> dict[str, type]:
    """The classes with a text input, by exported name."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in sorted(set(dir(diffusers))):
            kind = _exported(name)
            if inspect.isclass(kind) and issubclass(kind, DiffusionPipeline) and _takes_text(kind):
                found[name] = kind
    return found


def _exported(name: str) -> Any:
    try:
        return getattr(diffusers, name)
    # placeholders of missing backends raise anything
    except Exception:
        return None


def _takes_text(kind: Any) -> bool:
    if kind is DiffusionPipeline:
        return False
    names = [*inspect.signature(kind.__init__).parameters]
    if callable(kind):
        names += [*inspect.signature(kind.__call__).parameters]
    return any(stem in name for name in names for stem in _STEMS)


def made_of(kind: type, parts: dict[str, Any]) -> Any | None:
    """A pipeline of those parts that it has a place for; None if it cannot be made of them."""
    places = {
        name: place.default
        for name, place in inspect.signature(kind.__init__).parameters.items()
        if name != "self" and place.kind not in (place.VAR_KEYWORD, place.VAR_POSITIONAL)
    }
    given = {
        name: parts.get(name, None if default is inspect.Parameter.empty else default)
        for name, default in places.items()
    }
    # some constructors write into the configurations of parts
    given |= {n: copy.deepcopy(given[n]) for n in ("scheduler", "vae") if n in given}
    # they check parts in their own ways, and raise anything
    try:
        return kind(**given)
    except Exception:
        return None
