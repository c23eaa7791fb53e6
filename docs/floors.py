"""The floors of the house, and pictures of its rooms: `python -m docs.floors --write`.

An arrow leads from a room to one that it imports, by the source. An arrow that follows from others
is left out, and so is plumbing that every room may use (errors, checks, the report of progress).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from html import escape
from itertools import pairwise
from statistics import mean

from docs.imports import ROOT, Graph, graph, sources

# a room may import from itself and from rooms on lower floors; tests/test_architecture.py checks it
FLOORS = [
    ["cli"],
    ["leaderboard"],
    ["demo"],
    ["report", "runs", "integrations"],
    ["detect", "evaluate", "finetune", "attack", "prune", "mitigate"],
    # functional: other tools' signatures over the ops
    ["models", "functional"],
    ["ops"],
    ["reference", "triton_kernels"],
]
PLUMBING = {"errors", "testing", "progress", "signals"}
# what ops calls without an import: launchers of Triton kernels by name, and the compiled extension
UNDER_OPS = {"triton_kernels", "csrc"}
BOX, TALL, GAP, FLOOR, MARGIN = 120, 34, 20, 84, 14
# an arrow that passes a floor keeps to a lane between the rooms
LANE = 6
INK, PAPER, LINE = "#1f2933", "#ffffff", "#616e7c"
# one color a floor, light enough for dark text
COLORS = ("#dbeafe", "#dcfce7", "#fef3c7", "#fde2e2", "#ede9fe", "#e0f2f1", "#fce7f3", "#f1f5f9")

Arrows = Mapping[str, set[str]]
Levels = list[list[str]]
Place = tuple[str, int]
"""A room or a lane on a floor: the room, or the room that the lane leads to; the floor."""


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


def floors(arrows: Arrows) -> Levels:
    """Rooms by floor, the highest first: each right above the highest that it imports.

    Raises RecursionError in a circle.
    """

    def height(room: str) -> int:
        return max((height(below) + 1 for below in arrows[room]), default=0)

    heights = {room: height(room) for room in sorted(arrows)}
    return [
        [room for room in heights if heights[room] == level]
        for level in range(max(heights.values()), -1, -1)
    ]


def direct(arrows: Arrows) -> dict[str, set[str]]:
    """The arrows without those that lead where others lead as well (transitive reduction)."""

    def reach(room: str) -> set[str]:
        return arrows[room].union(*map(reach, arrows[room]))

    return {
        room: below - set().union(*(reach(other) for other in below))
        for room, below in arrows.items()
    }


def routes(arrows: Arrows, levels: Levels) -> list[list[Place]]:
    """Each arrow as the places that it leads through; arrows to one room share its lanes."""
    level = {room: row for row, on_it in enumerate(levels) for room in on_it}
    return [
        [
            (room, level[room]),
            *((to, row) for row in range(level[room] + 1, level[to])),
            (to, level[to]),
        ]
        for room, below in sorted(arrows.items())
        for to in sorted(below)
    ]


def placed(levels: Levels, ways: list[list[Place]]) -> tuple[dict[Place, float], float]:
    """The middle of each room and lane, near those that arrows connect it with; the whole width."""
    near: dict[Place, list[Place]] = {
        (room, row): [] for row, on_it in enumerate(levels) for room in on_it
    }
    for way in ways:
        for one, other in pairwise(way):
            near.setdefault(one, []).append(other)
            near.setdefault(other, []).append(one)
    width = {place: BOX if place[0] in levels[place[1]] else LANE for place in near}
    at = dict.fromkeys(near, 0.0)
    for turn in range(60):
        # the last turns look both ways, the earlier ones up or down
        both, up = turn >= 40, turn % 2
        for row in sorted(range(len(levels)), reverse=turn % 2 == 0):
            wanted = {}
            for place in (place for place in near if place[1] == row):
                sides = [p for p in near[place] if both or (p[1] <= row if up else p[1] >= row)]
                wanted[place] = mean(at[side] for side in sides) if sides else at[place]
            order = sorted(wanted, key=lambda place: wanted[place])
            at |= _apart(order, wanted, width)
    left = min(at[place] - width[place] / 2 for place in at)
    right = max(at[place] + width[place] / 2 for place in at)
    return {place: round(x - left + MARGIN) for place, x in at.items()}, right - left + 2 * MARGIN


def _apart(
    order: list[Place], wanted: Mapping[Place, float], width: Mapping[Place, int]
) -> dict[Place, float]:
    """The middles of a floor's places in this order, as near to the wanted ones as can be."""
    # groups of places that touch, each with its left end and the left ends that its places want
    groups: list[tuple[list[Place], list[float]]] = []
    for place in order:
        group, ends = [place], [wanted[place] - width[place] / 2]
        while groups and mean(groups[-1][1]) + _length(groups[-1][0], width) > mean(ends):
            before, before_ends = groups.pop()
            shift = _length(before, width)
            group, ends = before + group, before_ends + [end - shift for end in ends]
        groups.append((group, ends))
    at = {}
    for group, ends in groups:
        x = mean(ends)
        for place in group:
            at[place] = x + width[place] / 2
            x += width[place] + GAP
    return at


