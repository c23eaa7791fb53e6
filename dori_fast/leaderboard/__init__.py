"""Mitigations compared under attacks at several budgets, with controls and the quality kept.

from dori_fast.leaderboard import run

board = run("runs/leaderboard")
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dori_fast.demo.story.stages import same_or_new
from dori_fast.errors import UsageError
from dori_fast.evaluate import SmallImages
from dori_fast.leaderboard.cells import Cells
from dori_fast.leaderboard.foreign import read_rows
from dori_fast.leaderboard.mitigations import (
    Mitigation,
    View,
    check_name,
    fixed,
    get,
    in_turn,
    names,
)
from dori_fast.leaderboard.settings import Settings
from dori_fast.leaderboard.table import SCHEMA, Row, document, markdown, row
from dori_fast.models import Denoiser, load
from dori_fast.report.figures.charts import mitigation_curves
from dori_fast.runs.store.durable import write_durably
from dori_fast.runs.store.record import model_identity

__all__ = [
    "FINETUNED",
    "SCHEMA",
    "Mitigation",
    "Settings",
    "View",
    "check_name",
    "fixed",
    "get",
    "in_turn",
    "names",
    "run",
]

FINETUNED = "finetuned"


def run(
    out: str | Path,
    mitigations: Mapping[str, Mitigation] | None = None,
    *,
    settings: Settings | None = None,
    add: Sequence[str | Path] = (),
    model: Denoiser | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Row:
    """Compute missing cells, and write ``leaderboard.json``, ``.md`` and ``.png``.

    A cell in the folder is not computed again, and a mitigation without missing cells is not run.
    Later calls may add mitigations.

    Args:
        out: Folder of all results; created if missing.
        mitigations: Mitigations by name; default: all known ones.
        settings: Size of the leaderboard; default: ``Settings()``.
        add: ``leaderboard.json`` files of other people, whose rows are added.
        model: The embedded model, if it is loaded already.
        say: Called with one line as each computation starts.

    Returns:
        Content of ``leaderboard.json``.

    Raises:
        UsageError: a mitigation or an added file is invalid.
        IntegrityError: the folder holds damaged cells, or cells of other settings or models.
    """
    if isinstance(add, str | Path):
        raise UsageError(f"leaderboard: add must be a list of files, got {add!r}; use a list")
    out, settings = Path(out), settings or Settings()
    if mitigations is None:
        mitigations = {name: get(name) for name in names()}
    if not isinstance(mitigations, Mapping):
        kind = type(mitigations).__name__
        raise UsageError(f"leaderboard: mitigations must be a dict of functions, got a {kind}")
    for name in mitigations:
        check_name(name)
    if not mitigations:
        raise UsageError("leaderboard: no mitigations")
    model = load("demo", batch_size=settings.batch_size) if model is None else model
    setting, identity = settings.config(), model_identity(model.config())
    # first: bad rows must not be refused after hours of work
    foreign: list[Row] = []
    for path in add:
        taken = {*mitigations, *(there["mitigation"] for there in foreign)}
        ours = {"setting": setting, "model": identity}
        foreign += read_rows(Path(path), ours, settings, taken)
    out.mkdir(parents=True, exist_ok=True)
    same_or_new(out / "setting.json", {"setting": setting, "model": identity})
    rows, threshold = [], SmallImages().threshold
    for name, mitigation in mitigations.items():
        cells = Cells(out / "cells" / name, name, mitigation, model, settings, say)
        if name == FINETUNED:
            # loading is cheap, and cells of another fine-tuned model must not count as this one's
            _ = cells.view
        rows.append(row(name, cells.all(), settings, threshold))
    board = document([*rows, *foreign], setting, identity)
    _write(out / "leaderboard.json", (json.dumps(board, indent=1) + "\n").encode())
    _write(out / "leaderboard.md", markdown(board).encode())
    _write(out / "leaderboard.png", mitigation_curves(board["rows"]))
    return board


def _write(path: Path, content: bytes) -> None:
    write_durably(path, lambda file: file.write_bytes(content))
