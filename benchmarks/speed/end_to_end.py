"""Prompts per second of a scan's scoring against the peers' procedure, interleaved in one run.

`eager` is the papers' code path. `cfg_batched` is the same, batched over prompts. `uncond_shared`
is ours without sharing inside the network. `dori_fast` is ours with defaults; the other providers
have only the named option of `df.load`, or none (`dori_fast_plain`). All score the same prompts
on the same noise, and their scores are compared before timing. With a real model's weights, other
scores are an error; with random weights their deviation is a row of its own. Each provider is
recorded once it has run, and again after all have been timed in turn.

    python -m benchmarks.speed.end_to_end --model demo
    python -m benchmarks.speed.end_to_end --model demo --providers switches
    python -m benchmarks.speed.end_to_end --model sd14 --device cuda
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
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
from benchmarks.speed.random_models import RANDOM, laid_out, pipeline_of
from dori_fast.errors import UsageError

PROMPTS = Path(df.__file__).parent / "demo" / "sample_prompts.csv"
_WAYS = ("eager", "cfg_batched", "uncond_shared", "dori_fast")
_PLAIN = {"attention": "sdpa", "compile": False, "channels_last": False, "cuda_graphs": False}
# options of df.load other than those of a plain model, by provider
_SWITCHES: dict[str, dict[str, Any]] = {
    "dori_fast_plain": {},
    "dori_fast_channels_last": {"channels_last": True},
    "dori_fast_compiled": {"compile": True},
    "dori_fast_cuda_graphs": {"cuda_graphs": True},
    "dori_fast_xformers": {"attention": "xformers"},
    "dori_fast_all": {"channels_last": True, "compile": True, "cuda_graphs": True},
}
_ONLY_ON_A_GPU = ("dori_fast_cuda_graphs", "dori_fast_xformers", "dori_fast_all")
_FIRST_LOOK = 2


@dataclass
class Work:
    """A model, its prompts and its noise; `load` loads the model again with other options."""

    model: df.Denoiser
    load: Callable[..., df.Denoiser]
    prompts: list[str]
    noise: Tensor
    timestep: int
    detector: Any
    random: bool
    _peers: tuple[Tensor, float] | None = field(default=None, init=False)

    @property
    def xl(self) -> bool:
        """Whether the model is an SDXL, which the peers' procedure does not know."""
        return hasattr(self.model.unet, "add_embedding")

    def provider(self, name: str) -> Callable[[], Tensor]:
        """A call that returns the scores [P].

        Raises:
            NotHere: the provider cannot run this model here.
        """
        job = (self.model, self.prompts, self.noise, self.timestep)
        if name in ("eager", "cfg_batched") and self.xl:
            raise harness.NotHere("the peers' procedure knows no SDXL")
        if name == "eager":
            return lambda: peers.scores(*job)[0]
        if name == "cfg_batched":
            return lambda: peers.scores_in_batches(*job, self.model.batch_size)
        model = self.model
        if name != "dori_fast":
            options = {"share": False} if name == "uncond_shared" else _PLAIN | _SWITCHES[name]
            try:
                model = self.load(**options)
            except UsageError as error:
                raise harness.NotHere(str(error)) from error
        return lambda: self.detector.score(model, self.prompts)

    @property
    def expected(self) -> tuple[Tensor, float]:
        """Scores [P] to compare with, and the mean norm of an unconditional prediction.

        They are the peers', or those of the network's own forward where the peers have none.
        """
        if self._peers is None and self.xl:
            eps = self.model.epsilon(self.model.unconditional, self.noise, self.timestep)[0]
            scores = self.detector.score(self.load(share=False), self.prompts)
            self._peers = scores, float(eps.float().flatten(1).norm(dim=1).mean())
        elif self._peers is None:
            self._peers = peers.scores(self.model, self.prompts, self.noise, self.timestep)
        return self._peers


def sample_prompts(n: int) -> list[str]:
    """The first n distinct prompts of the shipped sample; empty ones are left out: they score 0."""
    with PROMPTS.open(newline="", encoding="utf-8") as file:
        prompts = dict.fromkeys(row["prompt"] for row in csv.DictReader(file) if row["prompt"])
    return list(prompts)[:n]


def prepare(options: argparse.Namespace) -> Work:
    """Load the model; random weights are shared between loads with the same memory layout."""
    source: Any = options.model
    how = {"device": options.device, "dtype": options.dtype, "batch_size": options.batch_size}
    if source in RANDOM:
        source = pipeline_of(source, getattr(torch, options.dtype), options.device)

    def load(**switches: Any) -> df.Denoiser:
        return df.load(
            source if isinstance(source, str) else laid_out(source, switches), **switches, **how
        )

    model = load()
    return Work(
        model=model,
        load=load,
        prompts=sample_prompts(options.prompts),
        noise=model.noise(range(options.seeds)),
        timestep=model.timesteps(50)[0],
        detector=df.detect.Wen(seeds=options.seeds),
        random=options.model in RANDOM,
    )