def _length(group: list[Place], width: Mapping[Place, int]) -> float:
    return sum(width[place] + GAP for place in group)


def drawn(arrows: Arrows, levels: Levels, names: Mapping[str, str], title: str) -> str:
    """The picture as SVG; ``names`` are the words in the boxes."""
    ways = routes(direct(arrows), levels)
    at, width = placed(levels, ways)
    height = (len(levels) - 1) * FLOOR + TALL + 2 * MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}"'
        f' viewBox="0 0 {width:.0f} {height}" font-family="sans-serif" font-size="14">',
        f"<title>{escape(title)}</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8"'
        ' markerHeight="8" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 Z" fill="{LINE}"/></marker></defs>',
        f'<rect width="{width:.0f}" height="{height}" fill="{PAPER}"/>',
        *(_arrow(way, at) for way in ways),
    ]
    for row, level in enumerate(levels):
        for room in level:
            x, y = at[room, row], MARGIN + row * FLOOR
            lines.append(
                f'<rect x="{x - BOX / 2:g}" y="{y}" width="{BOX}" height="{TALL}" rx="5"'
                f' fill="{COLORS[row % len(COLORS)]}" stroke="{INK}" stroke-width="0.8"/>'
            )
            lines.append(
                f'<text x="{x:g}" y="{y + 22}" text-anchor="middle" fill="{INK}">'
                f"{escape(names[room])}</text>"
            )
    return "\n".join([*lines, "</svg>", ""])


def _arrow(way: list[Place], at: Mapping[Place, float]) -> str:
    y = MARGIN + way[0][1] * FLOOR + TALL
    line = f"M{at[way[0]]:g} {y}"
    for one, other in pairwise(way):
        x, u, v = at[one], at[other], MARGIN + other[1] * FLOOR
        if one[1] == other[1]:
            # neighbors on a floor, by a bow below it
            line += f" C{x:g} {y + 24} {u:g} {y + 24} {u:g} {y}"
            break
        line += f" C{x:g} {(y + v) / 2:g} {u:g} {(y + v) / 2:g} {u:g} {v}"
        if other != way[-1]:
            line += f" V{v + TALL}"
        y = v + TALL
    return f'<path d="{line}" fill="none" stroke="{LINE}" marker-end="url(#tip)"/>'


def pictures() -> dict[str, str]:
    """The SVG of every picture by its file name."""
    found = graph(sources())

    def names(package: str, arrows: Arrows) -> dict[str, str]:
        """Folders end in a slash, files in their suffix."""
        folders = {name.rpartition(".")[0] for name in found}
        return {r: r + ("/" if f"{package}.{r}" in folders else ".py") for r in arrows}

    house = rooms(found, "dori_fast")
    inside = names("dori_fast", house) | {"csrc": "csrc/"}
    house = {**house, "csrc": set(), "ops": house["ops"] | UNDER_OPS}
    levels = [*FLOORS[:-1], [*FLOORS[-1], "csrc"]]
    drawings = {"house.svg": drawn(house, levels, inside, "The rooms of dori_fast")}
    for room in ("models", "runs"):
        package = f"dori_fast.{room}"
        arrows = rooms(found, package)
        title = f"The rooms of {package}"
        drawings[f"{room}.svg"] = drawn(arrows, floors(arrows), names(package, arrows), title)
    return drawings


if __name__ == "__main__":
    for name, svg in pictures().items():
        path = ROOT / "docs" / name
        if "--write" in sys.argv[1:]:
            path.write_text(svg)
        same = path.is_file() and path.read_text() == svg
        print(f"docs/{name}: {'as drawn' if same else 'differs; run with --write'}")
