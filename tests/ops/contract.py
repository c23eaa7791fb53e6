"""What the tests of all operators share: cases drawn from the specs."""

from __future__ import annotations

from typing import Any

import torch

import dori_fast.ops  # noqa: F401  (defines the operators)
from dori_fast.reference import OpSpec, all_specs
from dori_fast.testing import available_backends

SPECS = {spec.name: spec for spec in all_specs()}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# What is written in CUDA C++ too; GPUs run the Triton kernel of everything else.
IN_CUDA = {"neuron_mask", "neuron_mask_", "noise_difference"}
# Nearly all matrix products, which torch's own already are: a CPU takes the reference.
NOT_IN_CPP = {"sdpa_jvp"}
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def backends_of(name: str) -> list[str]:
    return available_backends(name, DEVICE)


def inputs_of(spec: OpSpec, size: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return spec.make_inputs(size, dtype, DEVICE, generator)


OP_BACKENDS = [(name, backend) for name in SPECS for backend in backends_of(name)]
OP_BACKEND_SIZES = [
    (name, backend, size) for name, backend in OP_BACKENDS for size in SPECS[name].sizes
]
