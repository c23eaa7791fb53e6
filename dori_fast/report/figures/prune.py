"""Figures of a localization: sizes of masks per layer, and images with and without masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from dori_fast.errors import UsageError
from dori_fast.models import NeuronMask, WeightMask
from dori_fast.report.figures.grid import Group, image_grid
from dori_fast.report.load import rows_in
from dori_fast.report.names import IMAGES_FIGURE, LAYERS_FIGURE, short_name


def draw_prune(run: str | Path) -> list[Path]:
    """Draw a localization's run directory: ``layers.png``, and ``pictures.png`` if it has images.

    Returns:
        Paths of the figures.

    Raises:
        UsageError: the directory holds no finished localization.
    """
    run = Path(run)
    rows = [row for row in rows_in(run) if row["status"] == "ok"]
    if not rows or not (run / "masks.safetensors").exists():
        raise UsageError(f"{run}: no finished localization; run dori-fast prune first")
    written = [run / LAYERS_FIGURE]
    if "refined" in rows[0]:
        _draw_neurons(rows, NeuronMask.load(run / "masks.safetensors").layers, run / LAYERS_FIGURE)
    else:
        masks = WeightMask.load(run / "masks.safetensors")
        _draw_weights(masks.take(masks.present), run / LAYERS_FIGURE)
    if (run / "pictures.safetensors").exists():
        _draw_images(rows, load_file(run / "pictures.safetensors"), run / IMAGES_FIGURE)
        written.append(run / IMAGES_FIGURE)
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
    """Draw medians over prompts as bars, and quartiles as lines."""
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
    axis.set_xlabel(f"{unit}, median and quartiles")
    axis.set_title(title, fontsize=10)
    if len(counts) > 1:
        axis.legend()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def _draw_images(
    rows: Sequence[dict[str, Any]], images: dict[str, NDArray[Any]], path: Path
) -> None:
    by_id = {row["row_id"]: row["prompt"] for row in rows}
    labels = [by_id[int(i)] for i in images["row_id"]]
    groups = [Group("unpruned", images["before"]), Group("pruned", images["after"])]
    image_grid(labels, groups, scale=1 if groups[0].images.shape[2] > 128 else 2).save(path)
