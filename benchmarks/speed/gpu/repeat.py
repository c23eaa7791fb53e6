"""Whether an attack and a scan give the same bits twice, and an attack alone as among others.

python -m benchmarks.speed.gpu.repeat --model sd14
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

import dori_fast as df
from benchmarks import harness
from benchmarks.speed.end_to_end import sample_prompts
from benchmarks.speed.gpu.common import parsed, parser_of
from benchmarks.speed.random_models import random_model


def comparisons(
    model: df.Denoiser, problems: int, steps: int
) -> dict[str, Callable[[], tuple[Tensor, Tensor]]]:
    """Calls that return two results that should be equal, by name."""
    prompts = sample_prompts(max(problems, model.batch_size))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        0, 256, (problems, *model.image_size, 3), dtype=torch.uint8, generator=generator
    )
    attack = df.attack.Dori(steps=steps, draws=min(8, model.batch_size))

    def attacked(some: slice) -> Tensor:
        ids = list(range(problems))[some]
        return attack.run(model, prompts[:problems][some], images[some], ids=ids).embeddings

    def scanned() -> Tensor:
        return df.detect.Wen(seeds=2).score(model, prompts)

    every = slice(None)
    return {
        "scan_twice": lambda: (scanned(), scanned()),
        "attack_twice": lambda: (attacked(every), attacked(every)),
        "attack_alone": lambda: (attacked(every)[:1], attacked(slice(0, 1))),
    }


def main(arguments: list[str] | None = None) -> int:
    """Compare."""
    parser = parser_of("repeat", __doc__, model="sd14")
    parser.add_argument("--problems", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    options = parsed(parser, arguments)
    recorder = harness.Recorder.of(
        options, f"python -m benchmarks.speed.gpu.repeat --model {options.model}"
    )
    model = random_model(
        options.model,
        options.dtype,
        options.device,
        batch_size=options.batch_size,
        with_vae=True,
    )
    for name, pair in comparisons(model, options.problems, options.steps).items():
        facts = {
            "op": "repeatability",
            "mode": name,
            "provider": "dori_fast",
            "shape": f"{options.model}:{options.problems}x{options.steps}",
            "dtype": options.dtype,
            "x": options.problems,
        }
        with recorder.case(**facts) as case:
            one, two = pair()
            apart = float((one.double() - two.double()).abs().max())
            case.write([apart], metric="max_difference", unit="")
            case.write([100 * float((one == two).double().mean())], metric="equal", unit="%")
    return recorder.finish()


if __name__ == "__main__":
    sys.exit(main())
