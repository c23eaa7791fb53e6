"""Prompts per CPU second of the scan's scoring against the peers' way, interleaved in one run.

The peers' way, as in the released code of Wen et al. (detect_mem.py, local_sd_pipeline.py), cut to
the first step: one prompt at a time; the empty prompt encoded anew with it; conditional and
unconditional halves of all seeds in one batch through diffusers' UNet; each norm fetched with
.item(). Both sides score the same prompts on the same noise, and their scores are compared before
anything is timed.

    python -m benchmarks.scan_vs_peers [--model demo] [--prompts 64] [--seeds 4] [--rounds 7]
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import dori_fast as df
from benchmarks.harness import Row, record

LIST = Path(df.__file__).parent / "demo" / "sample_prompts.csv"


def peers_scores(model: df.Denoiser, prompts: list[str], noise: Tensor, timestep: int) -> Tensor:
    """Scores [P] as the peers compute them: nothing shared, nothing batched over prompts."""
    images = noise.shape[0]
    scores = []
    with torch.no_grad():
        for prompt in prompts:
            embeddings = []
            for text in ("", prompt):
                ids = model.tokenizer(
                    text,
                    padding="max_length",
                    max_length=model.tokenizer.model_max_length,
                    truncation=True,
                    return_tensors="pt",
                ).input_ids
                embeddings.append(model.text_encoder(ids)[0].repeat(images, 1, 1))
            latents = torch.cat([noise] * 2)
            output = model.unet(
                latents, torch.tensor(timestep), encoder_hidden_states=torch.cat(embeddings)
            ).sample
            eps = model.schedule.epsilon(output, latents, timestep)
            eps_uncond, eps_text = eps.chunk(2)
            text_norms = [(eps_text[i] - eps_uncond[i]).norm(p=2).item() for i in range(images)]
            _uncond_norms = [eps_uncond[i].norm(p=2).item() for i in range(images)]
            scores.append(sum(text_norms) / images)
    return torch.tensor(scores)


def cpu_seconds(run: Callable[[], Tensor]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)

    with LIST.open(newline="", encoding="utf-8") as file:
        prompts = [row["prompt"] for row in csv.DictReader(file)]
    prompts = list(dict.fromkeys(prompts))[: options.prompts]
    model = df.load(options.model, device="cpu", dtype="float32")
    plain = df.load(options.model, device="cpu", dtype="float32", share=False)
    detector = df.detect.Wen(seeds=options.seeds)
    timestep = model.timesteps(50)[0]
    noise = model.noise(range(options.seeds))

    providers: dict[str, Callable[[], Tensor]] = {
        "eager": lambda: peers_scores(model, prompts, noise, timestep),
        # unconditional predictions shared, the network called whole
        "uncond_shared": lambda: detector.score(plain, prompts),
        "dori_fast": lambda: detector.score(model, prompts),
    }
    expected = providers["eager"]()
    for name, run in providers.items():
        error = float(((run() - expected).abs() / expected).max())
        print(f"{name}: largest relative difference to the peers' scores {error:.1e}")
        if error > 1e-5:
            raise SystemExit(f"{name} computes other scores; nothing was timed")

    times: dict[str, list[float]] = {name: [] for name in providers}
    for _ in range(options.rounds):
        for name, run in providers.items():
            times[name].append(cpu_seconds(run))
    for name, seconds in times.items():
        ratios = [e / s for e, s in zip(times["eager"], seconds, strict=True)]
        ratios.sort()
        middle = ratios[len(ratios) // 2]
        best = len(prompts) / min(seconds)
        print(
            f"{name}: {best:.1f} prompts per CPU second (best round), {middle:.2f} times the peers'"
            f" [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
        )
