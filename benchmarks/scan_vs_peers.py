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
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import dori_fast as df
from benchmarks.harness import cpu_seconds, interleave, make_row, record

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


def sample_prompts(n: int) -> list[str]:
    """The first n distinct prompts of the shipped sample; none is empty, whose score is 0."""
    with LIST.open(newline="", encoding="utf-8") as file:
        prompts = dict.fromkeys(row["prompt"] for row in csv.DictReader(file) if row["prompt"])
    return list(prompts)[:n]


def check(providers: dict[str, Callable[[], Tensor]]) -> None:
    """Refuse to time what does not compute the peers' scores."""
    expected = providers["eager"]()
    for name, run in providers.items():
        error = float(((run() - expected).abs() / expected).max())
        print(f"{name}: largest relative difference to the peers' scores {error:.1e}")
        if error > 1e-5:
            raise SystemExit(f"{name} computes other scores; nothing was timed")


def main() -> None:
    """Check, time and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)

    prompts = [prompt for prompt in sample_prompts(options.prompts + 1) if prompt][
        : options.prompts
    ]
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
    check(providers)
    with FlopCounterMode(display=False) as counter:
        providers["dori_fast"]()
    flops = counter.get_total_flops() // len(prompts)

    timed: dict[str, Callable[[], object]] = dict(providers)
    times = interleave(timed, cpu_seconds, options.rounds)
    for name, seconds in times.items():
        ratios = sorted(e / s for e, s in zip(times["eager"], seconds, strict=True))
        print(
            f"{name}: {len(prompts) / median(seconds):.1f} prompts per CPU second,"
            f" {median(ratios):.2f} times the peers' [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
        )
    shape = f"{options.model}:{len(prompts)}x{options.seeds}"
    rows = [
        make_row(
            [1e3 * s / len(prompts) for s in seconds],
            op="scan",
            mode="wen_step_1",
            provider=name,
            metric="cpu_time",
            unit="ms/prompt",
            x=len(prompts),
            bytes=0,
            flops=flops,
            shape=shape,
            dtype="float32",
            threads=1,
            repro_cmd="python -m benchmarks.scan_vs_peers",
        )
        for name, seconds in times.items()
    ]
    print(f"results: {record(rows).name}")


if __name__ == "__main__":
    main()
