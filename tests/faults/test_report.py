"""A report that cannot be drawn harms no result."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from dori_fast import report
from dori_fast.cli import main
from dori_fast.runs.store import durable
from tests.report.pages.test_page import Reader
from tests.runs.inputs import NASTY
from tests.runs.scanning import Spelling, scanned


def command(monkeypatch: Any, out: Path) -> int:
    monkeypatch.setattr(sys, "argv", ["dori-fast", "report", str(out)])
    with pytest.raises(SystemExit) as info:
        main()
    return int(info.value.code or 0)


def contents(out: Path) -> dict[str, bytes]:
    # the manifest lists the page as well
    page = ("report.html", "manifest.json")
    files = [path for path in out.rglob("*") if path.is_file() and path.name not in page]
    return {str(path): path.read_bytes() for path in files}


def test_a_report_that_fails_can_be_drawn_again(
    model: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    out = tmp_path / "run"
    scanned(model, NASTY, out, detector=Spelling())
    before = contents(out)

    def broken(*_: Any, **__: Any) -> str:
        raise KeyError("the template lacks a name")

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(report, "scan_page", broken)
        assert command(monkeypatch, out) == 1
    with monkeypatch.context() as patch:
        patch.setattr(durable, "sync_file", full)
        assert command(monkeypatch, out) == 75
    assert contents(out) == before and not (out / "report.html").exists()
    assert command(monkeypatch, out) == 0
    assert contents(out) == before
    shown = Reader((out / "report.html").read_text())
    assert "script" not in shown.tags and "</script><img onerror=1> {{7*7}}" in shown.text
