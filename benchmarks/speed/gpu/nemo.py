"""NeMo on this device: UNet rows, evaluations and seconds per prompt, on the embedded model.

Rows include padding and parts of the network. `eager` is the released procedure, which pads
nothing, so its rows are its evaluations. On a GPU rows are what costs.

    python -m benchmarks.speed.gpu.nemo --prompts 8
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

import dori_fast as df
from benchmarks import harness
from benchmarks.peers.nemo import PeerSearch
from benchmarks.speed.gpu.common import parsed, parser_of, synchronize
from dori_fast.demo.facts import reproduced
from dori_fast.prune import NeMo, NeuronStatistics


def main(arguments: list[str] | None = None) -> int:
    """Search by both procedures."""
    parser = parser_of("nemo", __doc__)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--batch-size", type=int, help="UNet samples; default: the model's")
    parser.add_argument(
        "--providers", nargs="+", default=["dori_fast", "eager"], choices=("dori_fast", "eager")
    )
    options = parsed(parser, arguments)
    recorder = harness.Recorder.of(
        options, f"python -m benchmarks.speed.gpu.nemo --prompts {options.prompts}"
    )
    model = df.load(
        "demo",
        device=options.device,
        dtype=options.dtype,
        batch_size=options.batch_size or "auto",
    )
    clean = [prompt for prompt, _ in df.demo.pairs("ordinary")]
    statistics = NeuronStatistics.collect(model, clean)
    prompts = [image.prompt for image in reproduced()][: options.prompts]
    nemo = NeMo(statistics, layers="all", mode="reference")
    noise = torch.randn(10, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    noise = noise.to(model.device, model.dtype)

    def ours() -> tuple[int, int]:
        rows, before = model.engine.rows_computed, model.engine.evaluations
        nemo.localize(model, prompts)
        return model.engine.rows_computed - rows, model.engine.evaluations - before

    def eager() -> tuple[int, int]:
        layers, timesteps = nemo.layers(model), model.timesteps(50)[:2]
        spent = sum(
            PeerSearch(model, prompt, layers, statistics, nemo.threshold, noise, timesteps)
            .run()
            .evaluations
            for prompt in prompts
        )
        return spent, spent

    calls: dict[str, Callable[[], tuple[int, int]]] = {"dori_fast": ours, "eager": eager}
    for name in options.providers:
        facts = {
            "op": "nemo",
            "mode": "reference_all",
            "provider": name,
            "shape": f"demo:{len(prompts)}",
            "dtype": options.dtype,
            "x": len(prompts),
        }
        with recorder.case(**facts) as case:
            start = time.perf_counter()
            rows, evaluations = calls[name]()
            synchronize(options.device)
            took = time.perf_counter() - start
            case.write([rows / len(prompts)], metric="rows", unit="rows/prompt")
            case.write([evaluations / len(prompts)], metric="evaluations", unit="evals/prompt")
            case.write([took / len(prompts)], metric="wall_time", unit="s/prompt")
    return recorder.finish()


if __name__ == "__main__":
    sys.exit(main())
