"""The floors of the house, and pictures of its rooms: `python -m docs.floors --write`.

Arrows are drawn from the imports in the source. An import that also leads there through other rooms
has no arrow of its own. What every room may use (errors, checks, the loader of the extension) is
left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from html import escape
from statistics import mean

from docs.imports import ROOT, Graph, graph, sources

# a room may import from itself and from rooms on lower floors; tests/test_architecture.py asks it
FLOORS = [
    ["cli"],
    ["leaderboard"],
    ["demo"],
    ["report", "runs", "integrations"],
    ["detect", "evaluate", "finetune", "attack", "prune", "mitigate"],
    # functional: other tools' signatures over the operators
    ["models", "functional"],
    ["ops"],
    ["reference", "triton_kernels"],
]
PLUMBING = {"errors", "testing"}
BOX, GAP, FLOOR, MARGIN = 104, 26, 92, 14
INK, PAPER, LINE = "#1f2933", "#ffffff", "#8896a6"
# one color a floor, light enough for dark text
COLORS = ("#dbeafe", "#dcfce7", "#fef3c7", "#fde2e2", "#ede9fe", "#e0f2f1", "#fce7f3", "#f1f5f9")


def rooms(found: Graph, package: str) -> dict[str, set[str]]:
    """The rooms of a package, each with the other rooms that it imports."""
    depth = package.count(".") + 1
    arrows: dict[str, set[str]] = {}
    for name, targets in found.items():
        if not name.startswith(f"{package}."):
            continue
        room = name.split(".")[depth]
        mine = arrows.setdefault(room, set())
        mine |= {t.split(".")[depth] for t in targets if t.startswith(f"{package}.")} - {room}
    left_out = {room for room in arrows if room in PLUMBING or room.startswith("_")}
    return {room: mine - left_out for room, mine in arrows.items() if room not in left_out}


def floors(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """Rooms by floor, the highest first: each right above the highest that it imports.

    Rooms of a floor stand near those that they import. Raises RecursionError in a circle.
    """

    def height(room: str) -> int:
        return max((height(below) + 1 for below in arrows[room]), default=0)

    levels: list[list[str]] = []
    place: dict[str, float] = {}
    for level in range(max(map(height, arrows)) + 1):
        of_level = [room for room in sorted(arrows) if height(room) == level]
        of_level.sort(key=lambda room: mean([place[below] for below in arrows[room]] or [0.0]))
        place |= {room: n - (len(of_level) - 1) / 2 for n, room in enumerate(of_level)}
        levels.insert(0, of_level)
    return levels


def direct(arrows: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The arrows without those that lead where others lead as well (transitive reduction)."""

    def reach(room: str) -> set[str]:
        return arrows[room].union(*map(reach, arrows[room]))

    return {
        room: below - set().union(*(reach(other) for other in below))
        for room, below in arrows.items()
    }


def drawn(arrows: Mapping[str, set[str]], levels: list[list[str]], title: str) -> str:
    """The picture as SVG."""
    width = max(len(level) for level in levels) * (BOX + GAP) - GAP + 2 * MARGIN
    height = (len(levels) - 1) * FLOOR + 34 + 2 * MARGIN
    place: dict[str, tuple[float, float]] = {}
    for row, level in enumerate(levels):
        left = (width - len(level) * (BOX + GAP) + GAP) / 2
        for column, room in enumerate(level):
            place[room] = (left + column * (BOX + GAP), MARGIN + row * FLOOR)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
        *_arrows(direct(arrows), place),
    ]
    for row, level in enumerate(levels):
        for room in level:
            x, y = place[room]
            lines.append(
                f'<rect x="{x:g}" y="{y:g}" width="{BOX}" height="34" rx="5"'
                f' fill="{COLORS[row % len(COLORS)]}" stroke="{INK}" stroke-width="0.8"/>'
            )
            lines.append(
                f'<text x="{x + BOX / 2:g}" y="{y + 22:g}" text-anchor="middle"'
                f' fill="{INK}">{escape(room)}</text>'
            )
    return "\n".join([*lines, "</svg>", ""])


def _arrows(
    arrows: Mapping[str, set[str]], place: Mapping[str, tuple[float, float]]
) -> Iterable[str]:
    for room, below in sorted(arrows.items()):
        for other in sorted(below):
            (x, y), (u, v) = place[room], place[other]
            x, y, u = x + BOX / 2, y + 34, u + BOX / 2
            middle = (y + v) / 2
            yield (
                f'<path d="M{x:g} {y:g} C{x:g} {middle:g} {u:g} {middle:g} {u:g} {v:g}"'
                f' fill="none" stroke="{LINE}" stroke-width="1" stroke-opacity="0.7"/>'
            )


def pictures() -> dict[str, str]:
    """The SVG of every picture by its file name."""
    found = graph(sources())
    house = rooms(found, "dori_fast")
    drawings = {"house.svg": drawn(house, FLOORS, "The rooms of dori_fast")}
    for room in ("models", "runs"):
        inside = rooms(found, f"dori_fast.{room}")
        title = f"The rooms of dori_fast.{room}"
        drawings[f"{room}.svg"] = drawn(inside, floors(inside), title)
    return drawings


if __name__ == "__main__":
    for name, svg in pictures().items():
        path = ROOT / "docs" / name
        if "--write" in sys.argv[1:]:
            path.write_text(svg)
        same = path.is_file() and path.read_text() == svg
        print(f"docs/{name}: {'as drawn' if same else 'differs; run with --write'}")
