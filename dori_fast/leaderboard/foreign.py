"""Rows of somebody else's leaderboard: checked before they stand beside our own."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dori_fast.errors import UsageError
from dori_fast.leaderboard.mitigations import check_name
from dori_fast.leaderboard.settings import ATTACKS, SETS, Settings
from dori_fast.leaderboard.table import SCHEMA, Row, excess, rate
from dori_fast.runs.store.record import differences

# as far as intervals of two versions of SciPy may lie apart
_ROUNDING = 1e-6


def read_rows(
    path: Path, board: Mapping[str, Any], settings: Settings, taken: Collection[str]
) -> list[Row]:
    """The rows of a ``leaderboard.json``.

    Args:
        path: the file.
        board: our own leaderboard, whose setting and model the rows must be of.
        settings: what that setting says.
        taken: names of mitigations that there are already.

    Raises:
        UsageError: the file cannot be read, is of another schema, setting or model, or a row lacks
            something, is no exact interval of so many images, or is there already.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise UsageError(f"{path}: not a leaderboard of schema {SCHEMA}")
    for part in ("setting", "model"):
        ours = json.loads(json.dumps(board[part]))
        theirs = found.get(part)
        if not isinstance(theirs, dict) or theirs != ours:
            what = differences(theirs, ours) if isinstance(theirs, dict) else "it has none"
            raise UsageError(f"{path}: its {part} is another, rows cannot be compared ({what})")
    rows = found.get("rows")
    if not isinstance(rows, list) or not rows:
        raise UsageError(f"{path}: no rows")
    names = set(taken)
    for number, row in enumerate(rows):
        _check(f"{path}: row {number}", row, settings)
        if row["mitigation"] in names:
            raise UsageError(
                f"{path}: row {number}: there is a {row['mitigation']!r} already — rename the row,"
                " or take it out of the file"
            )
        names.add(row["mitigation"])
    return [_ours(row, path.name) for row in rows]


def _ours(row: Row, source: str) -> Row:
    """What tables use of a row, with where it came from."""
    kept = {name: row[name] for name in ("mitigation", "attacks", "quality")}
    return {**kept, "excess": excess(row["attacks"]), "added_from": source}


def _check(where: str, row: Any, settings: Settings) -> None:
    if not isinstance(row, dict):
        raise UsageError(f"{where}: no object")
    check_name(row.get("mitigation"))
    attacks = _keys(f"{where}: attacks", row.get("attacks"), ATTACKS)
    for attack, sets in attacks.items():
        for which, points in _keys(f"{where}: {attack}", sets, SETS).items():
            at = f"{where}: {attack}: {which}"
            for budget, rates in _keys(at, points, map(str, settings.budgets)).items():
                images = settings.drawn(which)
                trials = {"images": images, "pictures": images // settings.seeds}
                for name, value in _keys(f"{at}: {budget}", rates, trials).items():
                    _check_rate(f"{at}: {budget}: {name}", value, trials[name])
    kept = row.get("quality")
    wanted = ("same_seed_similarity", "held_out_loss", "distance")
    if not isinstance(kept, dict) or not all(name in kept for name in wanted):
        raise UsageError(f"{where}: quality must have {', '.join(wanted)}")
    losses, distance = kept["held_out_loss"], kept["distance"]
    _numbers(f"{where}: same_seed_similarity", kept["same_seed_similarity"])
    _numbers(f"{where}: held_out_loss", losses.get("change") if isinstance(losses, dict) else None)
    value = distance.get("value") if isinstance(distance, dict) else None
    _numbers(f"{where}: distance", [value] * 3)


def _keys(where: str, found: Any, wanted: Any) -> dict[str, Any]:
    names = list(wanted)
    if not isinstance(found, dict) or set(found) != set(names):
        raise UsageError(f"{where}: must have {', '.join(names)}, and nothing else")
    return {name: found[name] for name in names}


def _numbers(where: str, found: Any) -> list[float]:
    """[value, low, high], finite and ascending around the value."""
    fits = isinstance(found, list) and len(found) == 3
    fits = fits and all(type(x) in (int, float) and math.isfinite(x) for x in found)
    if not fits or not found[1] - _ROUNDING <= found[0] <= found[2] + _ROUNDING:
        raise UsageError(f"{where}: must be [value, low, high], got {found!r}")
    return [float(x) for x in found]


def _check_rate(where: str, found: Any, trials: int) -> None:
    value = _numbers(where, found)
    hits = round(value[0] * trials)
    if not 0 <= hits <= trials or any(
        abs(a - b) > _ROUNDING for a, b in zip(value, rate(hits, trials), strict=True)
    ):
        raise UsageError(f"{where}: {found!r} is no share of {trials} with its exact 95 % interval")
