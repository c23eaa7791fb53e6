"""Peers' released functions before and after `df.patch`, in turn, one process per peer.

    python -m benchmarks.speed.drop_in --peers DIR

DIR holds checkouts named wen, nemo, sail and unlearndiffatk. Each peer has a row for its unmodified
script (`benchmarks/peers/scripts.py`), if the script's imports are installed, and rows for its
functions. Models are the embedded one (Wen) and random UNets in SD 1.x's layout. On a CPU both
sides get the same substitutes: `Tensor.cuda` does nothing (NeMo), and attention is unfused while it
is differentiated (SAIL), as in the released code on a GPU. Released functions that no longer import
are called with `df.patch`'s import shims in place (Wen). Seconds are CPU time of one thread. Memory
is the peak of a call's tensors.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from math import isclose
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any
from unittest.mock import patch as replaced

import torch
from torch import Tensor

import dori_fast as df
from benchmarks import harness
from benchmarks.peak import peak_megabytes
from benchmarks.peers import scripts as peer_scripts
from benchmarks.peers import unlearning as peer_unlearning
from benchmarks.peers.models import base, checkout, sd_unet, unfused

RESULTS = harness.RESULTS / "quality" / "drop_in.json"
PROMPT = "a photo of a key"
ROUNDS = 3
# memory is recorded for one round in a process of its own: recording grows the allocator, and code
# that allocates much then runs faster than in a script
MEMORY = False
# tolerance of SAIL's float32 scores, whose derivatives are summed in another order
SAME_SCORE = 1e-5
# relative tolerance of Wen's embeddings and gradients, whose batches have another size
SAME_SLOPE = 1e-5


class Counter:
    """Counts UNet samples and CPU seconds of calls."""

    def __init__(self, unet: Any) -> None:
        self.samples, self._unet = 0, unet

    def run(self, call: Callable[[], Any]) -> tuple[Any, int, float]:
        # replaced in the class: a hook on the UNet itself would change what the patch does
        kind, before, began = type(self._unet), self.samples, 0.0
        forward = kind.forward

        def counted(unet: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
            self.samples += len(sample)
            return forward(unet, sample, *args, **kwargs)

        with replaced.object(kind, "forward", counted):
            began = process_time()
            result = call()
        return result, self.samples - before, process_time() - began


def compare(unet: Any, released: Callable[[], Any], ours: Callable[[], Any]) -> dict[str, Any]:
    """Run both in turn: results, samples, and the median ratio of seconds or the peak memory."""
    ratios, counter = [], Counter(unet)
    for _ in range(ROUNDS):
        theirs = counter.run(released)
        mine = counter.run(ours)
        ratios.append(theirs[2] / mine[2])
    found = {
        "released": theirs[0],
        "ours": mine[0],
        "released_samples": theirs[1],
        "ours_samples": mine[1],
        "released_over_ours_seconds": round(median(ratios), 2),
    }
    if MEMORY:
        found[PEAKS[0]], found[PEAKS[1]] = peak_megabytes(released), peak_megabytes(ours)
    return found


def wen(folder: Path) -> dict[str, Any]:
    """One prompt, four images: 50 steps against the first step alone; norms equal bit by bit."""
    with checkout(folder):
        df.patch("wen", scan_steps=1)
        try:
            kind = importlib.import_module("local_sd_pipeline").LocalStableDiffusionPipeline
            pipe = kind(**base().components, requires_safety_checker=False)
            pipe.set_progress_bar_config(disable=True)
            swapped = kind.__call__

            def norms(call: Callable[..., Any]) -> dict[str, list[list[float]]]:
                torch.manual_seed(0)
                found: dict[str, list[list[float]]] = call(
                    pipe, PROMPT, num_images_per_prompt=4, track_noise_norm=True
                )[1]
                return found

            row = compare(pipe.unet, lambda: norms(swapped.__wrapped__), lambda: norms(swapped))
        finally:
            df.unpatch("wen")
    first = {k: [image[:1] for image in images] for k, images in row.pop("released").items()}
    return {"peer": "wen", "same": first == row.pop("ours"), **row}


def wen_gradients(folder: Path, name: str) -> dict[str, Any]:
    """One prompt, four images: the embedding of Wen's mitigation, or its tokens' gradients."""
    with checkout(folder):
        df.patch("wen")
        try:
            kind = importlib.import_module("local_sd_pipeline").LocalStableDiffusionPipeline
            pipe = kind(**base().components, requires_safety_checker=False)
            pipe.text_encoder.requires_grad_(True)
            pipe.set_progress_bar_config(disable=True)
            swapped = getattr(kind, name)

            def found(call: Callable[..., Any]) -> Tensor:
                torch.manual_seed(0)
                answer: Tensor = call(pipe, PROMPT, num_images_per_prompt=4)
                return answer

            row = compare(pipe.unet, lambda: found(swapped.__wrapped__), lambda: found(swapped))
        finally:
            df.unpatch("wen")
    theirs, mine = row.pop("released"), row.pop("ours")
    apart = float((theirs - mine).norm() / theirs.norm())
    return {"peer": "wen", "function": name, "same": apart <= SAME_SLOPE, "apart": apart, **row}


def nemo(folder: Path) -> dict[str, Any]:
    """Candidates and refinement of one prompt: equal lists of neurons."""
    pipe, seeds = base(), torch.arange(10) < 3
    unet = sd_unet(8, 64, pipe.unet.config.cross_attention_dim, values=6)
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type="epsilon")
    parts = (pipe.tokenizer, pipe.text_encoder, unet, scheduler)
    records: list[Any] = []

    def cuda(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return tensor

    with checkout(folder), replaced.object(Tensor, "cuda", cuda):
        module: Any = importlib.import_module("utils.activation_detection")
        similar = module.multiscale_structural_similarity_index_measure

        def differences(blocked: Any) -> Tensor:
            found: Tensor = module.compute_noise_diff(
                [PROMPT], *parts, blocked, 0, 1, 10, 0.0, seed_indices_to_return=seeds
            )
            return found

        def search() -> list[list[int]]:
            plain = differences(None)
            magnitudes = module.collect_activations([PROMPT], *parts, early_stopping=1)
            blocked = [m.topk(2).indices.tolist() for m in magnitudes]
            reached = similar(
                plain, differences(blocked), reduction="none", kernel_size=11, betas=(0.33,) * 3
            ).max()
            kept: list[list[int]] = module.neuron_refinement(
                PROMPT, *parts, blocked, 0.0, threshold=reached + 0.02 * (1 - reached),
                samples_per_prompt=10, seeds_to_look_at=seeds,
            )  # fmt: skip
            return kept

        def ours() -> list[list[int]]:
            records.append(df.patch("nemo"))
            try:
                return search()
            finally:
                df.unpatch("nemo")

        row = compare(unet, search, ours)
    row["ours_samples"] += records[-1].evaluations
    return {"peer": "nemo", "same": row.pop("released") == row.pop("ours"), **row}


def sail(folder: Path) -> dict[str, Any]:
    """One prompt, one step: equal scores."""
    parts = base().components
    parts["unet"] = sd_unet(32, 32, parts["unet"].config.cross_attention_dim)
    how = Namespace(sd_ver=1, exp_type="det", hvp_sampling_num=1)
    with checkout(folder):
        df.patch("sail")
        try:
            module: Any = importlib.import_module("local_model.pipe")
            kind = module.LocalStableDiffusionPipeline
            pipe = kind(**parts, requires_safety_checker=False)
            pipe.set_progress_bar_config(disable=True)
            swapped = kind.__call__

            def score(call: Callable[..., Any]) -> float:
                torch.manual_seed(42)
                return float(call(pipe, PROMPT, args=how))

            with replaced.object(module, "_jvp_mode", unfused):
                row = compare(pipe.unet, lambda: score(swapped.__wrapped__), lambda: score(swapped))
        finally:
            df.unpatch("sail")
    theirs, mine = row.pop("released"), row.pop("ours")
    return {"peer": "sail", "same": isclose(theirs, mine, rel_tol=SAME_SCORE), **row}


RUNS: dict[str, tuple[Callable[[Path], dict[str, Any]], ...]] = {
    "wen": (
        wen,
        partial(wen_gradients, name="aug_prompt"),
        partial(wen_gradients, name="get_text_cond_grad"),
    ),
    "nemo": (nemo,),
    "sail": (sail,),
}
PEERS = (*RUNS, "unlearndiffatk")
PEAKS = ("released_peak_megabytes", "ours_peak_megabytes")
# prefix of our lines: the peers' scripts print too
_MARK = "row: "


def rows_of(name: str, folder: Path) -> list[dict[str, Any]]:
    """Rows of a peer's script and functions; a script that cannot be imported gives the reason."""
    try:
        if name == "unlearndiffatk":
            return peer_unlearning.compare(folder, ROUNDS, MEMORY)
        script = {} if MEMORY else peer_scripts.compare(name, folder, ROUNDS)
    except ImportError as error:
        script = {"peer": name, "not_run": str(error)}
    return [script, *(run(folder) for run in RUNS.get(name, ()))]


