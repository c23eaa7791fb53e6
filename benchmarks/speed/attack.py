"""Attacked images per minute, ours against the peers' procedure, interleaved in one run.

`eager` attacks the images one by one as published code does: diffusers' UNet with trainable
weights, `.backward()`, torch's Adam, and the loss fetched in every step. `dori_fast` attacks all
images in one call; `one_by_one` makes one such call per image, the baseline for batching over
images. All use the same draws. Their embeddings are compared before timing, in float64 too, since
Adam's first steps turn the rounding of a gradient near 0 into its sign.

    python -m benchmarks.speed.attack --threads 1
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import dori_fast as df
from benchmarks import harness
from dori_fast.attack.draws import Draws

# largest relative distance of embeddings that rounding can cause in a few steps, by dtype
_TOLERANCE = {"float64": 1e-9, "float32": 1e-4}


class Problems:
    """Images to attack, a model, and the peers' copy of its UNet with trainable weights."""

    def __init__(self, count: int, steps: int, batch: int, dtype: str, device: str) -> None:
        shipped = df.demo.images("memorized")[:count]
        self.prompts = [image.prompt for image in shipped]
        self.images = torch.from_numpy(np.stack([image.image for image in shipped]))
        self.model = df.load("demo", dtype=dtype, device=device)
        # fewer samples than a batch would be padded
        self.model.batch_size = min(self.model.batch_size, count * batch)
        self.alone = df.load("demo", dtype=dtype, device=device, batch_size=batch)
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
        return torch.stack([self._eager_one(p) for p in range(len(self.prompts))])

    def _eager_one(self, problem: int) -> Tensor:
        model, batch, config = self.model, self.attack.draws, self.attack.config()
        x_0 = model.latents(self.images[problem : problem + 1])
        text = model.encode(self.prompts[problem : problem + 1]).embeddings.detach()
        embedding = text.clone().requires_grad_()
        adam = torch.optim.Adam([embedding], lr=self.attack.lr)
        draws = Draws(model, [problem], config["seed"], batch)
        losses = []
        for _ in range(self.attack.steps):
            timesteps, noise = (x[0] for x in draws.take([0]))
            alpha_bar = model.alphas_cumprod[timesteps].to(x_0).view(-1, 1, 1, 1)
            x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise
            answer = self.unet(
                x_t, timesteps.to(model.device), encoder_hidden_states=embedding.repeat(batch, 1, 1)
            ).sample
            # the embedded model predicts the sample
            loss = F.mse_loss(answer, x_0.expand_as(answer))
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
    errors = [
        float(((ours - theirs).norm() / theirs.norm()).cpu())
        for ours in (problems.ours(), problems.one_by_one())
    ]
    moved = float(((theirs - start).norm() / theirs.norm()).cpu())
    print(
        f"{dtype}: embeddings {errors[0]:.1e} and, one by one, {errors[1]:.1e} from the peers',"
        f" which have moved {moved:.2f} (relative)"
    )
    if not max(errors) <= _TOLERANCE[dtype]:
        raise SystemExit("the embeddings differ from the peers'; nothing was timed")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.attack", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--problems", type=int, default=16, help="images to attack")
    parser.add_argument("--steps", type=int, default=10, help="steps of the timed attack")
    parser.add_argument("--batch", type=int, default=8, help="draws per step and image")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--no-write", action="store_true", help="do not write results")
    parser.add_argument("--results", type=Path, default=harness.RESULTS, help="folder of the CSV")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Check, time and write rows."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    for dtype in _TOLERANCE:
        check(dtype, options.problems, options.batch, options.device)
    count = options.problems
    problems = Problems(count, options.steps, options.batch, "float32", options.device)
    timer = harness.timer_for(options.device, options.threads)
    calls: dict[str, Callable[[], object]] = {
        "eager": problems.eager,
        "one_by_one": problems.one_by_one,
        "dori_fast": problems.ours,
    }
    times = harness.interleave(calls, timer, options.rounds)
    rows: list[Any] = []
    for name, seconds in times.items():
        ratios = sorted(e / s for e, s in zip(times["eager"], seconds, strict=True))
        rate = 60 * count / median(seconds)
        print(
            f"{name}: {rate:.1f} problems/min at {options.steps} steps x {options.batch} draws,"
            f" {median(ratios):.2f} times the peers' [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
        )
        rows.append(
            harness.make_row(
                [1e3 * s / count for s in seconds],
                device=options.device,
                op="attack",
                mode="dori",
                provider=name,
                metric=harness.metric_of(timer),
                unit="ms/problem",
                x=count,
                bytes=0,
                flops=0,
                shape=f"demo:{count}x{options.steps}x{options.batch}",
                dtype="float32",
                threads=options.threads,
                command=f"python -m benchmarks.speed.attack --problems {count}"
                f" --steps {options.steps} --batch {options.batch}",
            )
        )
    if not options.no_write:
        print(f"results: {harness.record(rows, options.results).name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
