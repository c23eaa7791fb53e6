"""A detector from another package, really installed: it is listed and scans like the others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dori_fast as df
from dori_fast import detect
from dori_fast.cli.commands import listing
from dori_fast.errors import UsageError

SOURCE = Path(__file__).parent / "third_party"
PROMPTS = ["portrait of an astronaut with a flag", "a key", "a red bus"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Where pip put the package, offline."""
    folder = tmp_path_factory.mktemp("third_party")
    # a build leaves files beside its source
    source = shutil.copytree(
        SOURCE, folder / "source", ignore=shutil.ignore_patterns("__pycache__")
    )
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    pip = [sys.executable, "-m", "pip", "install", *offline, "--target", folder / "site", source]
    done = subprocess.run(list(map(str, pip)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "site"


def dori_fast(*arguments, beside):
    """The command in a process of its own, with a folder of installed packages."""
    path = [str(beside), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-m", "dori_fast", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
    )


def test_it_is_as_short_as_promised():
    assert len((SOURCE / "dori_fast_loudest.py").read_text().splitlines()) <= 30


def test_it_is_listed(installed):
    done = dori_fast("ls", "detectors", "--json", beside=installed)
    assert done.returncode == 0, done.stderr
    listed = {row["detector"]: row["description"] for row in json.loads(done.stdout)}
    assert (
        listed["loudest"] == "The largest noise difference of any seed, at a timestep of one's own."
    )
    assert set(listed) == {*detect.names(), "loudest"}
    assert "loudest" not in detect.names()


def test_it_scans_the_demo_model(installed, tmp_path, monkeypatch):
    prompts = tmp_path / "p.txt"
    prompts.write_text("\n".join(PROMPTS))
    options = ["--detector", "loudest", "--seeds", "3", "--device", "cpu", "--json"]
    out = tmp_path / "run"
    done = dori_fast("scan", prompts, "--out", out, *options, beside=installed)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["ok"] == 3 and result["state"] == "done"
    recorded = json.loads((out / "run.json").read_text())
    config = {"name": "loudest", "seeds": [0, 1, 2], "timestep": 600}
    assert recorded["identity"]["detector"] == config

    monkeypatch.syspath_prepend(str(installed))
    expected = detect.get("loudest", seeds=3).score(df.load("demo", device="cpu"), PROMPTS)
    found = {row["prompt"]: row["score"] for row in result["top"]}
    assert [found[prompt] for prompt in PROMPTS] == pytest.approx(expected.tolist(), rel=1e-6)
    wen = df.detect.Wen(seeds=3).score(df.load("demo", device="cpu"), PROMPTS)
    assert not torch.allclose(wen, expected)


def test_options_that_it_does_not_take(installed, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(installed))
    prompts = tmp_path / "p.txt"
    prompts.write_text("a key")
    model = df.load("demo", device="cpu", batch_size=4)
    with pytest.raises(UsageError, match="detector loudest: .*'steps'"):
        df.scan(model, prompts, out=tmp_path / "run", detector="loudest", steps=2)


def register(folder, package, value):
    """The files of an installed package that claims the detector `odd`."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[dori_fast.detectors]\nodd = {value}\n")


def test_a_package_that_cannot_be_loaded_hides_no_other(tmp_path, monkeypatch):
    (tmp_path / "odd_detector.py").write_text("raise RuntimeError('no licence')")
    register(tmp_path, "odd_detector", "odd_detector:Odd")
    monkeypatch.syspath_prepend(str(tmp_path))
    listed = dict(listing._detectors()[1])
    assert {*detect._BUILT_IN, "odd"} == set(listed)
    assert "odd_detector:Odd cannot be loaded (RuntimeError: no licence)" in listed["odd"]
    with pytest.raises(UsageError, match="cannot be loaded .* reinstall the package"):
        detect.get("odd")


def test_a_name_that_two_packages_claim(tmp_path, monkeypatch):
    for package in ("one_odd", "other_odd"):
        register(tmp_path, package, f"{package}:Odd")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=r"several packages \(one_odd, other_odd\); remove one"):
        detect.get("odd")


@pytest.mark.parametrize("name", detect._BUILT_IN)
def test_every_built_in_detector_can_be_scanned_with_by_name(name, tmp_path):
    prompts = tmp_path / "p.txt"
    prompts.write_text("a key")
    model = df.load("demo", device="cpu", batch_size=4)
    result = df.scan(model, prompts, out=tmp_path / "run", detector=name, seeds=2)
    assert result.counts.ok == 1
