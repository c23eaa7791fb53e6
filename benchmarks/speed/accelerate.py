"""A stock pipeline with and without `df.accelerate`: drawing, and Wen et al.'s scoring.

Drawing is a whole call with decoded images; both sides must return the same images. Scoring takes
the first step's norm for four images of every prompt, in three ways that must return the same
scores. The released script runs a whole call per prompt, fetches the norms one by one and discards
the images. Under `scan_steps=1` there is one call per prompt. Or one call takes all prompts from
the same latents, which share the unconditional half. The ways are interleaved. Evaluations are
rows that enter the UNet's first convolution, counted separately from the timing.

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
from torch.overrides import TorchFunctionMode

import dori_fast as df
from benchmarks import harness
from benchmarks.peak import peak_megabytes

RESULTS = harness.RESULTS / "quality" / "accelerate.json"
IMAGES, STEPS = 4, 50
# tolerance for rounding: the ways batch differently
CLOSE = {"rtol": 1e-4, "atol": 0.0}


def stock_pipeline(source: str) -> Any:
    """The pipeline of a diffusers directory, opened as in a script."""
    pipe = StableDiffusionPipeline.from_pretrained(source)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, prompt: str, latents: Tensor) -> Any:
    """Images [S, H, W, 3] of one prompt by a whole call."""
    options = {"num_images_per_prompt": len(latents), "latents": latents.clone()}
    return pipe(prompt, num_inference_steps=STEPS, output_type="np", **options).images


def released(pipe: Any, prompts: list[str], latents: Tensor) -> Tensor:
    """First-step norms [P, S] by the procedure of Wen's script, without its fork of the pipeline.

    Both norms of every image and step are fetched one by one, the whole call runs, and its images
    are decoded.
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
    """The same norms under scan_steps=1, one call per prompt."""
    scores = []
    for prompt in prompts:
        options = {"num_images_per_prompt": len(latents), "latents": latents.clone()}
        pipe(prompt, num_inference_steps=STEPS, **options)
        scores.append(pipe.noise_norms[0])
    return torch.stack(scores)


def together(pipe: Any, prompts: list[str], latents: Tensor) -> Tensor:
    """The same norms under scan_steps=1, one call for all prompts."""
    options = {
        "num_images_per_prompt": len(latents),
        "latents": latents.repeat(len(prompts), 1, 1, 1),
    }
    pipe(prompts, num_inference_steps=STEPS, **options)
    return pipe.noise_norms[0].view(len(prompts), -1)


class _Convolutions(TorchFunctionMode):
    """Counts the rows that torch convolves with one weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight, self.rows = weight, list[int]()

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.conv2d and args[1] is self.weight:
            self.rows.append(len(args[0]))
        return function(*args, **(kwargs or {}))


@contextmanager
def counted(unet: Any) -> Iterator[list[int]]:
    """Count rows of the UNet's first convolution; a hook in the UNet would switch savings off."""
    with _Convolutions(unet.conv_in.weight) as convolutions:
        yield convolutions.rows


def compare(
    unet: Any, ways: dict[str, Callable[[], Any]], prompts: int, rounds: int, timer: harness.Timer
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Results by way; and evaluations, seconds and peak memory by way."""
    results, evaluations = {}, {}
    for name, call in ways.items():
        with counted(unet) as rows:
            results[name] = call()
        evaluations[name] = sum(rows) / prompts
    samples = harness.interleave(ways, timer, rounds)
    peaks = {name: peak_megabytes(call) for name, call in ways.items()}
    first = next(iter(ways))
    figures = {
        name: {
            "evaluations_per_prompt": evaluations[name],
            "peak_megabytes": peaks[name],
            "seconds_per_prompt": median(samples[name]) / prompts,
            # a ratio per round, so that a slow moment of the machine cancels
            "times_faster": median(
                a / b for a, b in zip(samples[first], samples[name], strict=True)
            ),
        }
        for name in ways
    }
    return results, figures


def main(arguments: list[str] | None = None) -> int:
    """Draw and score in all ways, compare, and write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.accelerate", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--prompts", type=int, default=4, help="memorized prompts to score")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-write", action="store_true", help="do not write results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    prompts = [prompt for prompt, _ in df.demo.pairs("memorized")[: options.prompts]]
    stock = stock_pipeline(df.demo.path())
    # sharing the modules is safe: accelerated pipelines change them only during their own calls
    fast, scan = (StableDiffusionPipeline(**stock.components) for _ in range(2))
    for pipe in (fast, scan):
        pipe.set_progress_bar_config(disable=True)
    df.accelerate(fast)
    df.accelerate(scan, scan_steps=1)
    latents = df.load("demo", device="cpu").noise(range(IMAGES))
    timer = harness.wall_seconds

    images, drawing = compare(
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
    # the embedded model predicts the sample; the released code assumes epsilon
    kind = stock.scheduler.config.prediction_type
    alpha_bar = stock.scheduler.alphas_cumprod[scan.report.timesteps.long()].item()
    scale = (alpha_bar / (1 - alpha_bar)) ** 0.5 if kind == "sample" else 1.0
    expected = scores["released"] * scale
    same = bool(np.array_equal(*images.values())) and all(
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
