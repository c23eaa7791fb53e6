"""UnlearnDiffAtk's own functions on a small model, before and after `df.patch("unlearndiffatk")`.

Its `attack.py` does not run with current transformers, whose CLIPTextModel has no `text_model`, and
it downloads classifiers to judge images. So its `TextGrad` and `ClassifierTask` run here on given
parts, with the stock text encoder in place of its own.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any
from unittest.mock import patch as replaced

import torch

import dori_fast as df
from benchmarks.peak import peak_megabytes
from benchmarks.peers.models import base, checkout, sd_unet

VOCABULARY, TOKENS, STEPS = 49408, 5, 10
# tolerances: where the released bisection stops, and one of 255 gray levels
PROJECTED, LEVELS = 1e-5, 1


def _task(kind: Any) -> Any:
    """A `ClassifierTask` with the embedded model's parts and a random UNet."""
    from diffusers import LMSDiscreteScheduler

    pipe, task = base(), object.__new__(kind)
    task.tokenizer, task.vae, task.device = pipe.tokenizer, pipe.vae.requires_grad_(False), "cpu"
    task.target_unet_sd = sd_unet(32, 16, pipe.unet.config.cross_attention_dim)
    task.target_unet_sd.requires_grad_(False)
    task.negative_prompt = task.sld = None
    task.scheduler = LMSDiscreteScheduler(1000, 0.00085, 0.012, "scaled_linear")
    task.all_embeddings = pipe.text_encoder.get_input_embeddings().weight[None]
    task.custom_text_encoder = lambda input_ids, inputs_embeds: pipe.text_encoder(input_ids)
    return task


def _images(kind: Any, task: Any) -> Any:
    ids = task.str2id("a photo of a key")
    side = 16 * 8
    size = {"height": side, "width": side, "num_inference_steps": STEPS}
    with torch.no_grad():
        return kind.sampling(task, ids, task.id2embedding(ids), **size)


def compare(folder: Path, rounds: int, memory: bool = False) -> list[dict[str, Any]]:
    """A row for the projection and one for the sampling; both sides run in turn.

    With `memory` the rows hold peak memory as well.
    """
    with checkout(folder / "src"):
        attack: Any = importlib.import_module("attackers.text_grad_").TextGrad
        kind: Any = importlib.import_module("tasks.classifier_").ClassifierTask
        task = _task(kind)
        torch.manual_seed(0)
        points = torch.full((1, TOKENS, VOCABULARY), 1 / VOCABULARY)
        points += 0.01 * torch.randn_like(points).sign()
        runs: dict[str, list[tuple[Any, int, float]]] = {}
        peaks: dict[str, float] = {}
        for _ in range(rounds):
            for side in ("released", "ours"):
                if side == "ours":
                    df.patch("unlearndiffatk")
                for name, call in (
                    ("projection", lambda: attack.projection(object.__new__(attack), points)),
                    ("sampling", lambda: _images(kind, task)),
                ):
                    key = f"{name} {side}"
                    runs.setdefault(key, []).append(_counted(task.target_unet_sd, call))
                    if memory and key not in peaks:
                        peaks[key] = peak_megabytes(call)
            df.unpatch("unlearndiffatk")
    return [_row(name, runs, peaks) for name in ("projection", "sampling")]


def _counted(unet: Any, call: Any) -> tuple[Any, int, float]:
    """The result of a call, its UNet runs and its CPU seconds."""
    kind, calls = type(unet), 0
    forward = kind.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return forward(*args, **kwargs)

    with replaced.object(kind, "forward", counted):
        began = process_time()
        result = call()
    return result, calls, process_time() - began


def _row(
    name: str, runs: dict[str, list[tuple[Any, int, float]]], peaks: dict[str, float]
) -> dict[str, Any]:
    released, ours = runs[f"{name} released"], runs[f"{name} ours"]
    theirs, mine = (torch.as_tensor(x[-1][0]).double() for x in (released, ours))
    tolerance = PROJECTED if name == "projection" else LEVELS
    sides = ("released", "ours") if peaks else ()
    return {
        "peer": "unlearndiffatk",
        "function": name,
        "same": bool((theirs - mine).abs().max() <= tolerance),
        "released_runs": released[-1][1],
        "ours_runs": ours[-1][1],
        "released_over_ours_seconds": round(
            median(a[2] / b[2] for a, b in zip(released, ours, strict=True)), 2
        ),
    } | {f"{side}_peak_megabytes": peaks[f"{name} {side}"] for side in sides}
