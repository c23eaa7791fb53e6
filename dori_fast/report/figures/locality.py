"""Figure of locality: distances, discrepancies and mask agreement of triggers and prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dori_fast.errors import UsageError
from dori_fast.report.names import short_name

FIGURE = "locality.png"
_COLORS = {"found": "#c05621", "memorized": "#2b6cb0", "starts": "#a0aec0", "ordinary": "#4a5568"}


def draw_locality(folder: str | Path) -> Path:
    """Draw a folder's ``locality.json`` as ``locality.png``.

    Returns:
        Path of the figure.

    Raises:
        UsageError: the folder has no ``locality.json``.
    """
    source = Path(folder) / "locality.json"
    if not source.exists():
        raise UsageError(f"{source}: no such file; run dori-fast locality first")
    results = json.loads(source.read_text(encoding="utf-8"))
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = 3 + len(results["agreement"])
    figure, axes = pyplot.subplots(1, panels, figsize=(3.6 * panels, 4), layout="constrained")
    _distances(axes[0], results["distances"])
    for axis, key, title in (
        (axes[1], "values", "discrepancy of values"),
        (axes[2], "feed_forwards", "discrepancy of\nfeed-forward inputs"),
    ):
        _bars(axis, results[key], title, "mean L2 distance")
    for axis, layers in zip(axes[3:], results["agreement"], strict=True):
        ious = {n: {g: of["iou"] for g, of in groups.items()} for n, groups in layers.items()}
        _bars(axis, ious, "agreement of masks,\nempty pairs left out", "mean IoU of pairs")
    figure.savefig(Path(folder) / FIGURE, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    return Path(folder) / FIGURE


def _distances(axis: Any, distances: Mapping[str, list[float]]) -> None:
    for place, (name, (least, low, middle, high, most)) in enumerate(distances.items()):
        box = {"med": middle, "q1": low, "q3": high, "whislo": least, "whishi": most, "label": name}
        axis.bxp(
            [box],
            positions=[place],
            showfliers=False,
            boxprops={"color": _COLORS[name]},
            medianprops={"color": _COLORS[name]},
        )
    axis.set_ylim(bottom=0)
    axis.set_title("L2 distances of\nembeddings", fontsize=10)


def _bars(axis: Any, layers: Mapping[str, Mapping[str, Any]], title: str, unit: str) -> None:
    places = np.arange(len(layers))
    for i, group in enumerate(("memorized", "found")):
        values = [of[group] if of[group] is not None else np.nan for of in layers.values()]
        axis.barh(places + 0.4 * i, values, 0.4, label=group, color=_COLORS[group])
    axis.set_yticks(places + 0.2, [short_name(name) for name in layers])
    axis.invert_yaxis()
    axis.set_xlabel(unit)
    axis.set_title(title, fontsize=10)
    # below the bars, which may reach anywhere within the axes
    axis.legend(fontsize=8, ncol=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
