"""Charts as PNG files in memory."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# pixels of a figure per pixel of the page
DENSITY = 2.0
MEMORIZED, OTHER, LINE = "#c05621", "#2b6cb0", "#4a5568"
_COLORS = (OTHER, MEMORIZED)
_SIZE = (6.4, 3.2)


def histogram(
    groups: Mapping[str, NDArray[np.floating[Any]]], threshold: float | None = None
) -> bytes:
    """Distributions of finite scores, one color per group, counts on a logarithmic axis.

    Args:
        groups: Scores by name: one group, or others and memorized.
        threshold: Threshold to draw as a line, if any.
    """
    figure, axis = _figure()
    everything = np.concatenate(list(groups.values()))
    low, high = (float(everything.min()), float(everything.max())) if len(everything) else (0, 1)
    # equal scores would make bins of no width
    edges = np.linspace(low, high if high > low else low + 1, 41)
    for (name, scores), color in zip(groups.items(), _COLORS, strict=False):
        axis.hist(scores, edges, color=color, alpha=0.7, label=f"{name} ({len(scores):,})")
    if threshold is not None:
        axis.axvline(threshold, color=LINE, linestyle="--", linewidth=1, label="threshold")
    axis.set_yscale("symlog", linthresh=1)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.set_xlabel("score")
    axis.set_ylabel("prompts")
    axis.legend(fontsize=8)
    return _png(figure)


def roc_curve(false: NDArray[np.float64], true: NDArray[np.float64]) -> bytes:
    """True against false positive rate; both ascending, [N]."""
    figure, axis = _figure((3.6, 3.2))
    axis.plot((0, 1), (0, 1), color=LINE, linestyle=":", linewidth=1)
    axis.plot(false, true, color=MEMORIZED, drawstyle="steps-post")
    axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    axis.set_xlabel("false positive rate")
    axis.set_ylabel("true positive rate")
    axis.set_aspect("equal")
    return _png(figure)


def budget_curves(
    curves: Mapping[str, Mapping[str, Mapping[int, tuple[float, float, float]]]],
) -> bytes:
    """Share of copies by attack steps: a panel per model, a line per set, intervals shaded.

    Args:
        curves: ``(value, low, high)`` by steps, by set ("memorized", "control"), by model.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.3 * len(curves), 3.2), layout="constrained")
    axes = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axis, (model, lines) in zip(axes, curves.items(), strict=True):
        for name, points in lines.items():
            color = MEMORIZED if name == "memorized" else OTHER
            steps = sorted(points)
            value, low, high = np.array([points[step] for step in steps]).T
            places = np.arange(len(steps))
            axis.plot(places, value, "o-", color=color, label=name, markersize=4)
            axis.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)
            axis.set_xticks(places, [str(step) for step in steps])
        axis.set_title(model, fontsize=10)
        axis.set_xlabel("attack steps")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="upper left")
    axes[0].set_ylabel("share of images that are copies")
    axes[0].set_ylim(-0.02, 1.02)
    return _png(figure)


def mitigation_curves(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Share of copies by budget, a panel per attack, and the quality kept.

    Args:
        rows: Rows of a leaderboard: ``mitigation``; ``attacks`` by name, set ("memorized",
            "control"), budget and ``images``, [value, low, high]; ``quality`` with
            ``same_seed_similarity``.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    attacks = list(rows[0]["attacks"])
    figure = Figure(figsize=(4.2 * (len(attacks) + 1), 3.8), layout="constrained")
    *panels, bars = figure.subplots(1, len(attacks) + 1)
    colors = [colormaps["tab10"](i % 10) for i in range(len(rows))]
    for axis, attack in zip(panels, attacks, strict=True):
        for row, color in zip(rows, colors, strict=True):
            for which, points in row["attacks"][attack].items():
                places = np.arange(len(points))
                value, low, high = np.array([point["images"] for point in points.values()]).T
                known = which == "memorized"
                label = row["mitigation"] if known else None
                axis.plot(places, value, "o-" if known else "x--", color=color, label=label)
                axis.fill_between(places, low, high, color=color, alpha=0.08, linewidth=0)
                axis.set_xticks(places, list(points))
        axis.set(title=f"from {attack}", xlabel="attack steps", ylim=(-0.02, 1.02))
        axis.grid(alpha=0.3)
    panels[0].set_ylabel("share of images that are copies")
    panels[0].legend(fontsize=7, title="controls dashed", title_fontsize=7)
    value, low, high = np.array([row["quality"]["same_seed_similarity"] for row in rows]).T
    places = np.arange(len(rows))
    # rounding can put the mean of equal values outside its interval
    error = np.maximum((value - low, high - value), 0)
    bars.barh(places, value, xerr=error, color=colors)
    bars.set_yticks(places, [row["mitigation"] for row in rows], fontsize=8)
    bars.invert_yaxis()
    bars.set(title="quality", xlabel="similarity to the unmitigated model's images")
    return _png(figure)


def _figure(size: tuple[float, float] = _SIZE) -> tuple[Any, Any]:
    # not pyplot, which keeps figures and needs a display
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots()


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, dpi=100 * DENSITY, format="png", metadata={"Software": None})
    return file.getvalue()
