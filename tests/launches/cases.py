"""Calls of the ops that the tier compiles: odd sizes, and the shapes of real networks."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dori_fast._library import OPS
from dori_fast.ops import ms_ssim_settings
from dori_fast.reference import OpSpec
from dori_fast.testing import map_tensors
from tests.ops.contract import DTYPES, SPECS, laid_out, layouts_of

SHORT = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float64: "fp64",
}


@dataclass(frozen=True)
class Case:
    """One call of an op.

    Attributes:
        op: op, as in `dori::<op>`.
        size: size as the op's spec takes it.
        dtype: dtype of the inputs.
        layout: memory layout of the inputs, as in `tests.ops.contract.laid_out`.
        use: where a real run makes this call; empty for sizes of the spec.
    """

    op: str
    size: tuple[int, ...]
    dtype: torch.dtype
    layout: str = "contiguous"
    use: str = ""

    def __str__(self) -> str:
        size = ",".join(map(str, self.size))
        return f"{self.op}({size}) {SHORT[self.dtype]} {self.layout}"

    def call(self) -> None:
        """Launch the op's kernels: sizes of the spec on CPU tensors, real ones without memory."""
        spec = SPECS[self.op]
        if not self.use:
            inputs = spec.make_inputs(self.size, self.dtype, "cpu", torch.Generator())
            OPS[self.op].triton(*laid_out(inputs, self.layout))
        else:
            launcher_of(spec)(*_without_memory(spec, self.size, self.dtype))


def launcher_of(spec: OpSpec) -> Callable[..., Any]:
    """Return the function that launches an op's kernels, which also takes meta tensors."""
    stem = spec.reference.__module__.rpartition(".")[2]
    name = spec.reference.__name__.removesuffix("_reference")
    module = importlib.import_module(f"dori_fast.triton_kernels.{stem}")
    launcher: Callable[..., Any] = getattr(module, f"{name}_triton")
    return launcher


def _without_memory(spec: OpSpec, size: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """Return inputs on the meta device, laid out as networks lay them out."""
    if spec.name == "ms_ssim":
        return _maps(size, dtype)
    with torch.device("meta"):
        inputs = spec.make_inputs(size, dtype, "meta", None)  # type: ignore[arg-type]
    if spec.name == "sdpa_jvp":
        # a network's heads are [B, T, H, D] in memory
        return map_tensors(lambda x: x.transpose(1, 2).contiguous().transpose(1, 2), inputs)
    return inputs


def _maps(size: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """Return what `ops.ms_ssim` passes on for maps [G, S, C, H, W]."""
    settings = ms_ssim_settings(*size[3:])
    pairs = torch.triu_indices(size[1], size[1], 1, device="meta").T.contiguous()
    maps: Tensor = torch.empty(size, dtype=dtype, device="meta")
    return maps, pairs, settings.kernel_size, settings.sigma, settings.betas, True


def few() -> Iterator[Case]:
    """Every second size of every spec once; dtypes and layouts take turns.

    Among these sizes are rows and strides of 1, heads below 16 bytes, and empty batches. An offset
    of one element misaligns the pointers.
    """
    for name, spec in SPECS.items():
        for index, size in enumerate(spec.sizes[::2]):
            layout = ("contiguous", "offset")[index // len(DTYPES) % 2]
            yield Case(name, size, DTYPES[index % len(DTYPES)], layout)


def every() -> Iterator[Case]:
    """All sizes, dtypes and layouts of the specs."""
    for name, spec in SPECS.items():
        for case in itertools.product(spec.sizes, DTYPES, layouts_of(name)):
            yield Case(name, *case)


def smallest() -> Iterator[Case]:
    """One call of each op, in the dtype of most models."""
    for name, spec in SPECS.items():
        yield Case(name, spec.sizes[3], torch.float16)
