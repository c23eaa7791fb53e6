"""Whether a prompt's prediction has the same bits at every position of a batch.

The same prompt and noise stand at positions 0..B-1 among other neighbors, each with noise of its
own, in batches of one shape. A row has the largest difference from the prediction at position 0,
and the share of the other positions whose prediction is equal to it.

    python -m benchmarks.speed.gpu.positions --model sd14
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

import dori_fast as df
from benchmarks import harness
from benchmarks.speed.end_to_end import sample_prompts
from benchmarks.speed.gpu.common import parsed, parser_of
from benchmarks.speed.random_models import laid_out, pipeline_of
from dori_fast.errors import UsageError

_PLAIN: dict[str, Any] = {
    "attention": "sdpa",
    "compile": False,
    "channels_last": False,
    "cuda_graphs": False,
}
_WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "channels_last": {"channels_last": True},
    "cuda_graphs": {"cuda_graphs": True},
    "compiled": {"compile": True},
    "whole_network": {"share": False},
}
_DTYPES = ("float16", "bfloat16", "float32")


def at_positions(model: df.Denoiser, prompts: list[str], positions: list[int]) -> list[Tensor]:
    """Predictions of the first prompt, at each position among the others in a new order."""
    latents, timestep = model.noise(range(len(prompts)))[:, None], model.timesteps(50)[0]
    found = []
    for position in positions:
        generator = torch.Generator().manual_seed(position)
        order = (1 + torch.randperm(len(prompts) - 1, generator=generator)).tolist()
        order.insert(position, 0)
        condition = model.encode([prompts[i] for i in order])
        with torch.no_grad():
            found.append(model.output(condition, latents[order], timestep)[position])
    return found


def main(arguments: list[str] | None = None) -> int:
    """Compare in every dtype and way."""
    parser = parser_of("positions", __doc__, model="sd14")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--positions", type=int, default=16, help="evenly spaced positions")
    parser.add_argument("--ways", nargs="+", choices=tuple(_WAYS), default=list(_WAYS))
    parser.add_argument("--dtypes", nargs="+", default=list(_DTYPES))
    options = parsed(parser, arguments)
    recorder = harness.Recorder.of(
        options, f"python -m benchmarks.speed.gpu.positions --model {options.model}"
    )
    batch = options.batch_size
    prompts = sample_prompts(batch)
    step = max(1, (batch - 1) // max(1, options.positions - 1))
    positions = sorted({*range(0, batch, step), batch - 1})
    for dtype in options.dtypes:
        source: Any = None
        for way in options.ways:
            facts = {
                "op": "position_invariance",
                "mode": way,
                "provider": "dori_fast",
                "shape": f"{options.model}:{batch}",
                "dtype": dtype,
                "x": len(positions),
            }
            with recorder.case(**facts) as case:
                source = source or pipeline_of(options.model, getattr(torch, dtype), options.device)
                how = _PLAIN | _WAYS[way]
                try:
                    model = df.load(
                        laid_out(source, how),
                        device=options.device,
                        dtype=dtype,
                        batch_size=batch,
                        **how,
                    )
                except UsageError as error:
                    raise harness.NotHere(str(error)) from error
                found = at_positions(model, prompts, positions)
                apart = [float((x.double() - found[0].double()).abs().max()) for x in found]
                case.write([max(apart)], metric="max_difference", unit="")
                equal = [torch.equal(x, found[0]) for x in found[1:]]
                case.write([100 * sum(equal) / max(1, len(equal))], metric="equal", unit="%")
    return recorder.finish()


if __name__ == "__main__":
    sys.exit(main())
