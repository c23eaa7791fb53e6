"""A CUDA source as a program for the CPU: build it, and call its kernels."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.cuda_headers import CUDA_INCLUDE
from tests.cuda_on_cpu.translate import ROOT, translated, waits

HERE = Path(__file__).resolve().parent
# the numbers of csrc/dtype.h
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SANITIZERS = {
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
    "none": (),
}


@dataclass(frozen=True)
class Program:
    """A built program."""

    path: Path

    def run(self, calls: Sequence[bytes]) -> subprocess.CompletedProcess[bytes]:
        """Return how the program ended and what it wrote."""
        # a sanitizer's own leak check needs ptrace, which containers forbid
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
        return subprocess.run(
            [self.path], input=b"".join(calls), capture_output=True, env=environment, timeout=500
        )


def build(stem: str, source: str, sanitizer: str, folder: Path) -> Program:
    """Compile the text of `csrc/cuda/<stem>.cu` and the calls of `<stem>.cpp`.

    Args:
        stem: name of the source.
        source: text of the source.
        sanitizer: key of SANITIZERS.
        folder: folder for the program.
    """
    unit, program = folder / f"{stem}.cpp", folder / f"{stem}-{sanitizer}"
    parts = ('#include "shim.h"', translated(source), f'#include "{HERE / stem}.cpp"', "")
    unit.write_text("\n".join(parts))
    threads = ("-DDORI_THREADS",) if waits(source) or sanitizer == "thread" else ()
    includes = (f"-I{folder}" for folder in (HERE, ROOT / "csrc", CUDA_INCLUDE))
    subprocess.run(
        ["g++", "-std=c++20", "-g1", "-pthread", *SANITIZERS[sanitizer], *threads]
        + [*includes, str(unit), "-o", str(program)],
        check=True,
    )
    return Program(program)


def call(op: int, dtype: torch.dtype, *arguments: Any) -> bytes:
    """Return a call as the program reads it; arguments are tensors, None or a float."""
    head = struct.pack("<qq", op, DTYPES.index(dtype))
    return head + b"".join(map(_packed, arguments))


def _packed(value: Any) -> bytes:
    if value is None:
        return struct.pack("<q", -1)
    if isinstance(value, float):
        return struct.pack("<d", value)
    memory = _bytes(value)
    offset = value.storage_offset() * value.itemsize
    numbers = (len(memory), offset, value.dim(), *value.size(), *value.stride())
    return struct.pack(f"<{len(numbers)}q", *numbers) + memory


def _bytes(x: Tensor) -> bytes:
    """Return the whole memory under a tensor."""
    return bytes(x.untyped_storage().tolist())


def taken(data: bytes, like: Tensor) -> tuple[Tensor, bytes]:
    """Return a tensor laid out as `like` from the front of the program's output, and the rest."""
    count = like.untyped_storage().nbytes()
    flat = torch.frombuffer(bytearray(data[:count]), dtype=like.dtype) if count else like.flatten()
    return flat.as_strided(like.size(), like.stride(), like.storage_offset()), data[count:]
