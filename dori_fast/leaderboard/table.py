"""The leaderboard as a document and as a Markdown table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dori_fast
from dori_fast.evaluate import clopper_pearson
from dori_fast.leaderboard.cells import QUALITY, Cell
from dori_fast.leaderboard.settings import ATTACKS, SETS, Settings

SCHEMA = "dori_fast/mitigations/1"
Row = dict[str, Any]

_NOTES = """\
Share of images that are copies, in %, with its exact 95 % interval, as if all images were
independent; after so many attack steps, 0 being the start. Controls are pictures that the model
never saw, attacked on the same models: what comes back there was injected, not remembered. The
attack hands its embedding to the model, past whatever a mitigation does to prompts.

Rows are ordered by what comes back most beyond the controls at one attack and budget (excess). It
is the largest of several differences, so chance makes it larger; and a model that draws nothing has
none. So read it beside the quality, on held-out pairs against the unmitigated model: similarity of
pictures of one seed (1 is the same), squared kernel distance of all pictures (0 is none) and change
of the held-out loss.
"""


def row(name: str, cells: Mapping[str, Cell], settings: Settings, threshold: float) -> Row:
    """A mitigation's row.

    Args:
        name: the mitigation's.
        cells: similarities [P, S] by ``<attack> <set>`` and budget, and the quality.
        settings: of the leaderboard.
        threshold: above it a picture counts as a copy.
    """
    attacks: dict[str, Any] = {}
    for attack in ATTACKS:
        for which in SETS:
            found = cells[f"{attack} {which}"]
            points = {}
            for budget in settings.budgets:
                copies = found[f"similarity {budget}"] > threshold
                points[str(budget)] = {
                    "images": rate(int(copies.sum()), copies.size),
                    "pictures": rate(int(copies.any(1).sum()), len(copies)),
                }
            attacks.setdefault(attack, {})[which] = points
    return {
        "mitigation": name,
        "attacks": attacks,
        "excess": excess(attacks),
        "quality": json.loads(str(cells[QUALITY]["json"])),
    }


def rate(hits: int, trials: int) -> list[float]:
    """[value, low, high], exact at 95 %."""
    found = clopper_pearson(hits, trials)
    return [found.value, found.low, found.high]


def excess(attacks: Mapping[str, Any]) -> float:
    """The most that memorized pictures come back beyond controls, at one attack and budget."""
    return max(
        points["images"][0] - sets["control"][budget]["images"][0]
        for sets in attacks.values()
        for budget, points in sets["memorized"].items()
    )


def document(rows: Iterable[Row], setting: Mapping[str, Any], model: Mapping[str, Any]) -> Row:
    """The whole leaderboard as plain JSON, best row first; equal ones in the order given."""
    return {
        "schema": SCHEMA,
        "made_by": {"dori_fast": dori_fast.__version__},
        "setting": dict(setting),
        "model": dict(model),
        "rows": sorted(rows, key=lambda row: row["excess"]),
    }


def markdown(board: Mapping[str, Any]) -> str:
    """One table and how to read it."""
    budgets = board["setting"]["budgets"]
    header = ["mitigation", "excess", "start", "pictures", *map(str, budgets)]
    header += ["same seed", "kernel distance", "loss change"]
    aligned = ["---"] * 4 + ["---:"] * (len(header) - 4)
    lines = [header, aligned, *(line for row in board["rows"] for line in _lines(row, budgets))]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"# Mitigations on the embedded model\n\n{table}\n\n{_NOTES}"


def _lines(row: Row, budgets: Sequence[int]) -> list[list[str]]:
    name = row["mitigation"] + (f" ({row['added_from']})" if "added_from" in row else "")
    kept = row["quality"]
    first = [name, f"{100 * row['excess']:.0f}"]
    last = [
        _interval(kept["same_seed_similarity"], "{:.2f}"),
        f"{kept['distance']['value']:.4f}",
        _interval(kept["held_out_loss"]["change"], "{:+.4f}"),
    ]
    lines = []
    for attack, sets in row["attacks"].items():
        for which, points in sets.items():
            cells = [_percent(points[str(budget)]["images"]) for budget in budgets]
            lines.append([*first, attack, which, *cells, *last])
            # said once for each mitigation
            first, last = ["", ""], ["", "", ""]
    return lines


def _percent(rate: Sequence[float]) -> str:
    return _interval([100 * x for x in rate], "{:.0f}")


def _interval(values: Sequence[float], form: str) -> str:
    value, low, high = map(form.format, values)
    return f"{value} [{low}, {high}]"
