"""What a localization found, per layer, and what its masks do to the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import load_file

from dori_fast.errors import UsageError
from dori_fast.models import NeuronMask, WeightMask
from dori_fast.report.figures.grid import Group, picture_grid
from dori_fast.report.names import short_name
from dori_fast.report.pages.prune import GRID, LAYERS


def draw_prune(run: str | Path) -> list[Path]:
    """Draw a localization's run directory: ``layers.png``, and ``pictures.png`` if it has any.

    Returns:
        The files that were written.

    Raises:
        UsageError: the directory holds no finished localization.
    """
    run = Path(run)
    shards = list((run / "shards").glob("*.parquet"))
    if not shards or not (run / "masks.safetensors").exists():
        raise UsageError(f"{run}: no finished localization — run dori-fast prune first")
    rows = [row for shard in shards for row in pq.read_table(shard, partitioning=None).to_pylist()]
    rows.sort(key=lambda row: row["row_id"])
    written = [run / LAYERS]
    if "refined" in rows[0]:
        _draw_neurons(rows, NeuronMask.load(run / "masks.safetensors").layers, run / LAYERS)
    else:
        _draw_weights(WeightMask.load(run / "masks.safetensors"), run / LAYERS)
    if (run / "pictures.safetensors").exists():
        _draw_pictures(rows, load_file(run / "pictures.safetensors"), run / GRID)
        written.append(run / GRID)
    return written


def _draw_neurons(rows: Sequence[dict[str, Any]], layers: Sequence[str], path: Path) -> None:
    memorized = [row for row in rows if row["memorized"]]
    counts = {
        name: np.array([[len(set(layer)) for layer in row[key]] for row in memorized])
        for name, key in (("candidates", "initial"), ("kept", "refined"))
    }
    title = f"Neurons per layer, {len(memorized)} memorized prompts of {len(rows)}"
    _bars(counts, layers, title, "neurons per prompt", path)


def _draw_weights(masks: WeightMask, path: Path) -> None:
    pruned = np.stack([100 * mask.flatten(1).float().mean(1) for mask in masks.pruned.values()], 1)
    title = f"Pruned weights per layer, {len(masks)} prompts"
    _bars({"pruned": pruned}, masks.layers, title, "% of the layer's weights", path)


def _bars(
    counts: dict[str, NDArray[Any]], layers: Sequence[str], title: str, unit: str, path: Path
) -> None:
    """Medians over prompts, with the middle half as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 1 + 0.45 * len(layers)), layout="constrained")
    height, places = 0.8 / len(counts), np.arange(len(layers))
    for i, (name, values) in enumerate(counts.items()):
        values = values if len(values) else np.zeros((1, len(layers)))
        low, middle, high = np.percentile(values, (25, 50, 75), axis=0)
        axis.barh(
            places + i * height,
            middle,
            height,
            xerr=(middle - low, high - middle),
            label=name,
            color=("#a0aec0", "#2b6cb0")[i + 2 - len(counts)],
            ecolor="#4a5568",
        )
    axis.set_yticks(places + 0.4 - height / 2, [short_name(name) for name in layers])
    axis.invert_yaxis()
    axis.set_xlabel(f"{unit}, median and middle half")
    axis.set_title(title, fontsize=10)
    if len(counts) > 1:
        axis.legend()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def _draw_pictures(
    rows: Sequence[dict[str, Any]], pictures: dict[str, NDArray[Any]], path: Path
) -> None:
    by_id = {row["row_id"]: row["prompt"] for row in rows}
    labels = [by_id[int(i)] for i in pictures["row_id"]]
    groups = [Group("as it is", pictures["before"]), Group("pruned", pictures["after"])]
    picture_grid(labels, groups, scale=1 if groups[0].pictures.shape[2] > 128 else 2).save(path)
