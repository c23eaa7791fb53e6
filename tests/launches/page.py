"""docs/codegen.md: resources and occupancy of real launches, written here and read by a test.

python -m tests.launches.page             print the page
python -m tests.launches.page --write     write it
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.launches.apart import ROOT, compiled_apart
from tests.launches.occupancy import blocks_of_sm, occupancy

PAGE = ROOT / "docs" / "codegen.md"
CAPABILITIES = (90, 100)

_PREFACE = """\
# Machine code of the Triton kernels

Written by `python -m tests.launches.page --write` with Triton {version}. The program makes the
calls of real runs on a driver without a GPU, so every launch is compiled with its true alignments,
strides and constants. `tests/launches` compares this page with a new compilation.

Sizes are those of the op's spec in `dori_fast/reference/`. A row is one kernel of one call, with
the number of its launches and the grid of the first. Registers and spills (bytes) are per thread,
shared memory (bytes) per block. Blocks/SM is the number of blocks that run on a multiprocessor at
once, by registers, warps and shared memory. Occupancy is their share of its 64 warps. Load is the
widest load from global memory in bytes, at most 16.
"""
_COLUMNS = (
    *("run", "call", "kernel", "launches", "grid", "threads"),
    *("registers", "spills", "shared", "blocks/SM", "occupancy", "load"),
)
_TEXTS = 3  # the first columns; numbers stand on the right
_HEADER = (
    f"| {' | '.join(_COLUMNS)} |\n"
    f"|{'|'.join(['---'] * _TEXTS + ['---:'] * (len(_COLUMNS) - _TEXTS))}|"
)


def section(capability: int, found: dict[str, Any]) -> str:
    """Return the table of one GPU from what `compiled_apart` returned for real calls."""
    rows = (line for call in found["calls"] for line in _lines(capability, call, found))
    return "\n".join((f"## sm_{capability}", "", _HEADER, *rows)) + "\n"


def _lines(capability: int, call: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    kernels: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for launch in call["launches"]:
        kernels.setdefault((launch["kernel"], launch["binary"]), []).append(launch)
    for (kernel, binary), launches in kernels.items():
        needs = found["binaries"][binary]
        of_block = needs["registers"], needs["warps"], needs["shared"]
        cells = (
            call["use"],
            f"`{call['call'].removesuffix(' contiguous')}`",
            f"`{kernel}`",
            len(launches),
            " x ".join(str(n) for n in launches[0]["grid"] if n > 1) or 1,
            32 * needs["warps"],
            needs["registers"],
            needs["spills"],
            needs["shared"],
            blocks_of_sm(capability, *of_block),
            f"{occupancy(capability, *of_block):.0%}",
            needs["widest_load"],
        )
        yield f"| {' | '.join(map(str, cells))} |"


def preface(version: str) -> str:
    """Return what stands above the tables."""
    return _PREFACE.format(version=version)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    options = parser.parse_args()
    tables, version = [], ""
    for capability in CAPABILITIES:
        with tempfile.TemporaryDirectory() as cache:
            found = compiled_apart(Path(cache), capability, "real")
        tables.append(section(capability, found))
        version = found["triton"]
    text = "\n".join((preface(version), *tables))
    if options.write:
        PAGE.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
