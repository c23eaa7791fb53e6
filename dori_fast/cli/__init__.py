"""The command line: parse arguments, call the library, print results."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from dori_fast._version import __version__
from dori_fast.cli.commands.attack import attack
from dori_fast.cli.commands.bench import bench
from dori_fast.cli.commands.benchmark_mitigations import benchmark_mitigations
from dori_fast.cli.commands.calibrate import calibrate
from dori_fast.cli.commands.dedup import dedup, join
from dori_fast.cli.commands.demo import demo
from dori_fast.cli.commands.doctor import doctor
from dori_fast.cli.commands.finetune import finetune
from dori_fast.cli.commands.listing import ls
from dori_fast.cli.commands.locality import locality
from dori_fast.cli.commands.prune import prune
from dori_fast.cli.commands.results.export import export
from dori_fast.cli.commands.results.flag import flag
from dori_fast.cli.commands.results.report import report
from dori_fast.cli.commands.results.status import status
from dori_fast.cli.commands.results.verify import verify
from dori_fast.cli.commands.scan import scan
from dori_fast.cli.exits import USAGE, print_error
from dori_fast.cli.terminal import print_result

__all__ = ["app", "main"]

app = typer.Typer(
    name="dori-fast",
    help="Find training images that a text-to-image model has memorized.",
    invoke_without_command=True,
    # plain text: help and errors may quote data
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print_result(f"dori-fast {__version__}")
        raise typer.Exit


@app.callback()
def _without_command(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Version."),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print_result(context.get_help())


app.command()(scan)
app.command()(calibrate)
app.command()(dedup)
app.command()(join)
app.command()(prune)
app.command()(attack)
app.command()(finetune)
app.command()(locality)
app.command()(flag)
app.command()(report)
app.command()(export)
app.command()(status)
app.command()(verify)
app.command()(demo)
app.command("benchmark-mitigations")(benchmark_mitigations)
app.command()(bench)
app.command()(doctor)
app.command()(ls)


def main() -> None:
    """Run the command line and exit with its code."""
    command = typer.main.get_command(app)
    try:
        code = command.main(prog_name="dori-fast", standalone_mode=False)
    except Exception as error:
        # typer's own usage errors; their class depends on its version
        if not hasattr(error, "format_message"):
            raise
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "dori-fast"
        print_error(f"{error.format_message().rstrip('.')}; see {path} --help")
        code = USAGE
    sys.exit(code)
