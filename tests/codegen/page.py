"""docs/codegen.md: resources of kernels on GPUs, written by a program and read by a test."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

CAPABILITIES = (80, 90)
PAGE = Path(__file__).resolve().parents[2] / "docs" / "codegen.md"
FIGURES = ("registers", "spills", "shared", "widest_load")

_PREFACE = """\
# Machine code of the Triton kernels

Written by `python -m tests.codegen.compile_triton --write` with Triton {version}, which compiles
every kernel for GPUs that need not be present. `tests/codegen/test_codegen.py` fails if a kernel
needs more registers, spills or shared memory, or loads fewer bytes at a time, than recorded here.

Registers and spills (bytes) are per thread, shared memory (bytes) per block; the widest load from
global memory is in bytes, at most 16. Kernels named `any` assume nothing about the alignment of
their arguments.
"""
_HEADER = (
    "| kernel | registers | spills | shared memory | widest load |",
    "|---|---:|---:|---:|---:|",
)
_ROW = re.compile(r"^\| `([^`]+)` \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", re.MULTILINE)


def page(found: Mapping[int, Sequence[Mapping[str, Any]]], version: str) -> str:
    """Return the page as text."""
    return "\n".join([_PREFACE.format(version=version), *_sections(found)]) + "\n"


def _sections(found: Mapping[int, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    for index, (capability, cases) in enumerate(found.items()):
        yield from [""] * (index > 0)
        yield from (f"## sm_{capability}", "", *_HEADER)
        for case in cases:
            figures = " | ".join(str(case[name]) for name in FIGURES)
            yield f"| `{case['name']}` | {figures} |"


def recorded(text: str) -> tuple[str, dict[int, dict[str, dict[str, int]]]]:
    """Return Triton's version and the figures of each capability and kernel from the page."""
    version = re.search(r"with Triton (\S+),", text)
    sections = re.split(r"^## sm_(\d+)$", text, flags=re.MULTILINE)[1:]
    tables = {
        int(capability): {
            name: dict(zip(FIGURES, map(int, figures), strict=True))
            for name, *figures in _ROW.findall(body)
        }
        for capability, body in zip(sections[::2], sections[1::2], strict=True)
    }
    return version.group(1) if version else "", tables


def regressions(found: Mapping[str, int], before: Mapping[str, int]) -> list[str]:
    """Return the figures of one kernel that are worse than before, in words."""
    worse = [name for name in FIGURES[:3] if found[name] > before[name]]
    worse += ["widest_load"] if found["widest_load"] < before["widest_load"] else []
    return [f"{name} {before[name]} -> {found[name]}" for name in worse]
