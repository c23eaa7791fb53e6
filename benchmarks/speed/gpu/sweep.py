"""A scan at several batch sizes: time per prompt and peak memory.

python -m benchmarks.speed.gpu.sweep --model sd14 --batches 16 32 64 128 256
"""

from __future__ import annotations

import sys

from benchmarks import harness
from benchmarks.speed.end_to_end import sample_prompts
from benchmarks.speed.gpu.common import parsed, parser_of, peak_gigabytes, seconds
from benchmarks.speed.random_models import random_model
from dori_fast.detect import Wen

_SEEDS = 4
_FULL_BATCHES = 2


def main(arguments: list[str] | None = None) -> int:
    """Time every batch size."""
    parser = parser_of("sweep", __doc__, model="sd14", rounds=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    options = parsed(parser, arguments)
    recorder = harness.Recorder.of(
        options, f"python -m benchmarks.speed.gpu.sweep --model {options.model}"
    )
    how = {"dtype": options.dtype, "device": options.device}
    model = random_model(options.model, **how, batch_size=min(options.batches))
    detector = Wen(seeds=_SEEDS)
    for batch in options.batches:
        prompts = sample_prompts(max(1, _FULL_BATCHES * batch // _SEEDS))
        facts = {
            "op": "scan",
            "mode": f"wen_step_1_batch_{batch}",
            "provider": "dori_fast",
            "shape": f"{options.model}:{len(prompts)}x{_SEEDS}",
            "dtype": options.dtype,
            "x": len(prompts),
        }
        with recorder.case(**facts) as case:
            model.batch_size = batch
            found = seconds(
                lambda prompts=prompts: detector.score(model, prompts),
                options.device,
                options.rounds,
            )
            if model.batch_size != batch:
                raise harness.NotHere(f"memory ran out; batches were of {model.batch_size}")
            per_prompt = [1e3 * s / len(prompts) for s in found]
            case.write(per_prompt, metric="time", unit="ms/prompt")
            peak = peak_gigabytes(
                lambda prompts=prompts: detector.score(model, prompts), options.device
            )
            case.write([peak], metric="peak_memory", unit="GB")
    return recorder.finish()


if __name__ == "__main__":
    sys.exit(main())
