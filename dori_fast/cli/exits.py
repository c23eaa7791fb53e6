"""Exit codes and one-line messages for exceptions."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from dori_fast._text import harmless
from dori_fast.cli.terminal import replace_closed_streams

if TYPE_CHECKING:
    from dori_fast.runs.methods.row_runs import RowRunResult
    from dori_fast.runs.result import ScanResult

INTERNAL, USAGE, OVER_BUDGET, INTEGRITY, RESUMABLE = 1, 2, 3, 4, 75

Debug = Annotated[bool, typer.Option("--debug", help="Traceback of an error.")]


def print_error(message: str) -> None:
    """Print ``error: <what>; <what to do>`` on stderr, in one line."""
    _print_line(f"error: {message}")


def print_warning(message: str) -> None:
    """Print ``warning: <what>; <what to do>`` on stderr, in one line."""
    _print_line(f"warning: {message}")


def print_note(message: str) -> None:
    """Print ``note: <what>`` on stderr, in one line."""
    _print_line(f"note: {message}")


def _print_line(text: str) -> None:
    if sys.stderr is None:
        # print would take stdout instead
        return
    # stderr may be closed or full; the exit code remains
    with suppress(OSError):
        print(harmless(" ".join(text.split())), file=sys.stderr)


def end_over_budget(run: RowRunResult | ScanResult) -> None:
    """Print the failures of a run over its budget and exit with its code; else do nothing."""
    from dori_fast.runs.budget import failures_of

    if run.state == "over_budget":
        print_error(failures_of(run))
        raise typer.Exit(OVER_BUDGET)


@contextmanager
def reported(debug: bool) -> Iterator[None]:
    """Turn an exception into its message and exit code."""
    replace_closed_streams()
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, typer.Exit):
            raise
        if debug:
            traceback.print_exception(error)
        code, message = _explain(error)
        print_error(message)
        raise typer.Exit(code) from error


def _explain(error: BaseException) -> tuple[int, str]:
    from dori_fast.errors import IntegrityError, UnavailableError, UsageError
    from dori_fast.runs.errors import OverBudgetError, StorageError, WorkerError

    if isinstance(error, KeyboardInterrupt):
        by = f" by {error}" if str(error) else ""
        return RESUMABLE, f"interrupted{by}; run the same command again to continue"
    if isinstance(error, StorageError | UnavailableError):
        return RESUMABLE, str(error)
    if isinstance(error, OverBudgetError):
        return OVER_BUDGET, str(error)
    if isinstance(error, UsageError):
        return USAGE, str(error)
    if isinstance(error, IntegrityError):
        return INTEGRITY, str(error)
    if isinstance(error, WorkerError):
        return INTERNAL, str(error)
    if isinstance(error, MemoryError | RuntimeError):
        from dori_fast.models.engine.memory import out_of_memory

        if out_of_memory(error):
            return RESUMABLE, (
                "out of memory, even one sample at a time; free memory or use a smaller --dtype,"
                " then run the same command again to continue"
            )
    what = f"{type(error).__name__}: {error}"
    return INTERNAL, f"internal: {what}; run again with --debug and report the traceback"
