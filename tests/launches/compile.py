"""Compile calls of the ops for a GPU that need not be present and print what was launched, as JSON.

    python -m tests.launches.compile --capability 90 --calls few --calls real
    python -m tests.launches.compile --calls huge           record the grids, compile nothing

It is a program of its own because a process that interprets kernels cannot compile them.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import triton

from tests.launches import cases, planted, real
from tests.launches.driver import install, install_without_compiler
from tests.launches.occupancy import GPUS

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Call(Protocol):
    """A call of an op: `str` names it."""

    op: str
    use: str

    def call(self) -> None: ...


CALLS: dict[str, Callable[[], Iterable[Call]]] = {
    "few": cases.few,
    "every": cases.every,
    "smallest": cases.smallest,
    "real": real.real,
    "wide": real.wide,
    "huge": real.huge,
    "planted": planted.planted,
}


def widest_load(ptx: str) -> int:
    """Return the bytes of the widest load from global memory."""
    loads = re.findall(r"ld\.global[\w:.]*?(?:\.v(\d))?\.[bfus](\d+)", ptx)
    return max((int(count or 1) * int(bits) // 8 for count, bits in loads), default=0)


def approximations(ptx: str) -> list[str]:
    """Return the instructions that do not round a root or a quotient as IEEE 754 asks."""
    return sorted(set(re.findall(r"\b(?:r?sqrt|rcp|div)\.(?:approx|full)[\w.]*", ptx)))


def longest_sum(ttir: str) -> int:
    """Return the length of the longest floating-point sum whose order the compiler chooses."""
    reductions = re.findall(
        r'"tt\.reduce"[^\n]*axis = (\d+)[^\n]*\n.*?= arith\.(\w+).*?: \(tensor<([\dx]+)xf\d+>',
        ttir,
        re.DOTALL,
    )
    return max(
        (
            int(shape.split("x")[int(axis)])
            for axis, operation, shape in reductions
            if operation == "addf"
        ),
        default=0,
    )


def usage(cubin: Path) -> dict[str, int]:
    """Return registers and stack bytes (spills), as the GPU's assembler reports them."""
    command = [str(CUOBJDUMP), "--dump-resource-usage", str(cubin)]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", report)}
    return {"registers": found["REG"], "spills": found["STACK"]}


def resources(files: dict[str, Path]) -> dict[str, Any]:
    """Return what one binary needs and does."""
    metadata, ptx = json.loads(files["json"].read_text()), files["ptx"].read_text()
    return {
        **usage(files["cubin"]),
        # a launch requests this; the assembler reports only what it reserves itself
        "shared": metadata["shared"],
        "warps": metadata["num_warps"],
        "widest_load": widest_load(ptx),
        "approximations": approximations(ptx),
        "longest_sum": longest_sum(files["ttir"].read_text()),
    }


def results(capability: int | None, kinds: Iterable[str]) -> dict[str, Any]:
    """Return launches by call, resources by binary, and the errors of calls that failed.

    Args:
        capability: compute capability of the GPU to compile for, or None to compile nothing.
        kinds: keys of CALLS.
    """
    recorder = install_without_compiler() if capability is None else install(capability)
    calls = [(kind, case) for kind in kinds for case in CALLS[kind]()]
    rows, failures = [], {}
    for kind, case in calls:
        first = len(recorder.launches)
        try:
            case.call()
        except Exception as error:  # whatever the compiler raises is the result
            failures[str(case)] = _root(error)
        launches = [asdict(launch) for launch in recorder.launches[first:]]
        named = {"kind": kind, "call": str(case), "op": case.op, "use": case.use}
        rows.append({**named, "launches": launches})
    binaries = {key: resources(files) for key, files in recorder.files.items()}
    return {
        "triton": triton.__version__,
        "calls": rows,
        "binaries": binaries,
        "failures": failures,
    }


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[-1:]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--capability", type=int, choices=sorted(GPUS))
    parser.add_argument("--calls", choices=sorted(CALLS), action="append", required=True)
    options = parser.parse_args()
    print(json.dumps(results(options.capability, options.calls)))


if __name__ == "__main__":
    main()
