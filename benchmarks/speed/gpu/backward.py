"""Cost of a gradient to the embeddings: time and peak memory, forward alone and with backward.

python -m benchmarks.speed.gpu.backward --model sd14 --samples 8 64
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

import dori_fast as df
from benchmarks import harness
from benchmarks.speed.end_to_end import sample_prompts
from benchmarks.speed.gpu.common import parsed, parser_of, peak_gigabytes, seconds
from benchmarks.speed.random_models import random_model
from dori_fast.models.engine.gradients import differentiating


def passes(model: df.Denoiser, samples: int) -> dict[str, Callable[[], object]]:
    """Calls on so many samples, one prompt each: forward, with backward, and recomputing."""
    with torch.no_grad():
        encoded = model.encode(sample_prompts(samples))
        text = encoded.embeddings.detach().requires_grad_()
        pooled = None if encoded.pooled is None else encoded.pooled[encoded.index]
    latents = model.noise(range(len(text)))[:, None]
    timestep = model.timesteps(50)[0]

    def forward() -> object:
        with torch.no_grad():
            return model.output(model.condition(text, pooled), latents, timestep)

    def backward() -> object:
        loss = model.output(model.condition(text, pooled), latents, timestep).float().square()
        return torch.autograd.grad(loss.sum(), text)

    def recomputed() -> object:
        with differentiating(model.engine, recompute=True):
            return backward()

    return {"forward": forward, "forward_backward": backward, "recomputed": recomputed}


def main(arguments: list[str] | None = None) -> int:
    """Time all sizes."""
    parser = parser_of("backward", __doc__, model="sd14", rounds=5)
    parser.add_argument("--samples", type=int, nargs="+", default=[8, 64])
    options = parsed(parser, arguments)
    recorder = harness.Recorder.of(
        options, f"python -m benchmarks.speed.gpu.backward --model {options.model}"
    )
    model = random_model(
        options.model, options.dtype, options.device, batch_size=min(options.samples)
    )
    for samples in options.samples:
        for name, call in passes(model, samples).items():
            facts = {
                "op": "gradient",
                "mode": name,
                "provider": "dori_fast",
                "shape": f"{options.model}:{samples}",
                "dtype": options.dtype,
                "x": samples,
            }
            with recorder.case(**facts) as case:
                # fewer samples than a batch would be padded
                model.batch_size = samples
                found = seconds(call, options.device, options.rounds)
                if model.batch_size != samples:
                    raise harness.NotHere(f"memory ran out; batches were of {model.batch_size}")
                case.write([1e3 * s for s in found], metric="time", unit="ms")
                case.write([peak_gigabytes(call, options.device)], metric="peak_memory", unit="GB")
    return recorder.finish()


if __name__ == "__main__":
    sys.exit(main())
