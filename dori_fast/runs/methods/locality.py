"""Locality from finished runs: an attack from many starts and localizations of its embeddings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dori_fast.attack.starts import starting_points
from dori_fast.errors import UsageError
from dori_fast.evaluate.locality import (
    agreement,
    feed_forward_discrepancy,
    pairwise_distances,
    value_discrepancy,
)
from dori_fast.runs.budget import MAX_ERRORS, require_rows, require_within
from dori_fast.runs.methods.attack import read_masks
from dori_fast.runs.methods.prune import read_embeddings
from dori_fast.runs.scoring.spent import Spent
from dori_fast.runs.sources.memory.values import described
from dori_fast.runs.sources.open import open_prompts, prompts_on_disk
from dori_fast.runs.sources.where import Selection
from dori_fast.runs.store.durable import write_text_durably
from dori_fast.runs.store.record import Counts, RunRecord

if TYPE_CHECKING:
    from dori_fast.models import Denoiser, TextCondition

RESULTS = "locality.json"
_AT_ONCE = 1024
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def locality(
    model: Denoiser,
    attacked: str | Path,
    memorized: str | Path | Iterable[object],
    ordinary: str | Path | Iterable[object],
    *,
    out: str | Path,
    triggers: Sequence[str | Path] = (),
    baselines: Sequence[str | Path] = (),
    limit: int = 100,
    header: bool | None = None,
    max_errors: float = MAX_ERRORS,
) -> dict[str, Any]:
    """Compare the embeddings that an attack found with each other, and prompts with prompts.

    Args:
        model: the attacked model, with or without its masks.
        attacked: run directory of an attack whose rows are many starts for one image.
        memorized: prompts of memorized images, as in a scan, the baseline of discrepancies.
        ordinary: prompts that are not memorized, the baseline of distances.
        out: folder for ``locality.json``.
        triggers: run directories of ``prune(..., embeddings=attacked)``, one per method.
        baselines: run directories of the same methods on memorized prompts, in the same order.
        limit: maximum number of embeddings and of prompts of each kind; default 100.
        header: True if .csv and .tsv files begin with column names, False if not; as in a scan.
        max_errors: allowed quarantined rows of each run and of each file of prompts, up to
            ``limit``: a fraction if below 1, else a number of rows.

    Returns:
        The content of ``locality.json``: quantiles of distances, discrepancies by layer,
        agreement by layer, and under "unet" the evaluations and the rows computed.

    Raises:
        UsageError: a run or its masks are missing, or there are fewer than two to compare.
        OverBudgetError: more rows failed than allowed.
    """
    spent = Spent(model)
    if len(triggers) != len(baselines):
        raise UsageError("locality: needs a run on memorized prompts for each run on triggers")
    for run in (attacked, *triggers, *baselines):
        _check_run(Path(run), max_errors)
    embeddings = dict(list(read_embeddings(attacked).items())[:limit])
    if len(embeddings) < 2:
        raise UsageError(f"{attacked}: holds {len(embeddings)} embeddings; needs 2 to compare")
    found = model.condition(torch.stack(list(embeddings.values())))
    usual = model.encode(_prompts(ordinary, limit, header, max_errors))
    distances = {"found": found, "ordinary": usual}
    method = RunRecord.read(Path(attacked) / "run.json").identity["detector"]
    if method["start"] == "gaussian":
        starts, _ = starting_points(model, "gaussian", None, list(embeddings), method["seed"])
        distances["starts"] = model.condition(starts)
    known = model.encode(_prompts(memorized, limit, header, max_errors))
    conditions = {"found": found, "memorized": known}
    results = {
        "counts": {name: len(c) for name, c in {**distances, **conditions}.items()},
        "distances": {name: _quantiles(c) for name, c in distances.items()},
        "values": _by_layer({n: value_discrepancy(model, c) for n, c in conditions.items()}),
        "feed_forwards": _by_layer(
            {n: feed_forward_discrepancy(model, c) for n, c in conditions.items()}
        ),
        "agreement": [
            _by_layer({"found": _agreement(one), "memorized": _agreement(two)})
            for one, two in zip(triggers, baselines, strict=True)
        ],
        "unet": {"evaluations": spent.evaluations, "rows_computed": spent.rows_computed},
    }
    Path(out).mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1) + "\n"
    write_text_durably(Path(out) / RESULTS, text)
    return results


def _check_run(run: Path, max_errors: float) -> None:
    """Check the budget of a run directory; a file of masks has no rows that could have failed."""
    if (run / "run.json").is_file():
        counts = RunRecord.read(run / "run.json").counts
        require_within(run, counts, max_errors, None, f"see the column error of {run}/shards")


def _prompts(
    prompts: str | Path | Iterable[object], limit: int, header: bool | None, max_errors: float
) -> list[str]:
    name = described(prompts)
    chosen: list[str] = []
    counts, first = Counts(), None
    with prompts_on_disk(prompts) as path:
        reader = open_prompts(path, selection=Selection.of(header=header))
        require_rows(reader, name)
        for rows in reader.chunks(_AT_ONCE):
            for place, prompt in enumerate(rows.prompts):
                if len(chosen) == limit:
                    break
                counts.add(1, prompt is None)
                if prompt is not None:
                    chosen.append(prompt)
                elif first is None:
                    first = rows.first + place, rows.errors[place] or ""
            if len(chosen) == limit:
                break
    require_within(name, counts, max_errors, first)
    if len(chosen) < 2:
        raise UsageError(f"{name}: holds {len(chosen)} usable prompts; give at least 2")
    return chosen


def _quantiles(condition: TextCondition) -> list[float]:
    distances: NDArray[np.float64] = pairwise_distances(condition.embeddings)
    return [float(q) for q in np.quantile(distances, QUANTILES)]


def _agreement(run: str | Path) -> dict[str, Any]:
    """Agreement by layer; null instead of NaN for a layer that no mask touches."""
    by_layer = {name: asdict(found) for name, found in agreement(read_masks(run)).items()}
    for found in by_layer.values():
        found["iou"] = None if np.isnan(found["iou"]) else found["iou"]
    return by_layer


def _by_layer(groups: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """{group: {layer: x}} as {layer: {group: x}}."""
    layers = next(iter(groups.values()))
    return {layer: {name: of[layer] for name, of in groups.items()} for layer in layers}
