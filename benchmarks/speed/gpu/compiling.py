"""Seconds until the first compiled score: with no compiled code kept, and with that of the first.

Each is a process of its own with a folder of its own for compiled code.

    python -m benchmarks.speed.gpu.compiling --model sd14
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import harness
from benchmarks.speed.end_to_end import sample_prompts
from benchmarks.speed.gpu.common import parsed, parser_of, synchronize
from benchmarks.speed.random_models import random_model
from dori_fast.detect import Wen

ROOT = Path(__file__).parents[3]


def first_score(model_name: str, dtype: str, device: str, batch: int) -> float:
    """Seconds of the first compiled score, loading left out."""
    model = random_model(model_name, dtype, device, batch_size=batch, compile=True)
    start = time.perf_counter()
    Wen(seeds=2).score(model, sample_prompts(2))
    synchronize(device)
    return time.perf_counter() - start


def main(arguments: list[str] | None = None) -> int:
    """Compile twice, or once as the child."""
    parser = parser_of("compiling", __doc__, model="sd14")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--child", action="store_true", help="print the seconds of one process")
    options = parsed(parser, arguments)
    if options.child:
        found = first_score(options.model, options.dtype, options.device, options.batch_size)
        print(f"seconds: {found}")
        return 0
    recorder = harness.Recorder.of(
        options, f"python -m benchmarks.speed.gpu.compiling --model {options.model}"
    )
    command = [sys.executable, "-m", "benchmarks.speed.gpu.compiling", "--child"]
    command += ["--model", options.model, "--device", options.device, "--dtype", options.dtype]
    command += ["--batch-size", str(options.batch_size), "--threads", str(options.threads)]
    with tempfile.TemporaryDirectory() as kept:
        kept_in = {"TORCHINDUCTOR_CACHE_DIR": kept, "TRITON_CACHE_DIR": f"{kept}/triton"}
        for mode in ("cold", "warm"):
            facts = {
                "op": "compile",
                "mode": mode,
                "provider": "dori_fast_compiled",
                "shape": f"{options.model}:{options.batch_size}",
                "dtype": options.dtype,
            }
            with recorder.case(**facts) as case:
                done = subprocess.run(
                    command, cwd=ROOT, env=os.environ | kept_in, stdout=subprocess.PIPE, text=True
                )
                lines = [x for x in done.stdout.splitlines() if x.startswith("seconds: ")]
                if done.returncode or not lines:
                    raise RuntimeError(f"the process ended with {done.returncode}")
                case.write([float(lines[-1].split()[1])], metric="wall_time", unit="s")
    return recorder.finish()


if __name__ == "__main__":
    sys.exit(main())
