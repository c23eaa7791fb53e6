"""Compile every Triton kernel for GPUs that need not be present and report its resources.

    python -m tests.codegen.compile_triton             print docs/codegen.md
    python -m tests.codegen.compile_triton --write     write it, as the record for the tests
    python -m tests.codegen.compile_triton --json      print JSON for the tests

It is a program of its own because a process that interprets kernels cannot compile them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import dori_fast.triton_kernels as room
from tests.codegen.page import CAPABILITIES, PAGE, page

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def widest_load(ptx: str) -> int:
    """Return the bytes of the widest load from global memory."""
    loads = re.findall(r"ld\.global[\w:.]*?(?:\.v(\d))?\.[bfus](\d+)", ptx)
    return max((int(count or 1) * int(bits) // 8 for count, bits in loads), default=0)


def approximations(ptx: str) -> list[str]:
    """Return the instructions for roots and quotients that are not correctly rounded."""
    return sorted(set(re.findall(r"(?:r?sqrt|div|rcp)\.(?:approx|full)[\w.]*", ptx)))


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


def usage(cubin: bytes) -> dict[str, int]:
    """Return registers and stack bytes (spills), as the GPU's assembler reports them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", report)}


def compiled(case: Any, capability: int) -> Any:
    """Return the kernel of one case as Triton compiles it."""
    position = {name: (index,) for index, name in enumerate(case.signature)}
    source = ASTSource(
        case.kernel,
        case.signature,
        {position[name]: value for name, value in case.constexprs.items()},
        {position[name]: [["tt.divisibility", 16]] for name in case.aligned},
    )
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(
        source, target=target, options={"num_warps": case.num_warps, **case.options}
    )


def report(case: Any, capability: int) -> dict[str, Any]:
    """Return the resources of one case."""
    kernel = compiled(case, capability)
    used = usage(kernel.asm["cubin"])
    return {
        "name": case.name,
        "vector_loads": case.vector_loads,
        "most_registers": case.most_registers,
        "most_shared": case.most_shared,
        "registers": used["REG"],
        "spills": used["STACK"],
        # a launch requests this; the assembler reports only what it reserves itself
        "shared": kernel.metadata.shared,
        "widest_load": widest_load(kernel.asm["ptx"]),
        "approximations": approximations(kernel.asm["ptx"]),
        "longest_sum": longest_sum(kernel.asm["ttir"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--capability", type=int, action="append", choices=CAPABILITIES)
    options = parser.parse_args()
    names = [m.name for m in pkgutil.iter_modules(room.__path__) if not m.name.startswith("_")]
    modules = [importlib.import_module(f"{room.__name__}.{name}") for name in names]
    cases = [case for module in modules for case in module.COMPILE_CASES]
    found = {c: [report(case, c) for case in cases] for c in options.capability or CAPABILITIES}
    if options.json:
        print(json.dumps(found))
    elif options.write:
        PAGE.write_text(page(found, triton.__version__))
    else:
        print(page(found, triton.__version__))


if __name__ == "__main__":
    main()
