"""The stages in order of value, and the calls into which their time limits fit."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from benchmarks.device.run import ROOT
from benchmarks.device.stage import Stage
from benchmarks.device.suites import suites

# seconds in which a call ends; the machines for which this is written end a command at 600
CALL_SECONDS = 540.0
# a CPU rehearses at its own pace
_DRY_LIMIT = 600.0


def stages(site: Path, out: Path, dry_run: bool) -> list[Stage]:
    """All stages; wheels from `.whl/` are installed into `site`, rows are written into `out`.

    With `dry_run`, each runs to its end on a CPU, on models so small that it takes seconds.
    """
    plan = [
        *_preparations(site, dry_run),
        *_scans(out, dry_run),
        *_methods(out, dry_run),
        *_checks(out, dry_run),
        *suites(dry_run),
    ]
    plan.sort(key=lambda stage: stage.call)
    return [_unhurried(stage) if dry_run else stage for stage in plan]


def _unhurried(stage: Stage) -> Stage:
    return Stage(**{**vars(stage), "limit": _DRY_LIMIT})


def _preparations(site: Path, dry_run: bool) -> list[Stage]:
    """What every call needs: a fresh machine has none of it, and a warm one has it at once."""
    python = sys.executable
    wheels = sorted(str(path.relative_to(ROOT)) for path in (ROOT / ".whl").glob("*.whl"))
    pip = (python, "-m", "pip", "install", "--no-index", "--no-deps", "--no-compile", "--quiet")
    describe = (python, "-c", "import torch; print(torch.__config__.show())")
    return [
        Stage(
            "wheels",
            40,
            (*pip, "--no-cache-dir", "--upgrade", "--target", str(site), *wheels),
            "packages that the machine lacks",
            0,
            missing="" if wheels else "no wheels in .whl/",
        ),
        Stage(
            "machine",
            10,
            describe if dry_run else ("nvidia-smi",),
            "the GPU and its driver",
            0,
            missing="" if dry_run or shutil.which("nvidia-smi") else "nvidia-smi is not installed",
        ),
        # egg_info makes the version and the entry points known without an installation
        Stage(
            "build",
            90,
            (python, "setup.py", "-q", "egg_info", "build_ext", "--inplace"),
            "does the extension build",
            0,
            {"DORI_WITH_CUDA": "AUTO", "DORI_REQUIRE_EXTENSION": "1"},
        ),
    ]


class _Rooms:
    """Commands of the measurement scripts, real or in the dry run."""

    def __init__(self, out: Path, dry_run: bool) -> None:
        self.dry, self.results = dry_run, ("--results", str(out))
        self.device = ("--device", "cpu" if dry_run else "cuda")
        self.sd14, self.xl = (name + ("-narrow" if dry_run else "") for name in ("sd14", "sdxl"))

    def __call__(self, module: str, always: str, real: str = "", dry: str = "") -> tuple[str, ...]:
        """A command; `{sd14}` and `{sdxl}` stand for the models."""
        given = f"{always} {dry if self.dry else real}".format(sd14=self.sd14, sdxl=self.xl)
        where = (sys.executable, "-m", f"benchmarks.{module}")
        return (*where, *given.split(), *self.device, *self.results)

    def scan(self, model: str, providers: str, real: str) -> tuple[str, ...]:
        """A command of the end-to-end scan."""
        few = "--prompts 2 --seeds 2 --rounds 2 --batch-size 2"
        always = f"--model {model} --providers {providers}"
        return self("speed.end_to_end", always, real, few)


def _scans(out: Path, dry_run: bool) -> list[Stage]:
    """The scan, its time, and its switches one by one."""
    run = _Rooms(out, dry_run)
    short = "--rounds 3"
    sweep, split = "speed.gpu.sweep", "speed.gpu.split"
    dry_sweep, dry_split = "--batches 2 4 --rounds 2", "--prompts 2 --batch-size 2"

    def switch(name: str, limit: float, call: int = 1) -> Stage:
        return Stage(
            f"switch_{name}",
            limit,
            run.scan("{sd14}", f"dori_fast_plain dori_fast_{name}", short),
            f"SD 1.4 with only {name} on, against no switch on",
            call,
        )

    return [
        Stage(
            "doctor",
            40,
            (sys.executable, "-m", "dori_fast", "doctor"),
            "does each op run, and by which backend",
        ),
        Stage(
            "scan_sd14",
            60,
            run.scan(
                "{sd14}", "dori_fast uncond_shared cfg_batched eager", "--prompts 32 --rounds 5"
            ),
            "prompts per second on SD 1.4's topology, ours against the papers' ways",
        ),
        Stage(
            "sweep_sd14",
            50,
            run(sweep, "--model {sd14}", "--batches 64 128 32 256 16 --rounds 3", dry_sweep),
            "time and memory of batches of 16 to 256",
        ),
        Stage(
            "split_sd14",
            30,
            run(split, "--model {sd14}", "", dry_split),
            "time by kind of op, and the share that the GPU waits",
        ),
        Stage(
            "sweep_sdxl",
            70,
            run(sweep, "--model {sdxl}", "--batches 32 16 64 8 --rounds 2", dry_sweep),
            "the same on SDXL's topology",
        ),
        Stage(
            "split_sdxl",
            40,
            run(split, "--model {sdxl}", "--prompts 16 --batch-size 16", dry_split),
            "the same on SDXL's topology",
        ),
        switch("channels_last", 35),
        switch("cuda_graphs", 35),
        switch("xformers", 30),
        switch("compiled", 120, call=2),
        switch("all", 120, call=4),
    ]


def _methods(out: Path, dry_run: bool) -> list[Stage]:
    """Attention kernels, attacks, NeMo and Wanda."""
    run = _Rooms(out, dry_run)
    dry_nemo = "--prompts 1 --batch-size 10 --providers dori_fast"
    dry_attack = "--problems 1 --batch 2 --steps 1 --rounds 2"
    return [
        Stage(
            "sdpa",
            25,
            run("speed.gpu.sdpa", "", "", "--shrink 64 --samples 1 --rounds 2 --shapes 2"),
            "the fastest attention kernel at widths 40, 64, 80 and 160, forward and backward",
            2,
        ),
        Stage(
            "backward_sd14",
            30,
            run("speed.gpu.backward", "--model {sd14}", "--samples 8 64", "--samples 1 --rounds 2"),
            "time and memory of a gradient, 8 and 64 samples",
            2,
        ),
        Stage(
            "attack_sd14",
            50,
            run(
                "speed.attack",
                "--model {sd14}",
                "--problems 8 --batch 8 --steps 3 --rounds 3",
                dry_attack,
            ),
            "seconds per attacked image, ours against the papers' loop",
            2,
        ),
        Stage(
            "nemo",
            50,
            run("speed.gpu.nemo", "", "--prompts 3", dry_nemo),
            "UNet rows and seconds of NeMo, ours against the released procedure",
            2,
        ),
        Stage(
            "wanda",
            25,
            run("speed.gpu.wanda", "--model {sd14}", "", "--batch-size 2 --rounds 2"),
            "what Wanda's statistics add to an evaluation",
            2,
        ),
    ]


def _checks(out: Path, dry_run: bool) -> list[Stage]:
    """Promises: equal bits, memory, and rounding; then single ops and compilation."""
    run = _Rooms(out, dry_run)
    few_positions = (
        "--batch-size 2 --positions 2 --dtypes float32 bfloat16"
        " --ways plain channels_last cuda_graphs whole_network"
    )
    dry_ops = "--rounds 2 --shapes 1 --op noise_difference --op ms_ssim"
    return [
        Stage(
            "positions",
            60,
            run(
                "speed.gpu.positions",
                "--model {sd14}",
                "--positions 8 --ways plain channels_last cuda_graphs whole_network",
                few_positions,
            ),
            "does a prediction have the same bits at every position of a batch",
            2,
        ),
        Stage(
            "positions_compiled",
            90,
            run(
                "speed.gpu.positions",
                "--model {sd14} --ways compiled",
                "--dtypes float16 --positions 8",
                "--batch-size 2 --positions 2 --dtypes float32",
            ),
            "the same of compiled parts",
            4,
        ),
        Stage(
            "repeat",
            40,
            run(
                "speed.gpu.repeat",
                "--model {sd14}",
                "",
                "--problems 2 --steps 1 --batch-size 2",
            ),
            "do scans and attacks repeat to the bit",
            2,
        ),
        Stage(
            "memory_sd14",
            30,
            run("speed.gpu.memory", "--model {sd14}", "--batches 16 64", "--batches 6"),
            "is the peak the one that small batches predict: forward, backward, decoding",
            3,
        ),
        Stage(
            "memory_sdxl",
            50,
            run("speed.gpu.memory", "--model {sdxl}", "--batches 8 16", "--batches 6"),
            "the same on SDXL's topology",
            3,
        ),
        Stage(
            "floor",
            25,
            run("speed.gpu.floor", "", "", "--prompts 2 --batch-size 4 --detectors wen"),
            "how far rounding moves scores in fp16, bf16, TF32 and fp32",
            3,
        ),
        Stage(
            "ops",
            100,
            run("ops.run", "", "--rounds 20", dry_ops),
            "GPU time and launch time of each op against eager torch",
            3,
        ),
        Stage(
            "scan_demo",
            20,
            run.scan("demo", "dori_fast uncond_shared cfg_batched eager", "--rounds 5"),
            "prompts per second on the embedded model",
            3,
        ),
        Stage(
            "small_batches",
            25,
            run.scan(
                "{sd14}",
                "dori_fast_plain dori_fast_cuda_graphs",
                "--batch-size 4 --prompts 8 --rounds 3",
            ),
            "what CUDA graphs save in batches of 4",
            3,
        ),
        Stage(
            "compiling",
            150,
            run("speed.gpu.compiling", "--model {sd14}", "--batch-size 16", "--batch-size 1"),
            "seconds until the first compiled score, with cold and warm caches",
            4,
        ),
    ]
