"""What the kernels of several operators share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import triton
import triton.language as tl

# Triton's interpreter computes garbage in bfloat16 without saying so: every load of a float is
# followed at once by a conversion to this type.
ACCUMULATE = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.float32,
    torch.float16: tl.float32,
    torch.float64: tl.float64,
}


@dataclass(frozen=True)
class CompileCase:
    """One specialization of a kernel, to be compiled ahead of time.

    `signature` gives each argument's type ("*bf16", "i64", or "constexpr"), `constexprs` the values
    of the latter, `aligned` the arguments known to be divisible by 16 (which launches find out by
    themselves), and `vector_loads` whether 16-byte loads must come out. `most_registers` and
    `most_shared` (bytes) let two blocks of 256 threads run on an SM at once; a kernel whose blocks
    are smaller may have more.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    aligned: tuple[str, ...] = ()
    num_warps: int = 4
    vector_loads: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    most_registers: int = 128
    most_shared: int = 48 * 1024


def block_of(length: int, largest: int) -> int:
    """Return the power of two that covers `length`, at least 16 and at most `largest`."""
    return max(16, min(largest, triton.next_power_of_2(length)))
