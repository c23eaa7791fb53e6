"""Registration of ops, the choice of backends, and the cost of importing them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dori_fast
from dori_fast import _extension, ops
from dori_fast._backend import BACKENDS, why_not
from dori_fast._library import OPS
from dori_fast.ops.backends import backends
from tests.ops.calls import CALLS, WITHOUT_GRADIENT
from tests.ops.contract import (
    DEVICE,
    IN_CUDA,
    NOT_IN_CPP,
    OP_BACKENDS,
    SPECS,
    backends_of,
    inputs_of,
)

PACKAGE = Path(dori_fast.__file__).parent
KERNELS = [(name, backend) for name, backend in OP_BACKENDS if backend != "reference"]


@pytest.mark.parametrize(("name", "backend"), KERNELS)
def test_opcheck(name: str, backend: str) -> None:
    op = OPS[name].kernel(backend)
    for size in SPECS[name].sizes[3:5]:
        results = torch.library.opcheck(op, inputs_of(SPECS[name], size, torch.float32))
        assert len(results) == 4 and set(results.values()) == {"SUCCESS"}


# Ops are opaque to Inductor, so one backend is enough there. "auto" calls the same handle as
# the backend that it selects.
COMPILED = [
    *((name, backend, "aot_eager") for name, backend in KERNELS),
    *((name, "auto", "inductor") for name in SPECS),
]


@pytest.mark.parametrize(("name", "backend", "compiler"), COMPILED)
def test_compiles_without_graph_breaks_and_differentiates(
    name: str, backend: str, compiler: str
) -> None:
    torch.compiler.reset()
    call, inputs = CALLS[name](backend)
    inputs = tuple(x.to(DEVICE) for x in inputs)
    compiled = torch.compile(call, fullgraph=True, backend=compiler)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs), call(*inputs))
    if name in WITHOUT_GRADIENT:
        return
    for x in inputs:
        x.requires_grad_()
    eager_out, compiled_out = call(*inputs), compiled(*inputs)
    torch.testing.assert_close(compiled_out, eager_out)
    weights = torch.randn_like(eager_out)
    eager_grads = torch.autograd.grad(eager_out, inputs, weights)
    torch.testing.assert_close(torch.autograd.grad(compiled_out, inputs, weights), eager_grads)


def test_a_compiled_in_place_mask_writes_its_argument() -> None:
    torch.compiler.reset()
    lists = ops.pack_indices([1, 2], device=DEVICE)
    compiled = torch.compile(
        lambda x: ops.neuron_mask_(x, lists).sum(), fullgraph=True, backend="aot_eager"
    )
    x = torch.ones(2, 3, 4, device=DEVICE)
    assert compiled(x).item() == 12
    assert x[:, :, 1:3].eq(0).all() and x[:, :, ::3].eq(1).all()


def test_every_public_function_of_a_spec_takes_a_backend() -> None:
    assert set(CALLS) == set(SPECS), "add the new op to tests/ops/calls.py"
    for spec in SPECS.values():
        assert spec.public in ops.__all__


def test_an_unknown_backend_is_refused() -> None:
    message = "noise_difference: backend must be one of auto, reference, .*, got cudnn"
    with pytest.raises(ValueError, match=message):
        ops.noise_difference(torch.ones(1, 1), torch.ones(1), backend="cudnn")


@pytest.mark.skipif(DEVICE == "cuda", reason="says what a machine without CUDA says")
def test_a_backend_asked_for_by_name_never_falls_back() -> None:
    message = "noise_difference: backend 'cuda' is unavailable: needs CUDA tensors, got cpu"
    with pytest.raises(RuntimeError, match=message):
        ops.noise_difference(torch.ones(1, 1), torch.ones(1), backend="cuda")


def test_backends_names_every_operator_and_every_reason() -> None:
    table = backends()
    assert list(table) == list(OPS)
    for name, devices in table.items():
        assert set(devices) == {"cpu", "cuda"}
        for device, answer in devices.items():
            named = set(BACKENDS) - {"auto"}
            assert {*answer.available} | {*answer.unavailable} == named
            assert not {*answer.available} & {*answer.unavailable}
            assert all(answer.unavailable.values())
            if device == DEVICE:
                assert set(answer.available) == set(backends_of(name))
        assert devices["cpu"].backend == ("reference" if name in NOT_IN_CPP else "cpp")
        assert (devices["cuda"].backend is None) == (not torch.cuda.is_available())
    assert dori_fast.backends() == table


CUDA_KERNELS = """
import json, sys
if "--without-triton" in sys.argv: sys.modules["triton"] = None
import torch
from dori_fast import ops
from dori_fast._library import OPS
has = torch._C._dispatch_has_kernel_for_dispatch_key
serves = {name: [has(f"dori::{name}", "CUDA"), op.cuda is not None] for name, op in OPS.items()}
print(json.dumps(serves))
print(torch._C._dispatch_dump("dori::neuron_mask"))
"""


def test_triton_answers_on_gpus_and_cuda_cpp_where_it_is_not_installed() -> None:
    """No committed row shows a kernel in CUDA C++ to be faster than Triton's."""
    facts = _extension.build_facts()
    if not facts or not facts["cuda_version"]:
        pytest.skip("built without CUDA")
    for option in ("", "--without-triton"):
        table, dump = python(CUDA_KERNELS, option, cwd=PACKAGE.parent).split("\n", 1)
        serves = json.loads(table)
        assert {name for name, (_, in_cuda) in serves.items() if in_cuda} == IN_CUDA
        assert {name for name, (any_kernel, _) in serves.items() if any_kernel} == (
            IN_CUDA if option else set(OPS)
        )
        (on_gpu,) = [line for line in dump.splitlines() if line.startswith("CUDA:")]
        assert "_library.py" in on_gpu


