"""Locality from an attack's run and localizations of its embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dori_fast.attack import Dori
from dori_fast.errors import UsageError
from dori_fast.evaluate.locality import agreement, pairwise_distances
from dori_fast.models import stack
from dori_fast.prune import NeMo, Wanda
from dori_fast.report.figures.locality import draw_locality
from dori_fast.runs.methods.attack import Judging, attack, read_masks
from dori_fast.runs.methods.locality import locality
from dori_fast.runs.methods.prune import prune, read_embeddings
from tests.runs.inputs import write

MEMORIZED = ["a cup of coffee", "the cat", "a dog"]
METHODS = {
    "nemo": NeMo(layers="all", threshold=-1.0, theta_end=4.0),
    "wanda": Wanda(0.1, steps=2, joint=False),
}


@pytest.fixture(scope="module")
def runs(model: Any, tmp_path_factory: Any) -> Path:
    """An attack from three starts on one image, and both methods' masks for its embeddings."""
    root = tmp_path_factory.mktemp("runs")
    repeated = write(root / "repeated.txt", "a cat\n" * 3)
    memorized = write(root / "memorized.txt", "\n".join(MEMORIZED) + "\n")
    write(root / "ordinary.txt", "one\ntwo\nthree and four\n")
    known = {"a cat": np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)}
    how = {"method": Dori(steps=2, draws=2), "judging": Judging(seeds=1, steps=1)}
    attack(model, repeated, known, out=root / "attack", start="gaussian", **how)
    for name, method in METHODS.items():
        prune(model, repeated, out=root / f"{name}_t", method=method, embeddings=root / "attack")
        prune(model, memorized, out=root / f"{name}_m", method=method)
    return root


def compared(model: Any, runs: Path, **more: Any) -> dict[str, Any]:
    return locality(
        model,
        runs / "attack",
        runs / "memorized.txt",
        runs / "ordinary.txt",
        out=runs / "out",
        **more,
    )


def test_masks_are_those_of_the_embeddings(model: Any, runs: Path) -> None:
    embeddings = read_embeddings(runs / "attack")
    for name, method in METHODS.items():
        alone = [method.localize(model, model.condition(e[None])) for e in embeddings.values()]
        assert read_masks(runs / f"{name}_t").sha256() == stack(alone).sha256()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_an_embedding_is_localized_as_its_prompt_is(model: Any, method: Any) -> None:
    prompts = method.localize(model, MEMORIZED)
    assert method.localize(model, model.encode(MEMORIZED)).sha256() == prompts.sha256()


def test_everything_is_compared(model: Any, runs: Path) -> None:
    triggers, baselines = ([runs / f"{name}_{kind}" for name in METHODS] for kind in ("t", "m"))
    found = compared(model, runs, triggers=triggers, baselines=baselines)
    assert json.loads((runs / "out" / "locality.json").read_text()) == found
    assert set(found["distances"]) == {"found", "starts", "ordinary"}
    assert found["unet"]["rows_computed"] >= found["unet"]["evaluations"] > 0
    embeddings = torch.stack(list(read_embeddings(runs / "attack").values()))
    distances = pairwise_distances(embeddings)
    assert found["distances"]["found"][0] == pytest.approx(distances.min())
    assert found["distances"]["found"][-1] == pytest.approx(distances.max())
    # standard normal starts lie about sqrt(2 T D) apart
    assert found["distances"]["starts"][2] == pytest.approx((2 * 77 * 32) ** 0.5, rel=0.1)
    assert set(found["values"]) == set(model.layers)
    for layers, run in zip(found["agreement"], baselines, strict=True):
        for name, expected in agreement(read_masks(run)).items():
            of = layers[name]["memorized"]
            assert of["iou_empty_as_one"] == expected.iou_empty_as_one
            assert of["empty_pairs"] == expected.empty_pairs
    assert draw_locality(runs / "out").stat().st_size > 1000


def test_what_is_lacking(model: Any, runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="for each run on triggers"):
        compared(model, runs, triggers=[runs / "nemo_t"])
    with pytest.raises(UsageError, match="holds 1 embeddings"):
        compared(model, runs, limit=1)
    with pytest.raises(UsageError, match="run directory of a finished attack"):
        read_embeddings(tmp_path)
    with pytest.raises(UsageError, match="run dori-fast locality first"):
        draw_locality(tmp_path)
    other = write(tmp_path / "p.txt", "a cat\n" * 4)
    run = prune(
        model, other, out=tmp_path / "run", method=METHODS["wanda"], embeddings=runs / "attack"
    )
    last = list(run.run.rows())[3]
    assert last["error"] == "embedding: the attack has none for this row"
