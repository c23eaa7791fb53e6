"""dori-fast finetune."""

from __future__ import annotations

import inspect
import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dori_fast as df
from dori_fast.cli.commands.finetune import finetune
from dori_fast.finetune import Adversarial
from dori_fast.models import NeuronMask
from tests.cli.test_process import start

WEIGHTS = "model/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def inputs(tiny: str, tmp_path: Path) -> list[str | Path]:
    """The arguments of a run of 18 steps on three pictures, one of which is not there."""
    rng = np.random.default_rng(0)
    for name in ("0.png", "1.png"):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "p.csv").write_text("prompt,image\na cat,0.png\na dog,1.png\na key,2.png\n")
    (tmp_path / "kept.csv").write_text("prompt,image\na cup,1.png\nthe mat,3.png\n")
    model = df.load(tiny, device="cpu")
    layer = model.layers[0]
    mask = torch.ones(1, model.unet.get_submodule(layer).to_v.out_features)
    mask[0, ::2] = 0
    NeuronMask({layer: mask}).save(tmp_path / "masks.safetensors")
    return ["finetune", "--prompts", tmp_path / "p.csv", "--images", tmp_path,
            "--retained", tmp_path / "kept.csv", "--masks", tmp_path / "masks.safetensors",
            "--model", tiny, "--device", "cpu", "--steps", "18", "--inner-steps", "2",
            "--starts", "prompt,gaussian", "--starts", "retained", "--retained-batch", "2",
            "--draw-steps", "2", "--surrogates", "2", "--checkpoint-every", "3",
            "--max-errors", "0.5"]  # fmt: skip


