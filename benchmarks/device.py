"""The stages of `benchmarks/device.sh`: each has a time limit, and no failure stops the next."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOTAL_SECONDS = 525.0
_LAST_LINES = 12
_NO_TESTS_COLLECTED = 5


@dataclass(frozen=True)
class Stage:
    """A command with a time limit in seconds; `missing` is the reason to skip it, if any."""

    name: str
    limit: float
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    accepted: tuple[int, ...] = (0,)
    missing: str = ""


@dataclass(frozen=True)
class Outcome:
    """End of a stage: `state` is "ok", "failed", "timed out" or "skipped"."""

    stage: str
    state: str
    code: int | None
    seconds: float
    why: str = ""


def stages(site: Path, out: Path, dry_run: bool) -> list[Stage]:
    """The stages in order; wheels from `.whl/` are installed into `site`."""
    python = sys.executable
    device = "cpu" if dry_run else "cuda"
    results = ("--device", device, "--results", str(out))
    few = ("--prompts", "2", "--seeds", "2", "--rounds", "2", "--providers", "dori_fast")
    wheels = sorted(str(path.relative_to(ROOT)) for path in (ROOT / ".whl").glob("*.whl"))
    pip = (python, "-m", "pip", "install", "--no-index", "--no-deps", "--no-compile", "--quiet")
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    parallel = ("-n", "8") if importlib.util.find_spec("xdist") and not dry_run else ()
    contract = "tests/ops/test_contract.py"
    sanitizer = shutil.which("compute-sanitizer")
    return [
        Stage(
            "wheels",
            40,
            (*pip, "--no-cache-dir", "--upgrade", "--target", str(site), *wheels),
            missing="" if wheels else "no wheels in .whl/",
        ),
        Stage(
            "gpu",
            20,
            ("nvidia-smi",),
            missing="" if shutil.which("nvidia-smi") else "nvidia-smi is not installed",
        ),
        # egg_info makes the version and the entry points known without an installation
        Stage(
            "build",
            150,
            (python, "setup.py", "-q", "egg_info", "build_ext", "--inplace"),
            {"DORI_WITH_CUDA": "AUTO", "DORI_REQUIRE_EXTENSION": "1"},
        ),
        Stage("doctor", 40, (python, "-m", "dori_fast", "doctor")),
        Stage(
            "op_tests",
            150,
            (*pytest, contract, "-k", "unwritten or every_operator")
            if dry_run
            else (*pytest, *parallel, "tests/ops", "-m", "not gpu"),
        ),
        Stage(
            "gpu_tests",
            60,
            (*pytest, "-m", "gpu", "tests/ops" if dry_run else "tests"),
            accepted=(0, _NO_TESTS_COLLECTED) if dry_run else (0,),
        ),
        Stage(
            "op_benchmarks",
            120,
            (python, "-m", "benchmarks.ops.run", *results, "--rounds", "3" if dry_run else "30")
            + (("--op", "noise_difference") if dry_run else ()),
        ),
        Stage(
            "scan_demo",
            60,
            (python, "-m", "benchmarks.speed.end_to_end", "--model", "demo", *results)
            + (few if dry_run else ()),
        ),
        Stage(
            "scan_sd14",
            100,
            (python, "-m", "benchmarks.speed.end_to_end", *results)
            + (("--model", "sd14-narrow", *few) if dry_run else ("--model", "sd14"))
            + (() if dry_run else ("--rounds", "5")),
        ),
        Stage(
            "switches",
            120,
            (python, "-m", "benchmarks.speed.end_to_end", *results)
            + (
                ("--model", "demo", *few[:-1], "dori_fast_channels_last")
                if dry_run
                else ("--model", "sd14", "--providers", "switches", "--rounds", "3")
            ),
        ),
        Stage(
            "small_batches",
            60,
            (python, "-m", "benchmarks.speed.end_to_end", *results, "--batch-size", "4")
            + (
                ("--model", "demo", *few[:-1], "dori_fast_plain")
                if dry_run
                else ("--model", "sd14", "--prompts", "8", "--rounds", "3")
                + ("--providers", "dori_fast_plain", "dori_fast_cuda_graphs")
            ),
        ),
        Stage(
            "memcheck",
            200,
            (sanitizer or "", "--tool", "memcheck", "--error-exitcode", "9", python, "-m", "pytest")
            + (
                "-q",
                "-p",
                "no:cacheprovider",
                contract,
                "-k",
                "sizes and float32 and not reference",
            ),
            # torch's GPU memory cache would hide a write past a tensor's end
            {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            missing="" if sanitizer else "compute-sanitizer is not installed",
        ),
    ]


def run_stage(stage: Stage, log: Path, seconds_left: float, environment: dict[str, str]) -> Outcome:
    """Run one stage and append its output to the log."""
    if stage.missing:
        return Outcome(stage.name, "skipped", None, 0.0, stage.missing)
    limit = min(stage.limit, seconds_left)
    if limit < 1:
        return Outcome(stage.name, "failed", None, 0.0, "no time left")
    start = time.monotonic()
    with log.open("ab") as file:
        file.write(f"\n=== {stage.name}: {' '.join(stage.command)}\n".encode())
        file.flush()
        try:
            process = subprocess.Popen(
                stage.command,
                cwd=ROOT,
                env={**environment, **stage.environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                # a process group of its own, so that a timeout also ends its children
                start_new_session=True,
            )
        except OSError as error:
            return Outcome(stage.name, "failed", None, 0.0, str(error))
        code = _wait(process, limit)
    took = time.monotonic() - start
    if code is None:
        return Outcome(stage.name, "timed out", None, took, f"limit {limit:.0f} s")
    return Outcome(stage.name, "ok" if code in stage.accepted else "failed", code, took)


def _wait(process: subprocess.Popen[bytes], limit: float) -> int | None:
    """The exit code, or None after a timeout; then the whole process group is ended."""
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        os.killpg(process.pid, number)
        try:
            process.wait(5)
            return
        except subprocess.TimeoutExpired:
            continue


def run(
    plan: Sequence[Stage], out: Path, environment: dict[str, str], total: float = TOTAL_SECONDS
) -> list[Outcome]:
    """Run all stages and write device.log and stages.csv into `out`."""
    deadline = time.monotonic() + total
    log = out / "device.log"
    log.write_bytes(b"")
    outcomes = []
    for stage in plan:
        start = log.stat().st_size
        outcome = run_stage(stage, log, deadline - time.monotonic(), environment)
        outcomes.append(outcome)
        print(_line(outcome), flush=True)
        if outcome.state in ("failed", "timed out"):
            text = log.read_bytes()[start:].decode(errors="replace")
            print(*(f"    {line}" for line in text.splitlines()[-_LAST_LINES:]), sep="\n")
        _write(outcomes, out / "stages.csv")
    return outcomes


def _line(outcome: Outcome) -> str:
    code = "" if outcome.code in (0, None) else f" exit code {outcome.code}"
    return f"{outcome.stage:14} {outcome.state:10} {outcome.seconds:6.1f} s {outcome.why}{code}"


def _write(outcomes: Sequence[Outcome], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("stage", "state", "exit_code", "seconds", "why"))
        for o in outcomes:
            writer.writerow((o.stage, o.state, o.code, round(o.seconds, 1), o.why))


def main(arguments: list[str] | None = None) -> int:
    """Run all stages; return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="benchmarks/device.sh", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="run a small part of each on a CPU")
    options = parser.parse_args(arguments)
    out = Path(os.environ.get("OUT", "device_out")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as site:
        paths = [site, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        outcomes = run(stages(Path(site), out, options.dry_run), out, environment)
    failed = [o.stage for o in outcomes if o.state in ("failed", "timed out")]
    print(f"{len(outcomes)} stages in {sum(o.seconds for o in outcomes):.0f} s, results in {out}")
    print(f"FAILED: {', '.join(failed)}" if failed else "all well")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
