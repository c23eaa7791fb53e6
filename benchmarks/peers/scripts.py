"""Peers' unmodified scripts on a small model, without and with the line `df.patch(...)`.

A script runs in a folder where each of its model names is a folder: random weights in SD 1.x's
layout with the embedded model's text encoder. On a CPU both sides get the same substitutes. NeMo's
"cuda" means the CPU. SAIL's attention is unfused while it is differentiated, which SAIL itself
arranges for CUDA only. Wen's released call keeps the import shims of `df.patch("wen")`, since
current diffusers cannot load its class without them. Seconds run from the first text encoding.
"""

from __future__ import annotations

import csv
import importlib
import json
import runpy
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, chdir, contextmanager
from dataclasses import dataclass, field
from math import isclose
from pathlib import Path
from time import process_time
from typing import Any
from unittest.mock import patch as replaced

import torch
from torch import Tensor, nn

import dori_fast as df
from benchmarks.peers.models import base, checkout, sd_unet, unfused

PROMPTS = ("a photo of a key", "an umbrella")
SD, CLIP = "CompVis/stable-diffusion-v1-4", "openai/clip-vit-large-patch14"


@dataclass(frozen=True)
class Script:
    """A peer's script.

    Attributes:
        file: path in the checkout.
        arguments: command-line arguments.
        unet: width, latent side and value scale of its model's UNet.
        same: compares the folders of two runs, released and ours; True if they agree.
        options: options of `df.patch`.
    """

    file: str
    arguments: tuple[str, ...]
    unet: tuple[int, int, float]
    same: Callable[[Path, Path], bool]
    options: Mapping[str, Any] = field(default_factory=dict)


def _wen_same(released: Path, ours: Path) -> bool:
    """Compare the first step's norms bit by bit."""

    def norms(folder: Path) -> list[Any]:
        text = (folder / "det_outputs/test.jsonl").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines()]
        kinds = ("uncond_noise_norm", "text_noise_norm")
        return [[image[:1] for image in row[kind]] for row in rows for kind in kinds]

    return norms(released) == norms(ours) != []


def _sail_same(released: Path, ours: Path) -> bool:
    """Compare scores up to the rounding of the script's bfloat16."""
    one, two = (torch.load(next(f.glob("det_outputs/*.pt"))).flatten() for f in (released, ours))
    return len(one) == len(PROMPTS) and torch.allclose(one.float(), two.float(), rtol=2e-2, atol=0)


def _nemo_same(released: Path, ours: Path) -> bool:
    """Compare lists of neurons exactly, and similarities up to rounding."""

    def rows(folder: Path) -> list[dict[str, str]]:
        with (folder / "results/memorization_statistics_v1_4.csv").open(newline="") as file:
            return list(csv.DictReader(file, delimiter=";"))

    def agree(key: str, one: str, two: str) -> bool:
        return isclose(float(one), float(two), abs_tol=1e-4) if "SSIM" in key else one == two

    return len(rows(released)) == 1 and all(
        agree(key, a[key], b[key])
        for a, b in zip(rows(released), rows(ours), strict=True)
        for key in a
    )


SCRIPTS: dict[str, Script] = {
    "wen": Script(
        "detect_mem.py",
        ("--dataset", "prompts.jsonl", "--model_id", SD),
        (32, 16, 1.0),
        _wen_same,
        {"scan_steps": 1},
    ),
    "nemo": Script(
        "3_detect_memorized_neurons.py",
        # thresholds that select most seeds, make three rounds of search and leave neurons to refine
        (
            *("-d", "prompts.csv", "--samples_per_prompt", "6", "--theta_reduction_per_step", "1"),
            *("--pairwise_ssim_threshold", "0.065", "--ssim_threshold_initial_selection", "0.97"),
            *("--ssim_threshold_refinement", "0.97"),
        ),
        (8, 64, 6.0),
        _nemo_same,
    ),
    "sail": Script("detect_mem.py", ("--data_path", "prompts.txt"), (32, 32, 1.0), _sail_same),
}


