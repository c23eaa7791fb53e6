"""Small comparisons of every op with its float64 reference, for doctor."""

from __future__ import annotations

import math

import torch

from dori_fast.reference import all_specs
from dori_fast.testing import check_backend


def self_test(op: str, backend: str, device: str) -> str | None:
    """Compare an op's backend with the reference in float64.

    Returns:
        None if they agree, otherwise the reason.
    """
    spec = next((spec for spec in all_specs() if spec.name == op), None)
    if spec is None:
        return "has no self-test"
    size = max(spec.sizes, key=math.prod)
    generator = torch.Generator().manual_seed(0)
    try:
        check_backend(spec, backend, spec.make_inputs(size, torch.float32, device, generator))
    except AssertionError as error:
        return f"disagrees with the reference: {', '.join(str(error).splitlines()[:2])}"
    except Exception as error:  # doctor reports whatever a broken build raises
        return f"{type(error).__name__}: {error}"
    return None
