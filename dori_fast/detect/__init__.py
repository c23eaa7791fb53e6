"""Memorization detectors, one file each. Third parties add theirs by an entry point.

A detector is any object with ``name``, ``config()`` and ``scores(model, prompts, positions)``; see
:class:`dori_fast.detect.detector.Detector`. Packages register a class (or function) that makes one
in the entry-point group ``dori_fast.detectors``. A scan calls it with ``seeds``, a number, and with
``steps`` if that is not 1. Built-in names cannot be overridden.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from dori_fast.detect.asthana import Asthana
from dori_fast.detect.cascade import Cascade
from dori_fast.detect.detector import Detector, PromptScores, SeededDetector
from dori_fast.detect.nemo import NeMo
from dori_fast.detect.ren import Ren
from dori_fast.detect.sail import Sail
from dori_fast.detect.wen import Wen
from dori_fast.errors import UsageError

Nemo = NeMo  # its name until version 0.1

_BUILT_IN: dict[str, type] = {kind.name: kind for kind in (Asthana, NeMo, Ren, Sail, Wen)}

__all__ = [
    "Asthana",
    "Cascade",
    "Detector",
    "NeMo",
    "PromptScores",
    "Ren",
    "Sail",
    "SeededDetector",
    "Wen",
    "get",
    "names",
]


def names() -> list[str]:
    """The names that :func:`get` accepts: built-in detectors and those of installed packages."""
    return sorted({*_BUILT_IN, *(e.name for e in entry_points(group="dori_fast.detectors"))})


def get(name: str, **options: Any) -> Detector:
    """Make a detector by name.

    Raises:
        UsageError: no such detector, one that cannot be loaded or that two packages claim, or
            options that it does not accept.
    """
    kind = _BUILT_IN.get(name) or _installed(name)
    try:
        return kind(**options)
    except TypeError as error:
        raise UsageError(f"detector {name}: {error}") from error


def _installed(name: str) -> Any:
    found = [e for e in entry_points(group="dori_fast.detectors") if e.name == name]
    if not found:
        raise UsageError(f"no detector {name!r}; known are {', '.join(names())}")
    if len({entry.value for entry in found}) > 1:
        packages = ", ".join(sorted(entry.dist.name for entry in found if entry.dist))
        raise UsageError(f"detector {name}: claimed by several packages ({packages}); remove one")
    try:
        return found[0].load()
    except Exception as error:  # a third party's module may raise anything on import
        raise UsageError(
            f"detector {name}: {found[0].value} cannot be loaded ({type(error).__name__}: {error})"
            "; reinstall the package that it comes from"
        ) from error
