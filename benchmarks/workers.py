"""Rows per second of a scan by one worker process and by several, interleaved in one run.

`fake` scores a prompt by hashing it for about 0.2 ms, 5,000 rows/s: some ten times as fast as a GPU
would be on SD 1.4, so that reading, handing out and committing have to show; `demo` is Wen's
detector on the embedded model. A rate is taken between a fifth and nine tenths of the rows, when
all processes are at work and none is starting. `dori_fast` in the results are the several workers.

    OMP_NUM_THREADS=1 python -m benchmarks.workers
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

import dori_fast as df
from benchmarks import harness
from dori_fast.detect import PromptScores
from dori_fast.scan import Progress

BEGIN, END = 0.2, 0.9
_HASHES = 200


class Hashing:
    """A detector that needs no network, but processor time as if it did."""

    name = "hashing"

    def config(self) -> dict[str, Any]:
        return {"name": self.name, "hashes": _HASHES}

    def scores(
        self, model: Any, prompts: Sequence[str], positions: Sequence[int] | None = None
    ) -> PromptScores:
        digests = [hashlib.pbkdf2_hmac("sha256", p.encode(), b"salt", _HASHES) for p in prompts]
        per_seed = torch.tensor([[float(byte) for byte in digest[:4]] for digest in digests])
        sizes = torch.tensor([len(prompt) for prompt in prompts])
        return PromptScores(per_seed.mean(dim=1), per_seed, sizes, sizes > 77)


def rate(model: df.Denoiser, detector: Any, prompts: Path, rows: int, size: int, n: int) -> float:
    """Rows per second of n workers on an input of so many rows, in shards of ``size``."""
    seen: list[Progress] = []
    with TemporaryDirectory(dir=prompts.parent) as out:
        df.scan(
            model,
            prompts,
            out=out,
            detector=detector,
            shard_size=size,
            workers=n,
            on_progress=seen.append,
        )
    inner = [p for p in seen if BEGIN <= p.rows / rows <= END]
    return (inner[-1].rows - inner[0].rows) / (inner[-1].seconds - inner[0].seconds)


def main(arguments: list[str] | None = None) -> int:
    """Time, print and record."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.workers", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--rows", type=int, nargs=2, default=[100_000, 4_000], help="fake, demo")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-write", action="store_true", help="leave the results alone")
    options = parser.parse_args(arguments)
    model = df.load("demo", device="cpu")
    cases = {"fake": (Hashing(), options.rows[0], 2048), "demo": ("wen", options.rows[1], 64)}
    results = []
    for name, (detector, rows, size) in cases.items():
        with TemporaryDirectory() as folder:
            prompts = Path(folder) / "prompts.txt"
            prompts.write_text("".join(f"photo number {i}\n" for i in range(rows)))
            rates: dict[int, list[float]] = {1: [], options.workers: []}
            for _ in range(options.rounds):
                for n in rates:
                    # the threads of several workers are shared out among them
                    torch.set_num_threads(options.threads * n)
                    rates[n].append(rate(model, detector, prompts, rows, size, n))
        gain = median(b / a for a, b in zip(rates[1], rates[options.workers], strict=True))
        for n, found in rates.items():
            print(f"{name}: {median(found):,.0f} rows/s by {n} of {options.threads} threads each")
            results.append(
                harness.make_row(
                    [1e6 / value for value in found],
                    op="scan",
                    mode=f"workers_{name}",
                    provider="one_process" if n == 1 else "dori_fast",
                    metric="time",
                    unit="us/row",
                    x=rows,
                    bytes=0,
                    flops=0,
                    shape=f"{name}:{rows} by {options.workers}",
                    dtype="float32",
                    threads=options.threads,
                    command=f"python -m benchmarks.workers --workers {options.workers}",
                )
            )
        print(f"{name}: {gain:.3f} times the rows of one process (median over rounds)")
    if not options.no_write:
        print(f"results: {harness.record(results).name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
