"""Nothing is unpickled between a model with prompts and the page of its scores."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
GUARD = """
import sys

def refuse(event, arguments):
    if event == "pickle.find_class":
        raise RuntimeError(f"unpickled {arguments}")
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise RuntimeError(f"network: {arguments}")

sys.addaudithook(refuse)
"""
WATCHED = """
import torch

def loaded(*arguments, **options):
    raise RuntimeError("torch.load was called")

torch.load = torch.jit.load = loaded
from dori_fast.cli import main

for command in ({scan!r}, {report!r}):
    sys.argv = ["dori-fast", *command]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""


class Canary:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_guard_notices() -> None:
    data = pickle.dumps(Path("x"))
    done = python(f"{GUARD}\nimport pickle\npickle.loads({data!r})")
    assert done.returncode == 1 and "unpickled" in done.stderr


def test_scan_and_report_of_the_demo_unpickle_nothing_and_open_no_connection(
    tmp_path: Path,
) -> None:
    prompts, out = tmp_path / "p.txt", str(tmp_path / "run")
    prompts.write_text("a cat\na dog\n")
    scan = ["scan", str(prompts), "--out", out, "--seeds", "1", "--device", "cpu"]
    scan += ["--batch-size", "2"]
    done = python(GUARD + WATCHED.format(scan=scan, report=["report", out]))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").is_file()


def test_pickled_weights_are_refused_unopened(tiny_directory: Path, tmp_path: Path) -> None:
    model, canary = shutil.copytree(tiny_directory, tmp_path / "model"), tmp_path / "executed"
    for part in ("unet", "text_encoder", "vae"):
        for weights in (model / part).glob("*.safetensors"):
            torch.save({"weight": Canary(canary)}, weights.with_suffix(".bin"))
            weights.unlink()
    prompts = tmp_path / "p.txt"
    prompts.write_text("a cat\n")
    scan = ["scan", str(prompts), "--out", str(tmp_path / "run"), "--model", str(model)]
    code = (
        f"import sys\nfrom dori_fast.cli import main\nsys.argv = ['dori-fast', *{scan!r}]\nmain()"
    )
    done = python(code)
    assert done.returncode == 2, done.stderr
    assert "pickled weights are not read" in done.stderr.splitlines()[-1]
    assert not canary.exists()
    torch.load(model / "unet/diffusion_pytorch_model.bin", weights_only=False)
    assert canary.exists(), "the canary does sing where it is let"
