"""CUDA C++ as C++: `kernel<<<grid, threads, shared, stream>>>(arguments)` becomes a call."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {path.stem: path for path in sorted((ROOT / "csrc" / "cuda").glob("*.cu"))}
_KERNEL = re.compile(r"[\w:]+(?:<[^;{}<>]*>)?\s*$")


def translated(text: str) -> str:
    """Return a CUDA source as C++ for `shim.h`.

    Raises:
        ValueError: a launch whose kernel, parts or arguments cannot be made out.
    """
    while (at := text.find("<<<")) >= 0:
        kernel = _KERNEL.search(text[:at])
        end = text.find(">>>(", at)
        if kernel is None or end < 0:
            raise ValueError(f"translate: cannot read the launch {text[at - 40 : at + 40]!r}")
        grid, threads, *_ = _parts(text[at + 3 : end])
        arguments = text[end + 3 : _close(text, end + 3)]
        call = f"{kernel.group().strip()}{arguments};"
        launch = f"cuda_on_cpu::launch(cuda_on_cpu::extent({grid}), cuda_on_cpu::extent({threads}),"
        rest = text[end + 3 + len(arguments) :]
        text = f"{text[: kernel.start()]}{launch} [&] {{ {call} }}){rest}"
    return text


def _close(text: str, opening: int) -> int:
    """Return the place after the parenthesis that closes the one at `opening`."""
    depth = 0
    for place in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    raise ValueError("translate: a parenthesis stays open")


def _parts(text: str) -> list[str]:
    """Split at commas outside of parentheses."""
    depth, parts = 0, [""]
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def waits(text: str) -> bool:
    """Return whether threads of a block wait for one another."""
    return "__sync" in text or "_sync(" in text
