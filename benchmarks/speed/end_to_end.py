"""Prompts per second of a scan's scoring against the peers' procedure, interleaved in one run.

`eager` is the papers' code path. `cfg_batched` is the same, batched over prompts. `uncond_shared`
is ours without sharing inside the network. `dori_fast` is ours with defaults; the other providers
have only the named switch of `df.load` on, or none (`dori_fast_plain`). All score the same prompts
on the same noise, and their scores are compared before timing.

    python -m benchmarks.speed.end_to_end --model demo
    python -m benchmarks.speed.end_to_end --model demo --providers switches
    python -m benchmarks.speed.end_to_end --model sd14 --device cuda
"""

from __future__ import annotations

import argparse
import copy
import csv
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import dori_fast as df
from benchmarks import harness
from benchmarks.ceilings import Ceilings
from benchmarks.peers import wen as peers

PROMPTS = Path(df.__file__).parent / "demo" / "sample_prompts.csv"
# sd14: the real architecture with random weights; sd14-narrow: the same layers, narrow
_RANDOM = {
    "sd14": {},
    "sd14-narrow": {"unet_width": 32, "latent_side": 16, "text_layers": 1},
}
_WAYS = ("eager", "cfg_batched", "uncond_shared", "dori_fast")
# switch that is on, by provider
_SWITCHES = {
    "dori_fast_plain": None,
    "dori_fast_channels_last": "channels_last",
    "dori_fast_compiled": "compile",
    "dori_fast_cuda_graphs": "cuda_graphs",
}


@dataclass(frozen=True)
class Work:
    """A model, its prompts and its noise; `load` loads the model again with other options."""

    model: df.Denoiser
    load: Callable[..., df.Denoiser]
    prompts: list[str]
    noise: Tensor
    timestep: int
    detector: Any

    def providers(self, names: list[str]) -> dict[str, Callable[[], Tensor]]:
        """Calls that return the scores [P], by provider."""
        job = (self.model, self.prompts, self.noise, self.timestep)

        def ours(model: df.Denoiser) -> Callable[[], Tensor]:
            return lambda: self.detector.score(model, self.prompts)

        found: dict[str, Callable[[], Tensor]] = {"eager": lambda: peers.scores(*job)[0]}
        if "cfg_batched" in names:
            found["cfg_batched"] = lambda: peers.scores_in_batches(*job, self.model.batch_size)
        if "uncond_shared" in names:
            found["uncond_shared"] = ours(self.load(share=False))
        if "dori_fast" in names:
            found["dori_fast"] = ours(self.model)
        for name, on in _SWITCHES.items():
            if name in names:
                switches = {switch: switch == on for switch in filter(None, _SWITCHES.values())}
                found[name] = ours(self.load(**switches))
        return found


def sample_prompts(n: int) -> list[str]:
    """The first n distinct prompts of the shipped sample; empty ones are left out: they score 0."""
    with PROMPTS.open(newline="", encoding="utf-8") as file:
        prompts = dict.fromkeys(row["prompt"] for row in csv.DictReader(file) if row["prompt"])
    return list(prompts)[:n]


def prepare(options: argparse.Namespace) -> Work:
    """Load the model; random weights are shared between loads with the same memory layout."""
    source: Any = options.model
    how = {"device": options.device, "dtype": options.dtype, "batch_size": options.batch_size}
    if source in _RANDOM:
        from benchmarks.speed.sd14 import random_pipeline

        dtype = getattr(torch, options.dtype)
        source = random_pipeline(dtype, options.device, **_RANDOM[source])

    def load(**switches: bool) -> df.Denoiser:
        laid_out = source
        if switches.get("channels_last") and not isinstance(source, str):
            laid_out = copy.copy(source)
            laid_out.unet = copy.deepcopy(source.unet).to(memory_format=torch.channels_last)
        return df.load(laid_out, **switches, **how)

    model = load()
    return Work(
        model=model,
        load=load,
        prompts=sample_prompts(options.prompts),
        noise=model.noise(range(options.seeds)),
        timestep=model.timesteps(50)[0],
        detector=df.detect.Wen(seeds=options.seeds),
    )


