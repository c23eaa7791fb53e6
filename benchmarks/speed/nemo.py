"""NeMo's search against its released procedure, prompt by prompt, interleaved in one run.

Both search all value layers of the embedded model for the photographs that it replicates, with the
released code's settings. Their decisions are compared before any result is written. `one by one` is
our search with one mask at a time: it needs the fewest evaluations and is the default on a CPU.
`speculative` scores up to six masks at once, the default on a GPU.

    python -m benchmarks.speed.nemo
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from time import process_time
from typing import TypeVar

import torch

import dori_fast as df
from benchmarks import harness
from benchmarks.peers.nemo import PeerSearch
from dori_fast.demo.facts import reproduced
from dori_fast.prune import NeMo, NeuronStatistics

RESULTS = harness.RESULTS / "quality" / "nemo.json"
SPECULATIVE = 6
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """Search of one prompt; seconds are CPU time of one thread."""

    prompt: str
    candidates: int
    kept: int
    same: bool
    evaluations: int
    evaluations_speculative: int
    evaluations_one_by_one: int
    evaluations_released: int
    seconds: float
    seconds_released: float


def _timed(run: Callable[[], T]) -> tuple[T, float]:
    began = process_time()
    return run(), process_time() - began


def compare(model: df.Denoiser, statistics: NeuronStatistics, prompt: str, ours_first: bool) -> Row:
    """Search one prompt by both procedures and compare their decisions."""
    nemo = NeMo(statistics, layers="all", mode="reference")
    one_by_one, speculative = (
        NeMo(statistics, layers="all", mode="reference", width=width).search(model, prompt)
        for width in (1, SPECULATIVE)
    )
    noise = torch.randn(10, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    peer = PeerSearch(
        model,
        prompt,
        nemo.layers(model),
        statistics,
        nemo.threshold,
        noise,
        model.timesteps(50)[:2],
    )
    if not ours_first:
        seconds_released = _timed(peer.run)[1]
    found, seconds = _timed(lambda: nemo.search(model, prompt))
    if ours_first:
        seconds_released = _timed(peer.run)[1]
    decisions = [(f.seeds, f.initial, f.refined) for f in (found, one_by_one, speculative, peer)]
    return Row(
        prompt,
        sum(map(len, found.initial)),
        sum(map(len, found.refined)),
        all(decision == decisions[0] for decision in decisions),
        found.evaluations,
        speculative.evaluations,
        one_by_one.evaluations,
        peer.evaluations,
        round(seconds, 3),
        round(seconds_released, 3),
    )


def main(arguments: list[str] | None = None) -> int:
    """Search, compare, and write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.nemo", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--limit", type=int, help="number of photographs; default: all")
    parser.add_argument("--no-write", action="store_true", help="do not write results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = df.load("demo", device="cpu")
    clean = [prompt for prompt, _ in df.demo.pairs("ordinary")]
    statistics = NeuronStatistics.collect(model, clean)
    prompts = [p.prompt for p in reproduced()]
    rows = []
    for prompt, ours_first in zip(
        islice(prompts, options.limit), cycle((True, False)), strict=False
    ):
        rows.append(compare(model, statistics, prompt, ours_first))
        print(rows[-1], flush=True)
    summary = {
        "prompts": len(rows),
        "same_decisions": sum(row.same for row in rows),
        "released_over_ours_evaluations": _spread(
            [row.evaluations_released / row.evaluations for row in rows]
        ),
        "released_over_speculative_evaluations": _spread(
            [row.evaluations_released / row.evaluations_speculative for row in rows]
        ),
        "speculative_over_one_by_one_evaluations": _spread(
            [row.evaluations_speculative / row.evaluations_one_by_one for row in rows]
        ),
        "released_over_ours_seconds": _spread([row.seconds_released / row.seconds for row in rows]),
        "threads": 1,
        "command": "python -m benchmarks.speed.nemo",
    }
    print(json.dumps(summary, indent=1))
    if not options.no_write:
        text = json.dumps({"summary": summary, "rows": [asdict(row) for row in rows]}, indent=1)
        Path(RESULTS).write_text(text + "\n", encoding="utf-8")
    return 0 if all(row.same for row in rows) else 1


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "least": round(min(values), 2),
        "median": round(median(values), 2),
        "most": round(max(values), 2),
    }


if __name__ == "__main__":
    sys.exit(main())
