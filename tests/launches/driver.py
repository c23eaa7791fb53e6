"""A driver without a device: launches compile for a GPU and are recorded instead of run.

Only for a process of its own, without TRITON_INTERPRET: interpreted kernels never compile.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from tests.launches.occupancy import GPUS


@dataclass(frozen=True)
class Launch:
    """One launch.

    Attributes:
        kernel: name of the kernel.
        grid: blocks along x, y and z.
        binary: hash of the compiled kernel; empty if it was not compiled.
        guarded: whether it was inside a device guard.
    """

    kernel: str
    grid: tuple[int, int, int]
    binary: str
    guarded: bool


@dataclass
class Recorder:
    """What was launched since the driver was installed."""

    launches: list[Launch] = field(default_factory=list)
    files: dict[str, dict[str, Path]] = field(default_factory=dict)
    """PTX and cubin of each binary, by suffix."""
    guards: int = 0
    """Device guards that are open."""


def install(capability: int) -> Recorder:
    """Replace Triton's driver and return the record of all launches from now on."""
    recorder = Recorder()
    driver.set_active(_Driver(capability, recorder))
    triton.knobs.runtime.kernel_load_end_hook.add(
        lambda module, function, name, files, key: recorder.files.setdefault(
            key, {Path(path).suffix[1:]: Path(path) for path in files.values()}
        )
    )
    _count_guards(recorder)
    return recorder


def install_without_compiler() -> Recorder:
    """Record all launches from now on without compiling them: their grids and guards."""
    recorder = Recorder()

    def run(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        axes = (*grid, 1, 1)[:3]
        recorder.launches.append(Launch(kernel.__name__, axes, "", recorder.guards > 0))

    triton.runtime.jit.JITFunction.run = run
    _count_guards(recorder)
    return recorder


def _count_guards(recorder: Recorder) -> None:
    real = torch.cuda.device_of

    class Counted(real):  # type: ignore[misc, valid-type]
        def __enter__(self) -> Any:
            recorder.guards += 1
            return super().__enter__()

        def __exit__(self, *error: Any) -> Any:
            recorder.guards -= 1
            return super().__exit__(*error)

    torch.cuda.device_of = Counted  # type: ignore[misc]


class _Driver:
    """The parts of `triton.backends.driver.GPUDriver` that a launch uses."""

    def __init__(self, capability: int, recorder: Recorder) -> None:
        self.utils = _Utils(capability)
        self._target = GPUTarget("cuda", capability, 32)
        self._recorder = recorder

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        recorder = self._recorder

        def launch(x: int, y: int, z: int, *rest: Any) -> None:
            recorder.launches.append(
                Launch(metadata.name, (x, y, z), metadata.hash, recorder.guards > 0)
            )

        return launch

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


class _Utils:
    def __init__(self, capability: int) -> None:
        self._gpu = GPUS[capability]

    def get_device_properties(self, device: int) -> dict[str, int]:
        # Triton refuses to launch a kernel that needs more shared memory than this
        return {"max_shared_mem": self._gpu.shared_of_block, "warpSize": 32}

    def load_binary(self, name: str, cubin: bytes, shared: int, device: int) -> tuple[int, ...]:
        # module, function, registers, spills, most threads; Triton only looks at the last
        return 1, 1, 0, 0, 1024
