"""Small known-answer runs of every op, for doctor."""

from __future__ import annotations

import math

import torch

import dori_fast.ops  # noqa: F401  (importing the operators defines them)
from dori_fast.reference import all_specs
from dori_fast.testing import check_backend


def self_test(op: str, backend: str, device: str) -> str | None:
    """Compare an op's backend with the reference in float64; None if it agrees, else why not."""
    spec = next((spec for spec in all_specs() if spec.name == op), None)
    if spec is None:
        return "has no self-test"
    size = max(spec.sizes, key=math.prod)
    generator = torch.Generator().manual_seed(0)
    try:
        check_backend(spec, backend, spec.make_inputs(size, torch.float32, device, generator))
    except AssertionError as error:
        return f"disagrees with the reference: {', '.join(str(error).splitlines()[:2])}"
    except Exception as error:  # whatever a broken build raises is what doctor is to report
        return f"{type(error).__name__}: {error}"
    return None
