"""Cost of Wanda's statistics: the same evaluations with and without them.

python -m benchmarks.speed.gpu.wanda --model sd14
"""

from __future__ import annotations

import sys
from statistics import median

import torch

from benchmarks import harness
from benchmarks.speed.end_to_end import sample_prompts
from benchmarks.speed.gpu.common import parsed, parser_of, peak_gigabytes, seconds
from benchmarks.speed.random_models import random_model
from dori_fast.models.probes import feed_forward_inputs
from dori_fast.prune.wanda import token_energies


def main(arguments: list[str] | None = None) -> int:
    """Time both."""
    parser = parser_of("wanda", __doc__, model="sd14", rounds=5)
    parser.add_argument("--batch-size", type=int, help="UNet samples; default: the model's")
    options = parsed(parser, arguments)
    recorder = harness.Recorder.of(
        options, f"python -m benchmarks.speed.gpu.wanda --model {options.model}"
    )
    model = random_model(
        options.model, options.dtype, options.device, batch_size=options.batch_size or "auto"
    )
    batch = model.batch_size
    condition = model.encode(sample_prompts(batch))
    # each prompt at latents of its own, so that nothing is shared between them
    latents, timestep = model.noise(range(len(condition)))[:, None], model.timesteps(50)[0]

    @torch.no_grad()
    def without() -> object:
        return model.output(condition, latents, timestep)

    @torch.no_grad()
    def with_statistics() -> object:
        return feed_forward_inputs(model, condition, latents, timestep, token_energies)

    medians: dict[str, float] = {}
    for name, call in {"without": without, "with_statistics": with_statistics}.items():
        facts = {
            "op": "wanda",
            "mode": name,
            "provider": "dori_fast",
            "shape": f"{options.model}:{len(condition)}",
            "dtype": options.dtype,
            "x": len(condition),
        }
        with recorder.case(**facts) as case:
            found = seconds(call, options.device, options.rounds)
            medians[name] = median(found)
            case.write([1e3 * s for s in found], metric="time", unit="ms")
            case.write([peak_gigabytes(call, options.device)], metric="peak_memory", unit="GB")
            if name == "with_statistics" and "without" in medians:
                over = 100 * (medians[name] / medians["without"] - 1)
                case.write([over], metric="overhead", unit="%")
    return recorder.finish()


if __name__ == "__main__":
    sys.exit(main())
