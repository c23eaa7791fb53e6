"""Savings and misses of a cascade on the embedded model, against the full test and the peers.

Prompts are captions and variants of them ("photo of ... 2015"). Clean ones come from sample
captions, memorized ones from images that the model replicates. Half of the captions calibrate; the
other half and all its variants are scanned. Speed is measured on a list with 1 % memorized
variants, and the share kept on all memorized variants of the unseen half. Variants of a caption are
similar, so the interval of this share is narrower than for unrelated captions. Rows are all rows of
all batches: samples, padding, and those of parts of the network.

    python -m benchmarks.speed.cascade
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

import dori_fast as df
from benchmarks import harness
from benchmarks.peers import wen as peers
from benchmarks.speed.end_to_end import PROMPTS
from dori_fast.demo.facts import reproduced
from dori_fast.evaluate import Interval
from dori_fast.evaluate.futility import futility_bound
from dori_fast.evaluate.rates import clopper_pearson
from dori_fast.runs.calibrate import calibrate
from dori_fast.runs.scoring.decision import Decision

RESULTS = harness.RESULTS / "quality" / "cascade.json"
SEEDS, PEER_PROMPTS, MEMORIZED_SHARE = 4, 32, 0.01
_BEFORE = ("", "a ", "the ", "photo of ", "a picture of ", "one ", "my ", "old ", "new ", "best ")
_AFTER = ("", " 2015", " #3", " | 10", " photo", " !", " ...", " .", " - 24", " ?")


def variants(captions: list[str]) -> list[str]:
    """Each caption with every prefix and suffix."""
    return [f"{a}{c}{b}" for c, a, b in product(captions, _BEFORE, _AFTER)]


def halves(captions: list[str]) -> tuple[list[str], list[str]]:
    """Even and odd captions."""
    return captions[::2], captions[1::2]


def clean_captions() -> list[str]:
    """Distinct sample captions that are not memorized."""
    with PROMPTS.open(newline="", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["kind"] != "memorized" and r["prompt"]]
    return list(dict.fromkeys(row["prompt"] for row in rows))


def kept(positive: torch.Tensor, used: torch.Tensor) -> Interval:
    """Share of the full test's positives that the cascade scored with every seed."""
    hits = int((positive & (used == SEEDS)).sum())
    return clopper_pearson(hits, int(positive.sum()))


def as_a_gpu(prompts: list[str], cascade: df.detect.Cascade) -> float:
    """UNet rows per prompt, padding included, in batches of 64 and blocks of 512 prompts."""
    model = df.load("demo", device="cpu", batch_size=64)
    blocks = [prompts[start : start + 512] for start in range(0, len(prompts), 512)]
    for _ in cascade.stream(model, blocks):
        pass
    return model.engine.rows_computed / len(prompts)


def main(arguments: list[str] | None = None) -> int:
    """Calibrate, check, time, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.cascade")
    parser.add_argument("--keep", type=float, default=0.99, help="share of positives to keep")
    parser.add_argument("--fpr", type=float, default=0.01, help="false-positive rate")
    parser.add_argument("--prompts", type=int, default=2000, help="length of the timed list")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = df.load("demo", device="cpu")
    often = [p.prompt for p in reproduced()]
    clean, memorized = halves(clean_captions()), halves(often)
    full = df.detect.Wen(seeds=SEEDS)
    with TemporaryDirectory() as folder:
        record = calibrate(
            model,
            variants(clean[0])[::7],
            out=Path(folder) / "calibration.json",
            suspicious=variants(memorized[0]),
        )
    decision = Decision(record, options.fpr)
    bound = futility_bound(record.suspicious, decision.threshold, options.keep)
    cascade = df.detect.Cascade(full, bound)

    unseen = variants(memorized[1])
    positive = full.score(model, unseen) > decision.threshold
    share = kept(positive, cascade.scores(model, unseen).used)
    count = round(options.prompts * MEMORIZED_SHARE)
    prompts = variants(clean[1])[:: len(variants(clean[1])) // (options.prompts - count)]
    prompts = prompts[: options.prompts - count] + unseen[:: len(unseen) // count][:count]

    before = model.engine.evaluations, model.engine.rows_computed
    cascade.scores(model, prompts)
    evaluations = (model.engine.evaluations - before[0]) / len(prompts)
    rows = (model.engine.rows_computed - before[1]) / len(prompts)
    padded = as_a_gpu(prompts, cascade)
    noise, timestep = model.noise(range(SEEDS)), model.timesteps(50)[0]
    few = prompts[:: len(prompts) // PEER_PROMPTS][:PEER_PROMPTS]
    ways = {
        "eager": (lambda: peers.scores(model, few, noise, timestep), len(few)),
        "exact": (lambda: full.score(model, prompts), len(prompts)),
        "cascade": (lambda: cascade.scores(model, prompts), len(prompts)),
    }
    times = harness.interleave(
        {name: call for name, (call, _) in ways.items()}, harness.cpu_seconds, options.rounds
    )
    rate = {name: ways[name][1] / median(seconds) for name, seconds in times.items()}
    result = {
        "machine": harness.machine_name("cpu"),
        "versions": harness.library_versions(),
        "command": f"python -m benchmarks.speed.cascade --keep {options.keep} --fpr {options.fpr}",
        "rounds": options.rounds,
        "clean_calibration": len(record.scores),
        "memorized_calibration": len(record.suspicious),
        "threshold": decision.threshold,
        "futility_bound": bound,
        "unseen_memorized_flagged_by_full_test": int(positive.sum()),
        "kept": [share.value, share.low, share.high],
        "prompts": len(prompts),
        "memorized_share": count / len(prompts),
        "evaluations_per_prompt": evaluations,
        "rows_per_prompt": rows,
        "rows_per_prompt_in_batches_of_64": padded,
        "prompts_per_cpu_second": rate,
        "cascade_vs_eager": rate["cascade"] / rate["eager"],
        "cascade_vs_exact": rate["cascade"] / rate["exact"],
    }
    text = json.dumps(result, indent=1)
    RESULTS.write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