def in_a_new_process(name: str, peers: Path) -> list[dict[str, Any]]:
    """A peer's rows with seconds and memory, each measured in a process of its own."""
    found = []
    for options in ([], ["--memory"]):
        command = [
            sys.executable,
            "-m",
            "benchmarks.speed.drop_in",
            "--peers",
            peers,
            "--only",
            name,
        ]
        done = subprocess.run([*command, *options], check=False, stdout=subprocess.PIPE, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
        found.append([json.loads(line.removeprefix(_MARK)) for line in lines])
    seconds, memory = found
    return [
        row | {key: one[key] for key in PEAKS if key in one}
        for row, one in zip(seconds, memory, strict=True)
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run, compare, and write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.drop_in", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--peers", type=Path, required=True, help="folder of checkouts")
    parser.add_argument("--only", choices=sorted(PEERS), help="one peer; write no file")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of seconds")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    if options.only:
        global ROUNDS, MEMORY
        ROUNDS, MEMORY = (1, True) if options.memory else (ROUNDS, False)
        rows = rows_of(options.only, options.peers.resolve() / options.only)
        print(*(_MARK + json.dumps(row) for row in rows), sep="\n", flush=True)
    else:
        for name in PEERS:
            found = in_a_new_process(name, options.peers)
            rows += found
            print(*map(json.dumps, found), sep="\n", flush=True)
        result = {
            "machine": harness.machine_name("cpu"),
            "versions": harness.library_versions(),
            "threads": 1,
            "command": "python -m benchmarks.speed.drop_in --peers DIR",
            "rows": rows,
        }
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row.get("same", True) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
