"""How far rounding moves the embedded model's scores, by dtype, from those in float64.

The error is the root mean square over prompts, and the largest, relative to the median score.

    python -m benchmarks.speed.gpu.floor
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import dori_fast as df
from benchmarks import harness
from benchmarks.speed.end_to_end import sample_prompts
from benchmarks.speed.gpu.common import parsed, parser_of

_DTYPES = ("float16", "bfloat16", "float32", "tf32")


@contextmanager
def flags(tf32: bool) -> Iterator[dict[str, Any]]:
    """Options of `df.load`, or torch's flags where it has none, that allow TF32 or forbid it."""
    if "allow_tf32" in inspect.signature(df.load).parameters:
        yield {"allow_tf32": True} if tf32 else {}
        return
    both = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [where.allow_tf32 for where in both]
    try:
        for where in both:
            where.allow_tf32 = tf32
        yield {}
    finally:
        for where, allowed in zip(both, before, strict=True):
            where.allow_tf32 = allowed


def main(arguments: list[str] | None = None) -> int:
    """Score in every dtype."""
    parser = parser_of("floor", __doc__)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--detectors", nargs="+", default=["wen", "asthana"])
    parser.add_argument("--batch-size", type=int, help="UNet samples; default: the model's")
    options = parsed(parser, arguments)
    recorder = harness.Recorder.of(options, "python -m benchmarks.speed.gpu.floor")
    prompts = sample_prompts(options.prompts)

    def scores(name: str, dtype: str, **how: Any) -> torch.Tensor:
        batch = options.batch_size or "auto"
        model = df.load("demo", dtype=dtype, device=options.device, batch_size=batch, **how)
        return df.detect.get(name).score(model, prompts).double()

    for detector in options.detectors:
        exact: torch.Tensor | None = None
        for dtype in ("float64", *_DTYPES):
            facts = {
                "op": "score_floor",
                "mode": detector,
                "provider": "dori_fast",
                "shape": f"demo:{len(prompts)}",
                "dtype": dtype,
                "x": len(prompts),
            }
            with recorder.case(**facts) as case:
                if dtype == "tf32" and options.device != "cuda":
                    raise harness.NotHere("a CPU has no TF32")
                with flags(dtype == "tf32") as how:
                    found = scores(detector, dtype.replace("tf32", "float32"), **how)
                if exact is None:
                    exact = found
                scale = exact.abs().median()
                error = (found - exact) / scale
                case.write([float(error.square().mean().sqrt())], metric="rms_error", unit="")
                case.write([float(error.abs().max())], metric="max_error", unit="")
    return recorder.finish()


if __name__ == "__main__":
    sys.exit(main())
