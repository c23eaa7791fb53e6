"""The result of verify: findings, and the checks that were made or skipped."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


class Finding(NamedTuple):
    """One fault: its place, its description, and the next step."""

    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy}"


@dataclass
class Verification:
    """The result of all checks.

    Attributes:
        run: run directory.
        checked: one line for each kind of check that was made.
        skipped: one line for each check that could not be made, or was not requested.
        findings: faults; empty if there are none.
        merkle_root: root of the manifest, hexadecimal; None without a manifest.
        rescored: number of rows that were scored again.
    """

    run: Path
    checked: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    merkle_root: str | None = None
    rescored: int = 0
