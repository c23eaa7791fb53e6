"""Attacked images per minute, ours against the peers' procedure, interleaved in one run.

`eager` attacks the images one by one as published code does: diffusers' UNet with trainable
weights, `.backward()`, torch's Adam, and the loss fetched in every step. `dori_fast` attacks all
images in one call; `one_by_one` makes one such call per image, the baseline for batching over
images. All use the same draws. Their embeddings are compared before timing, in float64 too, since
Adam's first steps turn the rounding of a gradient near 0 into its sign. With random weights, the
images are noise, and the distance of the embeddings is a row of its own.

    python -m benchmarks.speed.attack --threads 1
    python -m benchmarks.speed.attack --model sd14 --problems 8 --steps 3 --device cuda
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import dori_fast as df
from benchmarks import harness
from benchmarks.speed.random_models import RANDOM, pipeline_of
from dori_fast.attack.draws import Draws

# largest relative distance of embeddings that rounding can cause in a few steps, by dtype
_TOLERANCE = {"float64": 1e-9, "float32": 1e-4}


class Problems:
    """Images to attack, a model, and the peers' copy of its UNet with trainable weights."""

    def __init__(
        self, count: int, steps: int, batch: int, dtype: str, device: str, model: str = "demo"
    ) -> None:
        shipped = df.demo.images("memorized")[:count]
        self.prompts = [image.prompt for image in shipped]
        self.images = torch.from_numpy(np.stack([image.image for image in shipped]))
        source, how = "demo", {"dtype": dtype, "device": device}
        if model in RANDOM:
            source = pipeline_of(model, getattr(torch, dtype), device, with_vae=True)
        self.model = df.load(source, **how)
        # fewer samples than a batch would be padded
        self.model.batch_size = min(self.model.batch_size, count * batch)
        self.alone = df.load(source, **how, batch_size=batch)
        if model in RANDOM:
            generator = torch.Generator().manual_seed(0)
            size = (count, *self.model.image_size, 3)
            self.images = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
        self.unet = copy.deepcopy(self.model.unet).requires_grad_(True)
        self.attack = df.attack.Dori(steps=steps, draws=batch, objective="prediction")

    def ours(self) -> Tensor:
        """Embeddings [P, T, D], all images in one call."""
        return self.attack.run(self.model, self.prompts, self.images).embeddings

    def one_by_one(self) -> Tensor:
        """The same embeddings, one call per image, in batches of one image's size."""
        found = [
            self.attack.run(self.alone, [prompt], self.images[p : p + 1], ids=[p])
            for p, prompt in enumerate(self.prompts)
        ]
        return torch.cat([result.embeddings for result in found])

    def eager(self) -> Tensor:
        """Embeddings [P, T, D] by the peers' procedure, one image after the other."""
        if hasattr(self.model.unet, "add_embedding"):
            raise harness.NotHere("the peers' procedure knows no SDXL")
        return torch.stack([self._eager_one(p) for p in range(len(self.prompts))])

    def _eager_one(self, problem: int) -> Tensor:
        model, batch, config = self.model, self.attack.draws, self.attack.config()
        x_0 = model.latents(self.images[problem : problem + 1])
        text = model.encode(self.prompts[problem : problem + 1]).embeddings.detach()
        # scripts keep what they train in float32
        wide = torch.promote_types(model.dtype, torch.float32)
        embedding = text.to(wide, copy=True).requires_grad_()
        adam = torch.optim.Adam([embedding], lr=self.attack.lr)
        draws = Draws(model, [problem], config["seed"], batch)
        losses = []
        for _ in range(self.attack.steps):
            timesteps, noise = (x[0] for x in draws.take([0]))
            alpha_bar = model.alphas_cumprod[timesteps].to(x_0).view(-1, 1, 1, 1)
            x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise
            given = embedding.to(model.dtype).repeat(batch, 1, 1)
            answer = self.unet(
                x_t.to(model.dtype), timesteps.to(model.device), encoder_hidden_states=given
            ).sample
            # the embedded model predicts the sample
            target = noise if model.schedule.prediction_type == "epsilon" else x_0
            loss = F.mse_loss(answer.to(wide), target.expand_as(answer).to(wide))
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.item())
        return embedding.detach()[0]


