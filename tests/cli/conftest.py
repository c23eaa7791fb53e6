from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dori_fast.cli import main


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def tiny(tiny_directory: Path) -> str:
    return str(tiny_directory)


@pytest.fixture
def cli(capsys: Any, monkeypatch: Any) -> Callable[..., Outcome]:
    """The command line in this process."""

    def run(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["dori-fast", *map(str, arguments)])
        with pytest.raises(SystemExit) as info:
            main()
        captured = capsys.readouterr()
        return Outcome(int(info.value.code or 0), captured.out, captured.err)

    return run