def check(work: Work, providers: dict[str, Callable[[], Tensor]]) -> None:
    """Compare every provider's scores with the peers'.

    Rounding in the network makes the difference of two predictions noisy relative to their norm,
    not to the score: by a few units of precision in a half type. In float32, scores agree to 1e-5,
    or to a tenth of a unit of the norm where a score is a thousandth of the norm.

    Raises:
        SystemExit: a provider's scores differ by more.
    """
    expected, eps_norm = peers.scores(work.model, work.prompts, work.noise, work.timestep)
    units = 4 if work.model.dtype in (torch.float16, torch.bfloat16) else 0.1
    noise = units * torch.finfo(work.model.dtype).eps * eps_norm
    for name, run in providers.items():
        error = (run() - expected).abs()
        print(
            f"{name}: scores {error.max():.1e} from the peers' at most"
            f" ({(error / expected).max():.1e} relative; norm of a prediction {eps_norm:.1f})"
        )
        if not bool((error <= 1e-5 * expected + noise).all()):
            raise SystemExit(f"{name} computes other scores; nothing was timed")


def flops_per_prompt(work: Work) -> int:
    """Operations per prompt of ours, without padding: the fewest that give these scores."""
    batch, work.model.batch_size = work.model.batch_size, work.noise.shape[0]
    with FlopCounterMode(display=False) as counter:
        work.detector.score(work.model, work.prompts)
    work.model.batch_size = batch
    return int(counter.get_total_flops()) // len(work.prompts)


def describe(times: dict[str, list[float]], prompts: int, flops: int, rate: float) -> None:
    """Print each provider's rate and speed-up."""
    for name, seconds in times.items():
        ratios = sorted(e / s for e, s in zip(times["eager"], seconds, strict=True))
        per_second = prompts / median(seconds)
        print(
            f"{name}: {per_second:.1f} prompts/s, {median(ratios):.2f} times the peers'"
            f" [{ratios[0]:.2f}, {ratios[-1]:.2f}]; {flops * per_second / 1e12:.3g} useful TFLOP/s,"
            f" {100 * flops * per_second / rate:.1f} % of a matrix product's {rate / 1e12:.3g}"
        )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.end_to_end", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", default="demo", help="demo, sd14, sd14-narrow or a directory")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", help="default: float16 on a GPU, float32 on a CPU")
    parser.add_argument(
        "--providers",
        nargs="+",
        choices=(*_WAYS, *_SWITCHES, "switches"),
        default=list(_WAYS),
        metavar="NAME",
        help=f"providers: {', '.join((*_WAYS, *_SWITCHES))}; or switches: dori_fast and all"
        " switches that run on the device",
    )
    parser.add_argument("--batch-size", type=int, help="UNet samples; default: the model's")
    parser.add_argument("--no-write", action="store_true", help="do not write results")
    parser.add_argument("--results", type=Path, default=harness.RESULTS, help="folder of the CSV")
    options = parser.parse_args(arguments)
    options.dtype = options.dtype or ("float16" if options.device == "cuda" else "float32")
    options.batch_size = options.batch_size or "auto"
    if "switches" in options.providers:
        options.providers += ["dori_fast", *_SWITCHES]
        if options.device != "cuda":
            options.providers.remove("dori_fast_cuda_graphs")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Check, time and write rows."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    work = prepare(options)
    providers = work.providers(options.providers)
    check(work, providers)
    flops, count = flops_per_prompt(work), len(work.prompts)
    ceilings = Ceilings(options.device, harness.timer_for(options.device, options.threads))
    rate = ceilings.rate(work.model.dtype)
    timed: dict[str, Callable[[], object]] = dict(providers)
    times = harness.interleave(timed, ceilings.timer, options.rounds)
    describe(times, count, flops, rate)
    of_batch = "" if options.batch_size == "auto" else f"_batch_{options.batch_size}"
    rows = [
        harness.make_row(
            [1e3 * s / count for s in seconds],
            device=options.device,
            op="scan",
            mode=f"wen_step_1{of_batch}",
            provider=name,
            metric=harness.metric_of(ceilings.timer),
            unit="ms/prompt",
            x=count,
            bytes=0,
            flops=flops,
            roofline_pct=round(100 * flops / rate / (median(seconds) / count), 1),
            shape=f"{options.model}:{count}x{options.seeds}",
            dtype=options.dtype,
            threads=options.threads,
            command=f"python -m benchmarks.speed.end_to_end --model {options.model}"
            f" --prompts {options.prompts} --providers {' '.join(options.providers)}"
            + (f" --batch-size {options.batch_size}" if of_batch else ""),
        )
        for name, seconds in times.items()
    ]
    if not options.no_write:
        print(f"results: {harness.record(rows, options.results).name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