def check(dtype: str, count: int, batch: int, device: str) -> None:
    """Compare the embeddings with the peers'.

    Raises:
        SystemExit: they differ by more than rounding.
    """
    problems = Problems(count, 5, batch, dtype, device)
    theirs = problems.eager()
    start = problems.model.encode(problems.prompts).embeddings
    errors = [distance(ours, theirs) for ours in (problems.ours(), problems.one_by_one())]
    moved = distance(start, theirs)
    print(
        f"{dtype}: embeddings {errors[0]:.1e} and, one by one, {errors[1]:.1e} from the peers',"
        f" which have moved {moved:.2f} (relative)"
    )
    if not max(errors) <= _TOLERANCE[dtype]:
        raise SystemExit("the embeddings differ from the peers'; nothing was timed")


def distance(found: Tensor, theirs: Tensor) -> float:
    """Relative distance of two results."""
    found, theirs = found.double(), theirs.double()
    return float(((found - theirs).norm() / theirs.norm()).cpu())


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.attack", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", default="demo", choices=("demo", *RANDOM))
    parser.add_argument("--problems", type=int, default=16, help="images to attack")
    parser.add_argument("--steps", type=int, default=10, help="steps of the timed attack")
    parser.add_argument("--batch", type=int, default=8, help="draws per step and image")
    parser.add_argument("--rounds", type=int, default=5)
    harness.add_options(parser)
    options = parser.parse_args(arguments)
    half = options.device == "cuda" and options.model in RANDOM
    options.dtype = "float16" if half else "float32"
    return options


def main(arguments: list[str] | None = None) -> int:
    """Check, time and write rows."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    count, batch, random = options.problems, options.batch, options.model in RANDOM
    for dtype in () if random else _TOLERANCE:
        check(dtype, count, batch, options.device)
    problems = Problems(count, options.steps, batch, options.dtype, options.device, options.model)
    timer = harness.timer_for(options.device, options.threads)
    recorder = harness.Recorder.of(
        options,
        f"python -m benchmarks.speed.attack --model {options.model} --problems {count}"
        f" --steps {options.steps} --batch {batch}",
    )
    facts = {
        "op": "attack",
        "mode": "dori",
        "x": count,
        "shape": f"{options.model}:{count}x{options.steps}x{batch}",
        "dtype": options.dtype,
    }
    all_calls: dict[str, Callable[[], Tensor]] = {
        "eager": problems.eager,
        "one_by_one": problems.one_by_one,
        "dori_fast": problems.ours,
    }
    calls: dict[str, Callable[[], object]] = {}
    expected: Tensor | None = None
    for name, call in all_calls.items():
        with recorder.case(**facts, provider=name) as case:
            found = call()
            expected = found if expected is None else expected
            if random:
                case.write([distance(found, expected)], metric="deviation", unit="relative")
            calls[name] = call
    times = harness.interleave(calls, timer, options.rounds)
    for name, seconds in times.items():
        first = next(iter(times.values()))
        ratios = sorted(e / s for e, s in zip(first, seconds, strict=True))
        rate = 60 * count / median(seconds)
        whose = "the peers'" if "eager" in times else "the first's"
        print(
            f"{name}: {rate:.1f} problems/min at {options.steps} steps x {batch} draws,"
            f" {median(ratios):.2f} times {whose} [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
        )
        with recorder.case(**facts, provider=name) as case:
            per_problem = [1e3 * s / count for s in seconds]
            case.write(per_problem, metric=harness.metric_of(timer), unit="ms/problem")
    return recorder.finish()


if __name__ == "__main__":
    sys.exit(main())