class Run:
    """One run of a script: UNet samples, and CPU seconds from the first text encoding."""

    def __init__(self) -> None:
        self.samples, self.seconds = 0, 0.0

    @contextmanager
    def watched(self) -> Iterator[None]:
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextModel

        encode, predict, began = CLIPTextModel.forward, UNet2DConditionModel.forward, None

        def encoded(module: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal began
            began = process_time() if began is None else began
            return encode(module, *args, **kwargs)

        def predicted(module: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
            self.samples += len(sample)
            return predict(module, sample, *args, **kwargs)

        with (
            replaced.object(CLIPTextModel, "forward", encoded),
            replaced.object(UNet2DConditionModel, "forward", predicted),
        ):
            yield
        if began is None:
            raise RuntimeError("the script encoded no text")
        self.seconds = process_time() - began


def furnish(home: Path, script: Script) -> None:
    """Write the folders and files that the scripts open."""
    pipe = base()
    text = pipe.unet.config.cross_attention_dim
    pipe.unet = sd_unet(*script.unet[:2], text, script.unet[2])
    pipe.scheduler.register_to_config(prediction_type="epsilon")
    pipe.save_pretrained(home / SD)
    pipe.tokenizer.save_pretrained(home / CLIP)
    pipe.text_encoder.save_pretrained(home / CLIP)
    (home / "prompts.txt").write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    lines = [json.dumps({"caption": prompt}) for prompt in PROMPTS]
    (home / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (home / "prompts.csv").write_text(f"Caption;URL\n{PROMPTS[0]};\n", encoding="utf-8")
    (home / "det_outputs").mkdir()
    (home / "statistics").mkdir()
    torch.save(_statistics(pipe), home / "statistics/statistics_additional_laion_prompts_v1_4.pt")


def _statistics(pipe: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Means and deviations of NeMo's seven layers over the embedded model's own prompts."""
    from dori_fast.integrations.peers.nemo_inputs import encode, layers

    prompts = [row[0] for row in csv.reader((df.demo.path().parent / "sample_prompts.csv").open())]
    with torch.no_grad():
        text = encode(prompts[1:], pipe.tokenizer, pipe.text_encoder)
        found = [layer.to_v(text).abs().mean(1) for layer in layers(pipe.unet).values()]
    return [x.mean(0) for x in found], [x.std(0) for x in found]


@contextmanager
def on_a_cpu(name: str) -> Iterator[None]:
    """Substitutes for a GPU in the peer's code; none are needed if there is one."""
    move = nn.Module.to

    def to(module: Any, *args: Any, **kwargs: Any) -> Any:
        return module if args == ("cuda",) else move(module, *args, **kwargs)

    with ExitStack() as stack:
        if name == "nemo" and not torch.cuda.is_available():
            stack.enter_context(replaced.object(nn.Module, "to", to))
            stack.enter_context(replaced.object(Tensor, "cuda", lambda x, *a, **k: x))
        if name == "sail":
            module = importlib.import_module("local_model.pipe")
            stack.enter_context(replaced.object(module, "_jvp_mode", unfused))
        yield


def once(name: str, folder: Path, home: Path, ours: bool) -> Run:
    """Run the script in the folder `home`, patched if `ours`."""
    script, run = SCRIPTS[name], Run()
    command = [script.file, *script.arguments]
    before = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(checkout(folder))
        stack.enter_context(chdir(home))
        record = df.patch(name, **script.options) if ours or name == "wen" else None
        stack.callback(df.unpatch, name)
        if name == "wen" and not ours:
            kind: Any = importlib.import_module("local_sd_pipeline").LocalStableDiffusionPipeline
            stack.enter_context(replaced.object(kind, "__call__", kind.__call__.__wrapped__))
        stack.enter_context(on_a_cpu(name))
        stack.enter_context(replaced.object(sys, "argv", command))
        stack.callback(torch.set_default_dtype, before)
        stack.enter_context(run.watched())
        runpy.run_path(str(folder / script.file), run_name="__main__")
    if record is not None:
        run.samples += record.evaluations
    return run


def compare(name: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Run the script without and with the line, in turn; the median ratio of CPU seconds."""
    script, ratios = SCRIPTS[name], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
            runs = []
            for home, ours in ((Path(one), False), (Path(two), True)):
                furnish(home, script)
                runs.append(once(name, folder, home, ours))
            same = script.same(Path(one), Path(two))
        ratios.append(runs[0].seconds / runs[1].seconds)
    return {
        "peer": name,
        "script": script.file,
        "same": same,
        "released_samples": runs[0].samples,
        "ours_samples": runs[1].samples,
        "released_over_ours_seconds": round(sorted(ratios)[len(ratios) // 2], 2),
    }