def python(code: str, *arguments: str, cwd: Path, **environment: str) -> str:
    """Run code in a fresh interpreter that sees no settings of this one."""
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_operators_imports_neither_triton_nor_diffusers() -> None:
    code = (
        "import sys, dori_fast, dori_fast.ops\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "print(sorted(loaded & {'triton', 'diffusers', 'transformers'}))"
    )
    assert python(code, cwd=PACKAGE.parent).strip() == "[]"


def test_triton_on_cpu_tensors_needs_the_interpreter() -> None:
    code = (
        "import torch, dori_fast.ops as ops\n"
        "try: ops.noise_difference(torch.ones(1, 1), torch.ones(1), backend='triton')\n"
        "except RuntimeError as error: print(error)"
    )
    assert "TRITON_INTERPRET=1" in python(code, cwd=PACKAGE.parent)


USE = """
import torch, dori_fast
from dori_fast import ops
x = torch.ones(2, 3, 4)
print(ops.noise_difference(2 * x, x[0]).tolist())
print(ops.neuron_mask(x, torch.zeros(4)).sum().item(), ops.neuron_mask_(x, [1]).sum().item())
answer = dori_fast.backends()["noise_difference"]["cpu"]
print(answer.backend, "|", answer.unavailable["cpp"])
try: ops.noise_difference(x, x[0], backend="cpp")
except RuntimeError as error: print(error)
"""


@pytest.fixture
def copied_package(tmp_path: Path) -> Path:
    """A directory with the package as it is without a compiler."""
    ignore = shutil.ignore_patterns("*.so", "demo", "__pycache__", "_build_error.txt")
    shutil.copytree(PACKAGE, tmp_path / "dori_fast", ignore=ignore)
    return tmp_path


def test_without_the_extension_the_reference_answers_and_says_why(copied_package: Path) -> None:
    error = copied_package / "dori_fast" / "_build_error.txt"
    error.write_text("cmake failed: No CMAKE_CXX_COMPILER could be found\n")
    norms, masks, answer, message = python(USE, cwd=copied_package).splitlines()
    assert norms == str([[2.0] * 3] * 2)
    assert masks == "0.0 18.0"
    assert answer.startswith("reference | ")
    assert "backend 'cpp' is unavailable" in message
    for line in (answer, message):
        assert "it was not built: cmake failed: No CMAKE_CXX_COMPILER could be found" in line


def test_a_damaged_extension_is_reported_and_does_not_crash(copied_package: Path) -> None:
    (copied_package / "dori_fast" / "_C.abi3.so").write_bytes(b"not a library")
    output = python(USE, cwd=copied_package)
    assert "reference | " in output and "_C.abi3.so does not load on torch" in output


def test_the_environment_can_name_the_backend_behind_auto() -> None:
    code = (
        "import torch, dori_fast\n"
        "print({name: devices['cpu'].backend for name, devices in dori_fast.backends().items()})\n"
        "print(dori_fast.ops.noise_difference(torch.ones(1, 1), torch.zeros(1)).item())"
    )
    table, value = python(code, cwd=PACKAGE.parent, DORI_BACKEND="reference").splitlines()
    assert table.count("'reference'") == len(OPS)
    assert value == "1.0"


def test_the_extension_is_loaded_here() -> None:
    assert _extension.REASON is None, _extension.REASON


def test_an_operator_without_a_cuda_kernel_says_who_serves_instead() -> None:
    facts = _extension.build_facts()
    if not facts or not facts["cuda_version"]:
        pytest.skip("built without CUDA")
    reason = why_not(OPS["wanda_mask"], "cuda", "cuda")
    assert reason == "it has no kernel in CUDA C++; Triton's serves CUDA tensors"
    assert why_not(OPS["neuron_mask"], "cuda", "cuda") is None
