"""The figure of the benchmarks: each op's speed-up over eager, one dot a shape."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from benchmarks.ops.results import Measured, place

_COLORS = {"float32": "#2b6cb0", "bfloat16": "#dd6b20", "float16": "#2f855a"}
_OTHER_COLOR = "#718096"


def draw(measured: Sequence[Measured], path: Path, fingerprint: str) -> None:
    """Write a PNG with a panel per machine; `fingerprint` goes into its metadata."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [m for m in measured if m.speedup is not None]
    machines = sorted({(m.problem.machine, m.problem.threads) for m in rows})
    bars = [_bars(rows, machine) for machine in machines]
    heights = [1.4 + 0.3 * sum(map(len, panel.values())) for panel in bars]
    figure, axes = pyplot.subplots(
        len(machines),
        figsize=(8, sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for axis, machine, panel in zip(axes.flat, machines, bars, strict=True):
        _panel(axis, panel)
        axis.set_title(place(*machine), fontsize=10)
    figure.savefig(path, dpi=110, metadata={"Software": None, "Description": fingerprint})
    pyplot.close(figure)


_Panel = dict[str, dict[str, list[float]]]


def _bars(rows: Sequence[Measured], machine: tuple[str, int]) -> _Panel:
    """Speed-ups by op and mode, then by dtype."""
    panel: _Panel = {}
    for m in rows:
        if (m.problem.machine, m.problem.threads) == machine and m.speedup is not None:
            label = f"{m.problem.op}\n{m.problem.mode.replace('_', ' ')}"
            panel.setdefault(label, {}).setdefault(m.problem.dtype, []).append(m.speedup)
    return panel


def _panel(axis: Any, panel: _Panel) -> None:
    y, ticks, seen = 0.0, [], set()
    for speedups in panel.values():
        ticks.append(y + (len(speedups) - 1) / 2)
        for dtype, values in sorted(speedups.items(), reverse=True):
            mean, color = geometric_mean(values), _COLORS.get(dtype, _OTHER_COLOR)
            label = None if dtype in seen else dtype
            axis.barh(y, mean - 1, 0.85, left=1, color=color, label=label)
            axis.plot(values, [y] * len(values), "o", color="black", markersize=3, alpha=0.6)
            right = max(1, *values)
            axis.annotate(
                f"{mean:.1f}x",
                (right, y),
                (5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
            seen.add(dtype)
            y += 1
        y += 0.6
    drawn = [value for s in panel.values() for values in s.values() for value in values]
    least, most = min(0.5, 0.8 * min(drawn)), 1.6 * max(drawn)
    axis.set_yticks(ticks, list(panel), fontsize=8)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlim(least, most)
    marks = [m for m in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200) if least <= m <= most]
    axis.set_xticks(marks, [f"{mark:g}x" for mark in marks])
    axis.set_xticks([], minor=True)
    axis.axvline(1, color="black", linewidth=1)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    axis.set_xlabel("times as fast as eager PyTorch (bar: geometric mean over shapes, dot: shape)")
    axis.legend(loc="lower right", fontsize=8)
