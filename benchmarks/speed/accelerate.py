"""A stock pipeline against the same under `df.accelerate`: drawing, and scoring as Wen et al. do.

Drawing is a whole call, pictures decoded; both must give the same pictures. Scoring is the first
step's norm for four images of every prompt: as the released script has it, a whole call per prompt
with the norms taken one by one and the pictures thrown away; under `scan_steps=1`, a call per
prompt; and all prompts in one call from the same latents, which share the unconditional half. The
three must give the same scores. Ways are interleaved; evaluations are rows that enter the UNet's
first convolution, counted apart from the clock.

    python -m benchmarks.speed.accelerate
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

import dori_fast as df
from benchmarks import harness
from benchmarks.peak import peak_megabytes

RESULTS = harness.RESULTS / "quality" / "accelerate.json"
IMAGES, STEPS = 4, 50
# the scores of ways that batch differently agree but for rounding
CLOSE = {"rtol": 1e-4, "atol": 0.0}


def stock_pipeline(source: str) -> Any:
    """The pipeline of a diffusers directory, as a script would open it."""
    pipe = StableDiffusionPipeline.from_pretrained(source)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, prompt: str, latents: Tensor) -> Any:
    """Pictures [S, H, W, 3] of one prompt by a whole call."""
    options = {"num_images_per_prompt": len(latents), "latents": latents.clone()}
    return pipe(prompt, num_inference_steps=STEPS, output_type="np", **options).images


def released(pipe: Any, prompts: list[str], latents: Tensor) -> Tensor:
    """First-step norms [P, S] as Wen's script takes them, but for its fork of the pipeline.

    Both kinds of norm of every image and step are moved to the host one by one, the whole call
    runs, and its pictures are decoded.
    """
    found: list[list[float]] = []

    def track(module: Any, args: Any, output: Any) -> None:
        without, text = output[0].chunk(2)
        for row in range(len(text)):
            text_norm = (text[row] - without[row]).norm(p=2).item()
            without[row].norm(p=2).item()
            found.append([text_norm])

    handle = pipe.unet.register_forward_hook(track)
    scores = []
    for prompt in prompts:
        found.clear()
        options = {"num_images_per_prompt": len(latents), "latents": latents.clone()}
        pipe(prompt, num_inference_steps=STEPS, output_type="pil", **options)
        scores.append([norm[0] for norm in found[: len(latents)]])
    handle.remove()
    return torch.tensor(scores)


def one_by_one(pipe: Any, prompts: list[str], latents: Tensor) -> Tensor:
    """The same under scan_steps=1, a call per prompt."""
    scores = []
    for prompt in prompts:
        options = {"num_images_per_prompt": len(latents), "latents": latents.clone()}
        pipe(prompt, num_inference_steps=STEPS, **options)
        scores.append(pipe.noise_norms[0])
    return torch.stack(scores)


def together(pipe: Any, prompts: list[str], latents: Tensor) -> Tensor:
    """The same under scan_steps=1, one call."""
    options = {
        "num_images_per_prompt": len(latents),
        "latents": latents.repeat(len(prompts), 1, 1, 1),
    }
    pipe(prompts, num_inference_steps=STEPS, **options)
    return pipe.noise_norms[0].view(len(prompts), -1)


@contextmanager
def counted(unet: Any) -> Iterator[list[int]]:
    """Rows of every run of the UNet's first convolution; a hook would switch savings off."""
    rows: list[int] = []
    forward = unet.conv_in.forward

    def counting(x: Tensor) -> Tensor:
        rows.append(len(x))
        return forward(x)

    unet.conv_in.forward = counting
    try:
        yield rows
    finally:
        del unet.conv_in.forward


def compare(
    unet: Any, ways: dict[str, Callable[[], Any]], prompts: int, rounds: int, timer: harness.Timer
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What each way answers, its evaluations and seconds per prompt, and its memory."""
    answers, evaluations = {}, {}
    for name, call in ways.items():
        with counted(unet) as rows:
            answers[name] = call()
        evaluations[name] = sum(rows) / prompts
    samples = harness.interleave(ways, timer, rounds)
    peaks = {name: peak_megabytes(call) for name, call in ways.items()}
    first = next(iter(ways))
    figures = {
        name: {
            "evaluations_per_prompt": evaluations[name],
            "peak_megabytes": peaks[name],
            "seconds_per_prompt": median(samples[name]) / prompts,
            # each round's own ratio, so that a slow moment of the machine falls out
            "times_faster": median(
                a / b for a, b in zip(samples[first], samples[name], strict=True)
            ),
        }
        for name in ways
    }
    return answers, figures


def main(arguments: list[str] | None = None) -> int:
    """Draw and score both ways, compare, record."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.accelerate", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--prompts", type=int, default=4, help="memorized prompts to score")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-write", action="store_true", help="leave the results alone")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    prompts = [prompt for prompt, _ in df.demo.pairs("memorized")[: options.prompts]]
    stock = stock_pipeline(df.demo.path())
    # the same modules: they are touched within the accelerated pipelines' own calls alone
    fast, scan = (StableDiffusionPipeline(**stock.components) for _ in range(2))
    for pipe in (fast, scan):
        pipe.set_progress_bar_config(disable=True)
    df.accelerate(fast)
    df.accelerate(scan, scan_steps=1)
    latents = df.load("demo", device="cpu").noise(range(IMAGES))
    timer = harness.wall_seconds

    pictures, drawing = compare(
        stock.unet,
        {
            "stock": lambda: draw(stock, prompts[0], latents),
            "accelerated": lambda: draw(fast, prompts[0], latents),
        },
        1,
        options.rounds,
        timer,
    )
    scores, scoring = compare(
        stock.unet,
        {
            "released": lambda: released(stock, prompts, latents),
            "scan, one by one": lambda: one_by_one(scan, prompts, latents),
            "scan, together": lambda: together(scan, prompts, latents),
        },
        len(prompts),
        options.rounds,
        timer,
    )
    # the embedded model answers the sample; the released code knows noise alone
    kind = stock.scheduler.config.prediction_type
    alpha_bar = stock.scheduler.alphas_cumprod[scan.report.timesteps.long()].item()
    scale = (alpha_bar / (1 - alpha_bar)) ** 0.5 if kind == "sample" else 1.0
    expected = scores["released"] * scale
    same = bool(np.array_equal(*pictures.values())) and all(
        torch.allclose(scores[name], expected, **CLOSE) for name in scores if name != "released"
    )
    result = {
        "machine": harness.machine_name("cpu"),
        "versions": harness.library_versions(),
        "threads": 1,
        "command": f"python -m benchmarks.speed.accelerate --prompts {len(prompts)}"
        f" --rounds {options.rounds}",
        "model": "demo",
        "images_per_prompt": IMAGES,
        "steps": STEPS,
        "same_answers": same,
        "drawing": drawing,
        "scoring": scoring,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if not options.no_write:
        RESULTS.write_text(text + "\n", encoding="utf-8")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
