"""Compile every Triton kernel for a GPU that is not there and print what came out, as JSON.

A program of its own: where the interpreter is on, kernels cannot be compiled in the same process.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import dori_fast.triton_kernels as room

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def widest_load(ptx: str) -> int:
    """Bytes of the widest load from global memory."""
    loads = re.findall(r"ld\.global[\w:.]*?(?:\.v(\d))?\.[bfus](\d+)", ptx)
    return max((int(count or 1) * int(bits) // 8 for count, bits in loads), default=0)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, stack (spills) and shared memory in bytes, as the GPU's assembler reports them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED):(\d+)", report)}
    return {"registers": found["REG"], "stack": found["STACK"], "shared": found["SHARED"]}


def compile_case(case: object, capability: int) -> dict[str, object]:
    position = {name: (index,) for index, name in enumerate(case.signature)}
    source = ASTSource(
        case.kernel,
        case.signature,
        {position[name]: value for name, value in case.constexprs.items()},
        {position[name]: [["tt.divisibility", 16]] for name in case.aligned},
    )
    target = GPUTarget("cuda", capability, 32)
    kernel = triton.compile(source, target=target, options={"num_warps": case.num_warps})
    return {
        "name": case.name,
        "vector_loads": case.vector_loads,
        "widest_load": widest_load(kernel.asm["ptx"]),
        **resources(kernel.asm["cubin"]),
    }


def main(capability: int) -> None:
    names = [m.name for m in pkgutil.iter_modules(room.__path__) if not m.name.startswith("_")]
    modules = [importlib.import_module(f"{room.__name__}.{name}") for name in names]
    cases = [case for module in modules for case in module.COMPILE_CASES]
    report = {"stems": names, "cases": [compile_case(case, capability) for case in cases]}
    print(json.dumps(report))


if __name__ == "__main__":
    main(int(sys.argv[1]))
