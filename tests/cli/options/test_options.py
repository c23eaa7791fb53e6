"""Options that commands share: every one is in --help, reaches the command, and reads alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
import typer

import dori_fast.models
from dori_fast.cli import app
from dori_fast.cli.options import FastModelOptions, ModelOptions, ModelSource, ModelWeights, command
from tests.cli.conftest import Outcome

GROUPS = {
    "scan": FastModelOptions,
    "calibrate": FastModelOptions,
    "dedup": ModelSource,
    "prune": ModelOptions,
    "attack": ModelOptions,
    "finetune": ModelWeights,
    "locality": ModelOptions,
    "report": ModelOptions,
}
# a help text starts with a noun phrase that names the thing
RIDDLES = ("Of ", "That ", "Their ", "Its ", "What ", "How ", "Where ", "Whether ")


def parameters() -> Iterator[tuple[str, Any]]:
    for name, found in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        for parameter in found.params:
            yield name, parameter


def test_every_field_of_a_group_is_an_option() -> None:
    there: dict[str, set[str]] = {}
    for name, parameter in parameters():
        there.setdefault(name, set()).add(parameter.name)
    lacking = {
        f"{name} --{field.name}"
        for name, group in GROUPS.items()
        for field in fields(group)
        if field.name not in there[name]
    }
    assert not lacking
    takes_model = {name for name, found in there.items() if {"model", "revision"} <= found}
    assert takes_model == set(GROUPS)


def test_every_help_text_names_the_thing_and_ends_in_a_full_stop() -> None:
    offenders = [
        f"{name} {parameter.name}: {parameter.help}"
        for name, parameter in parameters()
        if not parameter.hidden
        and (
            not parameter.help
            or parameter.help.startswith(RIDDLES)
            or not parameter.help.rstrip("]").endswith((".", "0.428", "gaussian", "memorized"))
        )
    ]
    assert not offenders, "\n".join(offenders)


def test_a_group_loads_with_the_given_options(monkeypatch: Any) -> None:
    seen: list[Any] = []

    def load(model: str, **how: Any) -> Any:
        seen.append((model, how))
        return SimpleNamespace(reading=())

    monkeypatch.setattr(dori_fast.models, "load", load)
    given = ModelOptions("somewhere", variant="fp16", unet_weights=Path("w"), dtype="fp32")
    given.load(batch_size=3)
    assert seen == [
        (
            "somewhere",
            {
                "revision": None,
                "variant": "fp16",
                "unet_weights": Path("w"),
                "device": "auto",
                "dtype": "fp32",
                "batch_size": 3,
            },
        )
    ]


@pytest.fixture
def called(monkeypatch: Any, capsys: Any) -> Any:
    """Run a command of two options, one of which has an old name."""
    seen: list[tuple[int, str]] = []

    @command(renamed={"images": "pictures"})
    def draw(source: ModelSource, images: Annotated[int, typer.Option(min=1)] = 4) -> None:
        """Draw images."""
        seen.append((images, source.model))

    program = typer.Typer()
    program.command()(draw)

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["draw", *arguments])
        with pytest.raises(SystemExit) as ended:
            program()
        captured = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), captured.out, captured.err)

    return run, seen


def test_an_old_name_sets_the_new_option_and_warns(called: Any) -> None:
    run, seen = called
    assert run("--pictures", "2", "--model", "x").err == (
        "warning: --pictures is now --images; the old name goes with the next version\n"
    )
    assert run("--images", "3").err == run().err == ""
    assert seen == [(2, "x"), (3, "demo"), (4, "demo")]
    text = run("--help").out
    assert "--images" in text and "--pictures" not in text


@pytest.mark.parametrize("option", ["--images", "--pictures"])
def test_an_old_name_has_the_bounds_of_the_new_option(called: Any, option: str) -> None:
    run, seen = called
    ended = run(option, "0")
    assert ended.code == 2 and option in ended.err and not seen


def test_help_needs_no_rich() -> None:
    code = (
        "import sys; sys.modules['rich'] = None; sys.argv = ['dori-fast', 'scan', '--help'];"
        "from dori_fast.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--shard-size" in done.stdout, done.stderr