def deviation(work: Work, name: str, scores: Tensor) -> float:
    """Largest difference from the expected scores, relative to the norm of a prediction.

    Rounding in the network makes the difference of two predictions noisy relative to their norm,
    not to the score: by a few units of precision in a half type. In float32, scores agree to 1e-5,
    or to a tenth of a unit of the norm where a score is a thousandth of the norm.

    Raises:
        ValueError: the scores of real weights differ by more.
    """
    expected, eps_norm = work.expected
    units = 4 if work.model.dtype in (torch.float16, torch.bfloat16) else 0.1
    noise = units * torch.finfo(work.model.dtype).eps * eps_norm
    error = (scores - expected).abs()
    print(
        f"{name}: scores {error.max():.1e} from the expected at most"
        f" ({(error / expected).max():.1e} relative; norm of a prediction {eps_norm:.1f})"
    )
    if not work.random and not bool((error <= 1e-5 * expected + noise).all()):
        raise ValueError(f"{name} computes other scores; it was not timed")
    return float(error.max()) / eps_norm


def flops_per_prompt(work: Work) -> int:
    """Operations per prompt of ours, without padding: the fewest that give these scores."""
    batch, work.model.batch_size = work.model.batch_size, work.noise.shape[0]
    with FlopCounterMode(display=False) as counter:
        work.detector.score(work.model, work.prompts)
    work.model.batch_size = batch
    return int(counter.get_total_flops()) // len(work.prompts)


def describe(times: dict[str, list[float]], prompts: int, flops: int, rate: float) -> None:
    """Print each provider's rate, and its speed-up over the first."""
    first = next(iter(times.values()))
    for name, seconds in times.items():
        ratios = sorted(e / s for e, s in zip(first, seconds, strict=True))
        per_second = prompts / median(seconds)
        print(
            f"{name}: {per_second:.1f} prompts/s, {median(ratios):.2f} times the first's"
            f" [{ratios[0]:.2f}, {ratios[-1]:.2f}]; {flops * per_second / 1e12:.3g} useful TFLOP/s,"
            f" {100 * flops * per_second / rate:.1f} % of a matrix product's {rate / 1e12:.3g}"
        )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.end_to_end", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", default="demo", help=f"demo, {', '.join(RANDOM)} or a directory")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
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
    harness.add_options(parser)
    options = parser.parse_args(arguments)
    options.dtype = options.dtype or ("float16" if options.device == "cuda" else "float32")
    options.batch_size = options.batch_size or "auto"
    if "switches" in options.providers:
        options.providers = ["dori_fast", *_SWITCHES]
        if options.device != "cuda":
            options.providers = [n for n in options.providers if n not in _ONLY_ON_A_GPU]
    return options


def main(arguments: list[str] | None = None) -> int:
    """Check, time and write rows."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    work = prepare(options)
    flops, count = flops_per_prompt(work), len(work.prompts)
    ceilings = Ceilings(options.device, harness.timer_for(options.device, options.threads))
    rate = ceilings.rate(work.model.dtype)
    of_batch = "" if options.batch_size == "auto" else f"_batch_{options.batch_size}"
    recorder = harness.Recorder.of(
        options,
        f"python -m benchmarks.speed.end_to_end --model {options.model}"
        f" --prompts {options.prompts} --providers {' '.join(options.providers)}"
        + (f" --batch-size {options.batch_size}" if of_batch else ""),
    )
    facts = {
        "op": "scan",
        "mode": f"wen_step_1{of_batch}",
        "x": count,
        "shape": f"{options.model}:{count}x{options.seeds}",
        "dtype": options.dtype,
    }

    def write(case: harness.Case, seconds: list[float]) -> None:
        case.write(
            [1e3 * s / count for s in seconds],
            metric=harness.metric_of(ceilings.timer),
            unit="ms/prompt",
            flops=flops,
            roofline_pct=round(100 * flops / rate / (median(seconds) / count), 1),
        )

    calls: dict[str, Callable[[], object]] = {}
    for name in dict.fromkeys(options.providers):
        with recorder.case(**facts, provider=name) as case:
            call = work.provider(name)
            far = deviation(work, name, call())
            if work.random:
                case.write([far], metric="deviation", unit="of the norm")
            write(case, harness.interleave({name: call}, ceilings.timer, _FIRST_LOOK)[name])
            calls[name] = call
    if calls:
        times = harness.interleave(calls, ceilings.timer, options.rounds)
        describe(times, count, flops, rate)
        for name, seconds in times.items():
            with recorder.case(**facts, provider=name) as case:
                write(case, seconds)
    return recorder.finish()


if __name__ == "__main__":
    sys.exit(main())
