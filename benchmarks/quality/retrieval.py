"""Retrieval of pruned images by an attack on the embedded model, with controls.

The model and its pruned versions (a mask per prompt) draw the photographs that the model
replicates, first from their prompts and then from the embeddings that the attack finds on each
model. Controls are images that no training step saw. They are attacked at the same budget on the
same models, each under the mask of one memorized prompt. Then `benchmarks.quality.locality`
compares triggers of one photograph. `--work` keeps every arm; the same call resumes an interrupted
run. Use an empty folder after a change of settings.

    python -m benchmarks.quality.retrieval
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import dori_fast as df
from benchmarks.pages import retrieval as retrieval_page
from benchmarks.quality import locality
from dori_fast.attack import Dori
from dori_fast.demo.facts import GENERATION, HIDING, reproduced
from dori_fast.demo.story.settings import ATTACK, NEMO
from dori_fast.evaluate import replication
from dori_fast.models import NeuronMask, WeightMask

START, BUDGET = "prompt", 50
CURVE = (0, 1, 10, 25, 50, 100, 150)
# most images of each set
AT_MOST = {"memorized": 21, "control": 23, "composition": 14}
SEEDS, CONTROL_SEEDS, CURVE_SEEDS, SHOWN = 10, 5, 3, 2
# every third image has a curve; these images also served to choose start and objective
EVERY = 3


@dataclass(frozen=True)
class Arm:
    """One set of images attacked on one model, for the verdict or for the curve.

    Attributes:
        which: name of the set of images.
        model: name of the model.
        curve: True for the curve, False for the verdict.
    """

    which: str
    model: str
    curve: bool

    @property
    def name(self) -> str:
        """Name of the arm in the results."""
        return f"{self.which}-{self.model}-{'curve' if self.curve else 'verdict'}"

    @property
    def steps(self) -> tuple[int, ...]:
        """Numbers of steps after which the arm is judged; 0 is the prompt itself."""
        if self.curve:
            return CURVE
        return (0, BUDGET) if self.which == "memorized" else (BUDGET,)

    @property
    def seeds(self) -> int:
        """Number of images drawn from each embedding."""
        if self.curve:
            return CURVE_SEEDS
        return SEEDS if self.which == "memorized" else CONTROL_SEEDS


ARMS = (
    Arm("control", "nemo", False),
    Arm("memorized", "nemo", False),
    Arm("memorized", "wanda", False),
    Arm("control", "wanda", False),
    Arm("control", "unpruned", False),
    *(Arm("memorized", model, True) for model in ("nemo", "wanda")),
    *(Arm("control", model, True) for model in ("nemo", "wanda", "unpruned")),
    Arm("memorized", "unpruned", False),
    *(Arm("composition", model, False) for model in ("nemo", "wanda", "unpruned")),
)


class Study:
    """Images, model and masks, with a folder that keeps computed arms."""

    def __init__(self, work: Path) -> None:
        self.work, self.model = work, df.load("demo", device="cpu")
        work.mkdir(parents=True, exist_ok=True)
        shipped = {"memorized": reproduced()}
        for kind in ("control", "composition"):
            shipped[kind] = [p for p in df.demo.images("held_out") if p.kind == kind]
        self.images = {name: of[: AT_MOST[name]] for name, of in shipped.items()}

    def masks(self, method: str) -> NeuronMask | WeightMask:
        """One mask per memorized prompt, computed once."""
        path = self.work / f"{method}.safetensors"
        if not path.exists():
            prompts = [p.prompt for p in self.images["memorized"]]
            (NEMO if method == "nemo" else HIDING).localize(self.model, prompts).save(path)
        return NeuronMask.load(path) if method == "nemo" else WeightMask.load(path)

    def view(self, model: str, rows: Sequence[int]) -> df.Denoiser:
        """The model with row i under the mask of memorized prompt i, cycling through the masks."""
        if model == "unpruned":
            return self.model
        masks = self.masks(model)
        return self.model.masked(masks.in_turn(rows))

    def kept(self, arm: Arm) -> Path:
        """The file that keeps an arm."""
        return self.work / f"{arm.name}.npz"

    def run(self, arm: Arm) -> dict[str, NDArray[Any]]:
        """Similarities [P, S] and some images [P, SHOWN, H, W, 3], by steps."""
        path = self.kept(arm)
        if path.exists():
            with np.load(path) as file:
                return dict(file)
        chosen = self.images[arm.which]
        rows = list(range(0, len(chosen), EVERY if arm.curve else 1))
        images = np.stack([chosen[row].image for row in rows])
        prompts, view = [chosen[row].prompt for row in rows], self.view(arm.model, rows)
        attack = Dori(steps=arm.steps[-1], **ATTACK, checkpoints=arm.steps)
        began = process_time()
        ids = [f"{arm.which} {row}" for row in rows]
        found = attack.run(view, prompts, images, start=START, ids=ids)
        spent = (process_time() - began) / len(rows)
        results = {"rows": np.array(rows), "cpu_seconds_per_problem": np.array(spent)}
        for step in arm.steps:
            condition = found.condition(view, step) if step else view.encode(prompts)
            drawn = replication(
                view, condition, images, seeds=arm.seeds, keep_images=True, **GENERATION
            )
            results[f"similarity {step}"] = drawn.similarity
            if drawn.images is not None:
                results[f"pictures {step}"] = drawn.images[:, :SHOWN]
        np.savez(path.with_suffix(".partial.npz"), **results)
        path.with_suffix(".partial.npz").replace(path)
        return results

    def setting(self) -> dict[str, Any]:
        """Settings of the run, as plain JSON."""
        nemo = {key: value for key, value in NEMO.config().items() if key != "statistics"}
        return {
            "attack": {**Dori(**ATTACK).config(), "start": START, "steps": BUDGET},
            "budget": BUDGET,
            "seeds": {"memorized": SEEDS, "controls": CONTROL_SEEDS, "curve": CURVE_SEEDS},
            "chosen_on_every": EVERY,
            "generation": GENERATION,
            "nemo": nemo,
            "wanda": HIDING.config(),
        }


def main(arguments: list[str] | None = None) -> int:
    """Attack, judge, and write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.retrieval", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/retrieval"), help="folder for arms"
    )
    parser.add_argument("--arms", type=int, default=len(ARMS), help="most new arms to compute")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    study, results, new = Study(options.work), {}, 0
    for arm in ARMS:
        if not study.kept(arm).exists():
            if new == options.arms:
                return 0
            new += 1
        results[arm.name] = study.run(arm)
        print(arm.name, flush=True)
    images = {name: np.stack([p.image for p in of]) for name, of in study.images.items()}
    retrieval_page.write(results, study.setting(), images)
    return locality.main(["--work", str(options.work / "locality")])


if __name__ == "__main__":
    sys.exit(main())
