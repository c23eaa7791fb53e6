"""Memorization detectors, one file each. A third party adds one by an entry point.

A detector is any object with ``name``, ``config()`` and ``scores(model, prompts, positions)``; see
:class:`dori_fast.detect.detector.Detector`. Packages register theirs in the entry-point group
``dori_fast.detectors``.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from dori_fast.detect.asthana import Asthana
from dori_fast.detect.cascade import Cascade
from dori_fast.detect.detector import Detector, PromptScores, SeededDetector
from dori_fast.detect.nemo import Nemo
from dori_fast.detect.ren import Ren
from dori_fast.detect.sail import Sail
from dori_fast.detect.wen import Wen
from dori_fast.errors import UsageError

_BUILT_IN: dict[str, type] = {kind.name: kind for kind in (Asthana, Nemo, Ren, Sail, Wen)}

__all__ = [
    "Asthana",
    "Cascade",
    "Detector",
    "Nemo",
    "PromptScores",
    "Ren",
    "Sail",
    "SeededDetector",
    "Wen",
    "get",
    "names",
]


def names() -> list[str]:
    """The detectors that :func:`get` knows: the built-in ones and those of installed packages."""
    return sorted({*_BUILT_IN, *(e.name for e in entry_points(group="dori_fast.detectors"))})


def get(name: str, **options: Any) -> Detector:
    """Make a detector by name.

    Raises:
        UsageError: no such detector, or options that it does not take.
    """
    kind = _BUILT_IN.get(name)
    if kind is None:
        found = [e for e in entry_points(group="dori_fast.detectors") if e.name == name]
        if not found:
            raise UsageError(f"no detector {name!r}; known are {', '.join(names())}")
        kind = found[0].load()
    try:
        return kind(**options)
    except TypeError as error:
        raise UsageError(f"detector {name}: {error}") from error
