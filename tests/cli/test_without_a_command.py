"""What a newcomer types first: no command, --version, python -m, completion, a wrong variable."""

from __future__ import annotations

import os
import subprocess
import sys

import dori_fast


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dori_fast", *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


def test_without_arguments_the_help_is_printed() -> None:
    done, asked = run(), run("--help")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == asked.stdout
    assert len(done.stdout.splitlines()) > 20


def test_the_version_is_printed() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"dori-fast {dori_fast.__version__}\n")


def test_an_unknown_command_is_one_line_with_a_suggestion() -> None:
    done = run("scna")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "Did you mean 'scan'?" in done.stderr


def test_commands_are_completed() -> None:
    asked = {
        "_DORI_FAST_COMPLETE": "complete_bash",
        "COMP_WORDS": "dori-fast ca",
        "COMP_CWORD": "1",
    }
    assert run(**asked).stdout.split() == ["calibrate"]


def test_a_backend_that_does_not_exist_is_named_with_its_variable() -> None:
    done = run("doctor", DORI_BACKEND="foo")
    assert done.returncode == 2
    assert done.stderr.startswith("error: DORI_BACKEND must be one of auto, ")
    assert "got 'foo'; unset it" in done.stderr
