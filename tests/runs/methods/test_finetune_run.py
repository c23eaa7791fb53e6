"""Fine-tuning runs: interrupted anywhere and resumed, they give the undisturbed weights."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dori_fast
from dori_fast.attack import Dori
from dori_fast.cli.exits import _explain
from dori_fast.errors import IntegrityError, UsageError
from dori_fast.evaluate import SmallImages
from dori_fast.finetune import Adversarial, Checkpoint, Pool, StepReport, surrogates
from dori_fast.models import NeuronMask
from dori_fast.runs.errors import OverBudgetError, ScanInterrupted, StorageError
from dori_fast.runs.methods.cached_images import DrawnPairs
from dori_fast.runs.methods.drawing import Drawing
from dori_fast.runs.methods.finetune import FineTuned, fine_tune
from dori_fast.runs.methods.step_log import StepLog
from dori_fast.runs.progress import Progress
from dori_fast.runs.store.reopen import open_run
from tests.runs.inputs import csv_text, write

ROWS = [["a cup", "0.png"], ["a cat", "none.png"], ["a dog", "2.png"], ["the mat", "3.png"]]
LINES = ("scalars.jsonl", "quarantine.jsonl")


class Place:
    """A folder with all inputs of a run, and runs over it."""

    def __init__(self, root: Path, tiny: Path) -> None:
        self.root = root
        self.model = dori_fast.load(tiny, device="cpu", batch_size=8)
        rng = np.random.default_rng(0)
        for name in ("0.png", "2.png", "3.png"):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(root / name)
        self.prompts = write(root / "p.csv", csv_text([["prompt", "image"], *ROWS]))
        write(root / "kept.csv", csv_text([["prompt", "image"], ["a key", "0.png"], *ROWS[2:]]))
        generator = torch.Generator().manual_seed(0)
        layers = {n: self.model.unet.get_submodule(n).to_v for n in self.model.layers}
        self.masks = NeuronMask(
            {
                name: (torch.rand(len(ROWS), layer.out_features, generator=generator) > 0.5).float()
                for name, layer in layers.items()
            }
        )

    def run(self, name: str, *, lr: float = 1e-3, **changes: Any) -> FineTuned:
        inner = Dori(steps=2, draws=2, objective="prediction")
        pool = Pool(("prompt", "gaussian"), per_step=3, restart_after=4)
        settings: dict[str, Any] = {
            "out": self.root / name,
            "method": Adversarial(7, inner, pool, lr=lr, warmup=2, retained_batch=2),
            "masks": self.masks,
            "retained": self.root / "kept.csv",
            "drawing": Drawing(2, 2, 3.0),
            "checkpoint_every": 2,
            "max_errors": 0.3,
        }
        return fine_tune(self.model, self.prompts, self.root, **(settings | changes))

    def weights(self, name: str) -> bytes:
        return (self.root / name / "model/unet/diffusion_pytorch_model.safetensors").read_bytes()

    def lines(self, name: str) -> list[str]:
        return [(self.root / name / file).read_text() for file in LINES]

    def state(self, name: str) -> str:
        return str(json.loads((self.root / name / "run.json").read_text())["state"])


@pytest.fixture(scope="module")
def place(tiny_directory: Path, tmp_path_factory: Any) -> Place:
    place = Place(tmp_path_factory.mktemp("finetune"), tiny_directory)
    place.run("whole")
    return place


@pytest.fixture
def fresh(tiny_directory: Path, tmp_path: Path) -> Place:
    return Place(tmp_path, tiny_directory)


def stop_after(step: int) -> Any:
    def stop(report: StepReport) -> None:
        if report.step == step:
            raise ScanInterrupted("test")

    return stop


def test_what_a_run_leaves(place: Place) -> None:
    folder = place.root / "whole"
    steps = [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(1, 8))
    row = json.loads((folder / "quarantine.jsonl").read_text())
    assert (row["file"], row["row_id"], row["prompt"]) == ("prompts", 1, "a cat")
    assert "no file 'none.png'" in row["error"]
    record = json.loads((folder / "run.json").read_text())
    assert record["state"] == "done"
    assert record["counts"] == {"rows": 4, "ok": 3, "quarantined": 1}
    # more than the steps' own samples: the surrogates are drawn, and batches are padded
    assert record["rows_computed"] > record["evaluations"] > steps[-1]["evaluations"]
    assert not list(folder.glob(".*.tmp"))
    with pytest.raises(UsageError, match=r"its figures are in scalars\.jsonl"):
        open_run(folder)
    tuned = dori_fast.load(folder / "model", device="cpu")
    found = torch.cat([p.flatten() for p in tuned.unet.parameters()])
    original = torch.cat([p.flatten() for p in place.model.unet.parameters()])
    assert not torch.equal(found, original)


def test_it_is_the_method_on_surrogates_under_each_rows_mask(place: Place) -> None:
    """Row 1 is left out; the others keep their own masks."""
    rows = [0, 2, 3]
    chosen = [ROWS[row] for row in rows]
    images = np.stack([np.array(Image.open(place.root / name)) for _, name in chosen])
    prompts = [prompt for prompt, _ in chosen]
    view = place.model.masked(place.masks.take(rows))
    drawn = surrogates(view, prompts, images, measure=SmallImages(), count=2, steps=2, guidance=3.0)
    retained = [("a key", images[0]), (prompts[1], images[1]), (prompts[2], images[2])]
    inner = Dori(steps=2, draws=2, objective="prediction")
    pool = Pool(("prompt", "gaussian"), per_step=3, restart_after=4)
    method = Adversarial(7, inner, pool, lr=1e-3, warmup=2, retained_batch=2)
    alone = method.run(place.model, prompts, images, surrogates=drawn, retained=retained)
    tuned = dori_fast.load(place.root / "whole" / "model", device="cpu")
    for found, expected in zip(tuned.unet.parameters(), alone.unet.parameters(), strict=True):
        assert torch.equal(found, expected)


# between two checkpoints, at one, before the first, and between the last and the result
@pytest.mark.parametrize(("step", "left"), [(5, 3), (4, 3), (1, 7), (7, 0)])
def test_an_interrupted_run_goes_on(place: Place, step: int, left: int) -> None:
    name = f"stopped {step}"
    with pytest.raises(ScanInterrupted):
        place.run(name, on_step=stop_after(step))
    assert place.state(name) == "interrupted" and not (place.root / name / "model").exists()
    assert len(place.lines(name)[0].splitlines()) == step
    seen: list[Progress] = []
    again = place.run(name, on_progress=seen.append)
    assert again.steps == left
    told = [(p.done, p.total, p.quarantined, p.computed) for p in seen]
    assert told == [(7 - left + n, 7, 1, n) for n in range(1, left + 1)]
    assert all(p.remaining == 0 for p in seen[-1:])
    assert place.weights(name) == place.weights("whole")
    assert place.lines(name) == place.lines("whole") and place.state(name) == "done"


def test_a_killed_run_goes_on(place: Place, tiny_directory: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; import torch\n"
        "from tests.runs.methods.test_finetune_run import Place\n"
        "torch.set_num_threads(int(sys.argv[3]))\n"
        "def kill(report):\n"
        "    if report.step == 5: os.kill(os.getpid(), 9)\n"
        "Place(Path(sys.argv[1]), Path(sys.argv[2])).run('killed', on_step=kill)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, place.root, tiny_directory, str(torch.get_num_threads())],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert done.returncode == -signal.SIGKILL
    with (place.root / "killed" / "scalars.jsonl").open("a") as file:
        file.write('{"step": 6, "steps"')  # as a kill in the middle of a line leaves it
    assert place.run("killed", resume="must").steps == 3
    assert place.weights("killed") == place.weights("whole")
    assert place.lines("killed") == place.lines("whole")


def test_a_finished_run_is_not_done_again(place: Place) -> None:
    before = (place.root / "whole" / "checkpoint.safetensors").stat().st_mtime_ns
    again = place.run("whole")
    assert again.steps == 0 and (again.memorized, again.retained, again.quarantined) == (3, 3, 1)
    assert (place.root / "whole" / "checkpoint.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="holds a run"):
        place.run("whole", resume="never")


def test_other_settings_are_refused_by_name(fresh: Place) -> None:
    with pytest.raises(ScanInterrupted):
        fresh.run("run", on_step=stop_after(2))
    with pytest.raises(IntegrityError, match=r"fine_tuning.lr: 0.001 then, 0.002 now"):
        fresh.run("run", lr=0.002)
    with pytest.raises(IntegrityError, match=r"surrogates.guidance: 3.0 then, 4.0 now"):
        fresh.run("run", drawing=Drawing(2, 2, 4.0))
    with pytest.raises(IntegrityError, match="surrogates.masks"):
        fresh.run("run", masks=fresh.masks[0])
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(fresh.root / "2.png")
    with pytest.raises(IntegrityError, match="memorized.pictures: .*retained.pictures"):
        fresh.run("run")


def test_what_is_drawn_is_drawn_once_and_belongs_to_its_run(fresh: Place) -> None:
    calls = []

    def draw() -> list[tuple[str, Any]]:
        calls.append(1)
        return [("a key", np.full((16, 16, 3), 7, np.uint8))]

    kept = DrawnPairs({"demo": 1}, draw)
    with pytest.raises(ScanInterrupted):
        fresh.run("run", retained=kept, on_step=stop_after(2))
    assert fresh.run("run", retained=kept).retained == 1 and calls == [1]
    (fresh.root / "run" / "run.json").unlink()
    with pytest.raises(IntegrityError, match=r"drawn by another run"):
        fresh.run("run", retained=kept, drawing=Drawing(2, 2, 4.0))


def test_rows_are_needed(fresh: Place) -> None:
    write(fresh.root / "p.csv", csv_text([["prompt", "image"], ROWS[1]]))
    with pytest.raises(OverBudgetError, match="1 of 1 rows failed.*none.png") as info:
        fresh.run("run", max_errors=9)
    assert _explain(info.value)[0] == 3
    write(fresh.root / "p.csv", csv_text([["prompt", "image"]]))
    with pytest.raises(UsageError, match="the input has no rows"):
        fresh.run("run")
    write(fresh.root / "p.csv", csv_text([["prompt", "image"], *ROWS]))
    with pytest.raises(UsageError, match="limit=0 leaves no row to read"):
        fresh.run("run", limit=0)
    write(fresh.root / "p.csv", csv_text([["prompt", "image"], *ROWS, *ROWS]))
    with pytest.raises(UsageError, match="finetune: 4 masks, but the input has a row 7"):
        fresh.run("run")
    with pytest.raises(UsageError, match="checkpoint_every"):
        fresh.run("run", checkpoint_every=0)


# one row of four has no image, and one of three pairs if they are to fail
@pytest.mark.parametrize(
    ("file", "budget", "count"), [("prompts", 0.2, "1 of 4"), ("retained", 0.3, "1 of 3")]
)
def test_a_run_over_its_budget_stops_before_anything_is_computed(
    fresh: Place, file: str, budget: float, count: str
) -> None:
    name = "lost.png" if file == "retained" else "0.png"
    write(fresh.root / "kept.csv", csv_text([["prompt", "image"], ["a key", name], *ROWS[2:]]))
    with pytest.raises(OverBudgetError, match=f"{count} rows failed.*no file .*raise --max-errors"):
        fresh.run("run", max_errors=budget)
    left = fresh.root / "run" / "quarantine.jsonl"
    assert list(left.parent.iterdir()) == [left] and file in left.read_text()
    # the same call with a larger budget begins there
    with pytest.raises(ScanInterrupted):
        fresh.run("run", max_errors=0.34, on_step=stop_after(1))
    assert fresh.state("run") == "interrupted"


def test_rows_whose_mask_is_missing_are_left_out(fresh: Place) -> None:
    masks = NeuronMask(fresh.masks.scales, frozenset({2}))
    with pytest.raises(ScanInterrupted):
        fresh.run("run", masks=masks, max_errors=2, on_step=stop_after(1))
    lines = (fresh.root / "run" / "quarantine.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["row_id"] for row in rows] == [1, 2]
    assert rows[1]["error"].startswith("mask: the localization has none for this row")


def test_images_of_drawn_pairs_are_refused(fresh: Place) -> None:
    drawn = DrawnPairs({"demo": 1}, list)
    with pytest.raises(UsageError, match="retained_images is for a file of pairs"):
        fresh.run("run", retained=drawn, retained_images=fresh.root)


def test_a_model_that_cannot_be_trained_is_refused_at_once(
    fresh: Place, tiny_directory: Path
) -> None:
    fresh.model = dori_fast.load(tiny_directory, device="cpu", dtype="bfloat16")
    with pytest.raises(UsageError, match="load it with dtype='float32'"):
        fresh.run("run")
    assert not (fresh.root / "run").exists()


def test_other_threads_are_refused_by_name(fresh: Place) -> None:
    with pytest.raises(ScanInterrupted):
        fresh.run("run", on_step=stop_after(2))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        with pytest.raises(IntegrityError, match=f"threads: {before} then, {before + 1} now"):
            fresh.run("run")
    finally:
        torch.set_num_threads(before)


def test_a_full_disk_costs_no_checkpoint(fresh: Place) -> None:
    """A file-size limit acts as a full disk; the checkpoint's writer raises its own error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(report: StepReport) -> None:
        if report.step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))

    try:
        with pytest.raises(StorageError, match=r"checkpoint\.safetensors could not be written"):
            fresh.run("run", on_step=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert Checkpoint.load(fresh.root / "run" / "checkpoint.safetensors").step == 2
    assert fresh.run("run").steps == 5
    assert not list((fresh.root / "run").glob(".*.tmp"))


def test_scalars_are_cut_back(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    log = StepLog(path, 2)
    log.append({"step": 3, "x": None})
    log.sync()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "x": null}\n'
