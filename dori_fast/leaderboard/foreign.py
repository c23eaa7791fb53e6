"""Rows of other people's leaderboards, checked before they join our own."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError, create_model

from dori_fast.errors import UsageError
from dori_fast.leaderboard.mitigations import check_name
from dori_fast.leaderboard.settings import ATTACKS, SETS, Settings
from dori_fast.leaderboard.table import SCHEMA, Row, excess, rate
from dori_fast.runs.store.record import differences

# largest difference between intervals of two versions of SciPy
_ROUNDING = 1e-6
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


def _ascending(found: tuple[float, float, float]) -> tuple[float, float, float]:
    value, low, high = found
    if not low - _ROUNDING <= value <= high + _ROUNDING:
        raise ValueError("must be [value, low, high] with the value between the ends")
    return found


Interval = Annotated[tuple[Number, Number, Number], AfterValidator(_ascending)]


class _Loss(BaseModel):
    change: Interval


class _Distance(BaseModel):
    value: Number


class _Quality(BaseModel):
    same_seed_similarity: Interval
    held_out_loss: _Loss
    distance: _Distance


def read_rows(
    path: Path, board: Mapping[str, Any], settings: Settings, taken: Collection[str]
) -> list[Row]:
    """The rows of a ``leaderboard.json``.

    Args:
        path: The file.
        board: Setting and model of our own leaderboard, which the rows must share.
        settings: Size of our own leaderboard.
        taken: Names of mitigations that the leaderboard already has.

    Raises:
        UsageError: the file cannot be read or has another schema, setting or model; or a row lacks
            a field, has a rate without its exact interval, or has a taken name.
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
    model, names = _row_model(settings), set(taken)
    for number, row in enumerate(rows):
        where = f"{path}: row {number}"
        try:
            model.model_validate(row)
        except ValidationError as error:
            raise UsageError(f"{where}: {_first(error)}") from error
        check_name(row["mitigation"])
        if row["mitigation"] in names:
            raise UsageError(
                f"{where}: there is a {row['mitigation']!r} already; rename the row, or remove it"
                " from the file"
            )
        names.add(row["mitigation"])
    return [_ours(row, path.name) for row in rows]


def _row_model(settings: Settings) -> Any:
    """A row of a leaderboard of this size: its budgets, and its numbers of images."""

    def points(which: str) -> Any:
        images = settings.drawn(which)
        rates = _closed(images=_share(images), pictures=_share(images // settings.seeds))
        return _closed(**{str(budget): rates for budget in settings.budgets})

    sets = _closed(**{which: points(which) for which in SETS})
    attacks = _closed(**dict.fromkeys(ATTACKS, sets))
    fields: dict[str, Any] = {"mitigation": str, "attacks": attacks, "quality": _Quality}
    return _required("Row", "ignore", fields)


def _closed(**fields: Any) -> Any:
    """A model with these required fields and no others."""
    return _required("Closed", "forbid", fields)


def _required(name: str, extra: Literal["ignore", "forbid"], fields: dict[str, Any]) -> Any:
    required: dict[str, Any] = {field: (kind, ...) for field, kind in fields.items()}
    return create_model(name, __config__={"extra": extra}, **required)


def _share(trials: int) -> Any:
    """The type of shares of so many trials, with their exact intervals."""

    def exact(found: tuple[float, float, float]) -> tuple[float, float, float]:
        hits = round(found[0] * trials)
        if not 0 <= hits <= trials or any(
            abs(a - b) > _ROUNDING for a, b in zip(found, rate(hits, trials), strict=True)
        ):
            raise ValueError(f"must be a share of {trials} with its exact 95 % interval")
        return found

    return Annotated[Interval, AfterValidator(exact)]


def _first(error: ValidationError) -> str:
    """Place, rule and value of the first error."""
    first = error.errors()[0]
    place = "".join(f"{part}: " for part in first["loc"])
    rule = first["msg"].removeprefix("Value error, ")
    # the value of a missing field would be its whole parent
    return f"{place}{rule}" + ("" if first["type"] == "missing" else f", got {first['input']!r}")


def _ours(row: Row, source: str) -> Row:
    """The fields of a row that tables show, with the row's origin."""
    kept = {name: row[name] for name in ("mitigation", "attacks", "quality")}
    return {**kept, "excess": excess(row["attacks"]), "added_from": source}
