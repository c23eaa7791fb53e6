"""An empty path, such as an unset variable of the shell, is never the current folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import dori_fast as df
from dori_fast.errors import UsageError


def test_no_command_takes_an_empty_path_for_the_current_folder(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.txt").write_text("a key\n")
    monkeypatch.chdir(tmp_path)
    for words in (
        ("scan", "", "--out", "run"),
        ("scan", "p.txt", "--out", ""),
        ("calibrate", "p.txt", "--out", ""),
        ("attack", "--prompts", "", "--images", "demo", "--out", "run"),
        ("prune", "--prompts", "p.txt", "--statistics", "", "--out", "run"),
        ("verify", ""),
        ("status", ""),
        ("report", ""),
    ):
        done = cli(*words)
        assert done.code == 2 and "the path is empty" in done.err, (words, done.err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.txt"]


def test_an_empty_text_is_no_path_of_prompts(tmp_path: Path, tiny_directory: Path) -> None:
    with pytest.raises(UsageError, match="prompts='': no such file or folder"):
        df.scan(lambda: df.load(tiny_directory), "", out=tmp_path / "run")
