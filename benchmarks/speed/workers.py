"""Rows per second of a scan by one process and by each engine's workers, interleaved in one run.

`fake` hashes a prompt for about 0.2 ms, 5,000 rows/s. That is ten times as fast as a GPU on SD 1.4,
so the cost of reading, leasing and committing becomes visible. `demo` is Wen's detector on the
embedded model. `free` takes no time, so a shard of 2,048 rows costs only what the engine adds. A
rate is measured between a fifth and nine tenths of the rows, when no worker is starting or done.
In the results, `dori_fast` means several workers.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.workers
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
from dori_fast.runs.progress import Progress

BEGIN, END = 0.2, 0.9
HASHES = 600


class Hashing:
    """A detector that uses CPU time but no network."""

    name = "hashing"

    def __init__(self, hashes: int = HASHES) -> None:
        self._hashes = hashes

    def config(self) -> dict[str, Any]:
        return {"name": self.name, "hashes": self._hashes}

    def scores(
        self, model: Any, prompts: Sequence[str], positions: Sequence[int] | None = None
    ) -> PromptScores:
        digests = [
            hashlib.pbkdf2_hmac("sha256", p.encode(), b"salt", self._hashes) for p in prompts
        ]
        per_seed = torch.tensor([[float(byte) for byte in digest[:4]] for digest in digests])
        sizes = torch.tensor([len(prompt) for prompt in prompts])
        return PromptScores(per_seed.mean(dim=1), per_seed, sizes, sizes > 77)


CASES: dict[str, tuple[Any, int, int]] = {
    "fake": (Hashing(), 100_000, 2048),
    "demo": ("wen", 4_000, 64),
    "free": (Hashing(1), 600_000, 2048),
}


def rate(model: df.Denoiser, detector: Any, prompts: Path, size: int, engine: str, n: int) -> float:
    """Rows per second of n workers with shards of ``size`` rows."""
    seen: list[Progress] = []
    with TemporaryDirectory(dir=prompts.parent) as out:
        result = df.scan(
            model,
            prompts,
            out=out,
            detector=detector,
            shard_size=size,
            workers=n,
            engine=engine,  # type: ignore[arg-type]
            on_progress=seen.append,
        )
    rows = result.counts.rows
    inner = [p for p in seen if BEGIN <= p.done / rows <= END]
    return (inner[-1].done - inner[0].done) / (inner[-1].seconds - inner[0].seconds)


def main(arguments: list[str] | None = None) -> int:
    """Time, print and write rows."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.workers", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--workers", type=int, default=2, help="workers of each engine")
    parser.add_argument("--engines", nargs="+", choices=("local", "ray"), default=["local", "ray"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=sorted(CASES), help="one case; default: all")
    parser.add_argument("--no-write", action="store_true", help="do not write results")
    options = parser.parse_args(arguments)
    model, several = df.load("demo", device="cpu"), options.workers
    results = []
    for name, (detector, rows, size) in CASES.items():
        if options.only not in (None, name):
            continue
        with TemporaryDirectory() as folder:
            prompts = Path(folder) / "prompts.txt"
            prompts.write_text("".join(f"photo number {i}\n" for i in range(rows)))
            ways = {"one process": ("local", 1)}
            ways |= {engine: (engine, several) for engine in options.engines}
            rates: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(options.rounds):
                for way, (engine, n) in ways.items():
                    # local workers share these threads; a Ray actor has this many
                    torch.set_num_threads(n if engine == "local" else 1)
                    rates[way].append(rate(model, detector, prompts, size, engine, n))
        for way, (engine, n) in ways.items():
            ratios = [b / a for a, b in zip(rates["one process"], rates[way], strict=True)]
            alone, shared = (median(rates[w]) for w in ("one process", way))
            print(
                f"{name}: {shared:,.0f} rows/s by {way} ({n}), {median(ratios):.3f} times one"
                f" process; a shard takes {1e3 * size * (n / shared - 1 / alone):.1f} ms more"
            )
            results.append(
                harness.make_row(
                    [1e6 / value for value in rates[way]],
                    op="scan",
                    mode=f"workers_{name}" if engine == "local" else f"ray_{name}",
                    provider="one_process" if n == 1 else "dori_fast",
                    metric="time",
                    unit="us/row",
                    x=rows,
                    bytes=0,
                    flops=0,
                    shape=f"{name}:{rows} by {several}",
                    dtype="float32",
                    threads=1,
                    command=f"python -m benchmarks.speed.workers --workers {several}",
                )
            )
    if not options.no_write:
        print(f"results: {harness.record(results).name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
