"""UNet rows of NeMo's search against its released procedure, on the embedded model.

All search the photographs that the model replicates. Rows are all rows of all batches: samples,
padding, and those of parts of the network. The released procedure pads nothing.

Part `default` searches prompt by prompt as on a CPU: one mask at a time, interleaved with the
released procedure, in its setting (all value layers), with CPU seconds of one thread. Part `gpu`
searches with batches of 64, as a GPU does: all prompts together, and the first three each by
itself; in that setting and in the paper's. There, the rows are compared with the evaluations that
the search needs, which are those of one mask at a time. A part keeps the other part's results.

    python -m benchmarks.speed.nemo
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any, TypeVar

import torch

import dori_fast as df
from benchmarks import harness
from benchmarks.peers.nemo import PeerSearch
from dori_fast.demo.facts import reproduced
from dori_fast.prune import NeMo, NeuronStatistics
from dori_fast.prune.nemo.result import Search

RESULTS = harness.RESULTS / "quality" / "nemo.json"
GPU_BATCH = 64
# prompts that the part `gpu` also searches each by itself
ALONE = 3
SETTINGS = {
    "released": {"layers": "all", "mode": "reference"},
    "paper": {"layers": "encoder", "mode": "paper"},
}
Entry = dict[str, Any]
T = TypeVar("T")


def _timed(run: Callable[[], T]) -> tuple[T, float]:
    began = process_time()
    return run(), process_time() - began


def _released(
    model: df.Denoiser, statistics: NeuronStatistics, nemo: NeMo, prompt: str
) -> PeerSearch:
    timesteps = model.timesteps(50)[:2]
    noise = torch.randn(10, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    if nemo.mode == "paper":
        noise, timesteps = model.noise(range(10)), timesteps[:1] * 2
    layers = nemo.layers(model)
    return PeerSearch(model, prompt, layers, statistics, nemo.threshold, noise, timesteps)


def decision(found: Search | PeerSearch) -> str:
    """A short hash of seeds, candidates and neurons."""
    return hashlib.sha256(repr((found.seeds, found.initial, found.refined)).encode()).hexdigest()[
        :16
    ]


def by_default(
    statistics: NeuronStatistics, prompts: Sequence[str], setting: str
) -> dict[str, Entry]:
    """Entries of each prompt from the default search on a CPU and the released procedure."""
    model = df.load("demo", device="cpu")
    nemo = NeMo(statistics, **SETTINGS[setting])
    entries = {}
    for prompt, ours_first in zip(prompts, cycle((True, False)), strict=False):
        peer = _released(model, statistics, nemo, prompt)
        if not ours_first:
            seconds_released = _timed(peer.run)[1]
        before = model.engine.rows_computed
        found, seconds = _timed(lambda prompt=prompt: nemo.search(model, prompt))
        rows = model.engine.rows_computed - before
        if ours_first:
            seconds_released = _timed(peer.run)[1]
        entries[prompt] = {
            "candidates": sum(map(len, found.initial)),
            "kept": sum(map(len, found.refined)),
            "decision": decision(found),
            "decision_released": decision(peer),
            "evaluations": found.evaluations,
            "rows": rows,
            "rows_released": peer.evaluations,
            "seconds": round(seconds, 3),
            "seconds_released": round(seconds_released, 3),
        }
        print(setting, prompt, entries[prompt], flush=True)
    return entries


def as_a_gpu(
    statistics: NeuronStatistics, prompts: Sequence[str], setting: str
) -> tuple[Entry, dict[str, Entry]]:
    """Entries of all prompts together, and of each prompt, searched with a GPU's batches."""
    model = df.load("demo", device="cpu", batch_size=GPU_BATCH)
    nemo = NeMo(statistics, **SETTINGS[setting], width=-(-GPU_BATCH // 10))
    before = model.engine.rows_computed
    found, seconds = _timed(lambda: list(nemo.searches(model, prompts)))
    together = {
        "batch_size": GPU_BATCH,
        "rows": model.engine.rows_computed - before,
        "evaluations": sum(search.evaluations for search in found),
        "seconds": round(seconds, 3),
    }
    print(setting, together, flush=True)
    entries: dict[str, Entry] = {
        prompt: {"decision_together": decision(search), "evaluations": search.evaluations}
        for prompt, search in zip(prompts, found, strict=True)
    }
    for prompt in prompts[:ALONE]:
        before = model.engine.rows_computed
        entries[prompt]["decision_alone"] = decision(nemo.search(model, prompt))
        entries[prompt]["rows_alone"] = model.engine.rows_computed - before
        print(setting, prompt, entries[prompt], flush=True)
    return together, entries


def summary(rows: Sequence[Entry], together: Entry) -> Entry:
    """Totals and spreads of one setting."""
    names = ("decision", "decision_released", "decision_together", "decision_alone")
    found: Entry = {
        "prompts": len(rows),
        "same_decisions": sum(len({row[n] for n in names if n in row}) == 1 for row in rows),
        **{f"together_{name}": value for name, value in together.items()},
        "together_rows_over_needed": round(together["rows"] / together["evaluations"], 3),
    }
    alone = [row for row in rows if "rows_alone" in row]
    found["alone_rows_over_needed"] = _ratio(alone, "rows_alone", "evaluations")
    if all("rows_released" in row for row in rows):
        for name in ("rows", "evaluations", "rows_released"):
            found[name] = sum(row[name] for row in rows)
        found["together_over_released_rows"] = round(together["rows"] / found["rows_released"], 3)
        found["alone_over_released_rows"] = _ratio(alone, "rows_alone", "rows_released")
        for name in ("evaluations", "rows", "seconds"):
            released = "seconds_released" if name == "seconds" else "rows_released"
            found[f"released_over_ours_{name}"] = _spread([r[released] / r[name] for r in rows])
    return found


def _ratio(rows: Sequence[Entry], one: str, other: str) -> float:
    return round(sum(row[one] for row in rows) / sum(row[other] for row in rows), 3)


def main(arguments: list[str] | None = None) -> int:
    """Search, compare, and write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.nemo", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--part", choices=("default", "gpu"), help="part to run; default: both")
    parser.add_argument("--limit", type=int, help="number of photographs; default: all")
    parser.add_argument("--out", type=Path, default=RESULTS, help="result file; default: this one")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    clean = [prompt for prompt, _ in df.demo.pairs("ordinary")]
    statistics = NeuronStatistics.collect(df.load("demo", device="cpu"), clean)
    prompts = [p.prompt for p in reproduced()][: options.limit]
    kept = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {}
    result: Entry = {
        "command": "python -m benchmarks.speed.nemo",
        "threads": 1,
        "machine": harness.machine_name("cpu"),
        "versions": harness.library_versions(),
    }
    same = True
    for setting in SETTINGS:
        earlier = kept.get(setting, {})
        together = earlier.get("together", {})
        rows = {row["prompt"]: row for row in earlier.get("rows", [])}
        rows = {prompt: rows.get(prompt, {"prompt": prompt}) for prompt in prompts}
        found: dict[str, Entry] = {}
        if options.part != "gpu" and setting == "released":
            found = by_default(statistics, prompts, setting)
            rows = {prompt: row | found[prompt] for prompt, row in rows.items()}
        if options.part != "default":
            together, found = as_a_gpu(statistics, prompts, setting)
            rows = {prompt: row | found[prompt] for prompt, row in rows.items()}
        result[setting] = {"together": together, "rows": list(rows.values())}
        complete = ("decision_together", "decision") if setting == "released" else ()
        if together and all(name in row for row in rows.values() for name in complete):
            total = summary(list(rows.values()), together)
            result[setting] = {"summary": total, **result[setting]}
            same = same and total["same_decisions"] == len(rows)
            print(json.dumps(total, indent=1))
        later = {name: kept[name] for name in SETTINGS if name in kept and name not in result}
        text = json.dumps(result | later, indent=1)
        options.out.write_text(text + "\n", encoding="utf-8")
    return 0 if same else 1


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "least": round(min(values), 2),
        "median": round(median(values), 2),
        "most": round(max(values), 2),
    }


if __name__ == "__main__":
    sys.exit(main())
