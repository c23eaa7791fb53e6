"""What the measurements of this folder share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import harness
from benchmarks.peak import peak_megabytes
from benchmarks.speed.random_models import RANDOM


def parser_of(name: str, description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with the options that all have; `defaults` give --model and --rounds."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.speed.gpu.{name}",
        description=(description or "").splitlines()[0],
    )
    if "model" in defaults:
        parser.add_argument(
            "--model", default=defaults["model"], help=f"demo, {', '.join(RANDOM)} or a directory"
        )
    if "rounds" in defaults:
        parser.add_argument("--rounds", type=int, default=defaults["rounds"])
    parser.add_argument("--dtype", help="default: float16 on a GPU, float32 on a CPU")
    harness.add_options(parser)
    return parser


def parsed(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The options, with the device's dtype and threads."""
    options = parser.parse_args(arguments)
    options.dtype = options.dtype or ("float16" if options.device == "cuda" else "float32")
    torch.set_num_threads(options.threads)
    return options


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(call: Callable[[], object], device: str, rounds: int) -> list[float]:
    """Wall-clock seconds of each of so many calls, the device's work included, after one more."""

    def waited() -> None:
        call()
        synchronize(device)

    waited()
    return [harness.wall_seconds(waited, 1) for _ in range(rounds)]


def peak_gigabytes(call: Callable[[], object], device: str) -> float:
    """Peak memory of a call in GB (10^9 bytes) above the start: of the GPU, or of CPU tensors."""
    if device != "cuda":
        return peak_megabytes(call) / 1e3
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e9
