"""Figures that a run wrote, for its page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dori_fast.errors import IntegrityError
from dori_fast.report.pages.page import Html, figure, section


def written(root: Path, names: Mapping[str, str]) -> list[Html]:
    """A section for each of these PNG files that is there.

    Args:
        root: where they are.
        names: titles by file name.

    Raises:
        IntegrityError: one is no PNG.
    """
    parts = []
    for name, title in names.items():
        path = root / name
        if path.is_file():
            try:
                parts.append(section(title, figure(path.read_bytes(), title)))
            except ValueError as error:
                raise IntegrityError(
                    f"{path}: {error} — run the command that wrote it again"
                ) from error
    return parts