def ended_by(number: signal.Signals, arguments: list[str | Path], out: Path) -> tuple[int, str]:
    """Run a process until it has written another checkpoint, and send it a signal."""
    path = out / "checkpoint.safetensors"
    before = path.stat().st_mtime_ns if path.exists() else 0
    process = start(*arguments, "--out", out)
    deadline = time.monotonic() + 240
    while not path.exists() or path.stat().st_mtime_ns == before:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_ended_by_signals_it_gives_the_undisturbed_runs_weights(
    cli: Any, inputs: list[str | Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    code, err = ended_by(signal.SIGTERM, inputs, out)
    assert code == 75, err
    last = "error: interrupted by SIGTERM; run the same command again to continue"
    assert err.splitlines()[-1] == last and "Traceback" not in err
    assert json.loads((out / "run.json").read_text())["state"] == "interrupted"
    assert ended_by(signal.SIGKILL, inputs, out)[0] == -signal.SIGKILL
    assert not (out / "model").exists()

    done = cli(*inputs, "--out", out, "--json", "--resume", "must")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert 0 < found["steps"] < 18 and found["last"]["step"] == 18
    assert (found["memorized"], found["retained"], found["quarantined"]) == (2, 1, 2)
    whole = cli(*inputs, "--out", tmp_path / "whole")
    assert whole.code == 0, whole.err
    assert "18 steps in" in whole.err and "2 rows quarantined" in whole.err
    assert "trigger loss" in whole.out and "rows quarantined" in whole.out
    assert (out / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    scalars = (out / "scalars.jsonl").read_text()
    assert scalars == (tmp_path / "whole" / "scalars.jsonl").read_text()
    assert len(scalars.splitlines()) == 18
    assert not list(out.glob(".*.tmp*"))


def test_settings_reach_the_method(cli: Any, inputs: list[str | Path], tmp_path: Path) -> None:
    inputs[inputs.index("--steps") + 1] = "2"
    out = tmp_path / "run"
    settings = ("--lr", "0.002", "--inner-batch", "3", "--objective", "min-snr", "--snr-cap", "1",
                "--inner-lr", "0.2", "--restart-after", "0", "--draws", "1", "--ema", "0.9",
                "--seed", "5")  # fmt: skip
    done = cli(*inputs, "--out", out, *settings)
    assert done.code == 0, done.err
    how = json.loads((out / "run.json").read_text())["identity"]["fine_tuning"]
    attack, pool = how["attack"], how["pool"]
    assert (how["lr"], how["draws"], how["ema"], how["seed"]) == (0.002, 1, 0.9, 5)
    assert pool["starts"] == ["prompt", "gaussian", "retained"] and pool["restart_after"] is None
    assert attack["objective"] == "min-snr" and attack["snr_cap"] == 1 and attack["seed"] == 5
    assert (attack["steps"], attack["batch"], attack["lr"]) == (2, 3, 0.2)
    rows = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [(row["file"], row["row_id"]) for row in rows] == [("prompts", 2), ("retained", 1)]
    other = cli(*inputs, "--out", out, *settings[:-1], "6")
    assert other.code == 4 and "fine_tuning.seed: 5 then, 6 now" in other.err

    plain = [*inputs, "--out", tmp_path / "plain", "--without-attack"]
    idle = cli(*plain)
    assert idle.code == 2 and "--inner-steps has no effect with --without-attack" in idle.err
    for name in ("--inner-steps", "--starts", "--starts"):
        del plain[plain.index(name) : plain.index(name) + 2]
    plain = cli(*plain)
    assert plain.code == 0 and "prompt loss" in plain.out and "trigger loss" not in plain.out


def test_defaults_are_the_methods() -> None:
    given = {name: p.default for name, p in inspect.signature(finetune).parameters.items()}
    how = Adversarial().config()
    attack, pool = how["attack"], how["pool"]
    assert pool["starts"] == ["prompt", "gaussian"] and given["starts"] is None
    for name in (
        "steps",
        "lr",
        "draws",
        "redirect",
        "retained_batch",
        "retained_weight",
        "distil",
        "ema",
    ):
        assert given[name] == how[name], name
    for name, key in (("inner_steps", "steps"), ("inner_batch", "batch"), ("inner_lr", "lr")):
        assert given[name] == attack[key], name
    assert given["objective"] == attack["objective"]
    assert given["restart_after"] == pool["restart_after"]


def test_usage_errors(cli: Any, inputs: list[str | Path], tmp_path: Path) -> None:
    wrong = cli(*inputs, "--out", tmp_path / "run", "--starts", "nowhere")
    assert wrong.code == 2 and "starts must be of prompt, gaussian, retained" in wrong.err
    none = cli(*inputs, "--out", tmp_path / "run", "--masks", tmp_path / "none")
    assert none.code == 2 and "no such file" in none.err
    assert not (tmp_path / "run").exists()


def test_the_demo(cli: Any, tmp_path: Path) -> None:
    """Its own photographs, masks and retained pairs, by the commands of the README."""
    prompt = df.demo.pairs("memorized")[0][0]
    (tmp_path / "p.csv").write_text(f'prompt\n"{prompt}"\n"no such picture"\n')
    masks, out = tmp_path / "masks", tmp_path / "run"
    pruned = cli("prune", "--prompts", tmp_path / "p.csv", "--method", "wanda", "--out", masks,
                 "--sparsity", "0.3", "--steps", "2", "--device", "cpu")  # fmt: skip
    assert pruned.code == 0, pruned.err
    done = cli("finetune", "--prompts", tmp_path / "p.csv", "--images", "demo", "--masks", masks,
               "--retained", "demo", "--drawn", "2", "--out", out, "--device", "cpu",
               "--steps", "1", "--inner-steps", "1", "--retained-batch", "2", "--draw-steps", "2",
               "--surrogates", "1", "--max-errors", "0.5", "--json")  # fmt: skip
    assert done.code == 0, done.err
    assert "drawing surrogates of 1 images" in done.err
    found = json.loads(done.out)
    assert found["retained"] == len(df.demo.pairs("ordinary")) + 2 and found["quarantined"] == 1
    assert df.load(out / "model", device="cpu").image_size == (64, 64)


def test_help() -> None:
    process = start("finetune", "--help", stderr=subprocess.STDOUT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    for option in ("--retained", "--without-attack", "--restart-after", "--checkpoint-every"):
        assert option in text
