"""Switches of execution: they change speed and rounding, and nothing else."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from dori_fast.errors import UsageError

Switch = bool | Literal["auto"]

# Switches that "auto" turns on, by the rows in benchmarks/results. On a CPU channels_last gains too
# little: it would make a directory and its pipeline, whose layout is its owner's, differ in the
# last bits. Compiling takes minutes before the first score. GPUs are not measured.
_WORTH_IT: dict[str, set[str]] = {"cpu": set(), "cuda": set()}


@dataclass(frozen=True)
class Execution:
    """The switches of :func:`dori_fast.load`, as requested or as resolved.

    Attributes:
        attention: "auto", "sdpa" or "xformers"; "own" where the model's own attention runs.
        compile: compilation of the repeated parts (residual blocks, parts of transformer layers).
        channels_last: memory layout of images and weights with the channels innermost.
        cuda_graphs: replay of a batch's launches, which are recorded once.
        allow_tf32: TF32 in float32 convolutions and matrix products of the network, on a GPU; see
            :mod:`dori_fast.models.precision`.
    """

    attention: str = "auto"
    compile: Switch = "auto"
    channels_last: Switch = "auto"
    cuda_graphs: Switch = "auto"
    allow_tf32: bool = False

    def on(self, name: str, device: torch.device, refusal: str | None = None) -> bool:
        """Whether the switch ``name`` is on.

        Args:
            name: an attribute other than attention.
            device: device of the network.
            refusal: reason why it cannot be on for this network; default: none.

        Raises:
            UsageError: an invalid value, or True where that is impossible.
        """
        wanted = getattr(self, name)
        if name == "allow_tf32" and not isinstance(wanted, bool):
            # TF32 is never a matter of speed alone
            raise UsageError(f"load: allow_tf32 must be True or False, got {wanted!r}")
        if wanted not in ("auto", True, False):
            raise UsageError(f"load: {name} must be 'auto', True or False, got {wanted!r}")
        if wanted == "auto":
            return refusal is None and name in _WORTH_IT.get(device.type, ())
        if wanted:
            refusal = refusal or _REFUSALS[name](device)
            if refusal is not None:
                raise UsageError(f"load: {name}=True is impossible here: {refusal}")
        return bool(wanted)


def why_not_compile(device: torch.device) -> str | None:
    """The reason why torch.compile cannot work on a device, or None if it can."""
    if device.type == "cuda":
        found = importlib.util.find_spec("triton") is not None
        return None if found else "torch.compile needs triton, which is not installed"
    if device.type != "cpu":
        return f"torch.compile is not supported on {device.type}"
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return "torch.compile needs a C++ compiler, and none is found; set CXX"
    return None


def _why_not_cuda_graphs(device: torch.device) -> str | None:
    return None if device.type == "cuda" else f"a {device.type} device has no CUDA graphs"


def _why_not_tf32(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"a {device.type} device has no TF32"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} has no TF32, which came with Ampere"
    return None


_REFUSALS: dict[str, Callable[[torch.device], str | None]] = {
    "compile": why_not_compile,
    "channels_last": lambda device: None,
    "cuda_graphs": _why_not_cuda_graphs,
    "allow_tf32": _why_not_tf32,
}
